"""What the books say of rounds before, to a process that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.history import History
from server.ledger import Ledger
from server.records import OpenRound


def at_once(write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401  # passed on
    write(*arguments)


def test_what_gates_did_is_told_again_after_a_restart(tmp_path: Path) -> None:
    history = History(tmp_path / "run.db")
    ledger = Ledger({}, history, 0, 2, at_once)
    record = {"tasks": {}, "distances": [], "experts": {"expert.0": 0.25, "expert.1": 0.75}}
    for number, gates in ((1, record), (2, None)):
        current = OpenRound(number, 1, ["p"], 0.0, 0, 0)
        ledger.closed(current, {"p": {"mood": 3}}, 1.0, gates)
        ledger.record_round(current)
    told = [row.get("gates") for row in ledger.scoreboard.history()]
    again = Ledger({}, history, 2, 2, at_once)
    history.close()
    assert told == [row.get("gates") for row in again.scoreboard.history()] == [None, record, None]
