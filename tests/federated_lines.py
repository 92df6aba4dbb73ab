"""Federations small enough to solve on paper: each client fits one line through the origin, ``loss = (x w - y)^2``.

Training is the client's own trainer, folding is the server's own; only the wire is left out.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.device import choose_device
from client.trainer import LocalTrainer, TaskData
from common.blueprint import Blueprint, ParameterSpec
from common.families.base import ModelSummary, MultiTaskModel
from common.messages import TaskContribution
from common.tasks import TaskSpec
from common.training import Position, TrainSettings
from server.aggregation import AggregationConfig, AggregatorChoice
from server.correction import reweighing
from server.model_state import ModelState
from server.reduce import reduce_round
from server.strategy import Correction, initial_plan
from tests.server.tiny_run import spooled

TASK = "score"
SETTINGS = TrainSettings(
    local_steps=20,
    batch_size=4,
    learning_rate=0.05,
    optimizer="sgd",
    weight_decay=0,
    warmup=0,
    schedule="constant",
    max_grad_norm=None,
)


class LineModel(MultiTaskModel):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002  # there is one
        return batch["x"] * self.slope


@dataclass(frozen=True)
class Rows:
    """Equal rows, so that every batch has the gradient of the whole."""

    x: float
    y: float
    count: int

    @property
    def labels(self) -> Tensor:
        return torch.full((self.count,), self.y)

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(self.count, np.int64)

    @property
    def weights(self) -> None:
        return None

    def __len__(self) -> int:
        return self.count

    def collate(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"x": torch.full((len(indices),), self.x)}


class LineFamily:
    name = "line"
    feature_columns: tuple[str, ...] = ()
    token_rows: tuple[str, ...] = ()
    tasks: Mapping[str, TaskSpec] = {TASK: TaskSpec.model_validate({"name": TASK, "kind": "regression"})}

    def blueprint(self) -> Blueprint:
        users = frozenset({TASK})
        return Blueprint(self.name, (TASK,), (ParameterSpec("slope", (1,), "float32", users, users, "layer.0"),))

    def build(self, tasks: Sequence[str]) -> MultiTaskModel:  # noqa: ARG002  # there is one
        return LineModel()

    def initial_values(self, seed: int) -> dict[str, Tensor]:  # noqa: ARG002  # always the same
        return {"slope": torch.zeros(1)}

    def encode(self, task: str, examples: Any) -> Any:  # noqa: ANN401
        raise NotImplementedError

    def encoding_key(self, task: str) -> str | None:  # noqa: ARG002  # nothing is encoded
        return None

    def describe(self) -> dict[str, Any]:
        return {}

    def assets(self) -> dict[str, bytes]:
        return {}

    def ties(self) -> tuple[()]:
        return ()

    def summary(self) -> ModelSummary:
        return ModelSummary.of(self.blueprint(), "a line")


@dataclass(frozen=True)
class Line:
    """A client: ``count`` rows of (x, y), and how it trains."""

    x: float
    y: float
    count: int = 4
    settings: TrainSettings = SETTINGS


def joint_optimum(clients: Sequence[Line]) -> float:
    """Where the mean of the clients' losses is least, weighed by their rows."""
    return sum(c.count * c.x * c.y for c in clients) / sum(c.count * c.x * c.x for c in clients)


def federate(
    folder: Path,
    clients: Mapping[str, Line],
    rounds: int,
    correction: Correction = "none",
    cohorts: Sequence[str] = (),
    missed: Mapping[int, str] | None = None,
) -> list[float]:
    """The slope after each round.

    Args:
        folder: for the spool.
        clients: by a letter each.
        rounds: how many.
        correction: the federated method.
        cohorts: the letters of those that take part, by turns; left out: everybody.
        missed: round to the letters of those whose update comes too late to count.
    """
    family = LineFamily()
    plan = initial_plan("mtl", family.blueprint(), correction=correction)
    model = ModelState.initial(plan, family.initial_values(0))
    trainers = {
        name: LocalTrainer(family, {TASK: TaskData(Rows(c.x, c.y, c.count))}, choose_device("cpu"))
        for name, c in clients.items()
    }
    slice_, found, counted = plan.slice([TASK]), [], dict.fromkeys(clients, 0)
    for number in range(1, rounds + 1):
        cohort = cohorts[number % len(cohorts)] if cohorts else "".join(clients)
        updates, done = [], {}
        for name in cohort:
            result = trainers[name].train(
                *(slice_, model.values, clients[name].settings, Position(number, rounds), 0, name),
                lambda _: None,
                threading.Event(),
                counted[name],
            )
            if name in (missed or {}).get(number, ""):
                continue
            counted[name] = number
            report = result.reports[TASK]
            examples = {TASK: report.num_examples}
            updates.append(spooled(folder / str(number), name, number, result.deltas, examples))
            done[name] = {
                TASK: TaskContribution(
                    num_examples=report.num_examples, num_steps=report.num_steps, loss=report.loss, seconds=0.0
                )
            }
        reduce_round(
            model,
            updates,
            {name: {TASK: did[TASK].num_examples} for name, did in done.items()},
            "uniform",
            AggregatorChoice.of(AggregationConfig()),
            reweigh=reweighing(
                correction,
                {name: clients[name].settings for name in done},
                done,
                dict.fromkeys(clients, frozenset({TASK})),
            ),
        )
        found.append(float(model.values[f"slope@{TASK}"]))
    return found


def with_settings(line: Line, **changes: Any) -> Line:  # noqa: ANN401  # fields of the settings
    """The same client, trained otherwise."""
    return replace(line, settings=line.settings.model_copy(update=changes))
