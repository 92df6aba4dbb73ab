"""What a training experiment has found, as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.metrics import Evaluation

#: One epoch's or round's validation results and gates, see `TrainResult.history`.
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class TrainResult:
    """One model trained on one data set from one seed.

    Attributes:
        model: its name, see `experiments.models`.
        dataset: the problem's name.
        seed: of first values and batches.
        epochs: passes over the training rows.
        parameters: how many the model has.
        seconds: of training, with the evaluations between epochs.
        examples_per_second: rows trained on per second of training alone; a row with several labels counts once.
        settings: all else that the result depends on.
        test: task to metric to value on the test rows; ``loss`` and ``examples`` are among the metrics.
        history: by epoch or round: ``{"epoch" | "round": n, "tasks": {task: {metric: value}}, "gates": {task: {gate:
            {"load": shares of the experts, "entropy": nats, ...}}}, "gate_distances": [...]}``, see
            `server.gate_records`; on validation rows, gates of a federation on training rows.
        specialisation: task to gate to which inputs it sends to which expert, see `experiments.specialisation`.
        federated: number of clients; None: trained centrally.
        partition: how the rows were divided among the clients.
        target_task: the one task that it was trained on, where only one was asked for.
    """

    model: str
    dataset: str
    seed: int
    epochs: int
    parameters: int
    seconds: float
    examples_per_second: float
    settings: Mapping[str, Any]
    test: Mapping[str, Mapping[str, float]]
    history: Sequence[Entry] = ()
    specialisation: Mapping[str, Any] = field(default_factory=dict)
    federated: int | None = None
    partition: str | None = None
    target_task: str | None = None
    kind: str = field(default="train", init=False)

    @property
    def name(self) -> str:
        """Says which run it is; a file name without its suffix."""
        parts = [self.model, self.dataset, f"s{self.seed}"]
        if self.target_task is not None:
            parts.append(self.target_task)
        if self.federated is not None:
            parts += [f"federated{self.federated}", str(self.partition)]
        if (weights := self.settings.get("expert_weights")) not in (None, "routing"):
            parts.append(f"by-{weights}")
        if (limit := self.settings.get("limit")) is not None:
            parts.append(f"of-{limit}")
        return "-".join(parts)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    def write(self, folder: Path) -> Path:
        """Write it as ``NAME.json``; the folder is made. Returns the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(self.to_json() + "\n", encoding="utf-8")
        return path


def row_of(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation as results hold it."""
    return {**evaluation.metrics, "loss": evaluation.loss, "examples": evaluation.examples}
