"""The run's database: what is written is read back, also by the next process and from several threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from common.durable import Disk
from common.errors import ConfigError
from server.history import FORMAT, History
from server.slot_traffic import SlotBytes


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


def test_what_gates_did_is_kept_by_round_and_forgotten_with_it(history: History) -> None:
    timing: dict[str, Any] = {
        "attempt": 1, "started": 0.0, "finished": 1.0, "phases": {}, "cohort": [], "bytes_down": 0, "bytes_up": 0,
    }  # fmt: skip
    for number in (1, 2, 3):
        history.record_round(number, **timing, gates={"experts": {"expert.0": number / 4}})
    history.record_round(2, **timing, gates={"experts": {"expert.0": 0.75}})  # again
    history.record_round(1, **timing)
    assert history.gates() == {2: {"experts": {"expert.0": 0.75}}, 3: {"experts": {"expert.0": 0.75}}}
    history.rewind(2)
    assert history.gates().keys() == {2}


def test_an_update_tells_the_settings_that_were_changed_for_its_training(history: History) -> None:
    assert not history.any_training_changes()
    history.record_training(1, "p", {"batch_size": 8})
    history.record_training(1, "q", {"batch_size": 8})
    history.record_training(1, "q", {"local_steps": 3, "groups": [{"match": "norms", "learning_rate": 2}]})
    history.record_training(1, "r", {"batch_size": 8})
    history.record_training(1, "r", {})  # asked again after a restart, without the override
    history.record_training(2, "p", {"batch_size": 9})
    for number, client_id, trained in ((1, "p", 1), (1, "q", 1), (1, "r", 1), (3, "p", 2)):
        history.record_update(number, client_id, "ab", 7, {}, trained)
    assert [row["training_changes"] for row in history.updates(1)] == [
        {"batch_size": 8},
        {"local_steps": 3, "groups": [{"match": "norms", "learning_rate": 2}]},
        {},
    ]
    assert [row["training_changes"] for row in history.updates(3)] == [{"batch_size": 9}], "a late update's own"
    assert history.any_training_changes()
    history.rewind(0)
    assert not history.any_training_changes()


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


def test_refusals_are_counted_per_round_client_and_code(history: History) -> None:
    for round_id, client_id, code, reason in [
        (1, "p", "non_finite", "first"),
        (1, "q", "non_finite", "other"),
        (1, "p", "checksum", "bytes"),
        (2, "p", "non_finite", "later"),
        (1, "p", "non_finite", "again"),
    ]:
        history.record_refusal(round_id, client_id, code, reason)
    found = {(row["round"], row["client_id"], row["code"]): row for row in history.refusals()}
    assert {key: (row["count"], row["reason"]) for key, row in found.items()} == {
        (1, "p", "non_finite"): (2, "again"),
        (1, "q", "non_finite"): (1, "other"),
        (1, "p", "checksum"): (1, "bytes"),
        (2, "p", "non_finite"): (1, "later"),
    }
    times = [row["at"] for row in history.refusals()]
    assert times == sorted(times), "the newest last"


def test_of_a_quarantine_the_last_word_counts(history: History) -> None:
    assert history.quarantines() == []
    history.record_quarantine("q", 3, 9, "non_finite: nan")
    history.record_quarantine("p", 3, 9, "checksum: bytes")
    history.record_quarantine("p", 5, 0, "released")
    columns = ("client_id", "since_round", "until_version", "reason")
    assert [tuple(row[column] for column in columns) for row in history.quarantines()] == [
        ("p", 5, 0, "released"),
        ("q", 3, 9, "non_finite: nan"),
    ]


def test_what_counted_is_the_newest_round_trained_for_that_is_in_a_version(history: History) -> None:
    history.record_update(1, "p", "aa", 1, {})
    history.record_update(2, "q", "bb", 1, {}, trained_round=1)
    history.record_update(3, "p", "cc", 1, {}, trained_round=2)
    history.record_update(4, "p", "dd", 1, {})
    assert history.counted(0) == {}
    assert history.counted(1) == {"p": 1}
    assert history.counted(2) == {"p": 1, "q": 1}
    assert history.counted(3) == {"p": 2, "q": 1}, "round 4 is no version yet"
    assert history.counted(9) == {"p": 4, "q": 1}


def to_version_three(history: History) -> None:
    """Three rounds of everything, and a run that is finished."""
    for number in range(4):
        history.record_commit(number, f"sha{number}", {"plan": number}, f"d{number}", 0.1)
        history.record_evaluation(number, "p", "mood", 5, 0.5, {"accuracy": 0.1})
    for number in range(1, 5):
        a_round(history, number)
        history.record_update(number, "p", "aa", 1, {})
        history.record_refusal(number, "p", "checksum", "bytes")
        history.record_event(number, "note", {})
    history.record_client("p", ["mood"], {})
    history.record_quarantine("p", 2, 5, "checksum")
    history.set("run_id", "r")
    history.set("finished", 3)


def test_a_rewind_forgets_everything_after_a_version_and_nothing_else(history: History) -> None:
    to_version_three(history)
    history.rewind(1)
    assert history.last_commit() == 1
    assert [row["version"] for row in history.commits()] == [0, 1]
    assert [row["round"] for row in history.rounds()] == [1]
    assert [row["round"] for row in history.updates()] == [1]
    assert [row["version"] for row in history.evaluations()] == [0, 1]
    assert [row["since_version"] for row in history.plans()] == [0, 1]
    assert [row["round"] for row in history.refusals()] == [1]
    assert (history.get("finished"), history.get("run_id")) == (None, "r")
    assert len(history.clients()) == 1
    assert len(history.events()) == 4, "it did happen, and numbers go on"
    history.rewind(1)
    assert history.last_commit() == 1


def test_a_version_is_judged_once_more_when_its_round_is_repeated_and_forgotten_with_it(history: History) -> None:
    to_version_three(history)
    history.record_judgement(0, {"a": {"accuracy": 0.5}})
    history.record_judgement(2, {"a": {"accuracy": 0.6}})
    history.record_judgement(2, {"a": {"accuracy": 0.7, "loss": 1.0}})
    assert history.judgements() == {0: {"a": {"accuracy": 0.5}}, 2: {"a": {"accuracy": 0.7, "loss": 1.0}}}
    history.rewind(1)
    assert list(history.judgements()) == [0]


def test_a_rewind_is_all_or_nothing(history: History, tmp_path: Path) -> None:
    to_version_three(history)
    with sqlite3.connect(tmp_path / "run.db") as other:
        other.execute("CREATE TRIGGER no BEFORE DELETE ON refusals BEGIN SELECT raise(ABORT, 'broken'); END")
    other.close()
    with pytest.raises(sqlite3.Error, match="broken"):
        history.rewind(1)
    assert history.last_commit() == 3
    assert len(history.rounds()) == 4
    assert history.get("finished") == 3
    history.set("still", "usable")


def test_a_database_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    first = History(path)
    first.set("run_id", "r")
    first.close()
    for number in (FORMAT + 1, FORMAT - 1, 0):
        with sqlite3.connect(path) as other:
            other.execute(f"PRAGMA user_version = {number}")
        other.close()
        with pytest.raises(ConfigError, match=rf"run\.db is of another version .* format is {number}, this one reads"):
            History(path)
        with sqlite3.connect(path) as other:
            assert other.execute("PRAGMA user_version").fetchone() == (number,)
        other.close()


def test_a_new_database_has_its_format(tmp_path: Path) -> None:
    for _ in range(2):  # the second time it is there, empty: its first process was killed
        History(tmp_path / "run.db").close()
        with sqlite3.connect(tmp_path / "run.db") as other:
            assert other.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        other.close()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 99, b"SQLite format 3\0" * 300])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.db").write_bytes(content)
    with pytest.raises(sqlite3.DatabaseError):
        History(tmp_path / "run.db")


def read_through(path: Path) -> None:
    """Open a database as a resumed run does."""
    history = History(path)
    try:
        history.check()
    finally:
        history.close()


def test_a_damaged_page_is_found_by_the_check(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    history = History(path)
    for number in range(200):
        history.record_event(number + 1, "note", {"text": "x" * 200})
    history.check()
    history.close()
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18], "big")
    # The pages of the last table, but not the first one, which names them all.
    for begin in range(len(content) - 5 * page, len(content), page):
        content[begin : begin + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(sqlite3.DatabaseError):
        read_through(path)


def test_a_file_cut_short_is_found_by_the_check(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    history = History(path)
    to_version_three(history)
    history.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(sqlite3.DatabaseError):
        read_through(path)


@pytest.mark.parametrize(("fsync", "usual", "committing"), [(True, 1, 2), (False, 0, 0)])
def test_a_commit_waits_for_the_device_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool, usual: int, committing: int
) -> None:
    """`PRAGMA synchronous`: 0 never waits, 1 outlives the process, 2 outlives the machine."""
    connections: list[Watched] = []

    class Watched(sqlite3.Connection):
        """Notes how careful the connection is when a commit is written."""

        at_commit: int | None = None

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:  # noqa: ANN401  # sqlite3's own
            if "INTO commits" in statement:
                self.at_commit = self.level()
            return super().execute(statement, *values)

        def level(self) -> int:
            return int(super().execute("PRAGMA synchronous").fetchone()[0])

    def connect(*arguments: Any, **options: Any) -> Watched:  # noqa: ANN401  # sqlite3's own
        connections.append(real(*arguments, factory=Watched, **options))
        return connections[0]

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    history = History(tmp_path / "run.db", Disk(fsync=fsync))
    assert connections[0].level() == usual
    history.record_commit(0, "sha", {}, "aa", 0.1)
    assert connections[0].at_commit == committing
    assert connections[0].level() == usual
    history.close()


def test_bytes_per_slot_are_kept_by_round(history: History) -> None:
    first = {"e@q+s": SlotBytes("embeddings", 40, 8), "h@q": SlotBytes("head", 3, 3), "h@s": SlotBytes("head", 5, 5)}
    for slots in ({"h@q": SlotBytes("head", 99, 99)}, first):  # again, after a crash between row and commit
        history.record_round(
            1, attempt=1, started=0.0, finished=1.0, phases={}, cohort=[], bytes_down=0, bytes_up=0, slots=slots
        )
    history.record_slots(2, {"e@q+s": SlotBytes("embeddings", 0, 0)})
    assert history.slot_bytes(1) == first
    assert history.slot_bytes(2) == {"e@q+s": SlotBytes("embeddings", 0, 0)}
    assert history.slot_bytes(3) == {}
    assert history.slot_bytes_by_round() == {1: first, 2: history.slot_bytes(2)}
    assert history.group_bytes() == {
        1: {"head": {"down": 8, "up": 8}, "embeddings": {"down": 40, "up": 8}},
        2: {"embeddings": {"down": 0, "up": 0}},
    }
    history.rewind(1)
    assert history.slot_bytes_by_round() == {1: first}


def test_a_file_from_before_there_were_bytes_per_slot_goes_on(tmp_path: Path) -> None:
    History(tmp_path / "run.db").close()
    with sqlite3.connect(tmp_path / "run.db") as database:
        database.executescript("DROP TABLE slots; DROP TABLE slot_bytes")
    database.close()
    history = History(tmp_path / "run.db")
    assert history.group_bytes() == {}
    history.record_slots(1, {"a@q": SlotBytes("head", 1, 2)})
    assert history.slot_bytes(1) == {"a@q": SlotBytes("head", 1, 2)}
    history.close()
