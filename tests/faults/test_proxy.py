"""The proxy does to a connection what its script says, and nothing else; shown with a server that echoes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.proxy import Behaviour, Direction, Proxy, Script, cuts, undisturbed

MESSAGE = bytes(range(256)) * 40


@asynccontextmanager
async def echo(greeting: bytes = b"") -> AsyncIterator[int]:
    """The port of a server that greets, and sends back what it gets, to the end of it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(greeting)
            while piece := await reader.read(1000):
                writer.write(piece)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def proxied(script: Script) -> AsyncIterator[Proxy]:
    """A proxy before an echo."""
    async with echo() as port, Proxy("127.0.0.1", port, script) as proxy, asyncio.timeout(60):
        yield proxy


def always(behaviour: Behaviour) -> Script:
    """The same for each connection."""
    return lambda _: behaviour


async def exchange(port: int, message: bytes = MESSAGE) -> bytes:
    """Send a message, end it, and read the answer to its end.

    Raises:
        ConnectionResetError: the connection was reset.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(message)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_good_network_changes_nothing() -> None:
    async with proxied(undisturbed) as proxy:
        assert await asyncio.gather(*(exchange(proxy.port) for _ in range(3))) == [MESSAGE] * 3
        assert proxy.tally.passed == {"up": 3 * len(MESSAGE), "down": 3 * len(MESSAGE)}
        assert (proxy.tally.connections, proxy.tally.cut) == (3, 0)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_cut_comes_after_so_many_bytes(direction: Direction) -> None:
    async with proxied(always(Behaviour(cut_after=777, cut_direction=direction))) as proxy:
        got = await exchange(proxy.port)
        assert MESSAGE.startswith(got)
        assert len(got) <= 777
        assert proxy.tally.cut == 1
        assert proxy.tally.passed[direction] == 777


async def test_a_reset_is_one() -> None:
    async with proxied(always(Behaviour(cut_after=777, cut_direction="down", reset=True))) as proxy:
        with pytest.raises(ConnectionResetError):
            await exchange(proxy.port)
        assert proxy.tally.cut == 1


async def test_delay_and_throttle_take_their_time_and_lose_nothing() -> None:
    for behaviour, least_s in ((Behaviour(delay_s=0.2, jitter_s=0.1), 0.4), (Behaviour(bytes_per_s=40_000), 0.25)):
        async with proxied(always(behaviour)) as proxy:
            began = time.monotonic()
            assert await exchange(proxy.port) == MESSAGE
            assert time.monotonic() - began >= least_s


async def test_a_held_connection_passes_after_a_later_one() -> None:
    async with proxied(lambda number: Behaviour(held=number == 0)) as proxy:
        first = asyncio.create_task(exchange(proxy.port, b"first"))
        async with asyncio.timeout(60):
            while not proxy.tally.connections:  # noqa: ASYNC110  # the proxy tells nobody
                await asyncio.sleep(0)
        assert await exchange(proxy.port, b"second") == b"second"
        assert await first == b"first"
        assert proxy.tally.held == 1


async def test_a_held_connection_does_not_pass_alone() -> None:
    async with proxied(always(Behaviour(held=True))) as proxy:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await exchange(proxy.port)
        assert proxy.tally.passed == {"up": 0, "down": 0}


async def test_a_silent_connection_stays_open_and_goes_on() -> None:
    async with proxied(always(Behaviour(silent_after=1000, silent_s=0.5))) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(bytes(1000))
        writer.write_eof()
        began = time.monotonic()
        assert await reader.read() == bytes(1000)
        assert time.monotonic() - began >= 0.4
        assert proxy.tally.silenced == 1
        writer.close()
        await writer.wait_closed()


async def test_a_proxy_without_a_server_closes_and_can_be_led_to_another() -> None:
    async with echo() as gone:
        pass
    async with echo(b"hello ") as port, Proxy("127.0.0.1", gone) as proxy, asyncio.timeout(60):
        with contextlib.suppress(ConnectionResetError):  # what was sent is unread when it closes
            assert await exchange(proxy.port) == b""
        assert proxy.tally.refused == 1
        proxy.retarget(port)
        assert await exchange(proxy.port, b"there") == b"hello there"


def test_scripts_follow_from_their_seed() -> None:
    script = cuts(1, least=100, most=200, connections=50)
    drawn = [script(number) for number in range(50)]
    assert drawn == [cuts(1, least=100, most=200, connections=50)(number) for number in range(50)]
    assert drawn != [cuts(2, least=100, most=200, connections=50)(number) for number in range(50)]
    assert all(each.cut_after is not None and 100 <= each.cut_after <= 200 for each in drawn)
    assert {(each.cut_direction, each.reset) for each in drawn} == {
        (direction, reset) for direction in ("up", "down") for reset in (False, True)
    }
    assert script(50) == Behaviour()
