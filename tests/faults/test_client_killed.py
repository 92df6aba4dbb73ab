"""Every client is killed at every named point of its life, started again, and the model is the undisturbed one.

Real processes: one server, three clients that train. All three die in one run, each in a round drawn from a seed.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from common.failpoints import CLIENT_POINTS
from common.seeds import derive_random
from tests.e2e.programs import Program, Programs, Server
from tests.faults.small_run import CLIENTS, ROUNDS, config, finish, trained

SEED = 2026
#: A process comes to these once; to the others once a round, of which the last may end before it is back.
ONCE = ("client.welcomed", "client.prepared")
#: From here on the finished update is on the client's disk.
KEPT = CLIENT_POINTS[CLIENT_POINTS.index("client.kept") :]


@pytest.mark.parametrize("point", CLIENT_POINTS)
async def test_clients_killed_anywhere_end_with_the_undisturbed_model(
    programs: Programs, right: str, point: str
) -> None:
    server = programs.server(config())
    lives = await asyncio.gather(*(two_lives(programs, server, client_id, point) for client_id in CLIENTS))
    assert await asyncio.to_thread(finish, server, [second for _, second in lives]) == right
    for first, second in lives:
        rounds = trained(first, second)
        assert set(rounds) == set(range(1, ROUNDS + 1))
        if point in KEPT:
            assert len(rounds) == ROUNDS, "an update that lay on the disk was made again"


async def two_lives(programs: Programs, server: Server, client_id: str, point: str) -> tuple[Program, Program]:
    """A client that is killed at a point, and the one that takes its place."""
    time = 1 if point in ONCE else derive_random(SEED, point, client_id).randint(1, ROUNDS - 1)
    first = programs.client(server, client_id, failpoint=f"{point}=kill@{time}")
    assert await asyncio.to_thread(first.wait) == -signal.SIGKILL, f"{client_id} never came to {point}"
    return first, programs.client(server, client_id)
