"""Clients that remember things are killed around the writing of it, and the model is the undisturbed one.

SCAFFOLD's control variates and FedBN's own norms decide every later update, so a memory that is lost, half new or a
round too old shows in the hash of the last version.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from common.failpoints import MEMORY_POINTS, WHILE_VARIABLE
from tests.e2e.programs import Programs, start_fork_server
from tests.faults.small_run import CLIENTS, ROUNDS, config, finish, start_clients, trained

REMEMBERING: dict[str, Any] = {
    "federation": {"correction": "scaffold", "resident": ["norms"]},
    "training": {"optimizer": "sgd", "learning_rate": 0.1},
}
#: Where the three clients die, and in which round.
DEATHS = (("client.remembering", 3), ("client.remembered", 2), ("client.update_half_sent", 1))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash that the run ends with when nothing disturbs it."""
    start_fork_server()
    programs = Programs(tmp_path_factory.mktemp("undisturbed"))
    try:
        server = programs.server(config(**REMEMBERING))
        return finish(server, start_clients(programs, server))
    finally:
        programs.end()


def test_every_point_of_a_memory_is_among_them() -> None:
    assert set(MEMORY_POINTS) <= {point for point, _ in DEATHS}


async def test_a_memory_outlives_its_process_and_no_round_counts_twice_in_it(programs: Programs, right: str) -> None:
    server = programs.server(config(**REMEMBERING))

    async def two_lives(client_id: str, point: str, time: int) -> Any:  # noqa: ANN401  # two programs
        first = programs.client(server, client_id, failpoint=f"{point}=kill@{time}")
        assert await asyncio.to_thread(first.wait) == -signal.SIGKILL, f"{client_id} never came to {point}"
        return first, programs.client(server, client_id)

    lives = await asyncio.gather(*(two_lives(c, *death) for c, death in zip(CLIENTS, DEATHS, strict=True)))
    assert await asyncio.to_thread(finish, server, [second for _, second in lives]) == right
    for (point, _), (first, second) in zip(DEATHS, lives, strict=True):
        if point == "client.update_half_sent":
            assert len(trained(first, second)) == ROUNDS, "an update that lay on the disk was made again"


def test_without_room_for_a_memory_its_update_is_not_kept_either(
    programs: Programs, right: str, tmp_path: Path
) -> None:
    """A kept update without it would be sent after a restart, and the next round start from an older memory."""
    server = programs.server(config(**REMEMBERING))
    points = "client.remembering=enospc@2,client.update_announced=kill@2"
    first = programs.client(server, CLIENTS[0], failpoint=points, environment={WHILE_VARIABLE: str(tmp_path)})
    others = [programs.client(server, client_id) for client_id in CLIENTS[1:]]
    assert first.wait() == -signal.SIGKILL
    assert "could not be kept" in first.log()
    assert not list((programs.state_dir / CLIENTS[0]).rglob("*.update"))
    again = programs.client(server, CLIENTS[0])
    assert finish(server, [again, *others]) == right
    assert trained(first, again) == [1, 2, 2, 3, 4]
