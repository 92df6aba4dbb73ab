"""Whatever the network does to connections, the finished model is bit for bit the one of an undisturbed run."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from common.messages import PROTOCOL_VERSION, Finished, Hello, UpdateAck, Work
from common.seeds import derive_seed
from tests.e2e.configs import TASKS, small
from tests.e2e.peers import MadeUpWork, events, peer, see_through, session, until, work_done
from tests.e2e.programs import PATIENCE_S, Programs, Server, start_fork_server
from tests.faults.proxy import Behaviour, Proxy, Script, Tally, cuts, undisturbed
from tests.faults.resends import ResendingClient

ROUNDS = 4
CLIENTS = [f"{task}_client" for task in TASKS]
SILENCE_S = 2.0


def config(**limits: float) -> dict[str, Any]:
    """Every round needs every client, however long it is away."""
    rules = {"min_clients": 3, "quorum": 1.0, "rejoin_grace_s": 120.0}
    limits = {"silence_s": SILENCE_S, "heartbeat_s": 0.25, **limits}
    return small(run={"rounds": ROUNDS}, federation=rules, server={"limits": limits})


async def through(server: Server, script: Script) -> Tally:
    """Run three sessions to the end of the run over a proxy; returns what it did."""
    port = int(server.url.rpartition(":")[2])
    async with Proxy("127.0.0.1", port, script) as proxy:
        address = f"ws://127.0.0.1:{proxy.port}/ws"
        await see_through(server, *(session(address, client_id, reconnect_s=60.0) for client_id in CLIENTS))
    return proxy.tally


def sha256(server: Server) -> str:
    """Of the finished model; every client took part in every round."""
    summary = server.summary()
    assert [row["participants"] for row in summary["history"][1:]] == [sorted(CLIENTS)] * ROUNDS
    assert summary["state"] == "finished"
    return str(summary["model"]["sha256"])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the undisturbed run."""
    start_fork_server()
    started = Programs(Path(tmp_path_factory.mktemp("undisturbed")))
    try:
        server = started.server(config())
        asyncio.run(through(server, undisturbed))
        return sha256(server)
    finally:
        started.end()


async def disturbed(programs: Programs, script: Script) -> tuple[str, Tally]:
    """The hash of a run over a bad network, and what the network did."""
    server = programs.server(config())
    tally = await through(server, script)
    return sha256(server), tally


@pytest.mark.parametrize("seed", [1, 2])
async def test_cuts_and_resets_at_any_byte(programs: Programs, expected: str, seed: int) -> None:
    """Before the welcome, in the middle of work, in the middle of an update: two dozen connections."""
    found, tally = await disturbed(programs, cuts(seed, least=100, most=60_000, connections=24))
    assert tally.cut >= 12
    assert found == expected


async def test_delay_and_jitter(programs: Programs, expected: str) -> None:
    """Each client has a latency of its own, so updates arrive in another order in each round."""

    def script(number: int) -> Behaviour:
        return Behaviour(delay_s=0.02 * (3 - number % 3), jitter_s=0.05)

    found, tally = await disturbed(programs, script)
    assert tally.cut == 0
    assert found == expected


async def test_a_narrow_line(programs: Programs, expected: str) -> None:
    """One client has 100 kB/s: its update takes a quarter of a second, in pieces of 5 kB."""
    found, _ = await disturbed(programs, lambda number: Behaviour(bytes_per_s=100_000 if number == 1 else None))
    assert found == expected


async def test_connections_arrive_in_another_order(programs: Programs, expected: str) -> None:
    """The first two are let through after the third; later the third comes back before and after others."""

    def script(number: int) -> Behaviour:
        cut = 30_000 + derive_seed(5, number) % 30_000 if number < 9 else None
        return Behaviour(held=number < 2, cut_after=cut, cut_direction="up")

    found, tally = await disturbed(programs, script)
    assert tally.held == 2
    assert tally.cut >= 3
    assert found == expected


async def test_a_line_that_swallows_everything_for_a_while(programs: Programs, expected: str) -> None:
    """Longer than the silence after which both ends give the connection up; what it swallowed comes out later."""

    def script(number: int) -> Behaviour:
        if number not in (0, 2):
            return Behaviour()
        return Behaviour(silent_after=60_000, silent_s=2 * SILENCE_S)

    found, tally = await disturbed(programs, script)
    assert tally.silenced == 2
    assert tally.connections >= 5
    assert found == expected


async def test_every_update_is_sent_three_times(programs: Programs, expected: str) -> None:
    server = programs.server(config())
    clients = [ResendingClient(server.address, client_id) for client_id in CLIENTS]
    await see_through(server, *(client.run() for client in clients))
    assert sha256(server) == expected
    for client in clients:
        _acknowledged_as_they_should_be(client)


def _acknowledged_as_they_should_be(client: ResendingClient) -> None:
    """First that it counts, then that it is known; of the last round the run may be over before that."""
    for number in range(1, ROUNDS + 1):
        counts, *known = [not each.duplicate for each in client.acknowledged if each.round == number]
        assert counts
        assert not any(known)
        assert known or number == ROUNDS


async def test_who_was_away_when_the_run_ended_is_told_on_coming_back(programs: Programs) -> None:
    """Its line broke after its last update; the server does not leave before it has come back."""
    server = programs.server(
        small(["sst2", "qqp"], run={"rounds": 1}, federation={"min_clients": 2, "evaluate": "none"})
    )
    feed = events(server.url)
    await until(feed, "status")
    opened = threading.Event()

    def wait(work: Work, cancelled: threading.Event) -> None:
        del work, cancelled
        assert opened.wait(PATIENCE_S)

    member = asyncio.create_task(session(server.address, "sst2_client", MadeUpWork(wait)).run())
    async with peer(server.address) as leaving:
        await leaving.join("qqp_away")
        await leaving.send_update(work_done(await leaving.take_work(), ["qqp"], "qqp_away"))
        await leaving.expect(UpdateAck)
    await until(feed, "client_left", client_id="qqp_away")
    opened.set()
    assert (await member).state == "finished"
    async with peer(server.address, alive=False) as back:
        await back.send(Hello(protocol=(PROTOCOL_VERSION,), client_id="qqp_away"))
        assert (await back.expect(Finished)).rounds_completed == 1
    assert await asyncio.to_thread(server.wait) == 0
