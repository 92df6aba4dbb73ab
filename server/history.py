"""The run's history in SQLite (WAL): rounds, bytes per slot, gates, updates, evaluations, clients, plans,
refusals, quarantines, events.

One process writes; others may read the file at any time. Methods block and may be called from any thread.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from common.durable import DURABLE, Disk
from common.errors import ConfigError
from common.failpoints import failpoint
from server.slot_traffic import SlotBytes

#: Seconds to wait for another program that holds the file.
BUSY_S: Final = 10.0
#: Format of the tables, kept in the file. Tables that are only added (``slots``, ``slot_bytes``, ``gates``) don't
#: change it: they are made in an older file, where rounds of before have no rows.
FORMAT: Final = 2
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, started REAL NOT NULL, finished REAL NOT NULL,
    seconds REAL NOT NULL, phases TEXT NOT NULL, cohort TEXT NOT NULL,
    bytes_down INTEGER NOT NULL, bytes_up INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS slots (number INTEGER PRIMARY KEY, slot TEXT NOT NULL UNIQUE, family_group TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS slot_bytes (
    round INTEGER NOT NULL, slot INTEGER NOT NULL, down INTEGER NOT NULL, up INTEGER NOT NULL,
    PRIMARY KEY (round, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gates (round INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS commits (
    version INTEGER PRIMARY KEY, at REAL NOT NULL, sha256 TEXT NOT NULL, plan TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER NOT NULL, client_id TEXT NOT NULL, at REAL NOT NULL, digest TEXT NOT NULL,
    bytes INTEGER NOT NULL, tasks TEXT NOT NULL, trained_round INTEGER NOT NULL, PRIMARY KEY (round, client_id));
CREATE TABLE IF NOT EXISTS evaluations (
    version INTEGER NOT NULL, client_id TEXT NOT NULL, task TEXT NOT NULL, at REAL NOT NULL,
    examples INTEGER NOT NULL, loss REAL NOT NULL, metrics TEXT NOT NULL, PRIMARY KEY (version, client_id, task));
CREATE TABLE IF NOT EXISTS judgements (version INTEGER PRIMARY KEY, tasks TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS clients (
    client_id TEXT PRIMARY KEY, tasks TEXT NOT NULL, data TEXT NOT NULL,
    first_seen REAL NOT NULL, last_seen REAL NOT NULL);
CREATE TABLE IF NOT EXISTS training_changes (
    round INTEGER NOT NULL, client_id TEXT NOT NULL, changes TEXT NOT NULL, PRIMARY KEY (round, client_id));
CREATE TABLE IF NOT EXISTS refusals (
    round INTEGER NOT NULL, client_id TEXT NOT NULL, code TEXT NOT NULL, at REAL NOT NULL, count INTEGER NOT NULL,
    reason TEXT NOT NULL, PRIMARY KEY (round, client_id, code));
CREATE TABLE IF NOT EXISTS strikes (
    round INTEGER NOT NULL, client_id TEXT NOT NULL, PRIMARY KEY (round, client_id));
CREATE TABLE IF NOT EXISTS quarantine (
    client_id TEXT PRIMARY KEY, at REAL NOT NULL, since_round INTEGER NOT NULL, until_version INTEGER NOT NULL,
    reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS plans (digest TEXT PRIMARY KEY, since_version INTEGER NOT NULL, plan TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL);
"""
_COUNTED: Final = "slot_bytes JOIN slots ON number = slot_bytes.slot"


class History:
    """The database of one run.

    Args:
        path: the file; made with its tables when it is missing.
        disk: how carefully it is written.

    Raises:
        sqlite3.DatabaseError: the file is damaged, or no database.
        ConfigError: it was written by another version of fedmtl.
    """

    def __init__(self, path: Path, disk: Disk = DURABLE) -> None:
        self._lock = threading.Lock()
        self._fsync = disk.fsync
        # Others may read the file, and hold it for a moment when they do.
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=BUSY_S)
        try:
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(f"PRAGMA synchronous={'NORMAL' if disk.fsync else 'OFF'}")
            self._connection.executescript(SCHEMA)
            self._require_format(path)
        except (sqlite3.Error, ConfigError):
            self._connection.close()
            raise

    def _require_format(self, path: Path) -> None:
        [(found,)] = self._read("PRAGMA user_version")
        if not found and not self._read("SELECT key FROM run LIMIT 1"):
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        elif found != FORMAT:
            raise ConfigError(
                f"{path} is of another version of fedmtl (its format is {found}, this one reads {FORMAT}): "
                "finish the run with the version that began it"
            )

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._connection.close()

    def check(self) -> None:
        """Read the whole file and compare what its parts say of each other.

        Raises:
            sqlite3.DatabaseError: it is damaged.
        """
        [found] = self._read("PRAGMA quick_check(1)")
        if found[0] != "ok":
            raise sqlite3.DatabaseError(str(found[0]))

    # --- writing

    def set(self, key: str, value: Any) -> None:  # noqa: ANN401  # JSON
        """Keep one fact about the run."""
        self._write("INSERT OR REPLACE INTO run VALUES (?, ?)", key, json.dumps(value))

    def record_client(self, client_id: str, tasks: list[str], data: Mapping[str, Any]) -> None:
        """A client has joined (again)."""
        now = time.time()
        self._write(
            "INSERT INTO clients VALUES (?, ?, ?, ?, ?) ON CONFLICT (client_id) DO UPDATE SET "
            "tasks = excluded.tasks, data = excluded.data, last_seen = excluded.last_seen",
            *(client_id, json.dumps(tasks), json.dumps(dict(data)), now, now),
        )

    def record_update(
        self,
        round_id: int,
        client_id: str,
        digest: str,
        nbytes: int,
        tasks: Mapping[str, Any],
        trained_round: int | None = None,
    ) -> None:
        """An update was accepted into a round; it may have been trained for an earlier one."""
        trained = round_id if trained_round is None else trained_round
        self._write(
            "INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(round_id, client_id, time.time(), digest, nbytes, json.dumps(dict(tasks)), trained),
        )

    def record_training(self, round_id: int, client_id: str, changes: Mapping[str, Any]) -> None:
        """A client is asked to train a round with these settings changed; with none, when there are none."""
        if changes:
            row = (round_id, client_id, json.dumps(dict(changes)))
            self._write("INSERT OR REPLACE INTO training_changes VALUES (?, ?, ?)", *row)
        else:
            self._write("DELETE FROM training_changes WHERE round = ? AND client_id = ?", round_id, client_id)

    def record_evaluation(
        self, version: int, client_id: str, task: str, examples: int, loss: float, metrics: Mapping[str, float]
    ) -> None:
        """A client has evaluated a version."""
        self._write(
            "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(version, client_id, task, time.time(), examples, loss, json.dumps(dict(metrics))),
        )

    def record_judgement(self, version: int, tasks: Mapping[str, Mapping[str, float]]) -> None:
        """By these results (task to metric to value) a version is judged, whatever comes later."""
        row = {task: dict(metrics) for task, metrics in tasks.items()}
        self._write("INSERT OR REPLACE INTO judgements VALUES (?, ?)", version, json.dumps(row))

    def record_commit(self, version: int, sha256: str, plan: Mapping[str, Any], digest: str, seconds: float) -> None:
        """A version is on disk; its plan is kept when it is new. One transaction, on disk when this returns."""
        # The spool and older versions are removed after this, so it must outlive a crash of the machine.
        with self._transaction(durable=True) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO plans VALUES (?, ?, ?)", (digest, version, json.dumps(dict(plan)))
            )
            connection.execute(
                "INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?, ?)", (version, time.time(), sha256, digest, seconds)
            )
            failpoint("commit.recording")

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; `durable` waits for the device."""
        with self._lock:
            careful = durable and self._fsync
            if careful:
                self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                # After some errors, of a full disk for one, SQLite has rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if careful:
                    self._connection.execute("PRAGMA synchronous=NORMAL")

    def record_round(
        self,
        round_id: int,
        *,
        attempt: int,
        started: float,
        finished: float,
        phases: Mapping[str, float],
        cohort: list[str],
        bytes_down: int,
        bytes_up: int,
        slots: Mapping[str, SlotBytes] | None = None,
        gates: Mapping[str, Any] | None = None,
    ) -> None:
        """A round is over; times in seconds since the epoch, bytes as they crossed the connections.

        `slots` are the bytes of payloads per slot, `gates` is what the gates did (None: nothing). One transaction.
        """
        row = (
            *(round_id, attempt, started, finished, finished - started),
            *(json.dumps(dict(phases)), json.dumps(cohort), bytes_down, bytes_up),
        )
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            _put_slots(connection, round_id, slots or {})
            connection.execute("DELETE FROM gates WHERE round = ?", (round_id,))
            if gates is not None:
                connection.execute("INSERT INTO gates VALUES (?, ?)", (round_id, json.dumps(dict(gates))))

    def record_slots(self, round_id: int, slots: Mapping[str, SlotBytes]) -> None:
        """Payload bytes per slot of a round that is not over, in place of what was recorded of it. One transaction."""
        with self._transaction() as connection:
            _put_slots(connection, round_id, slots)

    def record_event(self, number: int, kind: str, detail: Mapping[str, Any]) -> None:
        """Something happened that a person may want to read; numbers ascend."""
        self._write("INSERT INTO events VALUES (?, ?, ?, ?)", number, time.time(), kind, json.dumps(dict(detail)))

    def record_refusal(self, round_id: int, client_id: str, code: str, reason: str) -> None:
        """Something of a client was refused by name, in this round."""
        self._write(
            "INSERT INTO refusals VALUES (?, ?, ?, ?, 1, ?) ON CONFLICT (round, client_id, code) DO UPDATE SET "
            "count = count + 1, at = excluded.at, reason = excluded.reason",
            *(round_id, client_id, code, time.time(), reason),
        )

    def record_strike(self, round_id: int, client_id: str) -> None:
        """A client's update was bad in this round, which counts towards its quarantine."""
        self._write("INSERT OR IGNORE INTO strikes VALUES (?, ?)", round_id, client_id)

    def drop_update(self, round_id: int, client_id: str) -> None:
        """An update that was accepted into a round does not count after all."""
        self._write("DELETE FROM updates WHERE round = ? AND client_id = ?", round_id, client_id)

    def record_quarantine(self, client_id: str, since_round: int, until_version: int, reason: str) -> None:
        """A client is left out before this version; 0: not any more. What it did in rounds before counts no more."""
        self._write(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?)",
            *(client_id, time.time(), since_round, until_version, reason),
        )

    def rewind(self, version: int) -> None:
        """Forget everything after a version: its file is the newest that is whole. One transaction."""
        with self._transaction() as connection:
            for table, column in (
                *(("commits", "version"), ("rounds", "round"), ("updates", "round"), ("evaluations", "version")),
                *(("plans", "since_version"), ("refusals", "round"), ("strikes", "round"), ("judgements", "version")),
                *(("slot_bytes", "round"), ("training_changes", "round"), ("gates", "round")),
            ):
                # Of the tables' names none comes from outside.
                connection.execute(f"DELETE FROM {table} WHERE {column} > ?", (version,))  # noqa: S608
            connection.execute("DELETE FROM run WHERE key = 'finished'")

    # --- reading

    def get(self, key: str) -> Any:  # noqa: ANN401  # JSON
        """One fact about the run, or None."""
        rows = self._read("SELECT value FROM run WHERE key = ?", key)
        return json.loads(rows[0]["value"]) if rows else None

    def last_commit(self) -> int | None:
        """The newest committed version, or None."""
        rows = self._read("SELECT max(version) AS version FROM commits")
        version = rows[0]["version"]
        return None if version is None else int(version)

    def commit_of(self, version: int) -> dict[str, Any] | None:
        """What was recorded of one commit."""
        rows = self._read("SELECT * FROM commits WHERE version = ?", version)
        return dict(rows[0]) if rows else None

    def commits(self) -> list[dict[str, Any]]:
        """Every committed version, ascending; files of old ones may be gone."""
        return [dict(row) for row in self._read("SELECT * FROM commits ORDER BY version")]

    def rounds(self) -> list[dict[str, Any]]:
        """Every finished round, ascending."""
        return [_decoded(row, "phases", "cohort") for row in self._read("SELECT * FROM rounds ORDER BY round")]

    def slot_bytes(self, round_id: int) -> dict[str, SlotBytes]:
        """Slot id to the bytes of its payloads in one round, in the order in which slots first travelled."""
        return self.slot_bytes_by_round(round_id).get(round_id, {})

    def slot_bytes_by_round(self, round_id: int | None = None) -> dict[int, dict[str, SlotBytes]]:
        """The same of every round, or of one."""
        query = f"SELECT round, slots.slot, family_group, down, up FROM {_COUNTED}"  # noqa: S608  # a constant
        if round_id is None:
            rows = self._read(f"{query} ORDER BY round, number")
        else:
            rows = self._read(f"{query} WHERE round = ? ORDER BY number", round_id)
        found: dict[int, dict[str, SlotBytes]] = {}
        for number, slot, group, down, up in rows:
            found.setdefault(number, {})[slot] = SlotBytes(group, down, up)
        return found

    def group_bytes(self) -> dict[int, dict[str, dict[str, int]]]:
        """Round to group of slots to the bytes of its payloads, ``down`` and ``up``."""
        query = (
            f"SELECT round, family_group, sum(down) AS down, sum(up) AS up FROM {_COUNTED} "  # noqa: S608  # a constant
            "GROUP BY round, family_group ORDER BY round, min(number)"
        )
        found: dict[int, dict[str, dict[str, int]]] = {}
        for row in self._read(query):
            found.setdefault(row["round"], {})[row["family_group"]] = {"down": row["down"], "up": row["up"]}
        return found

    def gates(self) -> dict[int, dict[str, Any]]:
        """Round to what its gates did (`server.gate_records`), of every finished round with experts."""
        return {row["round"]: json.loads(row["record"]) for row in self._read("SELECT * FROM gates ORDER BY round")}

    def updates(self, round_id: int | None = None) -> list[dict[str, Any]]:
        """Accepted updates, of one round or of all, each with the settings that were changed for its training."""
        query = (
            "SELECT updates.*, coalesce(changes, '{}') AS training_changes FROM updates LEFT JOIN training_changes "
            "ON training_changes.round = trained_round AND training_changes.client_id = updates.client_id "
        )
        if round_id is None:
            rows = self._read(query + "ORDER BY updates.round, updates.client_id")
        else:
            rows = self._read(query + "WHERE updates.round = ? ORDER BY updates.client_id", round_id)
        return [_decoded(row, "tasks", "training_changes") for row in rows]

    def any_training_changes(self) -> bool:
        """Whether settings were ever changed for a client."""
        return bool(self._read("SELECT round FROM training_changes LIMIT 1"))

    def counted(self, version: int) -> dict[str, int]:
        """Client id to the newest round for which it trained an update that is part of a version up to this one."""
        query = "SELECT client_id, max(trained_round) AS round FROM updates WHERE round <= ? GROUP BY client_id"
        rows = self._read(query, version)
        return {row["client_id"]: row["round"] for row in rows}

    def refusals(self) -> list[dict[str, Any]]:
        """What was refused: a row per round, client and code, the newest last."""
        return [dict(row) for row in self._read("SELECT * FROM refusals ORDER BY at")]

    def strikes(self) -> list[tuple[str, int]]:
        """Client and round of every strike."""
        return [(row["client_id"], row["round"]) for row in self._read("SELECT * FROM strikes ORDER BY round")]

    def quarantines(self) -> list[dict[str, Any]]:
        """Every client that ever was in quarantine, with what it was last told."""
        return [dict(row) for row in self._read("SELECT * FROM quarantine ORDER BY client_id")]

    def evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation by every client."""
        rows = self._read("SELECT * FROM evaluations ORDER BY version, client_id, task")
        return [_decoded(row, "metrics") for row in rows]

    def judgements(self) -> dict[int, dict[str, dict[str, float]]]:
        """Version to task to metric to value, of every version that was judged."""
        rows = self._read("SELECT * FROM judgements ORDER BY version")
        return {row["version"]: json.loads(row["tasks"]) for row in rows}

    def clients(self) -> list[dict[str, Any]]:
        """Every client that ever joined."""
        return [_decoded(row, "tasks", "data") for row in self._read("SELECT * FROM clients ORDER BY client_id")]

    def plans(self) -> list[dict[str, Any]]:
        """Every plan of the run, in the order in which they came to hold."""
        return [_decoded(row, "plan") for row in self._read("SELECT * FROM plans ORDER BY since_version")]

    def last_event(self) -> int:
        """The number of the newest event; 0 when there is none."""
        return int(self._read("SELECT coalesce(max(id), 0) AS last FROM events")[0]["last"])

    def events(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Events with a number above `after`, ascending."""
        rows = self._read("SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?", after, limit)
        return [_decoded(row, "detail") for row in rows]

    def _write(self, statement: str, *values: object) -> None:
        with self._lock:
            self._connection.execute(statement, values)

    def _read(self, statement: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def _put_slots(connection: sqlite3.Connection, round_id: int, slots: Mapping[str, SlotBytes]) -> None:
    """Write a round's bytes per slot in place of what was there."""
    connection.execute("DELETE FROM slot_bytes WHERE round = ?", (round_id,))
    named = [(slot, count.group) for slot, count in slots.items()]
    connection.executemany("INSERT OR IGNORE INTO slots (slot, family_group) VALUES (?, ?)", named)
    rows = [(round_id, count.down, count.up, slot) for slot, count in slots.items()]
    connection.executemany("INSERT INTO slot_bytes SELECT ?, number, ?, ? FROM slots WHERE slot = ?", rows)


def _decoded(row: sqlite3.Row, *columns: str) -> dict[str, Any]:
    result = dict(row)
    for column in columns:
        result[column] = json.loads(result[column])
    return result
