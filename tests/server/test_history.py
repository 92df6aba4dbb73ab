"""The run's database: what is written is read back, also by the next process and from several threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.history import History


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """An empty one."""
    made = History(tmp_path / "run.db")
    yield made
    made.close()


def a_round(history: History, number: int) -> None:
    history.record_round(
        number, attempt=2, started=10.0, finished=12.5, phases={"clients": 2.0}, cohort=["p", "q"],
        bytes_down=5, bytes_up=6,
    )  # fmt: skip


def test_an_empty_history(history: History) -> None:
    assert history.last_commit() is None
    assert history.commit_of(0) is None
    assert history.get("run_id") is None
    assert history.last_event() == 0
    assert history.rounds() == history.updates() == history.evaluations() == history.clients() == []
    assert history.plans() == history.events() == []


def test_rounds_and_updates(history: History) -> None:
    a_round(history, 2)
    a_round(history, 1)
    a_round(history, 2)  # again, after a crash between commit and record
    assert [row["round"] for row in history.rounds()] == [1, 2]
    assert history.rounds()[0] == {
        "round": 1, "attempt": 2, "started": 10.0, "finished": 12.5, "seconds": 2.5, "phases": {"clients": 2.0},
        "cohort": ["p", "q"], "bytes_down": 5, "bytes_up": 6,
    }  # fmt: skip
    history.record_update(1, "q", "ab", 7, {"mood": {"num_examples": 3}})
    history.record_update(1, "p", "cd", 7, {})
    history.record_update(1, "q", "ab", 7, {"mood": {"num_examples": 3}})
    history.record_update(2, "p", "ef", 7, {})
    assert [(row["round"], row["client_id"]) for row in history.updates()] == [(1, "p"), (1, "q"), (2, "p")]
    assert history.updates(1)[1]["tasks"] == {"mood": {"num_examples": 3}}


def test_a_client_that_joins_again_keeps_its_first_time(history: History) -> None:
    history.record_client("p", ["mood"], {"mood": {"train": 1}})
    (first,) = history.clients()
    history.record_client("p", ["mood", "topic"], {})
    (again,) = history.clients()
    assert again["first_seen"] == first["first_seen"]
    assert again["last_seen"] >= first["last_seen"]
    assert (again["tasks"], again["data"]) == (["mood", "topic"], {})


def test_evaluations_of_one_client_replace_each_other(history: History) -> None:
    history.record_evaluation(1, "p", "mood", 5, 0.5, {"accuracy": 0.4})
    history.record_evaluation(1, "p", "mood", 5, 0.5, {"accuracy": 0.6})
    history.record_evaluation(0, "q", "mood", 5, 0.5, {"accuracy": 0.1})
    assert [(row["version"], row["metrics"]["accuracy"]) for row in history.evaluations()] == [(0, 0.1), (1, 0.6)]


def test_a_plan_is_kept_once(history: History) -> None:
    for version, digest in enumerate(["aa", "aa", "bb", "aa"]):
        history.record_commit(version, f"sha{version}", {"plan": digest}, digest, 0.1)
    assert [(row["digest"], row["since_version"]) for row in history.plans()] == [("aa", 0), ("bb", 2)]
    assert history.last_commit() == 3
    commit = history.commit_of(2)
    assert commit is not None
    assert (commit["sha256"], commit["plan"]) == ("sha2", "bb")


def test_a_commit_is_all_or_nothing(history: History, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "run.db") as other:
        other.execute("CREATE TRIGGER no BEFORE INSERT ON commits BEGIN SELECT raise(ABORT, 'full'); END")
    other.close()
    with pytest.raises(sqlite3.Error, match="full"):
        history.record_commit(0, "sha", {}, "aa", 0.1)
    assert history.plans() == []
    history.set("still", "usable")
    assert history.get("still") == "usable"


def test_events_in_order_and_from_a_number_on(history: History) -> None:
    for number in range(1, 6):
        history.record_event(number, "note", {"n": number})
    assert history.last_event() == 5
    assert [event["id"] for event in history.events(after=2, limit=2)] == [3, 4]
    assert history.events(after=4)[0]["detail"] == {"n": 5}


def test_the_next_process_reads_it_and_others_may_read_meanwhile(tmp_path: Path) -> None:
    first = History(tmp_path / "run.db")
    first.set("run_id", "r1")
    first.record_commit(0, "sha", {}, "aa", 0.0)
    reader = sqlite3.connect(f"file:{tmp_path / 'run.db'}?mode=ro", uri=True)
    assert reader.execute("SELECT version FROM commits").fetchall() == [(0,)]
    reader.close()
    first.close()
    second = History(tmp_path / "run.db")
    assert (second.get("run_id"), second.last_commit()) == ("r1", 0)
    second.close()


def test_threads_may_write_at_a_time(history: History) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: history.record_event(n, "note", {}), range(1, 101)))
        list(pool.map(lambda n: history.record_commit(n, "sha", {}, "aa", 0.0), range(20)))
    assert len(history.events()) == 100
    assert history.last_commit() == 19
