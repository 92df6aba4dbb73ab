"""A client that sends everything several times: on one connection, and again on a new one.

A proxy cannot replay what it has seen, as WebSocket frames are masked and numbered within their connection, so
duplicates are made where they arise in life: by a client that does not know whether its update has arrived.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import websockets

from client.workload import TrainedUpdate
from common.errors import ProtocolError
from common.messages import (
    PROTOCOL_VERSION,
    DataReport,
    EvaluationReport,
    Finished,
    Hello,
    Ready,
    Refusal,
    UpdateAck,
    Welcome,
    Work,
)
from tests.e2e.peers import Peer, evaluation, peer, work_done

#: Between two attempts to come back while the server still holds the old connection.
PAUSE_S = 0.05


@dataclass
class ResendingClient:
    """Takes part as `tests.e2e.peers.session` does, and sends each update three times on two connections.

    Attributes:
        address: the server's.
        client_id: its name.
        acknowledged: what came back, in order.
    """

    address: str
    client_id: str
    acknowledged: list[UpdateAck] = field(default_factory=list)
    _again: tuple[Work, TrainedUpdate] | None = None

    async def run(self) -> Finished:
        """Take part until the run is over."""
        while True:
            async with peer(self.address) as bare:
                try:
                    finished = await self._join(bare) or await self._take_part(bare)
                except (websockets.ConnectionClosed, ProtocolError):
                    finished = None
                if finished is not None:
                    return finished
            await asyncio.sleep(PAUSE_S)

    async def _join(self, bare: Peer) -> Finished | None:
        """Introduce the client, unless the run is over.

        Raises:
            ProtocolError: the server has not noticed yet that the connection before this one is gone.
        """
        await bare.send(Hello(protocol=(PROTOCOL_VERSION,), client_id=self.client_id))
        match await bare.receive():
            case Finished() as finished:
                return finished
            case Refusal(code="duplicate_client" as code, reason=reason):
                raise ProtocolError(code, reason)
            case Welcome() as welcome:
                bare.welcome = welcome
            case answer:
                raise AssertionError(f"{answer!r} came instead of a welcome")
        bare.introduced.set()
        report = DataReport(train=10, validation=4, source="made up")
        await bare.send(Ready(tasks=dict.fromkeys(welcome.tasks, report)))
        return None

    async def _take_part(self, bare: Peer) -> Finished | None:
        """One connection; it ends when an update of its own is acknowledged, or with the run."""
        if self._again is not None:
            bare.work, update = self._again
            await bare.send_update(update)
        while True:
            match await bare.receive():
                case Work() as work:
                    await self._answer(bare, work)
                case UpdateAck() as acknowledgement:
                    self.acknowledged.append(acknowledgement)
                    if not acknowledgement.duplicate:
                        return None
                case Finished() as finished:
                    return finished
                case _:
                    pass

    async def _answer(self, bare: Peer, work: Work) -> None:
        assert bare.welcome is not None
        tasks = bare.welcome.tasks
        bare.work = work
        if work.evaluate:
            results = {task: evaluation(bare.welcome, task, float(work.version)) for task in tasks}
            await bare.send(EvaluationReport(round=work.round, version=work.version, tasks=results))
        if work.training is not None:
            update = work_done(work, tasks, self.client_id)
            self._again = (work, update)
            await bare.send_update(update)
            await bare.send_update(update)
