"""The running federation: carries out what the coordinator decides.

This is the edge: it awaits, moves bytes and writes files, and decides nothing. A round reads from top to
bottom: `_begin` and `_dispatch` send the work, `admit` and `update_spooled` take the updates, `_aggregate`
folds and commits them in the lane (one worker thread, so that model, files and history are touched in
order and never on the event loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from common.errors import ProtocolError, UpdateRejected
from common.families.base import Family
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
from server.admission import agree_on_encoding, agree_on_protocol, check_update
from server.aggregation import build_aggregator
from server.authentication import CREDENTIALS_ENDED, Authenticator
from server.config import Config
from server.connection import Connection
from server.coordinator import Coordinator
from server.events import EventFeed
from server.history import History
from server.model_state import ModelState
from server.records import OpenRound, Participant, Traffic
from server.reduce import reduce_round
from server.round import Examples
from server.run_directory import RunDirectory
from server.scoreboard import RoundRecord, Scoreboard
from server.spool import Spool, SpooledUpdate
from server.summary import summarise
from server.timers import Timers
from server.tls import Peer
from server.welcome import Introduction

log = logging.getLogger("fedmtl.server")
Result = TypeVar("Result")
Outcome = Literal["finished", "failed", "stopped"]


class Federation:
    """One run, from the first client to the last version.

    Args:
        config: the validated configuration.
        specs: the resolved tasks.
        family: the model family.
        model: the version to start from.
        directory: the run directory, held by this process.
        history: its database.
        run_id: the run's id.
        decisions: the coordinator.
        authenticator: who may take part.
    """

    def __init__(
        self,
        config: Config,
        specs: Mapping[str, TaskSpec],
        family: Family,
        model: ModelState,
        directory: RunDirectory,
        history: History,
        run_id: str,
        decisions: Coordinator,
        authenticator: Authenticator,
    ) -> None:
        self.config = config
        self.specs = specs
        self.model = model
        self.directory = directory
        self.history = history
        self.run_id = run_id
        self.decisions = decisions
        self.authenticator = authenticator
        self.summary_of_model = family.summary()
        # What a resumed run's summary says goes on from where it stopped.
        self.scoreboard = Scoreboard.restored(model.version, history.rounds(), history.updates(), history.evaluations())
        before = self.scoreboard.rounds.values()
        self.traffic = Traffic(sum(r.bytes_down for r in before), sum(r.bytes_up for r in before))
        self.started = time.time() - sum(r.seconds for r in before)
        self.sha256 = str((history.commit_of(model.version) or {"sha256": ""})["sha256"])
        self.feed = EventFeed(history.last_event(), lambda *event: self._record(history.record_event, *event))
        self.participants: dict[str, Participant] = {}
        self.refusals: dict[str, int] = {}
        self.state: str = "running"
        self.open_round: OpenRound | None = None
        self.finished: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._introduction = Introduction(config, specs, family, run_id)
        self._connections: dict[str, Connection] = {}
        self._events: asyncio.Queue[core.Event] = asyncio.Queue()
        self._timers = Timers(lambda name: self.post(core.TimerFired(name)))
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="fedmtl-lane")
        self._spool = Spool(directory.spool)
        #: Updates on disk by client: of which the coordinator has yet to say whether they count, and those that do.
        self._undecided: dict[str, SpooledUpdate] = {}
        self._updates: dict[str, SpooledUpdate] = {}
        self._aggregator = build_aggregator("weighted_sum")
        self._jobs: set[asyncio.Task[Any]] = set()
        self._failure = ""
        self._empty = asyncio.Event()

    # --- the loop

    def post(self, event: core.Event) -> None:
        """Hand an event to the coordinator."""
        self._events.put_nowait(event)

    async def run(self) -> Outcome:
        """Carry out commands until the run is over in this process; returns how it ended."""
        await self._restore_spool()
        while not self.finished.done():
            event = await self._events.get()
            for command in self.decisions.handle(event):
                await self._carry_out(command)
        return self.finished.result()

    async def _restore_spool(self) -> None:
        """Count the updates that were accepted for the coming round before this process began."""
        kept: dict[str, tuple[frozenset[str], Examples]] = {}
        for update in await self._in_lane(self._spool.load, self.model.version + 1):
            if (update.header.run_id, update.header.plan) == (self.run_id, self.model.plan.digest):
                self._updates[update.client_id] = update
                # The process may have been killed between the update's file and its row.
                self._record_update(update)
                done = update.header.tasks
                kept[update.client_id] = (frozenset(done), {task: done[task].num_examples for task in sorted(done)})
        if kept:
            log.info("round %d goes on with the updates of %s", self.model.version + 1, ", ".join(sorted(kept)))
        self.decisions.restore(kept)

    async def close(self) -> None:
        """Let threads and files go."""
        self._timers.cancel_all()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self._lane.shutdown()

    async def _carry_out(self, command: core.Command) -> None:
        match command:
            case core.BeginRound():
                self._begin(command)
            case core.Dispatch():
                self._dispatch(command)
            case core.Acknowledge(client_id, round_id, duplicate):
                self._acknowledge(client_id, round_id, duplicate)
            case core.RefuseUpdate(client_id, round_id, code, reason):
                self._refuse_update(client_id, round_id, code, reason)
            case core.Dismiss(client_ids, round_id, reason):
                for client_id in sorted(client_ids & self._connections.keys()):
                    self._connections[client_id].dismiss(RoundClosed(round=round_id, reason=reason))
            case core.StartTimer(name, seconds):
                self._timers.start(name, seconds)
            case core.CancelTimer(name):
                self._timers.cancel(name)
            case core.Aggregate():
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
        version = agree_on_protocol(hello.protocol)
        up = agree_on_encoding(hello.encodings_up, "encodings_up")
        down = agree_on_encoding(hello.encodings_down, "encodings_down")
        whole = hello.sync == "full"
        admitted = self.authenticator.client(hello.token, hello.client_id, hello.tasks, peer, whole_model=whole)
        tasks = admitted.tasks
        if len(self._connections) >= self.config.server.limits.connections:
            raise ProtocolError("busy", f"{len(self._connections)} clients are connected, no more are taken")
        if self.finished.done():
            raise ProtocolError("shutting_down", "the run is over")
        if hello.client_id in self._connections:
            raise ProtocolError("duplicate_client", f"a client called {hello.client_id!r} is connected already")
        connection.client_id, connection.tasks, connection.full = hello.client_id, tasks, whole
        connection.credentials = admitted.credentials
        self._connections[hello.client_id] = connection
        self._empty.clear()
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
        if self._connections.get(connection.client_id) is not connection:
            return
        del self._connections[connection.client_id]
        if not self._connections:
            self._empty.set()
        known = self.participants.get(connection.client_id)
        if known is not None and known.connection is connection:
            known.connection, known.last_seen = None, time.time()
            known.bytes_down += connection.bytes_down
            known.bytes_up += connection.bytes_up
            log.info(
                "%s %s",
                connection.client_id,
                "left" if connection.said_goodbye or self.finished.done() else "lost its connection",
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

    def progressed(self, connection: Connection, progress: Progress) -> None:
        """A client says how far its training is; for people."""
        self.participants[connection.client_id].progress = f"{progress.done_steps}/{progress.total_steps}"

    def admit(self, connection: Connection, header: UpdateHeader) -> Literal["wanted", "duplicate"]:
        """Whether an announced update is to be received; raises `UpdateRejected` when it is refused."""
        if not self.authenticator.still_valid(connection.credentials):
            raise UpdateRejected("authentication", CREDENTIALS_ENDED)
        waiting = self._undecided.get(connection.client_id)
        if waiting is not None and waiting.header.round == header.round:
            return "duplicate"
        verdict, code, reason = self.decisions.admission(connection.client_id, header.round)
        if verdict == "refused":
            raise UpdateRejected(code, reason)
        if verdict == "duplicate":
            return "duplicate"
        check_update(
            header,
            run_id=self.run_id,
            plan=self.model.plan,
            slice_=self.model.plan.slice(self.specs if connection.full else connection.tasks),
            tasks=connection.tasks,
            full=connection.full,
        )
        return "wanted"

    def update_spooled(self, connection: Connection, update: SpooledUpdate) -> None:
        """An update is on disk, whole and valid."""
        self._undecided[connection.client_id] = update
        examples = {task: done.num_examples for task, done in update.header.tasks.items()}
        self.post(core.UpdateArrived(connection.client_id, update.header.round, examples))

    def count_refusal(self, connection: Connection, code: str) -> None:
        """Keep count of what was refused, by name."""
        self.refusals[code] = self.refusals.get(code, 0) + 1
        if connection.client_id in self.participants:
            self.participants[connection.client_id].refused += 1

    # --- what the coordinator commands

    def _begin(self, command: core.BeginRound) -> None:
        cohort = sorted(command.trainers)
        self.open_round = OpenRound(
            command.round_id, command.attempt, cohort, time.time(), self.traffic.down, self.traffic.up
        )
        log.info("round %d of %d: %s", command.round_id, self.config.run.rounds, ", ".join(cohort))
        self.feed.publish("round_started", {"round": command.round_id, "cohort": cohort, "attempt": command.attempt})

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
            evaluate=command.evaluate,
            training=settings if command.train else None,
            evaluation_settings=None if command.train else settings,
            deadline_s=self.config.federation.round_deadline_s,
            stream=0,
            tensors=(),
        )
        connection.send_work(work, self.model.encoded_slice(slice_))

    def _acknowledge(self, client_id: str, round_id: int, duplicate: bool) -> None:
        update = self._undecided.pop(client_id)
        header = update.header
        connection = self._connections.get(client_id)
        if connection is not None:
            connection.send(
                UpdateAck(round=round_id, version=header.version, update=header.digest, duplicate=duplicate)
            )
        if not duplicate:
            self._updates[client_id] = update
            if client_id in self.participants:
                self.participants[client_id].rounds += 1
            nbytes = self._record_update(update)
            self.feed.publish("update_accepted", {"round": round_id, "client_id": client_id, "bytes": nbytes})

    def _record_update(self, update: SpooledUpdate) -> int:
        """Put an update that counts into the history; returns its payload's bytes."""
        header = update.header
        nbytes = sum(tensor.nbytes for tensor in header.tensors)
        tasks = {task: done.model_dump() for task, done in header.tasks.items()}
        self._record(self.history.record_update, header.round, update.client_id, header.digest, nbytes, tasks)
        return nbytes

    def _refuse_update(self, client_id: str, round_id: int, code: str, reason: str) -> None:
        """The round closed while the update was on its way."""
        connection = self._connections.get(client_id)
        self._job(self._discard(self._undecided.pop(client_id)))
        if connection is not None:
            self.count_refusal(connection, code)
            # Not `dismiss`: the work of the next round may be on its way to this client already.
            connection.send(Rejected(code=code, reason=reason[:2000], round=round_id))

    async def _discard(self, update: SpooledUpdate) -> None:
        await self._in_lane(self._spool.drop, update)

    async def _aggregate(self, command: core.Aggregate) -> None:
        """Fold, let the next round begin, and commit while clients already work on it."""
        current = self.open_round
        assert current is not None
        waited = time.time()
        updates = [self._updates[client_id] for client_id in command.contributions]
        rules = self.config.federation
        await self._in_lane(
            reduce_round,
            *(self.model, updates, command.contributions, rules.task_weights, self._aggregator, rules.task_step),
        )
        reduced = time.time()
        current.phases |= {"clients": waited - current.started, "reduce": reduced - waited}
        self._updates = {}
        self._close_record(current, command.contributions, reduced)
        self.post(core.Aggregated(command.round_id))
        await self._in_lane(self._commit, current)

    def _commit(self, current: OpenRound | None) -> None:
        """Make the version durable; runs in the lane, so the model does not change meanwhile."""
        began = time.time()
        self.sha256 = self.directory.commit(self.model)
        seconds = time.time() - began
        plan = self.model.plan
        self.history.record_commit(self.model.version, self.sha256, plan.to_dict(), plan.digest, seconds)
        if current is not None:
            current.phases["commit"] = seconds
            self.history.record_round(
                current.round_id,
                attempt=current.attempt,
                started=current.started,
                finished=current.started + self.scoreboard.rounds[current.round_id].seconds,
                phases=current.phases,
                cohort=current.cohort,
                bytes_down=self.scoreboard.rounds[current.round_id].bytes_down,
                bytes_up=self.scoreboard.rounds[current.round_id].bytes_up,
            )
        self._spool.discard(self.model.version)
        self.directory.prune(self.config.run.keep_versions)
        self.directory.write_summary(self.summary())

    def _close_record(self, current: OpenRound, contributions: Mapping[str, Examples], now: float) -> None:
        examples: dict[str, int] = {}
        for counts in contributions.values():
            for task, count in counts.items():
                examples[task] = examples.get(task, 0) + count
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
        await asyncio.gather(*self._jobs, return_exceptions=True)
        if self._failure:
            state, reason = "failed", self._failure
        self.state = state
        log.info("run %s: %s", state, reason)
        self.feed.publish("finished", {"state": state, "reason": reason})
        await self._in_lane(self.directory.write_summary, self.summary())
        message = Finished(state=state, reason=reason[:2000], rounds_completed=self.model.version)
        for connection in list(self._connections.values()):
            connection.send(message)
            connection.close()
        if not self.finished.done():
            self.finished.set_result(state)

    # --- threads, jobs, records

    async def begin_run(self) -> None:
        """Encode the version to start from, and commit it if it is a new run's; before clients are let in."""
        await self._in_lane(self.model.encode)
        if self.history.last_commit() is None:
            await self._in_lane(self._commit, None)

    def stop(self, reason: str) -> None:
        """Ask the run to stop; it can be resumed."""
        self.post(core.StopRequested(reason))

    async def drained(self, patience_s: float) -> None:
        """Wait until clients have taken their last messages and closed, but not for ever."""
        if self._connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._empty.wait()

    async def _in_lane(self, work: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401  # passed on
        return await asyncio.get_running_loop().run_in_executor(self._lane, work, *arguments)

    def _record(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401  # passed on
        self._job(self._in_lane(write, *arguments))

    def _job(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)

    def _job_done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
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
