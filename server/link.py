"""What one client may say and when: the rules of a connection as a table. No socket in this file."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from common.errors import ProtocolError
from common.messages import (
    Chunk,
    ClientMessage,
    Declined,
    EvaluationReport,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Progress,
    Ready,
    UpdateHeader,
)


class LinkPhase(Enum):
    """How far a connection has come."""

    CONNECTED = "connected"
    PREPARING = "preparing"
    ACTIVE = "active"
    CLOSED = "closed"


TRANSITIONS: Final[Mapping[LinkPhase, Mapping[type[ClientMessage], LinkPhase]]] = MappingProxyType(
    {
        LinkPhase.CONNECTED: {Hello: LinkPhase.PREPARING, Goodbye: LinkPhase.CLOSED},
        LinkPhase.PREPARING: {
            Ready: LinkPhase.ACTIVE,
            Heartbeat: LinkPhase.PREPARING,
            Goodbye: LinkPhase.CLOSED,
        },
        LinkPhase.ACTIVE: {
            EvaluationReport: LinkPhase.ACTIVE,
            UpdateHeader: LinkPhase.ACTIVE,
            Chunk: LinkPhase.ACTIVE,
            Declined: LinkPhase.ACTIVE,
            Progress: LinkPhase.ACTIVE,
            Heartbeat: LinkPhase.ACTIVE,
            Goodbye: LinkPhase.CLOSED,
        },
        LinkPhase.CLOSED: {},
    }
)


class Link:
    """The phase of one connection."""

    def __init__(self) -> None:
        self.phase = LinkPhase.CONNECTED

    def take(self, message: Message) -> None:
        """Step by a message.

        Raises:
            ProtocolError: `out_of_order`, when this message may not come now; nothing changes.
        """
        allowed = TRANSITIONS[self.phase]
        for kind, phase in allowed.items():
            if isinstance(message, kind):
                self.phase = phase
                return
        names = ", ".join(sorted(kind.model_fields["type"].default for kind in allowed)) or "nothing"
        raise ProtocolError("out_of_order", f"{message.type!r} may not come now ({self.phase.value}); allowed: {names}")
