"""The running federation: carries out what the coordinator decides.

This is the edge: it awaits, moves bytes and writes files, and decides nothing. A round reads from top to
bottom: `_begin` and `_dispatch` send the work, `server.reception` takes the updates, `_acknowledge` answers them,
`_fold_and_commit` makes the next version in the lane (one worker thread, so that model, files and history are touched
in order and never on the event loop).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from common.failpoints import failpoint
from common.messages import Finished, Rejected, RoundClosed, UpdateAck, UpdateHeader, Work
from common.plan import SharingPlan
from common.plan_diff import diff
from common.tasks import TaskSpec
from server import coordination as core
from server.acknowledgements import Acknowledgements
from server.aggregation import AggregatorChoice
from server.authentication import Authenticator
from server.config import Config
from server.coordinator import Coordinator
from server.correction import Reweigh, reweighing
from server.coupling import coupling
from server.farewell import Farewell
from server.gate_records import gate_record
from server.jobs import Jobs
from server.lane import Lane, NoRoom, no_room
from server.ledger import Ledger
from server.reception import Reception
from server.records import OpenRound, QueueDepths
from server.reduce import ReductionCancelled, UnsoundModel, reduce_round
from server.routing import by_routing
from server.rules import Kept
from server.run_directory import RunDirectory
from server.screening import norm_outliers
from server.spool import Spool, SpooledUpdate, round_folder
from server.start import Start
from server.summary import summarise
from server.timers import Timers
from server.training_settings import changed, changes_for
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
        self.history = start.history
        self.course = start.course
        self.run_id = start.run_id
        self.decisions = decisions
        self.authenticator = authenticator
        self.summary_of_model = start.family.summary()
        version = self.model.version
        self.sha256 = str((self.history.commit_of(version) or {"sha256": ""})["sha256"])
        self.finished: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._outcome: Outcome | None = None
        #: Why the run ended; empty while it goes on.
        self.ended_for = ""
        self._events: asyncio.Queue[core.Event] = asyncio.Queue()
        self._timers = Timers(lambda name: self.post(core.TimerFired(name)))
        self._lane = Lane(directory.path, self._disk_is_full, lambda: self.post(core.Unpaused("storage")))
        self._jobs = Jobs(lambda failure: self.post(core.Crashed(failure)))
        self.ledger = Ledger(specs, self.history, version, config.run.rounds, self._write)
        self._farewell = Farewell()
        self._acknowledgements = Acknowledgements(version, self._send_acknowledgement)
        self.reception = Reception(
            config,
            start.run_id,
            directory,
            specs,
            start.model,
            decisions,
            authenticator,
            Introduction(config, specs, start.family, start.run_id),
            self.ledger,
            self._farewell,
            self.post,
            self._not_stored,
            self._acknowledgements.holds_for,
            start.course,
        )
        self._connections = self.reception.connections
        self._spool = Spool(directory.spool, directory.disk)
        #: Updates that count in the round that is open or closing, by client.
        self._updates: dict[str, SpooledUpdate] = {}
        self._couple = coupling(start.family.ties())
        self._aggregators = AggregatorChoice.of(config.federation.aggregation, self.model.plan.slots)
        #: One version at a time is folded and committed, however long a commit waits for room on the disk.
        self._committing = asyncio.Lock()
        self._stopping = threading.Event()
        #: Clients and their tasks when the newest round began.
        self._present: Mapping[str, frozenset[str]] = {}
        #: A round that is repeated with other overrides than before the restart replaces what is noted of it.
        self._notes_training = bool(config.training_overrides) or self.history.any_training_changes()

    @property
    def state(self) -> str:
        """Where the run stands: resuming, running, paused, or how it ended."""
        if self._outcome is not None:
            return self._outcome
        if not self.reception.open:
            return "resuming"
        return "paused" if self.decisions.pauses else "running"

    @property
    def paused_for(self) -> dict[str, str]:
        """Why the run stands still, also before it has begun to."""
        lacking = {"storage": self._lane.trouble} if self._lane.trouble else {}
        return lacking | dict(self.decisions.pauses)

    @property
    def over(self) -> bool:
        """Whether the run has ended in this process."""
        return self._outcome is not None

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
            try:
                for command in self.decisions.handle(event):
                    await self._carry_out(command)
            except Exception as error:
                log.exception("the run cannot go on")
                self._jobs.fail(error)
            self._events.task_done()
        return self.finished.result()

    async def restore(self, url: str) -> None:
        """Go on from what is on disk, before clients are let in.

        Args:
            url: where this server listens, for the operator's commands.
        """
        address = json.dumps({"url": url, "pid": os.getpid()}).encode()
        await self._lane.write(self.directory.disk.replace, self.directory.address, address)
        await self._lane.run(failpoint, "start.restoring")
        await self._restore_spool()
        since = {row["client_id"]: row["since_round"] for row in self.history.quarantines()}
        self.decisions.quarantine.restore(
            ((client_id, number) for client_id, number in self.history.strikes() if number > since.get(client_id, 0)),
            ((row["client_id"], row["until_version"]) for row in self.history.quarantines()),
        )
        if paused := self.history.get("paused"):
            self.post(core.Paused("operator", str(paused)))
        await self._lane.write(self.directory.write_summary, self.summary())
        self.reception.open = True
        self.post(core.Resumed())

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
            plan = self.course.plan_of_round(header.round)
            known = plan is not None and (header.run_id, header.plan) == (self.run_id, plan.digest)
            if known and header.round > counted.get(update.client_id, 0):
                self._updates[update.client_id] = update
                # The process may have been killed between the update's file and its row.
                self.ledger.record_update(update, version + 1)
                examples = {task: done.num_examples for task, done in sorted(header.tasks.items())}
                staleness = version - header.version
                kept[update.client_id] = Kept(frozenset(header.tasks), examples, staleness)
                counted[update.client_id] = header.round
        self.ledger.restored(self._updates.values(), self.model.plan)
        if kept:
            log.info("round %d goes on with the updates of %s", version + 1, ", ".join(sorted(kept)))
        present = self.history.get("present") or {"round": 0, "clients": {}}
        clients = {client_id: frozenset(tasks) for client_id, tasks in present["clients"].items()}
        self.decisions.restore(kept, counted, clients, int(present["round"]))

    async def _carry_out(self, command: core.Command) -> None:
        match command:
            case core.BeginRound():
                await self._begin(command)
            case core.Dispatch():
                self._dispatch(command)
            case core.Acknowledge():
                await self._acknowledge(command)
            case core.RefuseUpdate(client_id, round_id, code, reason):
                self._refuse_update(client_id, round_id, code, reason)
            case core.Strike(client_id, round_id):
                self.ledger.struck(client_id, round_id)
            case core.Quarantine(client_id, until_version, reason):
                self.ledger.quarantined(client_id, self.decisions.version + 1, until_version, reason)
            case core.Dismiss(client_ids, round_id, reason):
                for client_id in sorted(client_ids & self._connections.keys()):
                    self._connections[client_id].dismiss(RoundClosed(round=round_id, reason=reason))
            case core.StartTimer(name, seconds):
                self._timers.start(name, seconds)
            case core.CancelTimer(name):
                self._timers.cancel(name)
            case core.Screen(round_id, client_ids):
                self._jobs.start(self._screen(round_id, client_ids))
            case core.Aggregate():
                failpoint("round.closed")
                self._jobs.start(self._aggregate(command))
            case core.EvaluationsComplete(version):
                self._judge(version)
            case core.Note(text, level):
                log.log(logging.WARNING if level == "warning" else logging.INFO, text)
                self.ledger.feed.publish("note", {"text": text, "level": level})
            case core.Finish(state, reason):
                await self._finish(state, reason)

    def _disk_is_full(self, reason: str) -> None:
        self.post(core.Paused("storage", f"the disk of {self.directory.path} is full ({reason}); free some room"))

    def _not_stored(self, client_id: str, header: UpdateHeader, error: OSError) -> None:
        """An update could not be written: for want of room the run waits, with any other error it goes on without."""
        if (reason := no_room(error)) is None:
            self.post(core.UpdateDeclined(client_id, header.round, f"its update could not be stored: {error}"))
            return
        self._lane.out_of_room(reason, sum(tensor.nbytes for tensor in header.tensors))
        self.post(core.UpdateDelayed(client_id, header.round))

    # --- what an operator may ask for

    def pause(self, by: str) -> None:
        """Begin and close no round until `unpause`; a restarted server stays paused."""
        reason = f"paused by {by}"
        self._write(self.history.set, "paused", reason)
        self.post(core.Paused("operator", reason))

    def unpause(self, by: str) -> None:
        """Go on, whatever the run was paused for; a full disk it still waits for."""
        log.info("%s wants the run to go on", by)
        self._write(self.history.set, "paused", None)
        self.post(core.Unpaused("operator"))

    async def caught_up(self) -> None:
        """Wait until everything that was asked for so far is decided on and written down, or the run is over."""
        if self.over:
            return
        decided: asyncio.Future[Any] = asyncio.ensure_future(self._events.join())
        either: set[asyncio.Future[Any]] = {decided, self.finished}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        decided.cancel()
        if not self.over:
            # What was handed to the lane before this is written down.
            await self._lane.run(_nothing)

    def release(self, client_id: str, by: str) -> bool:
        """Let a quarantined client take part again; False when it is in no quarantine."""
        if not self.decisions.quarantine.holds(client_id, self.decisions.version):
            return False
        log.info("%s releases %s from quarantine", by, client_id)
        self.post(core.Released(client_id))
        return True

    # --- what the coordinator commands

    async def _begin(self, command: core.BeginRound) -> None:
        self.ledger.begun(command)
        clients = {client_id: sorted(tasks) for client_id, tasks in command.present.items()}
        present = {"round": command.round_id, "clients": clients}
        try:
            # Before anybody is asked, and not behind the last version's commit in the lane.
            await asyncio.to_thread(self.history.set, "present", present)
        except sqlite3.Error:
            self._write(self.history.set, "present", present)
        self._present = command.present
        failpoint("round.begun")

    def _dispatch(self, command: core.Dispatch) -> None:
        connection = self._connections.get(command.client_id)
        if connection is None or connection.revoked:
            return
        slice_ = self.model.plan.slice(self.specs if connection.full else connection.tasks)
        changes = changes_for(self.config.training_overrides, command.client_id, connection.tasks)
        settings = changed(self.config.training, changes).model_dump(mode="json")
        if command.train and self._notes_training:
            self._write(self.history.record_training, command.round_id, command.client_id, changes)
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
            counted=self.decisions.counted(command.client_id),
            deadline_s=self.config.federation.round_deadline_s,
            stream=0,
            tensors=(),
        )
        connection.send_work(work, self.model.encoded_slice(slice_))
        failpoint("round.dispatched" if command.train else "evaluation.begun")

    async def _acknowledge(self, command: core.Acknowledge) -> None:
        client_id = command.client_id
        update = self.reception.undecided.pop(client_id, None)
        if update is None:
            return  # it came twice, on two connections: the first of them was answered
        if not command.duplicate:
            if update.path.parent != round_folder(self.directory.spool, command.counts_in):
                # It was received while an earlier round was open. A restart looks for it where it counts.
                update = await self._lane.write(self._spool.move, update, command.counts_in)
            self._updates[client_id] = update
        failpoint("update.counted")
        header, duplicate = update.header, command.duplicate
        ack = UpdateAck(round=command.round_id, version=header.version, update=header.digest, duplicate=duplicate)
        self._acknowledgements.give(command.counts_in - 1, client_id, ack)
        if not duplicate:
            self.ledger.accepted(update, command.counts_in)
        failpoint("update.acknowledged")

    def _send_acknowledgement(self, client_id: str, ack: UpdateAck) -> None:
        if (connection := self._connections.get(client_id)) is not None:
            connection.send(ack)

    def _refuse_update(self, client_id: str, round_id: int, code: str, reason: str) -> None:
        """The round closed while the update was on its way, or it was judged together with the others."""
        judged = code == "norm_outlier"
        update = (self._updates if judged else self.reception.undecided).pop(client_id, None)
        if update is not None:
            self._jobs.start(self._lane.run(self._spool.drop, update))
        if judged:
            self.ledger.withdrawn(client_id, self.decisions.version + 1)
        self.ledger.refused(client_id, code, reason, self.decisions.version + 1)
        if (connection := self._connections.get(client_id)) is not None:
            # Not `dismiss`: the work of the next round may be on its way to this client already.
            connection.send(Rejected(code=code, reason=reason[:2000], round=round_id))

    def _judge(self, version: int) -> None:
        """No further evaluation of a version is awaited: what follows from those that came is written down."""
        self.ledger.published(version)
        if results := self.ledger.scoreboard.combined(version):
            row, told = self.course.judge(version, results)
            self._write(self.history.record_judgement, version, row)
            for text in told:
                log.info(text)
                self.ledger.feed.publish("note", {"text": text, "level": "info"})

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
        current = self.ledger.open_round
        assert current is not None
        waited = time.time()
        updates = [self._updates[client_id] for client_id in command.contributions]
        rules = self.config.federation
        plan = self.model.plan
        next_plan = self.course.plan_of_next(command.round_id - 1, plan)
        discounts = {c: (1.0 + late) ** -rules.buffer.staleness_exponent for c, late in command.staleness.items()}
        fold = partial(
            reduce_round,
            *(self.model, updates, command.contributions, rules.task_weights, self._aggregators, rules.task_step),
            discounts=discounts,
            cancelled=self._stopping,
            next_plan=next_plan,
            reweigh=self._reweighing(updates),
            couple=self._couple,
        )
        try:
            gates = await self._lane.run(gate_record, {update.client_id: update.header.tasks for update in updates})
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
        self.ledger.closed(current, command.contributions, reduced, gates)
        self._plan_holds(command.round_id, plan, next_plan)
        self.post(core.Aggregated(command.round_id, self.course.outlook(command.round_id, next_plan)))
        await self._lane.write(self._commit, current, self.course.best_versions)
        self._acknowledgements.version_is_durable(command.round_id)

    def _plan_holds(self, version: int, before: SharingPlan, after: SharingPlan) -> None:
        """A version is stored with the plan of the round that starts from it."""
        self.course.made(version, after)
        if changes := diff(before, after):
            log.info("sharing plan from round %d on\n%s", version + 1, changes)
            event = {"round": version + 1, "digest": after.digest, "changes": str(changes).splitlines()}
            self.ledger.feed.publish("plan_changed", event)

    def _reweighing(self, updates: Sequence[SpooledUpdate]) -> Reweigh:
        """What `federation.expert_weights` and `federation.correction` make of the weights of these updates."""
        base, overrides = self.config.training, self.config.training_overrides
        training = {}
        for update in updates:
            tasks = self._present.get(update.client_id, frozenset(update.header.tasks))
            training[update.client_id] = changed(base, changes_for(overrides, update.client_id, tasks))
        done = {update.client_id: update.header.tasks for update in updates}
        rules = self.config.federation
        experts = by_routing(done, rules.task_weights) if rules.expert_weights == "routing" else None
        return reweighing(rules.correction, training, done, self._present, experts)

    def _commit(self, current: OpenRound, best: frozenset[int]) -> None:
        """Make the version durable, in the lane, where the model does not change meanwhile. Bears being done twice."""
        began = time.time()
        self.sha256 = self.directory.commit(self.model)
        seconds = time.time() - began
        plan = self.model.plan
        current.phases["commit"] = seconds
        # Before the commit counts: a server that is killed now makes this round again, and writes it anew.
        self.ledger.record_round(current)
        self.history.record_commit(self.model.version, self.sha256, plan.to_dict(), plan.digest, seconds)
        failpoint("commit.recorded")
        # The updates that made this version stay until the next one is there: should its file be damaged, they make it
        # again.
        self._spool.discard(self.model.version - 1)
        failpoint("commit.spool_discarded")
        # Before the best version of before is removed, the summary names the one that is it now.
        self.directory.write_summary(self.summary())
        self.directory.prune(self.config.run.keep_versions, self.model.version, best)
        failpoint("commit.done")

    # --- the end

    def stop(self, reason: str) -> None:
        """Ask the run to stop; it can be resumed."""
        # A fold may take long, and what it needs is on disk.
        self._stopping.set()
        self.post(core.StopRequested(reason))
        if self.over:
            self._farewell.give_up()

    async def _finish(self, state: Outcome, reason: str) -> None:
        self._timers.cancel_all()
        self._lane.stop_waiting()
        await self._jobs.settle()
        if self._jobs.failure:
            state, reason = "failed", self._jobs.failure
        self._outcome, self.ended_for = state, reason
        log.info("run %s: %s", state, reason)
        self.ledger.feed.publish("finished", {"state": state, "reason": reason})
        # A stopped server is waited for, so who is away need not hear of it.
        away = self.decisions.away if state != "stopped" else frozenset[str]()
        # What broke here may go on after --resume, so its clients are to wait as for a server that was stopped.
        told = "stopped" if self._jobs.failure else state
        message = Finished(state=told, reason=reason[:2000], rounds_completed=self.model.version)
        self._farewell.begin(message, away | self._connections.keys())
        try:
            await self._lane.write(self._record_end, state)
        except NoRoom as error:
            log.warning("the summary is not up to date: %s", error)
        failpoint("finish.recorded")
        for connection in list(self._connections.values()):
            connection.send(message)
            connection.close()
        failpoint("finish.told")
        if not self.finished.done():
            self.finished.set_result(state)

    def _record_end(self, state: Outcome) -> None:
        if state == "finished":
            self.history.set("finished", self.model.version)
            # Should this process be killed now, the next one tells them.
            self.history.set("unaware", sorted(self._farewell.unaware))
            self._spool.discard(self.model.version)
        self.ledger.record_end(self.model.version)
        self.directory.write_summary(self.summary())

    async def drained(self, patience_s: float) -> None:
        """Wait until clients have heard that the run is over and closed, those included that come back just now."""
        await self._farewell.settle(patience_s, lambda: bool(self._connections))
        if self._outcome == "finished":
            self._write(self.history.set, "unaware", sorted(self._farewell.unaware))

    async def say_farewell(self) -> Outcome:
        """Tell the clients of a finished run that it is over: those that its server could not tell any more."""
        self._outcome = "finished"
        reason, hint = f"all {self.config.run.rounds} rounds are done", " (raise run.rounds to go on)"
        if self.model.version < self.config.run.rounds:
            reason, hint = self.course.outlook(self.model.version, self.model.plan).end, ""
        log.info("the run is finished: %s%s", reason, hint)
        message = Finished(state="finished", reason=reason, rounds_completed=self.model.version)
        self._farewell.begin(message, self.history.get("unaware") or ())
        patience_s = self.config.federation.rejoin_grace_s
        await self._farewell.settle(patience_s, lambda: False)
        if self._farewell.unaware:
            log.warning(
                "%s did not come back in %g s to hear it", ", ".join(sorted(self._farewell.unaware)), patience_s
            )
        return "finished"

    async def close(self) -> None:
        """Let threads and files go."""
        self._timers.cancel_all()
        await self._jobs.settle()
        self._lane.close()
        self.directory.address.unlink(missing_ok=True)

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401  # passed on
        """Do blocking work in the lane, later."""
        self._jobs.start(self._lane.write(write, *arguments))

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return summarise(self)


def _nothing() -> None:
    pass
