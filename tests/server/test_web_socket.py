"""What an admitted peer can make the server hold: real sockets, no federation."""

from __future__ import annotations

import asyncio
import struct

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server.byte_budget import Claim
from server.config import LimitsConfig
from server.gate import Visit
from server.web_socket import CONTROL_FRAMES, HELLO_BYTES, SLICE_BYTES
from tests.server.listening import PATIENCE_S, Listening, Receive, Send, end_of, listening, until
from tests.server.test_http_protocol import UPGRADE

SMALL = LimitsConfig(control_bytes=1 << 20, inflight_bytes=8 << 20)
#: Half the budget, which is what comes in.
HALF = 4 << 20


def frame(payload: bytes, opcode: int = 2, *, fin: bool = True, length: int | None = None) -> bytes:
    """A WebSocket frame as a client sends it, masked with zeros."""
    size = len(payload) if length is None else length
    head = bytes([opcode | (128 if fin else 0)])
    if size < 126:
        head += bytes([128 | size])
    elif size < 1 << 16:
        head += bytes([128 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([128 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


async def bare(server: Listening, *frames: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection past its upgrade that has said hello."""
    reader, writer = await server.connect()
    writer.write(UPGRADE + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    for one in frames:
        writer.write(one)
    return reader, writer


async def client(server: Listening) -> ClientConnection:
    """A connection that has been admitted."""
    known = server.gate.doorway.clients
    one = await connect(server.address, proxy=None, compression=None, max_size=None)
    await one.send(b"hello")
    await until(lambda: server.gate.doorway.clients == known + 1)
    return one


async def say_too_much(one: ClientConnection, message: bytes) -> None:
    """Send a message and wait for an answer."""
    await one.send(message)
    await one.recv()


async def test_an_offer_to_compress_is_not_taken() -> None:
    async with listening() as server, connect(server.address, proxy=None, compression="deflate") as one:
        assert one.response is not None
        assert "sec-websocket-extensions" not in one.response.headers
        assert one.protocol.extensions == []


@pytest.mark.parametrize("declared", [HELLO_BYTES + 1, 1 << 40, (1 << 63) - 1])
async def test_a_stranger_may_not_even_announce_a_long_message(declared: int) -> None:
    async with listening() as server:
        reader, _ = await bare(server, frame(b"", length=declared))
        said = await end_of(reader)
        assert said[:4] == b"\x88" + said[1:2] + struct.pack("!H", 1009)
        assert not server.received
        assert len(server.gate.attempts) == 1


async def test_after_its_hello_a_client_sends_long_ones_and_not_longer_than_configured() -> None:
    async with listening(SMALL) as server:
        one = await client(server)
        await one.send(b"ready")
        longest = bytes(SMALL.frame_bytes)
        await one.send(longest)
        await until(lambda: server.received[2:] == [longest])
        with pytest.raises(ConnectionClosed) as closed:
            await say_too_much(one, longest + b"x")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_fragments_become_one_message_however_small_they_are() -> None:
    async with listening() as server:
        _, writer = await bare(server, frame(b"hello"))
        pieces = [
            frame(b"x", 2, fin=False),
            *([frame(b"", 0, fin=False)] * 3000),
            *([frame(b"y", 0, fin=False)] * 3000),
        ]
        writer.write(b"".join([*pieces, frame(b"z", 0), frame(b"next")]))
        await until(lambda: len(server.received) == 3)
        assert server.received[1:] == [b"x" + b"y" * 3000 + b"z", b"next"]


async def test_a_thousand_messages_in_one_read_do_not_pile_up() -> None:
    depth = []

    async def talk(server: Listening, visit: Visit, receive: Receive, send: Send) -> None:
        del visit, send
        queue = receive.__self__.queue  # type: ignore[attr-defined]
        while (event := await receive())["type"] == "websocket.receive":
            depth.append(queue.qsize())
            server.received.append(event["bytes"])

    async with listening(talk=talk) as server:
        await bare(server, frame(b"") * 20_000)
        await until(lambda: len(server.received) == 20_000)
        assert max(depth) <= SLICE_BYTES // 6


async def test_text_is_passed_on_as_empty_text_even_if_it_is_not_utf8(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as server:
        await bare(server, frame(b"\xff\xfe", 1))
        await until(lambda: server.received == [None])
    assert "Traceback" not in caplog.text


async def test_what_finds_no_room_waits_and_is_told_apart_from_silence() -> None:
    opened = asyncio.Event()
    visits = []

    async def talk(server: Listening, visit: Visit, receive: Receive, send: Send) -> None:
        del send
        visits.append(visit)
        await receive()
        visit.admitted()
        await receive()
        while (event := await receive())["type"] == "websocket.receive":
            await opened.wait()  # as long as this lasts the frame is not stored
            server.received.append(len(event["bytes"]))

    async with listening(SMALL, talk) as server:
        members = [await client(server) for _ in range(6)]
        for one in members:
            await one.send(b"ready")
        sending = [asyncio.create_task(one.send(bytes(1 << 20))) for one in members]
        await until(lambda: sum(visit.waits_for_room for visit in visits) == 2)
        assert server.gate.incoming.held == HALF
        opened.set()
        await asyncio.gather(*sending)
        await until(lambda: server.received == [1 << 20] * 6)
        await until(lambda: server.gate.incoming.held == 0)
        assert not any(visit.waits_for_room for visit in visits)
        for one in members:
            await one.close()


async def test_a_share_is_given_back_when_its_owner_goes_in_the_middle() -> None:
    async with listening(SMALL) as server:
        halves = [await bare(server, frame(b"hello"), frame(b"ready")) for _ in range(6)]
        await until(lambda: server.gate.doorway.clients >= 1)
        server.received.clear()
        for _, writer in halves:
            writer.write(frame(b"x" * 70_000, length=1 << 20))
        await until(lambda: server.gate.incoming.held >= 1 << 20)
        for _, writer in halves:
            writer.close()
        await until(lambda: server.gate.incoming.held == 0 and server.gate.incoming.waiting == 0)


async def test_a_message_in_fragments_claims_the_most_it_may_become() -> None:
    async with listening(SMALL) as server:
        _, writer = await bare(server, frame(b"hello"), frame(b"ready"))
        await until(lambda: len(server.received) == 2)
        writer.write(frame(b"x" * 100_000, fin=False))
        writer.write(frame(b"y" * 100, 0, fin=False))
        await until(lambda: server.gate.incoming.held == SMALL.frame_bytes)
        writer.write(frame(b"z", 0))
        await until(lambda: len(server.received) == 3)
        assert server.received[2] == b"x" * 100_000 + b"y" * 100 + b"z"
        await until(lambda: server.gate.incoming.held == 0)


@pytest.mark.parametrize("opcode", [9, 10], ids=["ping", "pong"])
async def test_a_flood_of_pings_is_cut_off(opcode: int) -> None:
    async with listening() as server:
        reader, writer = await bare(server, frame(b"hello"))
        writer.write(frame(b"x" * 125, opcode) * 5 * CONTROL_FRAMES)
        await end_of(reader)
        assert server.gate.turned_away == {"flood": 1}
    async with listening() as server, connect(server.address, proxy=None) as polite:
        for _ in range(3):
            await asyncio.wait_for(await polite.ping(), PATIENCE_S)


async def test_a_peer_that_takes_nothing_is_cut_off_and_frames_for_others_go_on() -> None:
    cuts = []

    async def talk(server: Listening, visit: Visit, receive: Receive, send: Send) -> None:
        await receive()
        visit.admitted()
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(1 << 20)})
        except OSError:
            cuts.append(visit.cut_off)
        del server

    limits = SMALL.model_copy(update={"send_s": 0.5})
    async with listening(limits, talk) as server:
        for _ in range(2):
            await bare(server, frame(b"hello"))
        async with connect(server.address, proxy=None, compression=None, max_size=None) as one:
            await one.send(b"hello")
            for _ in range(100):
                assert len(await asyncio.wait_for(one.recv(), PATIENCE_S)) == 1 << 20
            await until(lambda: len(cuts) == 2)
            assert all("did not take" in cut for cut in cuts)
            assert server.gate.turned_away == {"slow": 2}
            assert server.gate.outgoing.held <= 2 << 20
            for _ in range(10):
                assert len(await asyncio.wait_for(one.recv(), PATIENCE_S)) == 1 << 20
            one.transport.abort()
        await until(lambda: server.gate.outgoing.held == 0)


async def test_a_frame_waits_for_room_before_it_is_handed_to_the_transport() -> None:
    async def talk(server: Listening, visit: Visit, receive: Receive, send: Send) -> None:
        del server
        await receive()
        visit.admitted()
        await send({"type": "websocket.send", "bytes": bytes(1 << 20)})

    async with listening(SMALL, talk) as server:
        full: Claim = server.gate.outgoing.claim(HALF, lambda: None)
        async with connect(server.address, proxy=None, compression=None, max_size=None) as one:
            await one.send(b"hello")
            await until(lambda: server.gate.outgoing.waiting == 1)
            server.gate.outgoing.give_back(full)
            assert len(await asyncio.wait_for(one.recv(), PATIENCE_S)) == 1 << 20
