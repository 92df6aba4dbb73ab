"""A little application behind the server's own protocols, on a real socket of this process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from server.config import LimitsConfig
from server.gate import Gate, Visit
from server.http_protocol import HttpProtocol
from server.listener import Listener
from server.web_socket import WebSocketProtocol

PATIENCE_S = 20.0
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Talk = Callable[["Listening", Visit, Receive, Send], Awaitable[None]]


@dataclass
class Listening:
    """A server that listens: its gate, where it is, and what its application has received."""

    gate: Gate
    port: int
    talk: Talk
    received: list[Any] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    #: What the newest WebSocket's scope says of its connection.
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where a WebSocket client connects."""
        return f"ws://127.0.0.1:{self.port}/ws"

    async def application(self, scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401  # ASGI's own
        """Talk as the test says; a request is answered with its path."""
        if scope["type"] == "http":
            body = scope["path"].encode()
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
            )
            await send({"type": "http.response.body", "body": body})
            return
        assert (await receive())["type"] == "websocket.connect"
        self.state = scope["state"]
        await send({"type": "websocket.accept"})
        await self.talk(self, scope["state"]["visit"], receive, send)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection, closed with the server at the latest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer


async def keep(server: Listening, visit: Visit, receive: Receive, send: Send) -> None:
    """Admit the peer after its first message, and keep what it sends."""
    del send
    while (event := await receive())["type"] == "websocket.receive":
        server.received.append(event.get("bytes"))
        if len(server.received) == 1:
            visit.admitted()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # of things that have no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def listening(
    limits: LimitsConfig | None = None, talk: Talk = keep, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Listening]:
    """Serve until the block ends."""
    limits = limits or LimitsConfig()
    open_to = socket.create_server(("127.0.0.1", 0))
    server = Listening(Gate(limits), open_to.getsockname()[1], talk)
    config = uvicorn.Config(
        server.application,
        interface="asgi3",
        ws=WebSocketProtocol,
        ws_max_size=limits.frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        access_log=False,
        log_config=None,
    )
    config.load()
    state = ServerState()
    listener = Listener(open_to, server.gate, lambda visit: HttpProtocol(visit, config, state), tls)
    try:
        yield server
    finally:
        for writer in server.writers:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        for connection in list(state.connections):
            connection.shutdown()
        await until(lambda: not state.connections and not state.tasks)
        listener.close()
        await listener.wait_closed()


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other end closes; a reset is an end too."""
    came = b""
    async with asyncio.timeout(PATIENCE_S):
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                came += piece
    return came
