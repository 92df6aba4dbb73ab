"""Each refusal by name."""

from __future__ import annotations

from typing import Any

import pytest

from common.blueprint import Blueprint, ParameterSpec
from common.errors import ProtocolError, UpdateRejected
from common.messages import PROTOCOL_VERSION, TaskContribution, TensorHeader, UpdateHeader
from common.plan import SharingPlan
from server.admission import agree_on_encoding, agree_on_protocol, assign_tasks, check_update

TASKS = frozenset({"sst2", "qqp"})


def _head(task: str) -> ParameterSpec:
    return ParameterSpec(f"head.{task}", (3,), "float32", frozenset({task}), frozenset({task}), "head")


PLAN = SharingPlan.shared(
    Blueprint(
        "f",
        ("sst2", "qqp"),
        (
            ParameterSpec("body", (4, 2), "float32", TASKS, TASKS, "body"),
            ParameterSpec("fixed", (2,), "float32", TASKS, frozenset(), "body"),
            _head("sst2"),
            _head("qqp"),
        ),
    )
)


def tensor(slot: str, shape: tuple[int, ...], dtype: str = "float32") -> TensorHeader:
    size = {"float32": 4, "float64": 8}[dtype]
    for length in shape:
        size *= length
    return TensorHeader.model_validate({"slot": slot, "dtype": dtype, "shape": shape, "nbytes": size, "checksum": 1})


BODY, HEAD = tensor("body@qqp+sst2", (4, 2)), tensor("head.sst2@sst2", (3,))


def header(**changes: Any) -> UpdateHeader:  # noqa: ANN401  # any field
    fields: dict[str, Any] = {
        "run_id": "run",
        "round": 3,
        "version": 2,
        "plan": PLAN.digest,
        "stream": 1,
        "tasks": {"sst2": contribution(5)},
        "tensors": (BODY, HEAD),
    }
    return UpdateHeader(**fields | changes)


def contribution(examples: int) -> TaskContribution:
    return TaskContribution(num_examples=examples, num_steps=1, loss=0.0, seconds=0.0)


def check(update: UpdateHeader, *, full: bool = False) -> None:
    slice_ = PLAN.slice(TASKS if full else {"sst2"})
    check_update(update, run_id="run", plan=PLAN, slice_=slice_, tasks=frozenset({"sst2"}), full=full)


def test_an_update_that_fits_is_let_in() -> None:
    check(header())
    check(header(tensors=(BODY,)))
    check(header(tensors=(BODY, tensor("head.qqp@qqp", (3,)), HEAD)), full=True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run_id": "another"}, "stale_round"),
        ({"plan": "abcd"}, "plan_mismatch"),
        ({"version": 1}, "stale_version"),
        ({"version": 3}, "stale_version"),
        ({"tasks": {"sst2": contribution(5), "qqp": contribution(5)}}, "task_not_allowed"),
        ({"tasks": {"sst2": contribution(0)}}, "malformed"),
        ({"tasks": {}}, "malformed"),
        ({"tensors": (tensor("body@sst2", (4, 2)),)}, "unknown_slot"),
        ({"tensors": (tensor("head.qqp@qqp", (3,)),)}, "task_not_allowed"),
        ({"tensors": (tensor("fixed@qqp+sst2", (2,)),)}, "task_not_allowed"),
        ({"tensors": (tensor("body@qqp+sst2", (2, 4)),)}, "wrong_shape"),
        ({"tensors": (tensor("body@qqp+sst2", (4, 2), "float64"),)}, "wrong_dtype"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(UpdateRejected) as raised:
        check(header(**changes))
    assert raised.value.code == code


@pytest.mark.parametrize("full", [False, True])
def test_what_is_frozen_takes_no_delta(full: bool) -> None:
    with pytest.raises(UpdateRejected, match="nobody may train") as raised:
        check(header(tensors=(BODY, tensor("fixed@qqp+sst2", (2,)), HEAD)), full=full)
    assert raised.value.code == "task_not_allowed"


@pytest.mark.parametrize("field", [{"held": True}, {}], ids=["held", "twice"])
def test_a_slot_without_its_elements_or_twice_is_refused(field: dict[str, bool]) -> None:
    odd = BODY.model_copy(update=field)
    update = header().model_copy(update={"tensors": (odd,) if field else (BODY, odd)})
    with pytest.raises(UpdateRejected) as raised:
        check(update)
    assert raised.value.code == "malformed"


def test_full_synchronisation_does_not_open_other_tasks() -> None:
    with pytest.raises(UpdateRejected) as raised:
        check(header(tasks={"qqp": contribution(5)}), full=True)
    assert raised.value.code == "task_not_allowed"


def test_protocol_versions() -> None:
    assert agree_on_protocol((PROTOCOL_VERSION + 1, PROTOCOL_VERSION)) == PROTOCOL_VERSION
    with pytest.raises(ProtocolError, match=r"version 1, the client offers \[2\]") as raised:
        agree_on_protocol((2,))
    assert raised.value.code == "protocol_version"


def test_encodings() -> None:
    assert agree_on_encoding(("zip", "raw"), "encodings_up") == "raw"
    with pytest.raises(ProtocolError, match=r"encodings_up.*\['zip'\]") as raised:
        agree_on_encoding(("zip",), "encodings_up")
    assert raised.value.code == "encoding"


@pytest.mark.parametrize(
    ("client_id", "requested", "tasks"),
    [
        ("anybody", ("qqp",), {"qqp"}),
        ("anybody", ("qqp", "sst2", "qqp"), {"qqp", "sst2"}),
        ("sst2_client", (), {"sst2"}),
        ("site-7.qqp", (), {"qqp"}),
        ("sst2_client", ("qqp",), {"qqp"}),
    ],
)
def test_tasks_are_named_or_found_in_the_client_id(client_id: str, requested: tuple[str, ...], tasks: set[str]) -> None:
    assert assign_tasks(client_id, requested, TASKS) == tasks


@pytest.mark.parametrize(
    ("client_id", "requested", "words"),
    [
        ("c", ("mnli", "qqp"), "no task mnli; this run has: qqp, sst2"),
        ("hospital", (), "no task name is a part of the client id 'hospital'"),
        ("qqp_and_sst2", (), "qqp, sst2 all are part"),
    ],
)
def test_tasks_that_are_not_clear_are_refused(client_id: str, requested: tuple[str, ...], words: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        assign_tasks(client_id, requested, TASKS)
    assert raised.value.code == "unknown_task"
    assert words in raised.value.reason
    assert "qqp, sst2" in raised.value.reason
