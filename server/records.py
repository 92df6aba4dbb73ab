"""What a running federation keeps count of, for people and for the history; nothing is decided by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.messages import DataReport
from server.slot_traffic import SlotBytes

if TYPE_CHECKING:
    from server.connection import Connection


@dataclass
class Traffic:
    """Bytes of frames that crossed all connections."""

    down: int = 0
    up: int = 0


@dataclass(frozen=True, slots=True)
class QueueDepths:
    """What waits at one moment.

    Attributes:
        events: of which the coordinator has not heard yet.
        jobs: for the lane or in it, the thread of model, files and history.
        messages: short messages that have not left, over all connections.
        messages_of_one_client: the most that wait on one connection.
    """

    events: int
    jobs: int
    messages: int
    messages_of_one_client: int


@dataclass
class OpenRound:
    """Clock and counters of the round that is open; for the record only."""

    round_id: int
    attempt: int
    cohort: list[str]
    started: float
    down: int
    up: int
    phases: dict[str, float] = field(default_factory=dict)
    #: Slot id to the bytes of its payloads; known when the round is closed.
    slots: dict[str, SlotBytes] = field(default_factory=dict)
    #: `server.gate_records.gate_record`; known when the round is closed.
    gates: dict[str, Any] | None = None


@dataclass
class Participant:
    """What is known of a client, connected or not."""

    tasks: frozenset[str]
    data: Mapping[str, DataReport]
    connection: Connection | None = None
    rounds: int = 0
    last_seen: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    #: Code to how often something of this client was refused by that name.
    refusals: dict[str, int] = field(default_factory=dict)
    last_refusal: str = ""
    progress: str = ""
