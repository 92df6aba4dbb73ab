"""The short part of `make fuzz`, with other inputs each time unless in CI."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.faults import fuzzing
from tests.faults.fuzzing import Outcome, fuzz

INPUTS = 8000


def test_no_input_gets_more_than_the_documented_error() -> None:
    seed = 1 if os.environ.get("CI") else secrets.randbits(32)
    outcome = fuzz(INPUTS, seed)
    assert not outcome.crashes, f"seed {seed}: {outcome.crashes[0]}"
    assert sum(outcome.inputs.values()) >= INPUTS
    # Neither is everything refused nor everything taken: the mutations reach what they are for.
    for kind in ("bodies", "messages", "streams", "assets", "plans"):
        assert 0 < outcome.taken[kind] < outcome.inputs[kind], (kind, outcome)
    assert outcome.taken["frames"] < 20  # bytes cut out and put in again


def test_the_fuzzer_reports_what_is_no_documented_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("type")

    monkeypatch.setattr(fuzzing, "decode_frame", broken)
    monkeypatch.setattr(fuzzing, "UpdateFiles", lambda _: lambda _: False)
    outcome = fuzz(100, 1, max_crashes=5)
    assert isinstance(outcome, Outcome)
    assert len(outcome.crashes) == 5
    assert "KeyError" in outcome.crashes[0]["what"]
