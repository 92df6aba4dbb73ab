"""A report that can't be is refused, by task and gate."""

from __future__ import annotations

from typing import Any

import pytest

from common.blueprint import Blueprint, ParameterSpec
from common.errors import UpdateRejected
from common.messages import GateReport, TaskContribution, TensorHeader, UpdateHeader
from common.plan import SharingPlan
from server.gate_checks import check_gates

BOTH = frozenset({"age", "job"})


def _spec(group: str, *tasks: str) -> ParameterSpec:
    used = frozenset(tasks) or BOTH
    return ParameterSpec(f"{group}.w", (2,), "float32", used, used, group)


PLAN = SharingPlan.shared(
    Blueprint("f", ("age", "job"), (_spec("expert.0"), _spec("expert.1"), _spec("expert.2", "job"), _spec("head")))
)
FITS: dict[str, Any] = {"experts": ("expert.0", "expert.1"), "mass": (6.0, 4.005), "entropy": 0.69}


def header(gates: dict[str, GateReport], *groups: str) -> UpdateHeader:
    done = TaskContribution(num_examples=10, num_steps=1, loss=0.0, seconds=0.0, gates=gates)
    tensors = tuple(
        TensorHeader(slot=f"{group}.w@age+job", dtype="float32", shape=(2,), nbytes=8, checksum=1) for group in groups
    )
    return UpdateHeader(
        run_id="r", round=1, version=0, plan=PLAN.digest, stream=1, tasks={"age": done}, tensors=tensors
    )


def report(**changes: Any) -> GateReport:  # noqa: ANN401  # any field, also what a message could not hold
    return GateReport.model_construct(**FITS | changes)


def test_a_report_that_fits_is_let_in() -> None:
    check_gates(header({"age": report()}, "expert.0", "expert.1", "head"), PLAN, needed=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"experts": ("expert.0", "expert.9")},
            r"'expert\.9', which is no group .* that the task uses",
        ),
        (
            {"experts": ("expert.0", "expert.2")},
            r"'expert\.2', which is no group .* that the task uses",
        ),
        ({"experts": ("expert.0", "head")}, "'head', which is no group of parameters of an expert"),
        ({"experts": (), "mass": (), "entropy": 0.0}, "weighs no expert"),
        ({"experts": ("expert.0", "expert.0")}, "lists an expert twice"),
        ({"mass": (10.0,)}, "2 experts, but the mass of 1"),
        ({"mass": (-0.1, 5.0)}, "at least 0"),
        ({"mass": (float("nan"), 5.0)}, "finite"),
        ({"mass": (float("inf"), 5.0)}, "finite"),
        ({"mass": (1e308, 1e308)}, "mass of inf is more than"),
        ({"mass": (6.0, 4.1)}, r"mass of 10\.1 is more than its 10 examples"),
        ({"entropy": -0.1}, "entropy"),
        ({"entropy": 2.5}, "entropy"),
        ({"entropy": float("nan")}, "entropy"),
    ],
)
@pytest.mark.parametrize("needed", [True, False])
def test_a_report_that_can_not_be_is_refused(changes: dict[str, Any], words: str, needed: bool) -> None:
    with pytest.raises(UpdateRejected, match=f"gate 'age' of task 'age': .*{words}") as raised:
        check_gates(header({"age": report(**changes)}), PLAN, needed=needed)
    assert raised.value.code == "malformed"


def test_an_expert_that_is_sent_has_to_be_reported_on_where_that_weighs_it() -> None:
    silent = header({}, "expert.1", "head")
    with pytest.raises(UpdateRejected, match=r"no gate of task 'age' reports on expert\.1: .*expert_weights") as raised:
        check_gates(silent, PLAN, needed=True)
    assert raised.value.code == "malformed"
    check_gates(silent, PLAN, needed=False)
    check_gates(header({}, "head"), PLAN, needed=True)
    first_only = report(experts=("expert.0",), mass=(3.0,), entropy=0.0)
    check_gates(header({"age": first_only}, "expert.0"), PLAN, needed=True)
    with pytest.raises(UpdateRejected, match=r"reports on expert\.1"):
        check_gates(header({"age": first_only}, "expert.0", "expert.1"), PLAN, needed=True)
