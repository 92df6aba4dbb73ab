"""What clients say, through their connections: who is let in, which updates are received, what they report.

Each call comes from the event loop, checks what a peer claims, and hands the coordinator an event. Refusals are
`ProtocolError`s, which the connection turns into the protocol's answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

from common.errors import ProtocolError, UpdateRejected
from common.failpoints import failpoint
from common.log_context import bind_log_context
from common.messages import EvaluationReport, Hello, Progress, Ready, Refusal, UpdateHeader, Welcome
from common.tasks import TaskSpec
from server import coordination as core
from server.admission import RunIsOver, agree_on_encoding, agree_on_protocol, check_update
from server.authentication import CREDENTIALS_ENDED, Authenticator
from server.config import Config
from server.connection import Connection
from server.coordinator import Coordinator
from server.course import Course
from server.farewell import Farewell
from server.gate_checks import check_gates
from server.ledger import Ledger
from server.model_state import ModelState
from server.run_directory import RunDirectory
from server.spool import SpooledUpdate
from server.tls import Peer
from server.welcome import Introduction

log = logging.getLogger("fedmtl.server")


class Reception:
    """Takes what connections bring.

    Args:
        config: the validated configuration.
        run_id: the run's id.
        directory: where updates are received.
        specs: the tasks.
        model: the version that clients train.
        decisions: the coordinator.
        authenticator: who may take part.
        introduction: what an admitted client is told.
        ledger: the books.
        farewell: tells whether the run is over.
        post: hands the coordinator an event.
        not_stored: takes an update that the disk did not take, and why.
        answer_pending: whether a client's last update is settled and its acknowledgement still held.
        course: knows the plan of each round.

    Attributes:
        open: clients are let in; not yet while the run is being restored.
        connections: the clients that are connected, by id.
        undecided: updates on disk by client, of which the coordinator has yet to say whether they count.
    """

    def __init__(
        self,
        config: Config,
        run_id: str,
        directory: RunDirectory,
        specs: Mapping[str, TaskSpec],
        model: ModelState,
        decisions: Coordinator,
        authenticator: Authenticator,
        introduction: Introduction,
        ledger: Ledger,
        farewell: Farewell,
        post: Callable[[core.Event], None],
        not_stored: Callable[[str, UpdateHeader, OSError], None],
        answer_pending: Callable[[str], bool],
        course: Course,
    ) -> None:
        self.config = config
        self.directory = directory
        self.model = model
        self.decisions = decisions
        self.ledger = ledger
        self.open = False
        self.connections: dict[str, Connection] = {}
        self.undecided: dict[str, SpooledUpdate] = {}
        self._run_id = run_id
        self._specs = specs
        self._authenticator = authenticator
        self._introduction = introduction
        self._farewell = farewell
        self._post = post
        self._not_stored = not_stored
        self._answer_pending = answer_pending
        self._course = course

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self._farewell.message is not None

    # --- coming and going

    def welcome(self, connection: Connection, hello: Hello, peer: Peer) -> tuple[Welcome, Mapping[str, bytes]]:
        """Admit a client; returns what it is told and the files that go with it.

        Raises:
            ProtocolError: with the reason of the refusal.
            RunIsOver: there is nothing left to do.
        """
        if not self.open and not self.over:
            raise ProtocolError("busy", "the server is resuming the run; try again in a moment")
        version = agree_on_protocol(hello.protocol)
        up = agree_on_encoding(hello.encodings_up, "encodings_up")
        down = agree_on_encoding(hello.encodings_down, "encodings_down")
        whole = hello.sync == "full"
        admitted = self._authenticator.client(hello.token, hello.client_id, hello.tasks, peer, whole_model=whole)
        if self._farewell.message is not None:
            self._farewell.heard(hello.client_id)
            raise RunIsOver(self._farewell.message)
        self._make_place(hello.client_id)
        connection.client_id, connection.tasks, connection.full = hello.client_id, admitted.tasks, whole
        connection.credentials = admitted.credentials
        self.connections[hello.client_id] = connection
        bind_log_context(client_id=hello.client_id)  # the connection's own task
        return self._introduction.welcome(hello, admitted.tasks, version, up, down), self._introduction.assets

    def _make_place(self, client_id: str) -> None:
        if (older := self.connections.get(client_id)) is not None:
            if self.config.server.duplicate_client == "refuse":
                raise ProtocolError("duplicate_client", f"a client called {client_id!r} is connected already")
            older.send(Refusal(code="taken_over", reason="another client of this id has connected and takes the place"))
            older.close()
        elif len(self.connections) >= self.config.server.limits.connections:
            raise ProtocolError("busy", f"{len(self.connections)} clients are connected, no more are taken")

    def joined(self, connection: Connection, ready: Ready) -> None:
        """A client's data is loaded: it takes part from now on."""
        missing = sorted(connection.tasks - ready.tasks.keys())
        if missing or not all(report.train for report in ready.tasks.values()):
            raise ProtocolError("malformed", f"no training data reported for {missing or sorted(ready.tasks)}")
        self.ledger.joined(connection, ready)
        self._post(core.Joined(connection.client_id, connection.tasks))

    def disconnected(self, connection: Connection) -> None:
        """A connection is over, for whatever reason."""
        self.ledger.add_bytes(connection)
        if connection.said_goodbye or connection.heard_the_end:
            self._farewell.heard(connection.client_id)
        if self.connections.get(connection.client_id) is connection:
            del self.connections[connection.client_id]
            if self.ledger.left(connection, lost=not connection.said_goodbye and not self.over):
                self._post(core.Left(connection.client_id, connection.said_goodbye))
        self._farewell.left()

    def drop_revoked(self) -> None:
        """End the connections of clients whose tokens were revoked or have expired since they were let in."""
        for connection in list(self.connections.values()):
            if not connection.revoked and not self._authenticator.still_valid(connection.credentials):
                connection.revoked = True
                log.warning("closing the connection of %s: %s", connection.client_id, CREDENTIALS_ENDED)
                connection.send(Refusal(code="authentication", reason=CREDENTIALS_ENDED))
                connection.close()

    # --- work

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
            if missing := sorted(set(self._specs[task].metrics) - result.metrics.keys()):
                raise ProtocolError("malformed", f"the evaluation of {task} lacks {missing}")
        self.ledger.evaluated(connection.client_id, report)
        self._post(core.EvaluationArrived(connection.client_id, report.version))

    def declined(self, connection: Connection, round_id: int, reason: str) -> None:
        """A client can't contribute to a round."""
        self._post(core.UpdateDeclined(connection.client_id, round_id, reason))

    def progressed(self, connection: Connection, progress: Progress) -> None:
        """A client says how far its training is; for people."""
        participant = self.ledger.participants[connection.client_id]
        participant.progress = f"{progress.done_steps}/{progress.total_steps}"

    # --- updates

    def admit(self, connection: Connection, header: UpdateHeader) -> Literal["wanted", "duplicate", "undecided"]:
        """Whether an announced update is to be received.

        An undecided one is on disk, but whether it counts is not settled: the answer to it is the answer to this one.

        Raises:
            UpdateRejected: it is refused.
        """
        client_id = connection.client_id
        if not self._authenticator.still_valid(connection.credentials):
            raise UpdateRejected("authentication", CREDENTIALS_ENDED)
        waiting = self.undecided.get(client_id)
        if waiting is not None and waiting.header.round != header.round:
            raise UpdateRejected("not_asked", f"the update of round {waiting.header.round} is still being decided on")
        if waiting is not None or self._answer_pending(client_id):
            return "undecided"
        verdict, code, reason = self.decisions.admission(client_id, header.round)
        if verdict == "refused":
            raise UpdateRejected(code, reason)
        if verdict == "duplicate":
            return "duplicate"
        # A late update was made under the plan of its own round, and is held against that. What is frozen by now has no
        # weight when it is folded.
        plan = self._course.plan_of_round(header.round)
        if plan is None:
            raise UpdateRejected("plan_mismatch", f"the plan of round {header.round} is not known any more")
        slice_ = plan.slice(self._specs if connection.full else connection.tasks)
        tasks, full = connection.tasks, connection.full
        check_update(header, run_id=self._run_id, plan=plan, slice_=slice_, tasks=tasks, full=full)
        check_gates(header, plan, needed=self.config.federation.expert_weights == "routing")
        if header.version == self.model.version and header.base not in ("", self.model.digest_of(slice_)):
            # Its server died with that version on its way to the disk, and somebody who was late then was not now.
            raise UpdateRejected("stale_version", f"version {header.version} was made again and came out otherwise")
        return "wanted"

    def update_spooled(self, connection: Connection, update: SpooledUpdate) -> None:
        """An update is on disk, whole and valid."""
        failpoint("update.spooled")
        self.undecided[connection.client_id] = update
        examples = {task: done.num_examples for task, done in update.header.tasks.items()}
        self._post(core.UpdateArrived(connection.client_id, update.header.round, examples))

    def refused(self, connection: Connection, round_id: int, error: ProtocolError) -> None:
        """An update was refused on its way in."""
        self._post(core.UpdateRefused(connection.client_id, round_id, error.code, error.reason))

    def not_stored(self, connection: Connection, header: UpdateHeader, error: OSError) -> None:
        """An update could not be written."""
        self._not_stored(connection.client_id, header, error)

    def count_refusal(self, connection: Connection, code: str, reason: str = "") -> None:
        """Keep count of what was refused, by name and by client."""
        self.ledger.refused(connection.client_id, code, reason, self.decisions.version + 1)
