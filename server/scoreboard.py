"""What is known of each version's quality, and the summary of a run. Pure data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from common.metrics import Evaluation, combine


@dataclass
class RoundRecord:
    """One version as the summary's history shows it; version 0 is the model before any training."""

    round: int
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    participants: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    attempts: int = 1
    #: Group of slots to the bytes of its payloads, ``down`` and ``up``.
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    #: What the gates did (`server.gate_records`); None without experts.
    gates: dict[str, Any] | None = None


class Scoreboard:
    """Evaluations by version, task and client, and a record per round.

    Filled by one thread, read by any. What was put together of a version is kept until another evaluation of it comes:
    the summary shows all versions after each commit, and so would cost more with every round.
    """

    def __init__(self) -> None:
        self._evaluations: dict[int, dict[str, dict[str, Evaluation]]] = {}
        self._newest: dict[str, int] = {}
        #: Version to how often it was changed, and to what was put together at which of these counts.
        self._changes: dict[int, int] = {}
        self._together: dict[int, tuple[int, dict[str, dict[str, float | int]]]] = {}
        self.rounds: dict[int, RoundRecord] = {0: RoundRecord(0)}

    @classmethod
    def restored(
        cls,
        version: int,
        rounds: Iterable[Mapping[str, Any]],
        updates: Iterable[Mapping[str, Any]],
        evaluations: Iterable[Mapping[str, Any]],
        groups: Mapping[int, dict[str, dict[str, int]]] | None = None,
        gates: Mapping[int, dict[str, Any]] | None = None,
    ) -> Self:
        """The board of a run that goes on, from the rows of its history up to the committed version."""
        board = cls()
        timed = {row["round"]: row for row in rounds}
        for number in range(1, version + 1):
            # The row of the newest round is missing when the server died between the commit and the row.
            row = timed.get(number, {"seconds": 0.0, "bytes_down": 0, "bytes_up": 0, "phases": {}, "attempt": 1})
            figures = {key: row[key] for key in ("seconds", "bytes_down", "bytes_up", "phases")}
            board.rounds[number] = RoundRecord(
                number,
                **figures,
                attempts=row["attempt"],
                groups=(groups or {}).get(number, {}),
                gates=(gates or {}).get(number),
            )
        for update in updates:
            if update["round"] <= version:
                record = board.rounds[update["round"]]
                record.participants.append(update["client_id"])
                for task, done in update["tasks"].items():
                    record.examples[task] = record.examples.get(task, 0) + done["num_examples"]
        for row in evaluations:
            if row["version"] <= version:
                result = Evaluation(row["metrics"], row["loss"], row["examples"])
                board.add_evaluation(row["version"], row["client_id"], row["task"], result)
        return board

    def add_evaluation(self, version: int, client_id: str, task: str, evaluation: Evaluation) -> None:
        """Keep one client's result for one task; a repeated report replaces the first."""
        self._evaluations.setdefault(version, {}).setdefault(task, {})[client_id] = evaluation
        self._newest[task] = max(version, self._newest.get(task, version))
        self._changes[version] = self._changes.get(version, 0) + 1

    def combined(self, version: int) -> dict[str, Evaluation]:
        """Task to the evaluation of all its clients together, weighted by examples."""
        by_task = self._evaluations.get(version, {})
        return {task: combine([by[c] for c in sorted(by)]) for task, by in sorted(by_task.items())}

    def _tasks_of(self, version: int) -> dict[str, dict[str, float | int]]:
        changes = self._changes.get(version, 0)
        known = self._together.get(version)
        if known is not None and known[0] == changes:
            return known[1]
        by_task = self._evaluations.get(version, {})
        tasks: dict[str, dict[str, float | int]] = {
            task: {**result.metrics, "loss": result.loss, "examples": result.examples, "clients": len(by_task[task])}
            for task, result in self.combined(version).items()
        }
        self._together[version] = (changes, tasks)
        return tasks

    def history(self) -> list[dict[str, Any]]:
        """A row per version: seconds, bytes and the metrics of the model that the round made."""
        return [
            {
                "round": record.round,
                "seconds": record.seconds,
                "bytes_down": record.bytes_down,
                "bytes_up": record.bytes_up,
                "groups": record.groups,
                "participants": record.participants,
                "phases": record.phases,
                "training_examples": record.examples,
                "attempts": record.attempts,
                "tasks": self._tasks_of(version),
                **({} if record.gates is None else {"gates": record.gates}),
            }
            for version, record in sorted(self.rounds.items())
        ]

    def latest(self) -> dict[str, dict[str, float | int]]:
        """The newest result of each task."""
        return {task: self._tasks_of(version)[task] for task, version in sorted(self._newest.items())}

    def line(self, version: int, primary: Mapping[str, str]) -> str:
        """One line for the log: each task's primary metric for a version."""
        tasks = self.combined(version)
        return "  ".join(
            f"{task} {primary[task]} {tasks[task].metrics[primary[task]]:.4f}" for task in primary if task in tasks
        )
