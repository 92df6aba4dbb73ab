from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import ValidationError

from common.messages import (
    MAX_NESTING,
    MESSAGE_TYPES,
    Declined,
    Goodbye,
    Hello,
    TaskEvaluation,
    TensorHeader,
    UpdateHeader,
    Welcome,
    Work,
    base_digest,
)

RAW = {"slot": "w@a", "dtype": "float32", "shape": [2, 3], "nbytes": 24, "checksum": 1}
ROWS = {**RAW, "encoding": "rows", "rows": 1, "nbytes": 8 + 12}


def update(**changes: object) -> UpdateHeader:
    content: dict[str, Any] = {
        "run_id": "run",
        "round": 3,
        "version": 2,
        "plan": "ab12",
        "stream": 7,
        "tasks": {"a": {"num_examples": 10, "num_steps": 2, "loss": 0.5, "seconds": 1.0}},
        "tensors": [RAW],
    }
    return UpdateHeader.model_validate(content | changes)


def test_the_digest_is_the_same_for_a_resend() -> None:
    resent = update(stream=8, tasks={"a": {"num_examples": 10, "num_steps": 2, "loss": 0.7, "seconds": 9.0}})
    assert resent.digest == update().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "other"},
        {"round": 4},
        {"version": 1},
        {"plan": "ab13"},
        {"tasks": {"a": {"num_examples": 11, "num_steps": 2, "loss": 0.5, "seconds": 1.0}}},
        {"tasks": {}},
        {"tensors": [RAW | {"checksum": 2}]},
        {"tensors": [RAW | {"slot": "w@b"}]},
        {"tensors": [ROWS]},
    ],
)
def test_the_digest_tells_different_updates_apart(changes: dict[str, Any]) -> None:
    assert update(**changes).digest != update().digest


@pytest.mark.parametrize(
    "header",
    [
        RAW | {"nbytes": 20},
        RAW | {"rows": 1},
        RAW | {"dtype": "complex64"},
        RAW | {"dtype": "float64"},
        RAW | {"shape": [-2, 3]},
        RAW | {"shape": [1] * 9},
        RAW | {"encoding": "zip"},
        RAW | {"checksum": 2**64},
        RAW | {"checksum": "1"},
        RAW | {"slot": ""},
        ROWS | {"rows": 3},
        ROWS | {"rows": None},
        ROWS | {"nbytes": 4 + 12},
        ROWS | {"shape": [6], "nbytes": 8 + 4},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TensorHeader.model_validate(header)


def test_rows_take_their_indices_padding_and_elements() -> None:
    header = TensorHeader.model_validate(ROWS)
    assert (header.index_bytes, header.row_bytes, header.nbytes) == (8, 12, 20)


def test_an_update_can_neither_hold_tensors_back_nor_bring_one_twice() -> None:
    with pytest.raises(ValidationError, match="held"):
        update(tensors=[RAW | {"held": True}])
    with pytest.raises(ValidationError, match="twice"):
        update(tensors=[RAW, RAW])


@pytest.mark.parametrize("client_id", ["", "a/b", "a b", "a\n", "x" * 65, "é", 7])
def test_a_client_id_that_could_be_a_path_is_refused(client_id: object) -> None:
    with pytest.raises(ValidationError):
        Hello.model_validate({"protocol": [1], "client_id": client_id})


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValidationError):
        update(tasks={"a": {"num_examples": 1, "num_steps": 1, "loss": float("nan"), "seconds": 0.0}})


def test_lists_are_bounded() -> None:
    with pytest.raises(ValidationError):
        Hello.model_validate({"protocol": [1], "client_id": "a", "tasks": ["t"] * 257})


def test_a_free_form_value_may_not_nest_without_end() -> None:
    deep: Any = 1
    for _ in range(MAX_NESTING + 1):
        deep = {"inner": deep}
    content = update().model_dump(exclude={"tasks", "type"}) | {"target_rounds": 9, "evaluate": True}
    Work.model_validate(content | {"slice": {"inner": 1}})
    with pytest.raises(ValidationError, match="nested"):
        Work.model_validate(content | {"slice": deep})


@pytest.mark.parametrize("value", [1.1e100, -1e308, float("inf"), float("nan")])
def test_a_report_that_no_sum_could_hold_is_refused(value: float) -> None:
    good = {"metrics": {"accuracy": 0.5}, "loss": 1e100, "examples": 2**53}
    TaskEvaluation.model_validate(good)
    for bad in (good | {"loss": value}, good | {"metrics": {"accuracy": value}}):
        with pytest.raises(ValidationError):
            TaskEvaluation.model_validate(bad)


def test_bytes_are_no_plain_data() -> None:
    content = {
        "protocol": 1, "run_id": "r", "client_id": "c", "tasks": ["a"], "seed": 1, "target_rounds": 2,
        "heartbeat_s": 1, "silence_s": 4.0, "chunk_bytes": 8, "specs": {}, "family": {},
    }  # fmt: skip
    assert Welcome.model_validate(content).heartbeat_s == 1.0
    with pytest.raises(ValidationError):
        Welcome.model_validate(content | {"family": {"weights": b"\x80"}})


def test_every_message_says_its_type_and_what_it_is() -> None:
    assert len(MESSAGE_TYPES) == 16
    for name, model in MESSAGE_TYPES.items():
        assert model.model_fields["type"].default == name
        assert model.__doc__


def test_the_base_digest_can_be_made_by_hand() -> None:
    """As docs/protocol.md describes it: slots and checksums of the headers, in their order, and nothing else."""
    headers = [
        TensorHeader.model_validate(RAW | {"slot": slot, "checksum": sum_}) for slot, sum_ in [("w@a", 1), ("b@a", 300)]
    ]
    content = bytes.fromhex("92 92 a3 774061 01 92 a3 624061 cd012c")
    assert base_digest(headers) == hashlib.sha256(content).hexdigest()[:32] == "ddb26d3e904c0beb43b7e8a3e10ec82d"
    assert base_digest(reversed(headers)) != base_digest(headers)
    held = [header.model_copy(update={"held": True}) for header in headers]
    assert base_digest(held) == base_digest(headers), "values that the client has are values nonetheless"
    assert base_digest([]) == hashlib.sha256(b"\x90").hexdigest()[:32]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("no memory", "no memory"),
        ("a\nERROR: b", "a ERROR: b"),
        ("a\r\nb\tc\x00\x1b[31m", "a  b c  [31m"),
        ("line\u2028separator\u0085next", "line separator next"),
        ("right\u202eto left", "right to left"),
        ("größer 漢字 🙂", "größer 漢字 🙂"),
    ],
)
def test_a_peers_sentence_is_one_line(said: str, kept: str) -> None:
    for message in (Goodbye(reason=said), Declined.model_validate({"round": 1, "reason": said})):
        assert message.reason == kept
        assert len(message.reason.splitlines()) == 1


def test_a_peers_sentence_is_bounded() -> None:
    Goodbye(reason="x" * 2000)
    with pytest.raises(ValidationError):
        Goodbye(reason="x" * 2001)
