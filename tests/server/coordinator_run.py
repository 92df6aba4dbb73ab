"""A coordinator with its timers, driven event by event; shared by its tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from server.cohort import Cohort
from server.coordination import (
    CancelTimer,
    Command,
    Dispatch,
    Event,
    Finish,
    Joined,
    Left,
    Quarantine,
    StartTimer,
    TimerFired,
    UpdateArrived,
    UpdateRefused,
)
from server.coordinator import Coordinator
from server.rules import CohortSampler, Rules

#: What every update holds, unless a test says otherwise.
TEN: Final[Mapping[str, int]] = {"a": 10}


def everybody(connected: frozenset[str], round_id: int) -> Cohort:
    """Ask all, want all."""
    del round_id
    return Cohort(connected)


def only_x(connected: frozenset[str], round_id: int) -> Cohort:
    """Ask x alone."""
    del round_id
    return Cohort(connected & {"x"})


def first(wanted: int) -> CohortSampler:
    """Ask all, want so many."""
    return lambda connected, _: Cohort(connected, wanted)


@dataclass
class Run:
    """A coordinator, what it commanded, and its timers."""

    rules: Rules
    sample: CohortSampler = everybody
    version: int = 0
    commands: list[Command] = field(default_factory=list)
    timers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.decisions = Coordinator(self.rules, self.sample, self.version)

    def tell(self, *events: Event) -> list[Command]:
        """Hand over events; returns what is commanded for the last."""
        new: list[Command] = []
        for event in events:
            new = self.decisions.handle(event)
            self.commands += new
            for command in new:
                if isinstance(command, StartTimer):
                    self.timers.add(command.name)
                elif isinstance(command, CancelTimer):
                    self.timers.discard(command.name)
        return new

    def join(self, *client_ids: str, tasks: Mapping[str, str] | None = None) -> list[Command]:
        """Clients come; their task is ``a`` unless said otherwise."""
        return self.tell(*(Joined(c, frozenset({(tasks or {}).get(c, "a")})) for c in client_ids))

    def leave(self, *client_ids: str) -> list[Command]:
        """Clients say goodbye."""
        return self.tell(*(Left(c, for_good=True) for c in client_ids))

    def update(self, client_id: str, round_id: int) -> list[Command]:
        """An update is on disk."""
        return self.tell(UpdateArrived(client_id, round_id, TEN))

    def updates(self, client_ids: str, round_id: int) -> list[Command]:
        """Updates of several clients, a letter each; returns what is commanded for the last."""
        new: list[Command] = []
        for client_id in client_ids:
            new = self.update(client_id, round_id)
        return new

    def rubbish(self, client_id: str, round_id: int) -> list[Command]:
        """An update is refused for what it is."""
        return self.tell(UpdateRefused(client_id, round_id, "non_finite", "nan"))

    def timer(self, kind: str) -> list[Command]:
        """The timer of this kind runs out."""
        (name,) = [name for name in self.timers if name.startswith(kind)]
        self.timers.discard(name)
        return self.tell(TimerFired(name))

    def admits(self, client_id: str, round_id: int) -> tuple[str, str]:
        """Verdict and code for an update that is announced."""
        verdict, code, _ = self.decisions.admission(client_id, round_id)
        return verdict, code


def rules(**changes: Any) -> Rules:  # noqa: ANN401  # any field
    """Two rounds, three clients, nobody evaluates, unless said otherwise."""
    given: dict[str, Any] = {"target_rounds": 2, "tasks": frozenset({"a"}), "min_clients": 3, "evaluate": "none"}
    given["lost_quorum"] = "fail"
    return Rules(**given | changes)


def only(commands: Iterable[Command], kind: type[Any]) -> list[Any]:
    """The commands of one kind."""
    return [command for command in commands if isinstance(command, kind)]


def dispatched(commands: Iterable[Command]) -> list[str]:
    """Who is asked for something, in order."""
    return [command.client_id for command in only(commands, Dispatch)]


def finish(commands: Iterable[Command]) -> str:
    """How the run ends."""
    (command,) = only(commands, Finish)
    return str(command.state)


def quarantined(commands: Iterable[Command]) -> dict[str, int]:
    """Client to the version until which it is left out."""
    return {command.client_id: command.until_version for command in only(commands, Quarantine)}
