"""Dead, silent, slow, broken and hostile clients: the round goes on for the others."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import websockets
from websockets.asyncio.client import connect

from client.workload import TrainedUpdate
from common.messages import (
    PROTOCOL_VERSION,
    Chunk,
    Declined,
    Finished,
    Heartbeat,
    Hello,
    Ready,
    Refusal,
    Rejected,
    RoundClosed,
    TaskContribution,
    UpdateAck,
    Work,
)
from common.plan import Slice
from common.tensors import encode_tensor
from common.wire import decode_frame, encode_frame
from tests.e2e.configs import small
from tests.e2e.peers import PATIENCE_S, MadeUpWork, Peer, events, peer, replaced, see_through, session, until, work_done
from tests.e2e.programs import Programs, Server

HELLO = encode_frame(Hello(protocol=(PROTOCOL_VERSION,), client_id="sst2_mallory"))
FOREVER = {"local_steps": 1_000_000}


def gate(*rounds: int) -> tuple[threading.Event, MadeUpWork]:
    """Work that waits in the given rounds until the event is set (or the round is closed)."""
    opened = threading.Event()

    def wait(work: Work, cancelled: threading.Event) -> None:
        until_then = time.monotonic() + PATIENCE_S
        while work.round in rounds and not opened.wait(0.05) and not cancelled.is_set():
            assert time.monotonic() < until_then

    return opened, MadeUpWork(wait)


async def test_a_killed_client_is_noticed_at_once_and_may_come_back(programs: Programs) -> None:
    """A real client is killed while it trains; the round ends without it, and it takes part in the next."""
    rules = {"min_clients": 2, "rejoin_grace_s": 0.5}
    server = programs.server(small(["sst2", "qqp"], federation=rules, training=FOREVER))
    feed = events(server.url)
    await until(feed, "status")
    staying = asyncio.create_task(session(server.address, "qqp_client").run())
    victim = programs.client(server, "sst2_client")
    await until(feed, "update_accepted", round=1, client_id="qqp_client")
    await training(server, "sst2_client")

    victim.signal(signal.SIGKILL)
    began = time.monotonic()
    await until(feed, "client_left", client_id="sst2_client")
    assert time.monotonic() - began < 5
    await until(feed, "evaluated", version=0)
    assert time.monotonic() - began < 10
    await see_through(server, staying, session(server.address, "sst2_client"))
    history = server.summary()["history"]
    assert [row["participants"] for row in history] == [[], ["qqp_client"], ["qqp_client", "sst2_client"]]
    assert "round 1 goes on without sst2_client: it is gone" in server.log()


async def training(server: Server, client_id: str) -> None:
    """Wait until a client has reported progress."""
    async with (
        asyncio.timeout(PATIENCE_S),
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE_S) as http,
    ):
        progress = ""
        while not progress:
            rows = (await http.get("/api/v1/clients")).json()
            progress = next(row["progress"] for row in rows if row["client_id"] == client_id)


async def test_a_client_that_falls_silent_counts_as_dead(programs: Programs) -> None:
    """Its connection stays open, but nothing comes: no heartbeat, no update."""
    rules = {"min_clients": 2, "rejoin_grace_s": 0.0}
    config = small(["sst2", "qqp"], run={"rounds": 1}, federation=rules)
    del config["server"]["limits"]  # the defaults are what this is about
    server = programs.server(config)
    async with peer(server.address, alive=False) as silent:
        await silent.join("sst2_silent")
        await see_through(server, session(server.address, "qqp_client"))
    assert "sst2_silent has been silent for 4.5 s: it counts as dead" in server.log()
    assert server.summary()["history"][1]["participants"] == ["qqp_client"]
    assert server.summary()["history"][1]["seconds"] < 12


async def test_a_deadline_leaves_stragglers_and_a_peer_that_never_reads_behind(programs: Programs) -> None:
    """A model of 8 MB fills every buffer on the way to a client that reads nothing; the others don't notice."""
    wide = {"encoder": {"config": {"intermediate_size": 1 << 16}}}
    rules = {"min_clients": 3, "round_deadline_s": 4.0, "quorum": 0.3, "evaluate": "none"}
    server = programs.server(small(run={"rounds": 2}, federation=rules, model=wide))
    _, slow = gate(1)
    async with connect(server.address, compression=None, ping_interval=None, max_queue=1, proxy=None) as deaf:
        stuck = Peer(deaf)
        await stuck.join("sst2_deaf")
        beating = asyncio.create_task(stuck.beat())
        try:
            await see_through(server, session(server.address, "qqp_client"), session(server.address, "stsb_slow", slow))
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
    history = server.summary()["history"]
    assert [row["participants"] for row in history] == [[], ["qqp_client"], ["qqp_client", "stsb_slow"]]
    assert 3.9 < history[1]["seconds"] < 10
    assert "round 1 left sst2_deaf, stsb_slow behind: the deadline passed" in server.log()


async def test_a_round_without_quorum_is_tried_again_with_what_came(programs: Programs) -> None:
    """The straggler of the first attempt answers the second; the update that came is not asked for twice."""
    rules = {"min_clients": 2, "round_deadline_s": 3.0, "quorum": 1.0, "evaluate": "none"}
    server = programs.server(small(["sst2", "qqp"], run={"rounds": 1}, federation=rules))
    asked = []

    def late_at_first(work: Work, cancelled: threading.Event) -> None:
        asked.append(work.round)
        if len(asked) == 1:
            assert cancelled.wait(PATIENCE_S)

    prompt = MadeUpWork()
    await see_through(
        server, session(server.address, "sst2_late", MadeUpWork(late_at_first)), session(server.address, "qqp", prompt)
    )
    assert asked == [1, 1]
    assert list(prompt.received) == [1]
    assert server.summary()["history"][1]["participants"] == ["qqp", "sst2_late"]
    assert server.summary()["history"][1]["attempts"] == 2


async def test_a_run_that_cannot_reach_its_quorum_fails_by_name(programs: Programs) -> None:
    rules = {"min_clients": 1, "round_deadline_s": 0.5, "max_attempts": 2, "evaluate": "none", "on_lost_quorum": "fail"}
    server = programs.server(small(["sst2"], federation=rules, training=FOREVER))
    client = programs.client(server, "sst2_client")
    assert await asyncio.to_thread(server.wait) == 3
    assert await asyncio.to_thread(client.wait) == 3
    assert "missed its quorum 2 times" in client.log()
    assert server.summary()["state"] == "failed"


#: What strangers send, and the name under which it is refused; None where there is nobody to answer.
STRANGERS: dict[str, tuple[list[bytes | str], str | None]] = {
    "noise": ([np.random.default_rng(0).bytes(1000)], "checksum"),
    "empty": ([b""], "checksum"),
    "text": (["hello"], "malformed"),
    "half a hello": ([HELLO[: len(HELLO) // 2]], "checksum"),
    "too large": ([bytes(17 << 20)], None),
    "work before hello": ([encode_frame(Heartbeat(sequence=0))], "out_of_order"),
    "ready before hello": ([encode_frame(Ready(tasks={}))], "out_of_order"),
    "a chunk before hello": ([encode_frame(Chunk(stream=0, tensor=0, offset=0, data=bytes(8)))], "out_of_order"),
    "another protocol": ([encode_frame(Hello(protocol=(99,), client_id="sst2_x"))], "protocol_version"),
    "another encoding": (
        [encode_frame(Hello(protocol=(PROTOCOL_VERSION,), client_id="sst2_x", encodings_up=("zip",)))],
        "encoding",
    ),
    "no task": ([encode_frame(Hello(protocol=(PROTOCOL_VERSION,), client_id="x", tasks=("mnli",)))], "unknown_task"),
    "somebody else's name": (
        [encode_frame(Hello(protocol=(PROTOCOL_VERSION,), client_id="sst2_client"))],
        "duplicate_client",
    ),
    "ready without data": ([HELLO, encode_frame(Ready(tasks={}))], "malformed"),
    "hello twice": ([HELLO, HELLO], "out_of_order"),
}


async def _stranger(address: str, frames: list[bytes | str]) -> str | None:
    """Send what a stranger sends; returns the name under which it was refused."""
    async with connect(address, compression=None, ping_interval=None, proxy=None) as connection:
        try:
            for frame in frames:
                await connection.send(frame)
            async with asyncio.timeout(PATIENCE_S):
                async for frame in connection:
                    assert isinstance(frame, bytes)
                    message = decode_frame(frame)
                    if isinstance(message, Refusal):
                        return message.code
        except websockets.ConnectionClosed:
            pass
    return None


async def test_strangers_do_not_disturb_a_run(programs: Programs) -> None:
    server = programs.server(small(["sst2", "qqp"], run={"rounds": 1}, federation={"min_clients": 2}))
    feed = events(server.url)
    await until(feed, "status")
    opened, patient = gate(1)
    members = [
        asyncio.create_task(one.run())
        for one in (session(server.address, "sst2_client", patient), session(server.address, "qqp_client"))
    ]
    await until(feed, "update_accepted", client_id="qqp_client")
    host, _, port = server.url.removeprefix("http://").partition(":")
    for start in (
        b"",
        b"\x00" * 64,
        b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n",
        b"POST /api/v1/status HTTP/9\r\n\r\n",
    ):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(start)
    refused = {}
    for name, (frames, _) in STRANGERS.items():
        refused[name] = await _stranger(server.address, frames)
    opened.set()
    await see_through(server, *members)
    assert refused == {name: code for name, (_, code) in STRANGERS.items()}
    assert server.summary()["history"][1]["participants"] == ["qqp_client", "sst2_client"]
    assert server.summary()["history"][1]["attempts"] == 1
    assert "Traceback" not in server.log()


Broken = Callable[[Work, TrainedUpdate], tuple[TrainedUpdate, dict[str, Any]]]


def _changed_tensor(work: Work, update: TrainedUpdate, change: Callable[[np.ndarray], np.ndarray]) -> TrainedUpdate:
    """The update with another array for its first matrix."""
    slot = next(slot for slot in Slice.from_dict(work.slice).travelling if len(slot.shape) == 2)
    return replaced(update, encode_tensor(slot.id, change(np.zeros(slot.shape, np.float32))))


def _with_nan(array: np.ndarray) -> np.ndarray:
    array[-1, -1] = np.nan
    return array


def _with_wrong_checksum(update: TrainedUpdate) -> TrainedUpdate:
    first = update.tensors[0]
    header = first.header.model_copy(update={"checksum": first.header.checksum ^ 1})
    return replaced(update, replace(first, header=header))


def _foreign_head(work: Work, update: TrainedUpdate) -> TrainedUpdate:
    slot = next(slot for slot in Slice.from_dict(work.slice).travelling if slot.parameter.startswith("heads.qqp"))
    name = slot.id.replace("qqp", "sst2")
    return replaced(update, encode_tensor(name, np.zeros(slot.shape, np.float32)))


DONE = TaskContribution(num_examples=10, num_steps=1, loss=0.5, seconds=0.0)
#: What is wrong with an update for qqp, and the name under which it is refused.
BROKEN: dict[str, tuple[str, Broken]] = {
    "nan": ("non_finite", lambda work, update: (_changed_tensor(work, update, _with_nan), {})),
    "shape": ("wrong_shape", lambda work, update: (_changed_tensor(work, update, lambda array: array[1:].copy()), {})),
    "dtype": (
        "wrong_dtype",
        lambda work, update: (_changed_tensor(work, update, lambda array: array.astype(np.float64)), {}),
    ),
    "checksum": ("checksum", lambda _, update: (_with_wrong_checksum(update), {})),
    "foreign": ("task_not_allowed", lambda work, update: (_foreign_head(work, update), {})),
    "unknown": (
        "unknown_slot",
        lambda _, update: (replaced(update, encode_tensor("nothing@qqp", np.zeros((2, 2), np.float32))), {}),
    ),
    "task": ("task_not_allowed", lambda _, update: (update, {"tasks": {"qqp": DONE, "sst2": DONE}})),
    "empty": (
        "malformed",
        lambda _, update: (update, {"tasks": {"qqp": DONE.model_copy(update={"num_examples": 0})}}),
    ),
    "run": ("stale_round", lambda _, update: (update, {"run_id": "another"})),
    "past": ("stale_round", lambda _, update: (update, {"round": 0})),
    "future": ("future_round", lambda work, update: (update, {"round": work.round + 1})),
    "version": ("stale_version", lambda _, update: (update, {"version": 7})),
    "plan": ("plan_mismatch", lambda _, update: (update, {"plan": "0" * 64})),
}


async def _send_broken(server: Server, name: str) -> str:
    """One client sends one broken update; returns the name under which it was refused."""
    _, breaks = BROKEN[name]
    async with peer(server.address) as broken:
        await broken.join(f"qqp_{name}")
        work = await broken.take_work()
        update, changes = breaks(work, work_done(work, ["qqp"], "broken"))
        await broken.send_update(update, **changes)
        rejected = await broken.expect(Rejected)
        # The connection lives on: a word on the round is taken, and the end is told as to everybody else.
        await broken.send(Declined(round=work.round, reason="nothing better to offer"))
        await broken.expect(Finished, skip=(Chunk, RoundClosed, Work))
    return rejected.code


async def test_broken_updates_are_refused_by_name_and_count_for_nothing(programs: Programs) -> None:
    """Every kind in one round, each from a client of its own, beside two clients that do as they should."""
    rules = {"min_clients": len(BROKEN) + 2, "quorum": 0.1, "evaluate": "none"}
    server = programs.server(small(["sst2", "qqp"], run={"rounds": 1}, federation=rules))
    feed = events(server.url)
    await until(feed, "status")
    opened, patient = gate(1)
    members = [
        asyncio.create_task(one.run())
        for one in (session(server.address, "sst2_client", patient), session(server.address, "qqp_client"))
    ]
    broken = [asyncio.create_task(_send_broken(server, name)) for name in BROKEN]
    await until(feed, "update_accepted", client_id="qqp_client")
    opened.set()
    codes = await asyncio.gather(*broken)
    await see_through(server, *members)
    assert dict(zip(BROKEN, codes, strict=True)) == {name: code for name, (code, _) in BROKEN.items()}
    record = server.summary()["history"][1]
    assert record["participants"] == ["qqp_client", "sst2_client"]
    assert record["training_examples"] == {"qqp": 10, "sst2": 10}
    assert list((server.run_dir / "spool").rglob("*.partial")) == []


async def test_an_update_counts_once_however_often_it_is_sent(programs: Programs) -> None:
    server = programs.server(
        small(["sst2", "qqp"], run={"rounds": 1}, federation={"min_clients": 2, "evaluate": "none"})
    )
    opened, patient = gate(1)
    member = asyncio.create_task(session(server.address, "sst2_client", patient).run())
    feed = events(server.url)
    await until(feed, "status")
    async with peer(server.address) as again:
        await again.join("qqp_again")
        work = await again.take_work()
        update = work_done(work, ["qqp"], "qqp_again")
        header = await again.send_update(update)
        first = await again.expect(UpdateAck)
        await again.send_update(update)
        second = await again.expect(UpdateAck)
        assert (first.duplicate, second.duplicate) == (False, True)
        assert first.update == second.update == header.digest
    await until(feed, "client_left", client_id="qqp_again")
    async with peer(server.address) as back:
        await back.join("qqp_again")
        back.work = work
        await back.send_update(update)
        assert (await back.expect(UpdateAck)).duplicate
        opened.set()
        assert (await back.expect(Finished)).rounds_completed == 1
    await see_through(server, member)
    assert server.summary()["history"][1]["training_examples"] == {"qqp": 10, "sst2": 10}
