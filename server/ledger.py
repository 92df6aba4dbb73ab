"""What is known of a run for people and for the history: participants, refusals, traffic, rounds, events.

Nothing is decided by it. What is to outlive the process is handed to the lane, and the event loop goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from common.log_context import set_log_context
from common.messages import EvaluationReport, Ready
from common.metrics import Evaluation
from common.plan import SharingPlan
from common.tasks import TaskSpec
from server.connection import Connection
from server.coordination import BeginRound
from server.events import EventFeed
from server.gate_records import in_words
from server.history import History
from server.prometheus import Measures
from server.records import OpenRound, Participant, Traffic
from server.round import Examples
from server.scoreboard import RoundRecord, Scoreboard
from server.slot_traffic import SlotBytes, SlotTraffic, by_group
from server.spool import SpooledUpdate

log = logging.getLogger("fedmtl.server")


class Ledger:
    """The books of one run, going on from where its history ends.

    Args:
        specs: the tasks.
        history: the run's database.
        version: the version the run goes on from.
        target_rounds: how many rounds it wants.
        write: does blocking work in order, later.

    Attributes:
        scoreboard: each version's quality.
        traffic: bytes of frames, of this process and those before.
        slots: bytes of payloads per slot since the last round was closed.
        participants: every client that took part in this process's time.
        refusals: code to how often something was refused by that name.
        measures: what `/metrics` counts as it happens.
        feed: what happened, for listeners and the history.
        open_round: the round that is open, or the last that was.
        started: when the run began, less the time that it stood still.
    """

    def __init__(
        self,
        specs: Mapping[str, TaskSpec],
        history: History,
        version: int,
        target_rounds: int,
        write: Callable[..., None],
    ) -> None:
        self.specs = specs
        self._history = history
        self._target_rounds = target_rounds
        self._write = write
        self.scoreboard = Scoreboard.restored(
            version,
            history.rounds(),
            history.updates(),
            history.evaluations(),
            history.group_bytes(),
            history.gates(),
        )
        self.slots = SlotTraffic(history.slot_bytes(version + 1))
        #: Of rounds that are closed and not in the history yet.
        self._unrecorded: dict[int, dict[str, SlotBytes]] = {}
        before = self.scoreboard.rounds.values()
        self.traffic = Traffic(sum(r.bytes_down for r in before), sum(r.bytes_up for r in before))
        self.started = time.time() - sum(r.seconds for r in before)
        self.feed = EventFeed(history.last_event(), lambda *event: write(history.record_event, *event))
        self.participants: dict[str, Participant] = {}
        self.refusals: dict[str, int] = {}
        self.measures = Measures()
        self.open_round: OpenRound | None = None

    # --- clients

    def joined(self, connection: Connection, ready: Ready) -> None:
        """A client takes part from now on."""
        client_id, tasks = connection.client_id, sorted(connection.tasks)
        known = self.participants.setdefault(client_id, Participant(connection.tasks, ready.tasks))
        known.tasks, known.data, known.connection = connection.tasks, ready.tasks, connection
        data = {task: report.model_dump() for task, report in ready.tasks.items()}
        self._write(self._history.record_client, client_id, tasks, data)
        log.info("%s joined with %s", client_id, _in_words(ready))
        self.feed.publish("client_joined", {"client_id": client_id, "tasks": tasks})

    def add_bytes(self, connection: Connection) -> None:
        """A connection is over: what it carried is its client's."""
        if (known := self.participants.get(connection.client_id)) is not None:
            known.bytes_down += connection.bytes_down
            known.bytes_up += connection.bytes_up

    def left(self, connection: Connection, *, lost: bool) -> bool:
        """A client is gone; False when it had never taken part."""
        known = self.participants.get(connection.client_id)
        if known is None or known.connection is not connection:
            return False
        known.connection, known.last_seen = None, time.time()
        log.info("%s %s", connection.client_id, "lost its connection" if lost else "left")
        self.feed.publish("client_left", {"client_id": connection.client_id})
        return True

    def refused(self, client_id: str, code: str, reason: str, round_id: int) -> None:
        """Something was refused by name."""
        self.refusals[code] = self.refusals.get(code, 0) + 1
        known = self.participants.get(client_id)
        if known is not None:
            known.refusals[code] = known.refusals.get(code, 0) + 1
            known.last_refusal = f"{code}: {reason}" if reason else code
            self._write(self._history.record_refusal, round_id, client_id, code, reason[:2000])

    def struck(self, client_id: str, round_id: int) -> None:
        """A client's update was bad."""
        self._write(self._history.record_strike, round_id, client_id)

    def quarantined(self, client_id: str, since_round: int, until_version: int, reason: str) -> None:
        """A client is left out for a while, or (until version 0) no longer."""
        self._write(self._history.record_quarantine, client_id, since_round, until_version, reason)
        self.feed.publish("quarantine", {"client_id": client_id, "until_version": until_version, "reason": reason})

    def evaluated(self, client_id: str, report: EvaluationReport) -> None:
        """A client has evaluated a version; the report is complete."""
        for task, result in sorted(report.tasks.items()):
            if result.examples:
                metrics: dict[str, float] = {name: result.metrics[name] for name in self.specs[task].metrics}
                evaluation = Evaluation(metrics, result.loss, result.examples)
                self.scoreboard.add_evaluation(report.version, client_id, task, evaluation)
                row = (report.version, client_id, task, result.examples, result.loss, metrics)
                self._write(self._history.record_evaluation, *row)

    # --- rounds

    def begun(self, command: BeginRound) -> None:
        """A round, or another attempt at it, is open."""
        cohort = sorted(command.trainers)
        set_log_context(round=command.round_id)
        if command.attempt > 1:
            self.measures.rounds_repeated.inc()
        self.open_round = OpenRound(
            command.round_id, command.attempt, cohort, time.time(), self.traffic.down, self.traffic.up
        )
        log.info("round %d of %d: %s", command.round_id, self._target_rounds, ", ".join(cohort))
        self.feed.publish("round_started", {"round": command.round_id, "cohort": cohort, "attempt": command.attempt})

    def withdrawn(self, client_id: str, counts_in: int) -> None:
        """An update that was accepted does not count after all."""
        self._write(self._history.drop_update, counts_in, client_id)

    def accepted(self, update: SpooledUpdate, counts_in: int) -> None:
        """An update counts, from now on."""
        self.measures.updates_accepted.inc()
        if update.client_id in self.participants:
            self.participants[update.client_id].rounds += 1
        nbytes = self.record_update(update, counts_in)
        event = {"round": update.header.round, "client_id": update.client_id, "bytes": nbytes}
        self.feed.publish("update_accepted", event)

    def record_update(self, update: SpooledUpdate, counts_in: int) -> int:
        """Put an update that counts into the history; returns its payload's bytes."""
        header = update.header
        nbytes = sum(tensor.nbytes for tensor in header.tensors)
        tasks = {task: done.model_dump() for task, done in header.tasks.items()}
        row = (counts_in, update.client_id, header.digest, nbytes, tasks, header.round)
        self._write(self._history.record_update, *row)
        return nbytes

    def restored(self, updates: Iterable[SpooledUpdate], plan: SharingPlan) -> None:
        """These updates of the coming round were received before this process began."""
        headers = [tensor for update in updates for tensor in update.header.tensors]
        self.slots.received_before((h.slot, plan.by_id[h.slot].spec.group, h.nbytes) for h in headers)

    def closed(
        self,
        current: OpenRound,
        contributions: Mapping[str, Examples],
        now: float,
        gates: dict[str, Any] | None = None,
    ) -> None:
        """A round has made its version; `gates` is what its updates say of the gates."""
        examples: dict[str, int] = {}
        for counts in contributions.values():
            for task, count in counts.items():
                examples[task] = examples.get(task, 0) + count
        current.slots = self._unrecorded[current.round_id] = self.slots.take()
        current.gates = gates
        if gates is not None:
            log.info("round %d: %s", current.round_id, in_words(gates))
        self.measures.round_seconds.observe(now - current.started)
        self.scoreboard.rounds[current.round_id] = RoundRecord(
            current.round_id,
            seconds=now - current.started,
            bytes_down=self.traffic.down - current.down,
            bytes_up=self.traffic.up - current.up,
            participants=sorted(contributions),
            phases=current.phases,
            examples=examples,
            attempts=current.attempt,
            groups=by_group(current.slots),
            gates=gates,
        )

    def published(self, version: int) -> None:
        """A version's evaluation is complete: show it."""
        primary = {task: spec.primary_metric for task, spec in self.specs.items()}
        line = self.scoreboard.line(version, primary)
        if line:
            log.info("version %d: %s", version, line)
        self.feed.publish("evaluated", {"version": version, "tasks": self.scoreboard.latest()})

    def record_round(self, current: OpenRound) -> None:
        """Put a round that is committed into the history; blocks, for the lane."""
        done = self.scoreboard.rounds[current.round_id]
        self._history.record_round(
            current.round_id,
            attempt=current.attempt,
            started=current.started,
            finished=current.started + done.seconds,
            phases=current.phases,
            cohort=current.cohort,
            bytes_down=done.bytes_down,
            bytes_up=done.bytes_up,
            slots=current.slots,
            gates=current.gates,
        )
        self._unrecorded.pop(current.round_id, None)

    def slots_of(self, round_id: int | None = None) -> dict[int, dict[str, SlotBytes]]:
        """Payload bytes per slot of one round, or of all; blocks, and may be called from any thread."""
        # In this order: what is recorded meanwhile is found in both places.
        found = self._unrecorded.copy()
        return self._history.slot_bytes_by_round(round_id) | found

    def record_end(self, version: int) -> None:
        """Put what was counted since the last version into the history, for who goes on; blocks, for the lane."""
        self._history.record_slots(version + 1, self.slots.snapshot())


def _in_words(ready: Ready) -> str:
    return "; ".join(
        f"{task}: {data.train} training and {data.validation} validation examples of {data.source}"
        for task, data in sorted(ready.tasks.items())
    )
