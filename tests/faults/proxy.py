"""A bad network between clients and server: a TCP proxy on loopback that does to each connection what a script says.

``up`` is from client to server, ``down`` the other way. A script maps the number of a connection (0, 1, ... in the
order in which they come) to its `Behaviour`; those below draw it from a seed, so a test that fails can be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np

from common.seeds import derive_seed

Direction = Literal["up", "down"]
DIRECTIONS: Final[tuple[Direction, Direction]] = ("up", "down")
#: Closing a socket with this option sends RST, not FIN.
RESET: Final = struct.pack("ii", 1, 0)
PIECE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What happens to one connection; by default nothing.

    Attributes:
        cut_after: bytes in `cut_direction` after which the connection is closed on both sides; None: never.
        cut_direction: in which they are counted.
        reset: cut with RST, which also throws away what the other side has not read yet.
        delay_s: latency of every piece, each way.
        jitter_s: up to so much more, drawn for each piece.
        bytes_per_s: each way; None: as fast as it goes.
        held: nothing passes until a later connection has carried bytes both ways.
        silent_after: bytes in both directions together after which nothing passes, while the connection stays open.
        silent_s: for so long.
    """

    cut_after: int | None = None
    cut_direction: Direction = "up"
    reset: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    held: bool = False
    silent_after: int | None = None
    silent_s: float = 0.0


Script = Callable[[int], Behaviour]


def undisturbed(number: int) -> Behaviour:
    """The script of a good network."""
    del number
    return Behaviour()


def cuts(seed: int, *, least: int, most: int, connections: int) -> Script:
    """The first `connections` are cut after `least` to `most` bytes, in either direction, half of them with RST."""

    def behaviour(number: int) -> Behaviour:
        if number >= connections:
            return Behaviour()
        draw = np.random.default_rng(derive_seed(seed, "cut", number))
        after, direction = int(draw.integers(least, most, endpoint=True)), DIRECTIONS[draw.integers(2)]
        return Behaviour(cut_after=after, cut_direction=direction, reset=bool(draw.integers(2)))

    return behaviour


@dataclass
class Tally:
    """What a proxy has done so far, so that a test can tell that something was disturbed.

    Attributes:
        connections: how many came.
        passed: bytes forwarded each way.
        cut: connections closed by a script.
        held: connections that waited for a later one, and went on.
        silenced: connections that fell silent.
        refused: connections that found no server.
    """

    connections: int = 0
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    cut: int = 0
    held: int = 0
    silenced: int = 0
    refused: int = 0


class _Cut(Exception):
    """The script ends the connection."""


class _Link:
    """One client's connection together with the proxy's own to the server.

    Args:
        number: of the connection.
        behaviour: what happens to it.
        tally: counts it.
        answered: called with the number each time something came back from the server.
    """

    def __init__(self, number: int, behaviour: Behaviour, tally: Tally, answered: Callable[[int], None]) -> None:
        #: Set when bytes may pass, not counting what `silent_after` says.
        self.released = asyncio.Event()
        self._number = number
        self._behaviour = behaviour
        self._tally = tally
        self._answered = answered
        self._passed: dict[Direction, int] = {"up": 0, "down": 0}
        self._draw = np.random.default_rng(derive_seed(0, "jitter", number))
        self._audible = asyncio.Event()
        self._audible.set()
        self._timer: asyncio.TimerHandle | None = None

    async def pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until the end of the stream, which is forwarded too.

        Raises:
            _Cut: the script says so.
            ConnectionError: one side is gone.
        """
        behaviour = self._behaviour
        while piece := await reader.read(self._piece_bytes()):
            await self.released.wait()
            if behaviour.delay_s or behaviour.jitter_s:
                await asyncio.sleep(behaviour.delay_s + behaviour.jitter_s * self._draw.random())
            await self._audible.wait()
            left = self._before_cut(direction)
            writer.write(piece[:left])
            await writer.drain()
            self._count(direction, len(piece[:left]))
            if left is not None and left <= len(piece):
                self._tally.cut += 1
                raise _Cut
            if behaviour.bytes_per_s:
                await asyncio.sleep(len(piece) / behaviour.bytes_per_s)
        await self.released.wait()
        await self._audible.wait()
        writer.write_eof()

    def close(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _piece_bytes(self) -> int:
        speed = self._behaviour.bytes_per_s
        return PIECE_BYTES if speed is None else max(1, int(speed / 20))

    def _before_cut(self, direction: Direction) -> int | None:
        """How many bytes may still pass; None: any number."""
        if self._behaviour.cut_after is None or self._behaviour.cut_direction != direction:
            return None
        return self._behaviour.cut_after - self._passed[direction]

    def _count(self, direction: Direction, nbytes: int) -> None:
        self._passed[direction] += nbytes
        self._tally.passed[direction] += nbytes
        if direction == "down":
            self._answered(self._number)
        silent_after = self._behaviour.silent_after
        if silent_after is not None and self._timer is None and sum(self._passed.values()) >= silent_after:
            self._tally.silenced += 1
            self._audible.clear()
            self._timer = asyncio.get_running_loop().call_later(self._behaviour.silent_s, self._audible.set)


class Proxy:
    """Listens on a free port of loopback and forwards to the target; use with ``async with``.

    Args:
        target_host: where the server is.
        target_port: its port.
        script: what happens to each connection.

    Attributes:
        tally: what it has done.
    """

    def __init__(self, target_host: str, target_port: int, script: Script = undisturbed) -> None:
        self.tally = Tally()
        self._target = (target_host, target_port)
        self._script = script
        self._listener: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._held: dict[int, asyncio.Event] = {}

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._listener is not None
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def retarget(self, port: int) -> None:
        """Lead connections from now on to another port: that of a restarted server."""
        self._target = (self._target[0], port)

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._listener.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy closes; the stream protocol would report it as an error of ours
        finally:
            self._running.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.tally.connections = self.tally.connections, self.tally.connections + 1
        behaviour = self._script(number)
        link = _Link(number, behaviour, self.tally, self._answered)
        if behaviour.held:
            self._held[number] = link.released
        else:
            link.released.set()
        ends, reset = [writer], False
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            ends.append(far_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(link.pump("up", reader, far_writer))
                pumps.create_task(link.pump("down", far_reader, writer))
        except* _Cut:
            reset = behaviour.reset
        except* OSError:
            self.tally.refused += len(ends) == 1
        finally:
            link.close()
            self._held.pop(number, None)
            for end in ends:
                await _close(end, reset=reset)

    def _answered(self, number: int) -> None:
        """Let the connections pass that were held for this one."""
        for earlier in [held for held in self._held if held < number]:
            self._held.pop(earlier).set()
            self.tally.held += 1


async def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        kernel: socket.socket = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()
