"""Takes connections in, one per turn of the event loop, each past the gate before anything of it is read.

`asyncio.Server` would not do: it takes whole bursts before the first of them is told to leave, stops for a second when
it may open no further file, and tells nobody of a connection before its TLS handshake is over.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from server.gate import Gate, Visit

log = logging.getLogger("fedmtl.server")
#: Seconds to wait when a connection can't be taken in, for want of file descriptors or memory.
_RETRY_S: Final = 0.1
#: Seconds that a peer has to say goodbye in TLS.
_TLS_GOODBYE_S: Final = 5.0


class Listener:
    """Accepts until it is closed; stands in for the `asyncio.Server` of uvicorn.

    Args:
        listening: the socket, which is closed with this.
        gate: asked first.
        protocol: makes the HTTP protocol of one connection.
        tls: secures connections; None leaves them open.
    """

    def __init__(
        self,
        listening: socket.socket,
        gate: Gate,
        protocol: Callable[[Visit], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listening = listening
        self._listening.setblocking(False)
        self._gate = gate
        self._protocol = protocol
        self._tls = tls
        self._entering: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(self._listening)
                except OSError as error:
                    log.debug("cannot take a connection: %s", error)
                    self._gate.count("unaccepted")
                    await asyncio.sleep(_RETRY_S)
                    continue
                visit = self._gate.arrived(str(peer[0]) if isinstance(peer, tuple) else "")
                task = loop.create_task(self._enter(connection, visit))
                visit.entering = task
                self._entering.add(task)
                task.add_done_callback(self._entering.discard)
                # A hello that is here already goes before the next connection.
                await asyncio.sleep(0)
        finally:
            self._listening.close()

    async def _enter(self, connection: socket.socket, visit: Visit) -> None:
        handshake_s = self._gate.limits.handshake_s if self._tls is not None else None
        goodbye_s = _TLS_GOODBYE_S if self._tls is not None else None
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._protocol(visit),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=goodbye_s,
            )
        except OSError as error:
            log.debug("%s did not get in: %s", visit.address, error)
            self._gate.count("tls")
        finally:
            visit.entering = None
            if visit.transport is None:
                connection.close()
                visit.gone()

    def close(self) -> None:
        """Take no more connections."""
        self._accepting.cancel()
        for task in self._entering:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed."""
        await asyncio.gather(self._accepting, *self._entering, return_exceptions=True)
