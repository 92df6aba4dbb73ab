"""What is known of each version's quality."""

from __future__ import annotations

import pytest

from common.metrics import Evaluation
from server.scoreboard import RoundRecord, Scoreboard


def evaluation(accuracy: float, examples: int, loss: float = 1.0) -> Evaluation:
    return Evaluation({"accuracy": accuracy}, loss, examples)


def board() -> Scoreboard:
    made = Scoreboard()
    made.rounds[1] = RoundRecord(1, seconds=2.0, bytes_down=3, bytes_up=4, participants=["p", "q"])
    made.add_evaluation(0, "p", "mood", evaluation(0.5, 10))
    made.add_evaluation(1, "p", "mood", evaluation(0.9, 30, loss=0.2))
    made.add_evaluation(1, "q", "mood", evaluation(0.5, 10, loss=0.6))
    made.add_evaluation(0, "r", "topic", evaluation(0.1, 1))
    return made


def test_clients_are_combined_by_their_examples() -> None:
    mood = board().history()[1]["tasks"]["mood"]
    assert mood == pytest.approx({"accuracy": 0.8, "loss": 0.3, "examples": 40, "clients": 2})


def test_a_repeated_report_replaces_the_first() -> None:
    made = board()
    assert made.history()[1]["tasks"]["mood"]["accuracy"] == made.latest()["mood"]["accuracy"] == pytest.approx(0.8)
    made.add_evaluation(1, "q", "mood", evaluation(0.9, 30))
    mood = made.history()[1]["tasks"]["mood"]
    assert (mood["accuracy"], mood["clients"]) == (pytest.approx(0.9), 2)
    assert made.latest()["mood"] == mood


def test_the_latest_of_each_task_may_be_of_different_versions() -> None:
    latest = board().latest()
    assert latest["mood"]["accuracy"] == pytest.approx(0.8)
    assert latest["topic"]["accuracy"] == pytest.approx(0.1), "nobody evaluated topic in version 1"


def test_the_history_has_a_row_per_version_from_zero_on() -> None:
    rows = board().history()
    assert [row["round"] for row in rows] == [0, 1]
    assert rows[0]["tasks"].keys() == {"mood", "topic"}
    assert (rows[1]["seconds"], rows[1]["bytes_down"], rows[1]["bytes_up"]) == (2.0, 3, 4)
    assert rows[1]["participants"] == ["p", "q"]


def test_one_line_for_people() -> None:
    primary = {"mood": "accuracy", "topic": "accuracy", "score": "pearson"}
    assert board().line(1, primary) == "mood accuracy 0.8000"
    assert board().line(0, primary) == "mood accuracy 0.5000  topic accuracy 0.1000"
    assert board().line(7, primary) == ""


def test_the_order_of_reports_does_not_matter() -> None:
    made = Scoreboard()
    for client_id, accuracy in (("q", 0.5), ("p", 0.9)):
        made.add_evaluation(1, client_id, "mood", evaluation(accuracy, 3))
    other = Scoreboard()
    for client_id, accuracy in (("p", 0.9), ("q", 0.5)):
        other.add_evaluation(1, client_id, "mood", evaluation(accuracy, 3))
    assert made.combined(1) == other.combined(1)


def test_a_board_is_restored_up_to_the_committed_version() -> None:
    timing = {"seconds": 2.0, "bytes_down": 3, "bytes_up": 4, "phases": {}, "attempt": 2}
    done = {"mood": {"num_examples": 5}}
    score = {"client_id": "p", "task": "mood", "metrics": {"accuracy": 0.5}, "loss": 1.0, "examples": 4}
    used = {"experts": {"expert.0": 1.0}}
    restored = Scoreboard.restored(
        2,
        [{"round": 1, **timing}, {"round": 3, **timing}],
        [{"round": r, "client_id": c, "tasks": done} for r in (1, 2, 3) for c in "pq"],
        [{"version": version, **score} for version in range(4)],
        gates={1: used, 3: used},
    )
    rows = restored.history()
    assert [row["round"] for row in rows] == [0, 1, 2], "round 3 was not committed"
    assert (rows[1]["attempts"], rows[1]["training_examples"]) == (2, {"mood": 10})
    assert rows[2]["participants"] == ["p", "q"]
    assert rows[2]["tasks"]["mood"]["accuracy"] == 0.5
    assert [row.get("gates") for row in rows] == [None, used, None]
    assert "gates" not in rows[2], "a run without experts shows none"
    assert restored.combined(3) == {}
