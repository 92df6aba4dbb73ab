"""uvicorn's WebSocket protocol with bounds on what one peer makes the server hold or do.

* What came is parsed in slices of `SLICE_BYTES`, one per turn of the event loop, so that thousands of tiny messages in
  one read neither pile up nor hold up other connections.
* A message beyond `FREE_BYTES` is received only when `Gate.incoming` has room for all of it; reading waits until then.
  It gives the room back when the application asks for the message after the next event, that is, when it has stored
  it. One connection holds at most two messages: one in the application, one that is being received.
* A frame that is sent counts in `Gate.outgoing` until the peer has taken it, one frame per connection; a peer that does
  not take it within `send_s` loses its connection.
* Before the hello is accepted a message has at most `HELLO_BYTES`. No extension is negotiated, so nothing is inflated.
* Pings are answered, at most `CONTROL_FRAMES` control frames are taken in a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from server.byte_budget import ByteBudget, Claim
from server.gate import Visit
from server.tls import CertifiedWebSocket

#: Bytes parsed in one turn of the event loop, unless they are the payload of one message.
SLICE_BYTES: Final = 16384
#: Messages up to this long are not counted in the budgets.
FREE_BYTES: Final = 65536
#: Longest message of a peer whose hello was not accepted yet. Not more than `FREE_BYTES`: strangers claim no budget.
HELLO_BYTES: Final = 65536
#: Most pings and pongs in a second.
CONTROL_FRAMES: Final = 100
#: Seconds that a peer has to answer the server's close, and then to take what was still to be sent.
CLOSE_S: Final = 5.0


class _Reader(StreamReader):
    """Knows how many bytes the parser waits for: the payload's length, once a frame's header has come."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = 0

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        self.awaited = n
        data = yield from super().read_exact(n)
        self.awaited = 0
        return data


class _Parser(ServerProtocol):
    """The sans-I/O protocol with such a reader."""

    reader: _Reader

    def parse(self) -> Generator[None]:
        # The first step of the generator is taken when the object is made, before any byte comes.
        self.reader = _Reader()
        yield from super().parse()

    @property
    def missing(self) -> int:
        """Bytes of the message's frame that have not come yet."""
        return max(0, self.reader.awaited - len(self.reader.buffer))


class WebSocketProtocol(CertifiedWebSocket):
    """One connection from its upgrade on; the class for `uvicorn.Config(ws=...)`, with `HttpProtocol` before it."""

    conn: _Parser

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._visit: Visit = app_state["visit"]
        self._visit.when_admitted = self._admitted
        self._admitted_yet = False
        self.conn = _Parser(max_size=HELLO_BYTES, logger=self.logger)
        self.close_timeout = CLOSE_S
        # What came and is not parsed yet: at most what one read of the transport brings.
        self._unparsed = bytearray()
        self._scheduled = False
        self._fragments: bytearray | None = None
        self._claimed: Claim | None = None
        self._claims_of_queue: deque[Claim | None] = deque()
        self._claim_in_hand: Claim | None = None
        self._sending: Claim | None = None
        self._control_frames = 0
        self._second = 0.0
        self._cut: asyncio.TimerHandle | None = None

    def _admitted(self) -> None:
        self._admitted_yet = True
        self.conn.max_message_size = self.config.ws_max_size

    # --- the transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything but what the application still works on."""
        self._unparsed.clear()
        self._let_go(self._visit.gate.incoming, self._claimed)
        self._claimed = None
        self._taken()
        if self._cut is not None:
            self._cut.cancel()
        self._visit.gone()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer takes nothing; not for ever."""
        super().pause_writing()
        self._visit.stopped_taking()

    def resume_writing(self) -> None:
        """The peer has taken what was sent."""
        super().resume_writing()
        self._visit.takes_again()
        self._taken()

    # --- what comes

    def data_received(self, data: bytes) -> None:
        """Parse what came, or keep it until its turn."""
        self._unparsed += data
        if not self._scheduled:
            self._parse()

    def _parse(self) -> None:
        self._scheduled = False
        if self.transport.is_closing():
            self._unparsed.clear()
            return
        if self.read_paused or not self._has_room():
            return
        # The rest of a long message in one piece: nothing else can come of it.
        size = max(SLICE_BYTES, self.conn.missing)
        piece = bytes(self._unparsed[:size])
        del self._unparsed[:size]
        super().data_received(piece)
        if self.conn.handshake_exc is not None:
            self._refuse_upgrade()
        elif not self.read_paused:
            self._go_on()

    def _go_on(self) -> None:
        """Parse what is left, in the next turn, or read on."""
        if self.transport.is_closing() or not self._has_room():
            return
        if self._unparsed:
            self.transport.pause_reading()
            self._schedule()
        else:
            self.transport.resume_reading()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._parse)

    def _has_room(self) -> bool:
        """Whether the message that is coming may; claims room for it when it is long, and stops reading meanwhile."""
        size = self.conn.reader.awaited
        if self._fragments is not None or self.conn.current_size is not None:
            # How long a message in several fragments will be is known at its end: the most it may be.
            size = self.conn.max_message_size or 0
        if size <= FREE_BYTES or self.transport.is_closing():
            return True
        if self._claimed is None:
            self._claimed = self._visit.gate.incoming.claim(size, self._room_made)
        elif self._claimed.granted and self._claimed.size < size:
            # The second fragment: to wait for more while it holds the first could make all wait for each other.
            self._let_go(self._visit.gate.incoming, self._claimed)
            self._claimed = self._visit.gate.incoming.claim(size, self._room_made)
            if not self._claimed.granted:
                self._visit.cut("crowded", "there was no room for a message in several fragments")
        if not self._claimed.granted and not self.transport.is_closing():
            self._visit.waits_for_room = True
            self.transport.pause_reading()
        return self._claimed.granted

    def _room_made(self) -> None:
        self._visit.waits_for_room = False
        if not self.read_paused:
            if self._unparsed:
                self._schedule()
            elif not self.transport.is_closing():
                self.transport.resume_reading()

    def _refuse_upgrade(self) -> None:
        """The upgrade request has headers that the library does not take: say what it says, and close."""
        self._visit.gate.count("malformed")
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        """Put fragments together as they come; a list of a million tiny ones would take far more than they bring."""
        if self._fragments is None:
            self._fragments = bytearray(b"".join(self.frames))
            self.frames = []
        self._fragments += event.data
        if event.fin:
            self.frames = [bytes(self._fragments)]
            self._fragments = None
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """Queue a message, with its share of the budget."""
        claim, self._claimed = self._claimed, None
        if self.close_sent:
            self._let_go(self._visit.gate.incoming, claim)
        else:
            self._claims_of_queue.append(claim)
        if self.curr_msg_data_type == "text":
            # Text is refused whatever it says: not worth decoding, and it may not be UTF-8.
            self.frames = [b""]
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Answer a ping."""
        super().handle_ping()
        self._count_control_frame()

    def handle_pong(self, event: Frame) -> None:
        """Ignore a pong: the server sends no ping."""
        del event
        self._count_control_frame()

    def _count_control_frame(self) -> None:
        now = self.loop.time()
        if now - self._second >= 1.0:
            self._second, self._control_frames = now, 0
        self._control_frames += 1
        if self._control_frames > CONTROL_FRAMES:
            self._visit.cut("flood", f"it sent more than {CONTROL_FRAMES} pings in a second")

    def handle_parser_exception(self) -> None:
        """A frame that is none, or too long."""
        if not self._admitted_yet:
            self._visit.failed()
        super().handle_parser_exception()

    # --- the application

    async def receive(self) -> ASGIReceiveEvent:
        """The next event; by asking for it the application says that it is done with the one before."""
        self._let_go(self._visit.gate.incoming, self._claim_in_hand)
        self._claim_in_hand = None
        event = await self.queue.get()
        if event["type"] == "websocket.receive":
            self._claim_in_hand = self._claims_of_queue.popleft()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        return event

    async def send(self, message: ASGISendEvent) -> None:
        """Send when the peer has taken what was sent before, and there is room in the budget."""
        data = message.get("bytes") if message["type"] == "websocket.send" else None
        if isinstance(data, bytes) and len(data) > FREE_BYTES:
            await self.writable.wait()
            self._taken()
            self._sending = await self._room_for(len(data))
        try:
            await super().send(message)
        finally:
            if self.writable.is_set():
                self._taken()
        if message["type"] == "websocket.close":
            # The peer's close may be among what was not parsed while the application was busy.
            self._go_on()

    async def _room_for(self, size: int) -> Claim:
        """Wait for room in the outgoing budget."""
        room = asyncio.Event()
        claim = self._visit.gate.outgoing.claim(size, room.set)
        if not claim.granted:
            try:
                await room.wait()
            except asyncio.CancelledError:
                self._let_go(self._visit.gate.outgoing, claim)
                raise
        return claim

    def _taken(self) -> None:
        self._let_go(self._visit.gate.outgoing, self._sending)
        self._sending = None

    @staticmethod
    def _let_go(budget: ByteBudget, claim: Claim | None) -> None:
        if claim is not None:
            budget.give_back(claim)

    async def run_asgi(self) -> None:
        """Run the application, and after it wait for the peer to close, but not long."""
        try:
            await super().run_asgi()
        finally:
            for claim in (self._claim_in_hand, *self._claims_of_queue):
                self._let_go(self._visit.gate.incoming, claim)
            self._claim_in_hand = None
            self._claims_of_queue.clear()
            if not self.disconnected:
                self._cut = self.loop.call_later(2 * CLOSE_S, self._visit.abort)
