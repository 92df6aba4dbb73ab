"""What the coordinator is told (events) and what it orders (commands): plain frozen data.

`server.coordinator` turns one into the other, `server.federation` brings the events and carries out the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from server.outlook import Outlook
from server.round import Examples

#: Why a run may stand still: an operator, no room on the disk, a quorum missed too often, a model that is not finite.
PauseKind = Literal["operator", "storage", "quorum", "unsound"]

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resumed:
    """The server listens again: from now on the clients of before may come back."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A client is connected and its data is ready."""

    client_id: str
    tasks: frozenset[str]


@dataclass(frozen=True, slots=True)
class Left:
    """A client's connection ended; `for_good` when it said goodbye."""

    client_id: str
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class UpdateArrived:
    """A valid update lies in the spool, durable."""

    client_id: str
    round_id: int
    examples: Examples


@dataclass(frozen=True, slots=True)
class UpdateDeclined:
    """A client cannot train this round."""

    client_id: str
    round_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """An update was refused on its way in, for what it is."""

    client_id: str
    round_id: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateDelayed:
    """An update could not be stored; its client keeps it and sends it when it is asked again."""

    client_id: str
    round_id: int


@dataclass(frozen=True, slots=True)
class EvaluationArrived:
    """A client has evaluated a version; the figures are kept by the driver."""

    client_id: str
    version: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that the coordinator asked for."""

    name: str


@dataclass(frozen=True, slots=True)
class Screened:
    """The updates of a closed round have been looked at together: those that do not count, and why."""

    round_id: int
    outliers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The next version exists in memory, and this can be done from it (None: as before)."""

    version: int
    outlook: Outlook | None = None


@dataclass(frozen=True, slots=True)
class AggregationFailed:
    """The updates make no sound version; the model is what it was."""

    round_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Paused:
    """No round is to begin or close until every pause is lifted."""

    kind: PauseKind
    reason: str


@dataclass(frozen=True, slots=True)
class Unpaused:
    """A pause is lifted; an operator lifts all but those for want of storage."""

    kind: PauseKind


@dataclass(frozen=True, slots=True)
class Released:
    """An operator lets a quarantined client take part again."""

    client_id: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The operator wants the run to stop; it can be resumed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """Something of the server itself failed; the run can be resumed from its last commit."""

    reason: str


Event = (
    Resumed
    | Joined
    | Left
    | UpdateArrived
    | UpdateDeclined
    | UpdateRefused
    | UpdateDelayed
    | EvaluationArrived
    | TimerFired
    | Screened
    | Aggregated
    | AggregationFailed
    | Paused
    | Unpaused
    | Released
    | StopRequested
    | Crashed
)


# --- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginRound:
    """A round (or another attempt at it) is open."""

    round_id: int
    attempt: int
    trainers: frozenset[str]
    evaluators: frozenset[str]
    #: Everybody who took part when it began, with their tasks: should the server die, it waits for them.
    present: Mapping[str, frozenset[str]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send a client the version and what to do with it."""

    client_id: str
    round_id: int
    version: int
    train: bool
    evaluate: bool


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell a client that its update counts (and was not counted before, unless `duplicate`).

    `counts_in` is the round whose version it becomes part of: `round_id`, or a later one for a late update.
    """

    client_id: str
    round_id: int
    duplicate: bool
    counts_in: int


@dataclass(frozen=True, slots=True)
class RefuseUpdate:
    """Tell a client that its update does not count, and drop it from the spool."""

    client_id: str
    round_id: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Strike:
    """Write down that a client's update was bad in this round, which counts towards its quarantine."""

    client_id: str
    round_id: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Write down that a client is not asked before this version is made; `until_version` 0 lifts it."""

    client_id: str
    until_version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Tell clients that a round is over without them."""

    client_ids: frozenset[str]
    round_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Fire `TimerFired(name)` after `seconds`, replacing a timer of that name."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget a timer, if it runs."""

    name: str


@dataclass(frozen=True, slots=True)
class Screen:
    """Look at the updates of a closed round together, then say `Screened`."""

    round_id: int
    client_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fold the updates of these clients into the next version, then say `Aggregated` or `AggregationFailed`.

    `staleness` says of late updates how many versions were made since the one they start from.
    """

    round_id: int
    contributions: Mapping[str, Examples]
    staleness: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationsComplete:
    """No further evaluation of this version is awaited."""

    version: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over in this process."""

    state: Literal["finished", "failed", "stopped"]
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the operator should read."""

    text: str
    level: Literal["info", "warning"] = "info"


Command = (
    BeginRound
    | Dispatch
    | Acknowledge
    | RefuseUpdate
    | Strike
    | Quarantine
    | Dismiss
    | StartTimer
    | CancelTimer
    | Screen
    | Aggregate
    | EvaluationsComplete
    | Finish
    | Note
)
