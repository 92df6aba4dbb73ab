"""Data and model being loaded, or loaded, for one run; outlives the connection on which the run was described."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from common.messages import DataReport, Welcome


@dataclass(frozen=True)
class Preparation:
    """What a welcome made the client load.

    Attributes:
        welcome: the welcome.
        task: does the loading; its result says what was loaded.
    """

    welcome: Welcome
    task: asyncio.Task[Mapping[str, DataReport]]

    def serves(self, welcome: Welcome) -> bool:
        """Whether it is what this welcome needs, so that coming back costs nothing."""
        known = self.welcome
        return (known.run_id, known.tasks, known.seed, known.specs, known.family) == (
            welcome.run_id,
            welcome.tasks,
            welcome.seed,
            welcome.specs,
            welcome.family,
        )
