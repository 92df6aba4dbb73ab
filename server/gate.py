"""Everything that is counted over all connections, and the one object per connection that knows how it stands.

The two protocol classes (`server.http_protocol`, `server.web_socket`) report to a `Visit` what happens on their
transport; `server.connection` finds the same object in ``socket.state.visit`` and the REST API in
``request.state.visit``. The decisions are those of `Doorway`, `FailedAttempts`, `ByteBudget` and `Announcements`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from server.announcements import Announcements
from server.byte_budget import ByteBudget
from server.doorway import Doorway
from server.failed_attempts import FailedAttempts, site_of

if TYPE_CHECKING:
    from server.config import LimitsConfig

log = logging.getLogger("fedmtl.server")
#: Refusals by which an address shows that it does not know how to get in, or tries what it may not.
FAILURES: Final = frozenset(
    {
        *("authentication", "malformed", "checksum", "unknown_type", "out_of_order", "timeout", "too_large"),
        *("protocol_version", "encoding", "unknown_task", "task_not_allowed"),
    }
)
#: Seconds between two lines of the log about what was turned away.
_LOG_EVERY_S: Final = 60.0


class Gate:
    """The bounds over all connections of one server.

    Args:
        limits: the operator's.

    Attributes:
        incoming: bytes of frames that are being received or were received and are not stored yet.
        outgoing: bytes of frames that were handed to a transport and not taken by the peer.
        announcements: updates announced per client in the open round.
        turned_away: connections that were closed or refused without a word of the protocol, by reason.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits
        self.doorway = Doorway(limits.handshakes, limits.requests)
        self.attempts = FailedAttempts(limits.failed_handshakes_per_minute)
        self.incoming = ByteBudget(limits.inflight_bytes // 2)
        self.outgoing = ByteBudget(limits.inflight_bytes // 2)
        self.announcements = Announcements(limits.updates_per_round)
        self.turned_away: Counter[str] = Counter()
        self._visits: dict[int, Visit] = {}
        self._numbers = itertools.count()
        self._logged = float("-inf")

    def arrived(self, address: str) -> Visit:
        """A connection was opened from this IP address. Another may be closed for it."""
        visit = Visit(self, next(self._numbers), address)
        self._visits[visit.number] = visit
        self.push_out(self.doorway.arrived(visit.number, site_of(visit.address)), "crowded")
        return visit

    def push_out(self, number: int | None, reason: str) -> None:
        """Close a connection without a word."""
        visit = self._visits.get(-1 if number is None else number)
        if visit is not None:
            self.count(reason)
            visit.abort()

    def gone(self, number: int) -> None:
        """A connection is closed."""
        self._visits.pop(number, None)
        self.doorway.gone(number)

    def count(self, reason: str) -> None:
        """Keep count of what was turned away, and say so now and then: a flood must not fill the log."""
        self.turned_away[reason] += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            counts = ", ".join(f"{name} {count}" for name, count in sorted(self.turned_away.items()))
            log.warning("connections turned away so far: %s", counts)


class Visit:
    """One connection, from accept to close.

    Attributes:
        number: names it in the doorway.
        address: the peer's IP address, empty where there is none.
        entering: waits until the connection is up, TLS and all; None from then on.
        transport: the connection, from then on.
        deadline: when, on the loop's clock, a hello must have come.
        waits_for_room: nothing is read from it until other connections' frames are stored.
        cut_off: why the server ended it without a word; empty when it did not.
        when_admitted: called once when its hello was accepted.
    """

    def __init__(self, gate: Gate, number: int, address: str) -> None:
        self.gate = gate
        self.number = number
        self.address = address
        self.entering: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + gate.limits.handshake_s
        self.waits_for_room = False
        self.cut_off = ""
        self.when_admitted: Callable[[], None] = _nothing
        self._stuck: asyncio.TimerHandle | None = None

    # --- getting in

    def asked(self) -> None:
        """A whole request has come; another visitor of the REST API may be closed for it."""
        self.gate.push_out(self.gate.doorway.asked(self.number), "crowded")

    def admitted(self) -> None:
        """The hello was accepted."""
        self.gate.doorway.admitted(self.number)
        self.when_admitted()

    def failed(self) -> None:
        """Count a failed attempt to get in (a refused hello, a wrong operator token) against the address."""
        self.gate.attempts.failed(self.address, self._loop.time())

    def wait_s(self) -> int:
        """Seconds that the address has to wait for its next attempt, because too many failed; 0 when it need not."""
        return self.gate.attempts.wait_s(self.address, self._loop.time())

    # --- taking what is sent

    def stopped_taking(self) -> None:
        """The transport's buffer is full: the peer has `send_s` to take it."""
        if self._stuck is None:
            self._stuck = self._loop.call_later(self.gate.limits.send_s, self._too_slow)

    def takes_again(self) -> None:
        """The peer has taken nearly everything."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _too_slow(self) -> None:
        left = self.transport.get_write_buffer_size() if self.transport is not None else 0
        self.cut("slow", f"it did not take {left} bytes in {self.gate.limits.send_s:g} s")

    # --- leaving

    def cut(self, reason: str, why: str) -> None:
        """End the connection at once, whatever was still to be sent.

        Args:
            reason: one word, to count by.
            why: for the log.
        """
        if not self.cut_off:
            self.cut_off = why
            self.gate.count(reason)
        self.abort()

    def abort(self) -> None:
        """Close the socket without waiting for the peer."""
        if self.transport is None:
            if self.entering is not None:
                self.entering.cancel()
        elif not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()

    def gone(self) -> None:
        """The connection is closed."""
        self.takes_again()
        self.gate.gone(self.number)


def _nothing() -> None:
    pass
