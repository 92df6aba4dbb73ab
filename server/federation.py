"""The running federation: carries out what the coordinator decides.

This is the edge: it awaits, moves bytes and writes files, and decides nothing. A round reads from top to
bottom: `_begin` and `_dispatch` send the work, `admit` and `update_spooled` take the updates, `_aggregate`
folds and commits them in the lane (one worker thread, so that model, files and history are touched in
order and never on the event loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Literal

from common.errors import ProtocolError, UpdateRejected
from common.failpoints import failpoint
from common.log_context import bind_log_context, set_log_context
from common.messages import (
    EvaluationReport,
    Finished,
    Hello,
    Progress,
    Ready,
    Refusal,
    Rejected,
    RoundClosed,
    UpdateAck,
    UpdateHeader,
    Welcome,
    Work,
)
from common.metrics import Evaluation
from common.tasks import TaskSpec
from server import coordination as core
from server.admission import RunIsOver, agree_on_encoding, agree_on_protocol, check_update
from server.aggregation import AggregatorChoice
from server.authentication import CREDENTIALS_ENDED, Authenticator
from server.config import Config
from server.connection import Connection
from server.coordinator import Coordinator
from server.events import EventFeed
from server.lane import Lane, NoRoom, no_room
from server.prometheus import Measures
from server.quarantine import BAD_UPDATES
from server.records import OpenRound, Participant, QueueDepths, Traffic
from server.reduce import ReductionCancelled, UnsoundModel, reduce_round
from server.round import Examples
from server.rules import Kept
from server.run_directory import RunDirectory
from server.scoreboard import RoundRecord, Scoreboard
from server.screening import norm_outliers
from server.spool import Spool, SpooledUpdate, round_folder
from server.start import Start
from server.summary import summarise
from server.timers import Timers
from server.tls import Peer
from server.update_norm import update_norm
from server.welcome import Introduction

log = logging.getLogger("fedmtl.server")
Outcome = Literal["finished", "failed", "stopped"]


class Federation:
    """One run, from the first client to the last version.

    Args:
        config: the validated configuration.
        specs: the resolved tasks.
        start: the family, the version to start from and the run's database.
        directory: the run directory, held by this process.
        decisions: the coordinator.
        authenticator: who may take part.
    """

    def __init__(
        self,
        config: Config,
        specs: Mapping[str, TaskSpec],
        start: Start,
        directory: RunDirectory,
        decisions: Coordinator,
        authenticator: Authenticator,
    ) -> None:
        self.config = config
        self.specs = specs
        self.model = start.model
        self.directory = directory
        self.history = history = start.history
        self.run_id = start.run_id
        self.decisions = decisions
        self.authenticator = authenticator
        self.summary_of_model = start.family.summary()
        version = self.model.version
        # What a resumed run's summary says goes on from where it stopped.
        self.scoreboard = Scoreboard.restored(version, history.rounds(), history.updates(), history.evaluations())
        before = self.scoreboard.rounds.values()
        self.traffic = Traffic(sum(r.bytes_down for r in before), sum(r.bytes_up for r in before))
        self.started = time.time() - sum(r.seconds for r in before)
        self.sha256 = str((history.commit_of(version) or {"sha256": ""})["sha256"])
        self.feed = EventFeed(history.last_event(), lambda *event: self._record(history.record_event, *event))
        self.participants: dict[str, Participant] = {}
        self.refusals: dict[str, int] = {}
        self.measures = Measures()
        self.open_round: OpenRound | None = None
        self.finished: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._progress: Literal["resuming", "running"] | Outcome = "resuming"
        self._introduction = Introduction(config, specs, start.family, start.run_id)
        self._connections: dict[str, Connection] = {}
        self._events: asyncio.Queue[core.Event] = asyncio.Queue()
        self._timers = Timers(lambda name: self.post(core.TimerFired(name)))
        self._lane = Lane(directory.path, self._disk_is_full, lambda: self.post(core.Unpaused("storage")))
        self._spool = Spool(directory.spool, directory.disk)
        #: Updates on disk by client: of which the coordinator has yet to say whether they count, and those that do.
        self._undecided: dict[str, SpooledUpdate] = {}
        self._updates: dict[str, SpooledUpdate] = {}
        self._aggregators = AggregatorChoice.of(config.federation.aggregation, self.model.plan.slots)
        self._jobs: set[asyncio.Task[Any]] = set()
        self._failure = ""
        self._departed = asyncio.Event()
        self._farewell = Finished(state="stopped", reason="the run has not begun", rounds_completed=0)
        #: Clients that could not be told that the run is over: by this process, or by one before it that finished it.
        self._unaware: set[str] = set()
        self._all_told = asyncio.Event()
        #: One version at a time is folded and committed, however long a commit waits for room on the disk.
        self._committing = asyncio.Lock()
        self._durable_version = version
        #: Acknowledgements that wait for the version they build on: that version, the client, the message.
        self._held_acks: list[tuple[int, str, UpdateAck]] = []
        self._stopping = threading.Event()

    @property
    def state(self) -> str:
        """Where the run stands: resuming, running, paused, or how it ended."""
        return "paused" if self._progress == "running" and self.decisions.pauses else self._progress

    @property
    def over(self) -> bool:
        """Whether the run has ended in this process."""
        return self._progress not in ("resuming", "running")

    def queue_depths(self) -> QueueDepths:
        """What waits now, and for whom."""
        waiting = [connection.waiting for connection in self._connections.values()]
        return QueueDepths(self._events.qsize(), self._lane.waiting, sum(waiting), max(waiting, default=0))

    # --- the loop

    def post(self, event: core.Event) -> None:
        """Hand an event to the coordinator."""
        self._events.put_nowait(event)

    async def run(self) -> Outcome:
        """Carry out commands until the run is over in this process; returns how it ended."""
        while not self.finished.done():
            event = await self._events.get()
            for command in self.decisions.handle(event):
                await self._carry_out(command)
            self._events.task_done()
        return self.finished.result()

    async def restore(self, url: str) -> None:
        """Go on from what is on disk, before clients are let in.

        Args:
            url: where this server listens, for the operator's commands.
        """
        address = json.dumps({"url": url, "pid": os.getpid()}).encode()
        await self._lane.write(self.directory.disk.replace, self.directory.address, address)
        await self._restore_spool()
        since = {row["client_id"]: row["since_round"] for row in self.history.quarantines()}
        self.decisions.quarantine.restore(
            (
                (row["client_id"], row["round"])
                for row in self.history.refusals()
                if row["code"] in BAD_UPDATES and row["round"] > since.get(row["client_id"], 0)
            ),
            ((row["client_id"], row["until_version"]) for row in self.history.quarantines()),
        )
        if paused := self.history.get("paused"):
            self.post(core.Paused("operator", str(paused)))
        await self._lane.write(self.directory.write_summary, self.summary())
        self._progress = "running"

    async def _restore_spool(self) -> None:
        """Count the updates that were accepted for the coming round before this process began."""
        kept: dict[str, Kept] = {}
        version = self.model.version
        # Those of earlier rounds are in the model. Of this round only what is on disk counts.
        counted = self.history.counted(version)
        # What was received for later rounds was not acknowledged: the version it starts from may come out otherwise.
        await self._lane.run(self._spool.discard_after, version + 1)
        for update in await self._lane.run(partial(self._spool.load, version + 1, verify=True)):
            header = update.header
            known = (header.run_id, header.plan) == (self.run_id, self.model.plan.digest)
            if known and header.round > counted.get(update.client_id, 0):
                self._updates[update.client_id] = update
                # The process may have been killed between the update's file and its row.
                self._record_update(update, version + 1)
                examples = {task: done.num_examples for task, done in sorted(header.tasks.items())}
                staleness = version - header.version
                kept[update.client_id] = Kept(frozenset(header.tasks), examples, staleness)
                counted[update.client_id] = header.round
        if kept:
            log.info("round %d goes on with the updates of %s", version + 1, ", ".join(sorted(kept)))
        self.decisions.restore(kept, counted)

    async def close(self) -> None:
        """Let threads and files go."""
        self._timers.cancel_all()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self._lane.close()
        self.directory.address.unlink(missing_ok=True)

    async def _carry_out(self, command: core.Command) -> None:
        match command:
            case core.BeginRound():
                self._begin(command)
            case core.Dispatch():
                self._dispatch(command)
            case core.Acknowledge():
                await self._acknowledge(command)
            case core.RefuseUpdate(client_id, round_id, code, reason):
                self._refuse_update(client_id, round_id, code, reason)
            case core.Quarantine(client_id, until_version, reason):
                self._quarantine(client_id, until_version, reason)
            case core.Dismiss(client_ids, round_id, reason):
                for client_id in sorted(client_ids & self._connections.keys()):
                    self._connections[client_id].dismiss(RoundClosed(round=round_id, reason=reason))
            case core.StartTimer(name, seconds):
                self._timers.start(name, seconds)
            case core.CancelTimer(name):
                self._timers.cancel(name)
            case core.Screen(round_id, client_ids):
                self._job(self._screen(round_id, client_ids))
            case core.Aggregate():
                failpoint("round.closed")
                self._job(self._aggregate(command))
            case core.EvaluationsComplete(version):
                self._job(self._publish(version))
            case core.Note(text, level):
                log.log(logging.WARNING if level == "warning" else logging.INFO, text)
                self.feed.publish("note", {"text": text, "level": level})
            case core.Finish(state, reason):
                await self._finish(state, reason)

    # --- what connections report

    def welcome(self, connection: Connection, hello: Hello, peer: Peer) -> tuple[Welcome, Mapping[str, bytes]]:
        """Admit a client or raise `ProtocolError` with the reason of the refusal."""
        if self._progress == "resuming":
            raise ProtocolError("busy", "the server is resuming the run; try again in a moment")
        version = agree_on_protocol(hello.protocol)
        up = agree_on_encoding(hello.encodings_up, "encodings_up")
        down = agree_on_encoding(hello.encodings_down, "encodings_down")
        whole = hello.sync == "full"
        admitted = self.authenticator.client(hello.token, hello.client_id, hello.tasks, peer, whole_model=whole)
        tasks = admitted.tasks
        if self.over:
            self._unaware.discard(hello.client_id)
            if not self._unaware:
                self._all_told.set()
            raise RunIsOver(self._farewell)
        if len(self._connections) >= self.config.server.limits.connections:
            raise ProtocolError("busy", f"{len(self._connections)} clients are connected, no more are taken")
        if (older := self._connections.get(hello.client_id)) is not None:
            if self.config.server.duplicate_client == "refuse":
                raise ProtocolError("duplicate_client", f"a client called {hello.client_id!r} is connected already")
            older.send(Refusal(code="taken_over", reason="another client of this id has connected and takes the place"))
            older.close()
        connection.client_id, connection.tasks, connection.full = hello.client_id, tasks, whole
        connection.credentials = admitted.credentials
        self._connections[hello.client_id] = connection
        bind_log_context(client_id=hello.client_id)  # the connection's own task
        return self._introduction.welcome(hello, tasks, version, up, down), self._introduction.assets

    def joined(self, connection: Connection, ready: Ready) -> None:
        """A client's data is loaded: it takes part from now on."""
        missing = sorted(connection.tasks - ready.tasks.keys())
        if missing or not all(report.train for report in ready.tasks.values()):
            raise ProtocolError("malformed", f"no training data reported for {missing or sorted(ready.tasks)}")
        known = self.participants.setdefault(connection.client_id, Participant(connection.tasks, ready.tasks))
        known.tasks, known.data, known.connection = connection.tasks, ready.tasks, connection
        data = {task: report.model_dump() for task, report in ready.tasks.items()}
        self._record(self.history.record_client, connection.client_id, sorted(connection.tasks), data)
        log.info("%s joined with %s", connection.client_id, _in_words(ready))
        self.feed.publish("client_joined", {"client_id": connection.client_id, "tasks": sorted(connection.tasks)})
        self.post(core.Joined(connection.client_id, connection.tasks))

    def disconnected(self, connection: Connection) -> None:
        """A connection is over, for whatever reason."""
        known = self.participants.get(connection.client_id)
        if known is not None:
            known.bytes_down += connection.bytes_down
            known.bytes_up += connection.bytes_up
        self._departed.set()
        if connection.said_goodbye or connection.heard_the_end:
            self._unaware.discard(connection.client_id)
        if self._connections.get(connection.client_id) is not connection:
            return
        del self._connections[connection.client_id]
        if known is not None and known.connection is connection:
            known.connection, known.last_seen, known.may_return = None, time.time(), not connection.said_goodbye
            log.info(
                "%s %s",
                connection.client_id,
                "left" if connection.said_goodbye or self.over else "lost its connection",
            )
            self.feed.publish("client_left", {"client_id": connection.client_id})
            self.post(core.Left(connection.client_id, connection.said_goodbye))

    def evaluated(self, connection: Connection, report: EvaluationReport) -> None:
        """A client has evaluated the version it received."""
        foreign = sorted(report.tasks.keys() - connection.tasks)
        if foreign:
            raise ProtocolError("task_not_allowed", f"an evaluation of {foreign}")
        if report.version > self.decisions.version:
            # Made before this server was restarted from an earlier version.
            log.info("%s: no use for an evaluation of version %d", connection.client_id, report.version)
            return
        for task, result in sorted(report.tasks.items()):
            if missing := sorted(set(self.specs[task].metrics) - result.metrics.keys()):
                raise ProtocolError("malformed", f"the evaluation of {task} lacks {missing}")
            if result.examples:
                metrics: dict[str, float] = {name: result.metrics[name] for name in self.specs[task].metrics}
                evaluation = Evaluation(metrics, result.loss, result.examples)
                self.scoreboard.add_evaluation(report.version, connection.client_id, task, evaluation)
                self._record(
                    self.history.record_evaluation,
                    *(report.version, connection.client_id, task, result.examples, result.loss, metrics),
                )
        self.post(core.EvaluationArrived(connection.client_id, report.version))

    def drop_revoked(self) -> None:
        """End the connections of clients whose tokens were revoked or have expired since they were let in."""
        for connection in list(self._connections.values()):
            if not connection.revoked and not self.authenticator.still_valid(connection.credentials):
                connection.revoked = True
                log.warning("closing the connection of %s: %s", connection.client_id, CREDENTIALS_ENDED)
                connection.send(Refusal(code="authentication", reason=CREDENTIALS_ENDED))
                connection.close()

    def declined(self, connection: Connection, round_id: int, reason: str) -> None:
        """A client can't contribute to a round."""
        self.post(core.UpdateDeclined(connection.client_id, round_id, reason))

    def refused(self, connection: Connection, round_id: int, error: ProtocolError) -> None:
        """An update was refused on its way in."""
        self.post(core.UpdateRefused(connection.client_id, round_id, error.code, error.reason))

    def not_stored(self, connection: Connection, header: UpdateHeader, error: OSError) -> None:
        """An update could not be written: for want of room the run waits, with any other error it goes on without."""
        if (reason := no_room(error)) is None:
            self.declined(connection, header.round, f"its update could not be stored: {error}")
            return
        self._lane.out_of_room(reason, sum(tensor.nbytes for tensor in header.tensors))
        self.post(core.UpdateDelayed(connection.client_id, header.round))

    def _disk_is_full(self, reason: str) -> None:
        self.post(core.Paused("storage", f"the disk of {self.directory.path} is full ({reason}); free some room"))

    def progressed(self, connection: Connection, progress: Progress) -> None:
        """A client says how far its training is; for people."""
        self.participants[connection.client_id].progress = f"{progress.done_steps}/{progress.total_steps}"

    def admit(self, connection: Connection, header: UpdateHeader) -> Literal["wanted", "duplicate", "undecided"]:
        """Whether an announced update is to be received; raises `UpdateRejected` when it is refused.

        An undecided one is on disk, but whether it counts is not settled: the answer to it is the answer to this one.
        """
        if not self.authenticator.still_valid(connection.credentials):
            raise UpdateRejected("authentication", CREDENTIALS_ENDED)
        waiting = self._undecided.get(connection.client_id)
        if waiting is not None and waiting.header.round == header.round:
            return "undecided"
        if waiting is not None:
            raise UpdateRejected("not_asked", f"the update of round {waiting.header.round} is still being decided on")
        if any(client_id == connection.client_id for _, client_id, _ in self._held_acks):
            return "undecided"
        verdict, code, reason = self.decisions.admission(connection.client_id, header.round)
        if verdict == "refused":
            raise UpdateRejected(code, reason)
        if verdict == "duplicate":
            return "duplicate"
        slice_ = self.model.plan.slice(self.specs if connection.full else connection.tasks)
        check_update(
            header,
            run_id=self.run_id,
            plan=self.model.plan,
            slice_=slice_,
            tasks=connection.tasks,
            full=connection.full,
        )
        if header.version == self.model.version and header.base not in ("", self.model.digest_of(slice_)):
            # Its server died with that version on its way to the disk, and somebody who was late then was not now.
            raise UpdateRejected("stale_version", f"version {header.version} was made again and came out otherwise")
        return "wanted"

    def update_spooled(self, connection: Connection, update: SpooledUpdate) -> None:
        """An update is on disk, whole and valid."""
        failpoint("update.spooled")
        self._undecided[connection.client_id] = update
        examples = {task: done.num_examples for task, done in update.header.tasks.items()}
        self.post(core.UpdateArrived(connection.client_id, update.header.round, examples))

    def count_refusal(self, connection: Connection, code: str, reason: str = "") -> None:
        """Keep count of what was refused, by name and by client."""
        self.refusals[code] = self.refusals.get(code, 0) + 1
        known = self.participants.get(connection.client_id)
        if known is not None:
            known.refusals[code] = known.refusals.get(code, 0) + 1
            known.last_refusal = f"{code}: {reason}" if reason else code
            round_id = self.decisions.version + 1
            self._record(self.history.record_refusal, round_id, connection.client_id, code, reason[:2000])

    # --- what an operator may ask for

    def pause(self, by: str) -> None:
        """Begin and close no round until `unpause`; a restarted server stays paused."""
        reason = f"paused by {by}"
        self._record(self.history.set, "paused", reason)
        self.post(core.Paused("operator", reason))

    def unpause(self, by: str) -> None:
        """Go on, whatever the run was paused for; a full disk it still waits for."""
        log.info("%s wants the run to go on", by)
        self._record(self.history.set, "paused", None)
        self.post(core.Unpaused("operator"))

    async def caught_up(self) -> None:
        """Wait until everything that was asked for so far is decided on, or the run is over."""
        decided: asyncio.Future[Any] = asyncio.ensure_future(self._events.join())
        either: set[asyncio.Future[Any]] = {decided, self.finished}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        decided.cancel()

    def release(self, client_id: str, by: str) -> bool:
        """Let a quarantined client take part again; False when it is in no quarantine."""
        if not self.decisions.quarantine.holds(client_id, self.decisions.version):
            return False
        log.info("%s releases %s from quarantine", by, client_id)
        self.post(core.Released(client_id))
        return True

    # --- what the coordinator commands

    def _begin(self, command: core.BeginRound) -> None:
        cohort = sorted(command.trainers)
        set_log_context(round=command.round_id)
        if command.attempt > 1:
            self.measures.rounds_repeated.inc()
        self.open_round = OpenRound(
            command.round_id, command.attempt, cohort, time.time(), self.traffic.down, self.traffic.up
        )
        log.info("round %d of %d: %s", command.round_id, self.config.run.rounds, ", ".join(cohort))
        self.feed.publish("round_started", {"round": command.round_id, "cohort": cohort, "attempt": command.attempt})
        failpoint("round.begun")

    def _dispatch(self, command: core.Dispatch) -> None:
        connection = self._connections.get(command.client_id)
        if connection is None or connection.revoked:
            return
        slice_ = self.model.plan.slice(self.specs if connection.full else connection.tasks)
        settings = self.config.training.model_dump(mode="json")
        work = Work(
            run_id=self.run_id,
            round=command.round_id,
            version=command.version,
            target_rounds=self.config.run.rounds,
            plan=self.model.plan.digest,
            slice=slice_.to_dict(),
            base=self.model.digest_of(slice_),
            evaluate=command.evaluate,
            training=settings if command.train else None,
            evaluation_settings=None if command.train else settings,
            deadline_s=self.config.federation.round_deadline_s,
            stream=0,
            tensors=(),
        )
        connection.send_work(work, self.model.encoded_slice(slice_))
        failpoint("round.dispatched" if command.train else "evaluation.begun")

    async def _acknowledge(self, command: core.Acknowledge) -> None:
        client_id = command.client_id
        update = self._undecided.pop(client_id)
        header = update.header
        if not command.duplicate:
            if update.path.parent != round_folder(self.directory.spool, command.counts_in):
                # It was received while an earlier round was open. A restart looks for it where it counts.
                update = await self._lane.write(self._spool.move, update, command.counts_in)
            self._updates[client_id] = update
        failpoint("update.counted")
        ack = UpdateAck(
            round=command.round_id, version=header.version, update=header.digest, duplicate=command.duplicate
        )
        self._held_acks.append((command.counts_in - 1, client_id, ack))
        self._send_acknowledgements()
        if not command.duplicate:
            self.measures.updates_accepted.inc()
            if client_id in self.participants:
                self.participants[client_id].rounds += 1
            nbytes = self._record_update(update, command.counts_in)
            self.feed.publish("update_accepted", {"round": command.round_id, "client_id": client_id, "bytes": nbytes})
        failpoint("update.acknowledged")

    def _send_acknowledgements(self) -> None:
        """Tell clients whose updates are safe: the update and the version it counts on are both on disk.

        While a version is still being written, the next round's updates may come. Should the server die then, that
        version is made again and may come out otherwise, if somebody was late; so their clients keep them till then.
        """
        held, self._held_acks = self._held_acks, []
        for version, client_id, ack in held:
            if version > self._durable_version:
                self._held_acks.append((version, client_id, ack))
            elif (connection := self._connections.get(client_id)) is not None:
                connection.send(ack)

    def _record_update(self, update: SpooledUpdate, counts_in: int) -> int:
        """Put an update that counts into the history; returns its payload's bytes."""
        header = update.header
        nbytes = sum(tensor.nbytes for tensor in header.tensors)
        tasks = {task: done.model_dump() for task, done in header.tasks.items()}
        digest, trained = header.digest, header.round
        self._record(self.history.record_update, counts_in, update.client_id, digest, nbytes, tasks, trained)
        return nbytes

    def _refuse_update(self, client_id: str, round_id: int, code: str, reason: str) -> None:
        """The round closed while the update was on its way, or it was judged together with the others."""
        connection = self._connections.get(client_id)
        judged = code == "norm_outlier"
        self._job(self._discard(self._updates.pop(client_id) if judged else self._undecided.pop(client_id)))
        if connection is not None:
            self.count_refusal(connection, code, reason)
            # Not `dismiss`: the work of the next round may be on its way to this client already.
            connection.send(Rejected(code=code, reason=reason[:2000], round=round_id))

    def _quarantine(self, client_id: str, until_version: int, reason: str) -> None:
        since = self.decisions.version + 1
        self._record(self.history.record_quarantine, client_id, since, until_version, reason)
        self.feed.publish("quarantine", {"client_id": client_id, "until_version": until_version, "reason": reason})

    async def _discard(self, update: SpooledUpdate) -> None:
        await self._lane.run(self._spool.drop, update)

    async def _screen(self, round_id: int, client_ids: frozenset[str]) -> None:
        """Look at the updates of a closed round together."""
        updates = [self._updates[client_id] for client_id in sorted(client_ids)]
        norms = {update.client_id: await self._lane.run(update_norm, update, self.model.plan) for update in updates}
        limit = self.config.federation.screening.max_norm_ratio
        assert limit is not None
        outliers = norm_outliers(norms, limit)
        told = "its norm is {:.3g} times the cohort's median, allowed is {:g}"
        self.post(core.Screened(round_id, {c: told.format(ratio, limit) for c, ratio in outliers.items()}))

    async def _aggregate(self, command: core.Aggregate) -> None:
        """Fold, let the next round begin, and commit while clients already work on it."""
        async with self._committing:
            await self._fold_and_commit(command)

    async def _fold_and_commit(self, command: core.Aggregate) -> None:
        current = self.open_round
        assert current is not None
        waited = time.time()
        updates = [self._updates[client_id] for client_id in command.contributions]
        rules = self.config.federation
        discounts = {c: (1.0 + late) ** -rules.buffer.staleness_exponent for c, late in command.staleness.items()}
        fold = partial(
            reduce_round,
            *(self.model, updates, command.contributions, rules.task_weights, self._aggregators, rules.task_step),
            discounts=discounts,
            cancelled=self._stopping,
        )
        try:
            await self._lane.run(fold)
        except UnsoundModel as error:
            self.post(core.AggregationFailed(command.round_id, str(error)))
            return
        except ReductionCancelled:
            log.info("round %d was not folded to the end; its updates are kept for --resume", command.round_id)
            return
        reduced = time.time()
        current.phases |= {"clients": waited - current.started, "reduce": reduced - waited}
        self._updates = {}
        self._close_record(current, command.contributions, reduced)
        self.post(core.Aggregated(command.round_id))
        await self._lane.write(self._commit, current)
        self._durable_version = self.model.version
        self._send_acknowledgements()

    def _commit(self, current: OpenRound) -> None:
        """Make the version durable, in the lane, where the model does not change meanwhile. Bears being done twice."""
        began = time.time()
        self.sha256 = self.directory.commit(self.model)
        seconds = time.time() - began
        plan = self.model.plan
        self.history.record_commit(self.model.version, self.sha256, plan.to_dict(), plan.digest, seconds)
        failpoint("commit.recorded")
        current.phases["commit"] = seconds
        done = self.scoreboard.rounds[current.round_id]
        self.history.record_round(
            current.round_id,
            attempt=current.attempt,
            started=current.started,
            finished=current.started + done.seconds,
            phases=current.phases,
            cohort=current.cohort,
            bytes_down=done.bytes_down,
            bytes_up=done.bytes_up,
        )
        # The updates that made this version stay until the next one is there: should its file be damaged, they make it
        # again.
        self._spool.discard(self.model.version - 1)
        failpoint("commit.spool_discarded")
        self.directory.prune(self.config.run.keep_versions)
        self.directory.write_summary(self.summary())
        failpoint("commit.done")

    def _close_record(self, current: OpenRound, contributions: Mapping[str, Examples], now: float) -> None:
        examples: dict[str, int] = {}
        for counts in contributions.values():
            for task, count in counts.items():
                examples[task] = examples.get(task, 0) + count
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
        )

    async def _publish(self, version: int) -> None:
        """A version's evaluation is complete: show it."""
        primary = {task: spec.primary_metric for task, spec in self.specs.items()}
        line = self.scoreboard.line(version, primary)
        if line:
            log.info("version %d: %s", version, line)
        self.feed.publish("evaluated", {"version": version, "tasks": self.scoreboard.latest()})

    async def _finish(self, state: Outcome, reason: str) -> None:
        self._timers.cancel_all()
        self._lane.stop_waiting()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        if self._failure:
            state, reason = "failed", self._failure
        self._progress = state
        self._farewell = Finished(state=state, reason=reason[:2000], rounds_completed=self.model.version)
        log.info("run %s: %s", state, reason)
        self.feed.publish("finished", {"state": state, "reason": reason})
        self._unaware = set(self._connections)
        if state != "stopped":  # a stopped server is waited for, so nobody needs to hear that
            self._unaware |= {client_id for client_id, known in self.participants.items() if self._may_return(known)}
        try:
            await self._lane.write(self._record_end, state)
        except NoRoom as error:
            log.warning("the summary is not up to date: %s", error)
        failpoint("finish.recorded")
        for connection in list(self._connections.values()):
            connection.send(self._farewell)
            connection.close()
        failpoint("finish.told")
        if not self.finished.done():
            self.finished.set_result(state)

    def _may_return(self, known: Participant) -> bool:
        """Whether a client is away, and has not been for so long that it would have lost its seat."""
        away_s = time.time() - known.last_seen
        return known.connection is None and known.may_return and away_s < self.config.federation.rejoin_grace_s

    def _record_end(self, state: Outcome) -> None:
        if state == "finished":
            self.history.set("finished", self.model.version)
            # Should this process be killed now, the next one tells them.
            self.history.set("unaware", sorted(self._unaware))
            self._spool.discard(self.model.version)
        self.directory.write_summary(self.summary())

    # --- threads, jobs, records

    def stop(self, reason: str) -> None:
        """Ask the run to stop; it can be resumed."""
        # A fold may take long, and what it needs is on disk.
        self._stopping.set()
        self.post(core.StopRequested(reason))

    async def drained(self, patience_s: float) -> None:
        """Wait until clients have heard that the run is over and closed, those included that come back just now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._connections or self._unaware:
                    self._departed.clear()
                    await self._departed.wait()
        if self._progress == "finished":
            self._record(self.history.set, "unaware", sorted(self._unaware))

    async def say_farewell(self) -> Outcome:
        """Tell the clients of a finished run that it is over: those that its server could not tell any more."""
        self._progress = "finished"
        reason = f"all {self.config.run.rounds} rounds are done"
        self._farewell = Finished(state="finished", reason=reason, rounds_completed=self.model.version)
        self._unaware = set(self.history.get("unaware") or ())
        log.info("the run is finished: %s (raise run.rounds to go on)", reason)
        patience_s = self.config.federation.rejoin_grace_s
        if self._unaware:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._all_told.wait()
        if self._unaware:
            log.warning("%s did not come back in %g s to hear it", ", ".join(sorted(self._unaware)), patience_s)
        return "finished"

    def _record(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401  # passed on
        self._job(self._lane.write(write, *arguments))

    def _job(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)

    def _job_done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, NoRoom):
            log.warning("something was not written down: %s", error)
            return
        log.error("the run cannot go on: %s", error, exc_info=error)
        self._failure = self._failure or f"{type(error).__name__}: {error}"
        self.post(core.Crashed(self._failure))

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return summarise(self)


def _in_words(ready: Ready) -> str:
    return "; ".join(
        f"{task}: {data.train} training and {data.validation} validation examples of {data.source}"
        for task, data in sorted(ready.tasks.items())
    )
