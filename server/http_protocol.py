"""uvicorn's HTTP protocol with bounds: time and size of a request, number of connections, failures per address.

uvicorn waits without limit for a request that does not come or does not end, and takes URLs and headers of any
length. Every connection begins here, those of clients too, until they upgrade to WebSocket.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.gate import Visit

#: Longest request, from the first byte to the last of its body. The REST API takes no large bodies.
MAX_REQUEST_BYTES: Final = 65536


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        visit: how the gate knows the connection.
        config: uvicorn's.
        server_state: uvicorn's.
    """

    def __init__(self, visit: Visit, config: Config, server_state: ServerState) -> None:
        # From here the visit comes to the scope of every request, and to the WebSocket protocol.
        super().__init__(config, server_state, {"visit": visit})
        self._visit = visit
        self._limits = visit.gate.limits
        self._application = self.app
        self._received = 0
        self._late: asyncio.TimerHandle | None = None

    # --- the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for a request."""
        self._visit.transport = transport
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Parse within bounds."""
        if self.transport.is_closing():
            return
        if self._late is None and not self._answering:
            self._await_request()
        self._received += len(data)
        if self._received > MAX_REQUEST_BYTES:
            self._turn_away("large", "413 Content Too Large")
            return
        try:
            super().data_received(data)
        except (UnicodeError, ValueError):
            # Bytes in the request line that httptools lets through, and that neither uvicorn nor a URL can have.
            self._turn_away("malformed", "400 Bad Request")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place away."""
        self._request_came()
        self._visit.gone()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer takes nothing; not for ever."""
        super().pause_writing()
        self._visit.stopped_taking()

    def resume_writing(self) -> None:
        """The peer takes again."""
        super().resume_writing()
        self._visit.takes_again()

    # --- the request

    def on_message_begin(self) -> None:
        """Refuse a second request before the first is answered: nobody needs it, and it costs memory.

        Raises:
            ValueError: to the parser, which gives up; the peer is told 400.
        """
        if self._answering:
            raise ValueError("a request before the last one was answered")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Whoever failed too often and brings a token again is told to wait, without a look at the token."""
        proves = any(name == b"authorization" for name, _ in self.headers)
        self.app = cast("Any", _too_many_requests) if proves and self._visit.wait_s() else self._application
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is here."""
        self._request_came()
        if not (self.parser.should_upgrade() and self._should_upgrade()):
            self._visit.asked()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Let a client go on, unless its address failed too often."""
        wait_s = self._visit.wait_s()
        if wait_s:
            self._turn_away("limited", "429 Too Many Requests", f"retry-after: {wait_s}\r\n")
            return
        if not self.url.isascii():
            self._turn_away("malformed", "400 Bad Request")
            return
        super().handle_websocket_upgrade()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came: close, without waiting for a peer that has not taken the last answer."""
        if self.transport.get_write_buffer_size():
            self._visit.cut("slow", "it did not take an answer")
        else:
            super().timeout_keep_alive_handler()

    @property
    def _answering(self) -> bool:
        """A request is with the application."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _await_request(self) -> None:
        # The first request has the time since the connection was accepted, further ones as much from their first byte.
        cycle: RequestResponseCycle | None = self.cycle
        until = self._visit.deadline if cycle is None else self.loop.time() + self._limits.handshake_s
        self._late = self.loop.call_at(until, self._too_late)

    def _request_came(self) -> None:
        self._received = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._visit.gate.count("late")
        self._visit.abort()

    def _turn_away(self, reason: str, status: str, headers: str = "") -> None:
        self._visit.gate.count(reason)
        self.transport.write(f"HTTP/1.1 {status}\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        self.transport.close()


async def _too_many_requests(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    del receive
    visit: Visit = scope["state"]["visit"]
    headers = [(b"retry-after", str(visit.wait_s()).encode()), (b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
