"""A family with experts, small enough to check by hand: a gate per task, and a penalty on what the experts put out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.blueprint import Blueprint, ParameterSpec
from common.families.base import GateUse, MultiTaskModel, TrainingPass
from tests.client.tiny_family import TASKS, VOCABULARY, WIDTH, TinyFamily

EXPERTS = 3


class ExpertModel(MultiTaskModel):
    """`closed` experts have weight 0 for every row."""

    def __init__(self, tasks: Sequence[str], closed: Sequence[int]) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.experts = nn.ParameterList(torch.zeros(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.gate = nn.ModuleDict({task: nn.Linear(WIDTH, EXPERTS) for task in tasks})
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, TASKS[task].num_outputs) for task in tasks})
        self._closed = [index in closed for index in range(EXPERTS)]

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        return self.training_pass({task: slice(None)}, batch).outputs[task]

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        real = batch["mask"].unsqueeze(-1)
        pooled = (self.embeddings(batch["ids"]) * real).sum(1) / real.sum(1)
        hidden = torch.tanh(torch.einsum("bi,eio->beo", pooled, torch.stack(list(self.experts))))
        outputs, gates, penalties = {}, {}, []
        for task, rows in parts.items():
            logits = self.gate[task](pooled[rows]).masked_fill(torch.tensor(self._closed), -torch.inf)
            weights = torch.softmax(logits, dim=-1)
            mixed = torch.einsum("be,beo->bo", weights, hidden[rows])
            penalties.append(mixed.square().sum(-1))
            found = self.heads[task](mixed)
            outputs[task] = found.squeeze(-1) if TASKS[task].kind == "regression" else found
            entropy = -torch.xlogy(weights, weights).sum()
            gates[task] = {"gate": GateUse(weights.sum(0).detach(), entropy.detach())}
        return TrainingPass(outputs, torch.cat(penalties).mean(), gates)

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002  # all tasks have the same experts
        return {"gate": tuple(f"expert.{index}" for index in range(EXPERTS))}


class ExpertFamily(TinyFamily):
    """See `ExpertModel`."""

    name = "experts"

    def __init__(self, tasks: Sequence[str] = ("mood", "score"), *, closed: Sequence[int] = ()) -> None:
        super().__init__(tasks)
        self._closed = closed

    def blueprint(self) -> Blueprint:
        specs = []
        for name, tensor in ExpertModel(tuple(self.tasks), ()).named_parameters():
            kind, part = name.split(".")[:2]
            users = frozenset({part}) if kind in ("gate", "heads") else frozenset(self.tasks)
            group = {"heads": "head", "experts": f"expert.{part}"}.get(kind, kind)
            specs.append(ParameterSpec(name, tuple(tensor.shape), "float32", users, users, group, "parameter"))
        return Blueprint(self.name, tuple(self.tasks), tuple(specs))

    def build(self, tasks: Sequence[str]) -> MultiTaskModel:
        with torch.random.fork_rng(devices=[]):
            return ExpertModel(tasks, self._closed)
