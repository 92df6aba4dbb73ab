"""Hostile peers of every kind during a real run, which ends with the bits of an undisturbed one."""

from __future__ import annotations

import asyncio
import threading
import time

from common.messages import Work
from tests.e2e.configs import small
from tests.e2e.peers import MadeUpWork, events, see_through, session, until
from tests.e2e.programs import Programs
from tests.faults import hostile
from tests.faults.hostile import PATIENCE_S, Lie

#: A model of 8 MB, which fills every buffer on the way to a peer that does not read.
WIDE = {"encoder": {"config": {"intermediate_size": 1 << 16}}}
CONFIG = small(
    ["sst2", "qqp"],
    run={"rounds": 3},
    federation={"min_clients": 2, "rejoin_grace_s": 0.0, "quorum": 0.1, "evaluate": "none"},
    model=WIDE,
    server={
        "limits": {
            "handshake_s": 2.0,
            "handshakes": 64,
            "send_s": 2.0,
            # All of them come from one address here; how an address is limited is tests/server/test_http_protocol.py's.
            "failed_handshakes_per_minute": 10_000,
        }
    },
)
#: What a client does when it is asked to train, and how the server answers.
LIES: dict[str, tuple[Lie, str]] = {
    "silence": (hostile.announce_and_never_send, "waited for"),
    "too_many": (hostile.announce_too_often, "too_many_updates"),
    "replay": (hostile.replay, "stale_round"),
    "foreign": (hostile.train_for_others, "task_not_allowed"),
    "giant": (hostile.declare_a_giant_tensor, "wrong_shape"),
    "overfull": (hostile.overfill, "malformed"),
    "order": (hostile.send_chunks_out_of_order, "out_of_order"),
    "turn": (hostile.speak_out_of_turn, "out_of_order"),
    "garbage": (hostile.send_garbage, "checksum"),
    "bomb": (hostile.send_a_bomb, "too_large"),
    "reports": (hostile.report_without_end, "out_of_order"),
}


class Gates:
    """Work that waits in each of some rounds until the round is opened."""

    def __init__(self, *rounds: int) -> None:
        self._opened = {number: threading.Event() for number in rounds}
        self.work = MadeUpWork(self._wait)

    def open(self, number: int) -> None:
        """Let a round go on."""
        self._opened[number].set()

    def _wait(self, work: Work, cancelled: threading.Event) -> None:
        gate = self._opened.get(work.round)
        began = time.monotonic()
        while gate is not None and not gate.wait(0.05) and not cancelled.is_set():
            assert time.monotonic() - began < PATIENCE_S


class Arrivals:
    """Tells when so many have joined."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.all_here = asyncio.Event()

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self.all_here.set()


async def undisturbed(programs: Programs) -> str:
    """The hash of the last version of a run without any of this."""
    calm = programs.server(CONFIG, run_dir=programs.folder / "calm")
    await see_through(calm, session(calm.address, "sst2_client"), session(calm.address, "qqp_client"))
    return str(calm.summary()["model"]["sha256"])


async def test_a_run_among_hostile_peers_ends_with_the_bits_of_an_undisturbed_one(programs: Programs) -> None:
    hostile.allow_files(4096)
    server = programs.server(CONFIG)
    process = server._process.pid
    assert process is not None
    feed = events(server.url)
    await until(feed, "status")
    gates = Gates(1, 2)
    members = [
        asyncio.create_task(one.run())
        for one in (session(server.address, "sst2_client", gates.work), session(server.address, "qqp_client"))
    ]
    await until(feed, "update_accepted", round=1, client_id="qqp_client")
    files, memory = hostile.descriptors(process), hostile.resident_mib(process)

    # Round 1: strangers, below the protocol, and those that are to lie in the next round come in past them.
    below = await asyncio.gather(
        hostile.drip(server, hostile.UPGRADE, upgraded=False),
        hostile.drip(server, hostile.frame(b"x" * 100), upgraded=True),
        hostile.declare(server, 1 << 62),
        hostile.flood_with_pings(server),
    )
    assert set(below) == {"closed"}
    silent = await hostile.say_nothing(server, 1000)
    arrivals = Arrivals(len(LIES) + 1)
    slow = asyncio.create_task(hostile.read_a_byte_a_second(server, "qqp_slow", arrivals))
    liars = {
        name: asyncio.create_task(hostile.lies(server, f"qqp_{name}", lie, arrivals)) for name, (lie, _) in LIES.items()
    }
    async with asyncio.timeout(PATIENCE_S):
        await arrivals.all_here.wait()
    for _ in range(len(LIES) + 1):
        await until(feed, "client_joined")
    assert set(await asyncio.gather(*(one.ended() for one in silent))) == {"closed"}

    # Round 2: they are asked to train, and lie.
    gates.open(1)
    said = dict(zip(liars, await asyncio.gather(*liars.values()), strict=True))
    assert said == {name: expected for name, (_, expected) in LIES.items()}
    assert await slow == "closed"
    for _ in range(len(LIES) + 1):
        await until(feed, "client_left")
    async with asyncio.timeout(PATIENCE_S):
        while hostile.descriptors(process) > files + 2:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.05)
    assert hostile.resident_mib(process) < memory + 96

    gates.open(2)
    await see_through(server, *members)
    history = server.summary()["history"]
    assert [row["participants"] for row in history] == [[], *([["qqp_client", "sst2_client"]] * 3)]
    assert [row["attempts"] for row in history[1:]] == [1, 1, 1]
    assert server.summary()["model"]["sha256"] == await undisturbed(programs)
    assert "Traceback" not in server.log()
    assert "closed the connection of qqp_slow: it did not take" in server.log()


async def test_an_address_that_fails_too_often_waits_while_its_clients_go_on(programs: Programs) -> None:
    """Beyond the allowed failures an upgrade is answered with 429; who is connected notices nothing."""
    config = small(
        ["sst2", "qqp"],
        run={"rounds": 1},
        federation={"min_clients": 2, "evaluate": "none"},
        server={"limits": {"failed_handshakes_per_minute": 5}},
    )
    server = programs.server(config)
    feed = events(server.url)
    await until(feed, "status")
    gates = Gates(1)
    members = [
        asyncio.create_task(one.run())
        for one in (session(server.address, "sst2_client", gates.work), session(server.address, "qqp_client"))
    ]
    await until(feed, "update_accepted", client_id="qqp_client")
    answers = [await hostile.knock(server) for _ in range(8)]
    assert answers == ["checksum"] * 5 + ["429"] * 3
    gates.open(1)
    await see_through(server, *members)
    assert "Traceback" not in server.log()
