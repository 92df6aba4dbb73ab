"""What a version allows the run to do next; plain data for the coordinator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outlook:
    """What can be done from a version on.

    Attributes:
        trained: the tasks that have something to train in the round that starts from it. Clients of no other tasks are
            asked to evaluate only.
        end: why the run ends with this version before its target; empty while it goes on.
    """

    trained: frozenset[str]
    end: str = ""
