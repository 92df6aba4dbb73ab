"""The server's answer to a client's hello: all it needs to load its data and build its model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from common.families.base import Family
from common.messages import Asset, Hello, Welcome
from common.tasks import TaskSpec
from server.config import Config


class Introduction:
    """What every client of a run is told; made once.

    Attributes:
        assets: the family's files by name, sent to clients that do not hold them.
    """

    def __init__(self, config: Config, specs: Mapping[str, TaskSpec], family: Family, run_id: str) -> None:
        self.assets = family.assets()
        self._config = config
        self._specs = {task: spec.model_dump(mode="json") for task, spec in specs.items()}
        self._description = family.describe()
        self._run_id = run_id
        self._listed = tuple(
            Asset(name=name, sha256=hashlib.sha256(content).hexdigest(), nbytes=len(content), stream=stream)
            for stream, (name, content) in enumerate(sorted(self.assets.items()))
        )

    def welcome(self, hello: Hello, tasks: frozenset[str], version: int, up: str, down: str) -> Welcome:
        """The message for one client; one that synchronises the whole model is told of all tasks."""
        limits = self._config.server.limits
        wanted = self._specs if hello.sync == "full" else {task: self._specs[task] for task in sorted(tasks)}
        return Welcome(
            protocol=version,
            run_id=self._run_id,
            client_id=hello.client_id,
            tasks=tuple(sorted(tasks)),
            seed=self._config.run.seed,
            target_rounds=self._config.run.rounds,
            heartbeat_s=limits.heartbeat_s,
            silence_s=limits.silence_s,
            chunk_bytes=limits.chunk_bytes,
            encoding_up=up,
            encoding_down=down,
            specs=wanted,
            family=self._description,
            assets=self._listed,
        )
