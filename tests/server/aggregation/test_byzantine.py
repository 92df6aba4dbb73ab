"""Three of ten clients send what ruins the mean: training goes on with every robust method, and not with the mean.

Real rounds: each client trains logistic regression on its own rows, its update goes through the spool, the round
through `reduce_round` with the aggregators that a configuration names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.blueprint import Blueprint, ParameterSpec
from common.plan import SharingPlan
from server.aggregation import AggregationConfig, AggregatorChoice
from server.model_state import ModelState
from server.reduce import reduce_round
from tests.server.tiny_run import spooled

TASKS = frozenset({"mood"})
PLAN = SharingPlan.shared(
    Blueprint(
        "logistic",
        ("mood",),
        tuple(ParameterSpec(n, s, "float32", TASKS, TASKS, "g") for n, s in [("weight", (1, 12)), ("bias", (1,))]),
    )
)
CLIENTS = [f"c{k}" for k in range(10)]
#: The first by id, as ties go by ids.
BAD = CLIENTS[:3]
ROUNDS = 6
Rows = tuple[Tensor, Tensor]
Attack = Callable[[Tensor, torch.Generator], Tensor]

ATTACKS: dict[str, Attack] = {
    "sign-flipped": lambda delta, _: -8 * delta,
    "huge": lambda delta, generator: 1e6 * torch.randn(delta.shape, generator=generator),
    "huge and the same": lambda delta, _: torch.full_like(delta, -1e30),
}
METHODS: dict[str, dict[str, Any]] = {
    "coordinate_median": {},
    "trimmed_mean": {"trim": 0.3},
    "krum": {"byzantine": 3},
    "multi_krum": {"byzantine": 3},
    "geometric_median": {},
    "norm_clipping": {},
}


def rows_of(seed: int, count: int) -> Rows:
    """Labels by a fixed direction, a tenth of them wrong."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 12, generator=generator)
    direction = torch.randn(12, generator=torch.Generator().manual_seed(1000))
    labels = (inputs @ direction > 0.3) ^ (torch.rand(count, generator=generator) < 0.1)
    return inputs, labels.float()


DATA = {client: rows_of(k, 60 + 10 * k) for k, client in enumerate(CLIENTS)}
HELD_OUT = rows_of(99, 2000)


def loss_of(values: Sequence[Tensor], rows: Rows) -> Tensor:
    weight, bias = values
    return torch.nn.functional.binary_cross_entropy_with_logits(rows[0] @ weight[0] + bias, rows[1])


def trained(model: ModelState, client: str) -> dict[str, Tensor]:
    """The deltas of five steps of gradient descent."""
    before = {slot.id: model.values[slot.id] for slot in PLAN.slots}
    after = [value.clone().requires_grad_() for value in before.values()]
    for _ in range(5):
        gradients = torch.autograd.grad(loss_of(after, DATA[client]), after)
        for parameter, gradient in zip(after, gradients, strict=True):
            parameter.data -= gradient
    return {slot: new.detach() - old for (slot, old), new in zip(before.items(), after, strict=True)}


def loss_after_training(folder: Path, use: dict[str, Any], attack: Attack | None, clients: list[str]) -> float:
    """The loss on held-out rows of the model that `clients` make together."""
    aggregators = AggregatorChoice.of(AggregationConfig.model_validate({"use": use}), PLAN.slots)
    parameters = {"weight": torch.zeros(1, 12), "bias": torch.zeros(1)}
    model = ModelState.initial(PLAN, parameters)
    examples = {client: {"mood": len(DATA[client][1])} for client in clients}
    for round_id in range(1, ROUNDS + 1):
        updates = []
        for client in clients:
            deltas = trained(model, client)
            if attack is not None and client in BAD:
                generator = torch.Generator().manual_seed(100 * round_id + int(client[1:]))
                deltas = {slot: attack(delta, generator) for slot, delta in deltas.items()}
            updates.append(spooled(folder, client, round_id, deltas, examples[client]))
        reduce_round(model, updates, examples, "uniform", aggregators)
    return float(loss_of(list(model.values.values()), HELD_OUT))


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked here does not depend on the disk, and hundreds of updates would wait for it."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the seven others reach alone."""
    honest = [client for client in CLIENTS if client not in BAD]
    loss = loss_after_training(tmp_path_factory.mktemp("clean"), {"method": "weighted_sum"}, None, honest)
    assert loss < 0.45  # untrained it is 0.69
    return loss


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_weighted_sum_is_ruined(tmp_path: Path, attack: str, clean: float) -> None:
    found = loss_after_training(tmp_path, {"method": "weighted_sum"}, ATTACKS[attack], CLIENTS)
    assert found > 5 * clean


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_robust_method_reaches_what_the_others_reach_alone(
    tmp_path: Path, method: str, attack: str, clean: float
) -> None:
    found = loss_after_training(tmp_path, {"method": method} | METHODS[method], ATTACKS[attack], CLIENTS)
    assert found < 1.15 * clean, f"{found:.3f}, {clean:.3f} without the bad clients"


@pytest.mark.parametrize("method", METHODS)
def test_without_bad_clients_a_robust_method_costs_little(tmp_path: Path, method: str, clean: float) -> None:
    found = loss_after_training(tmp_path, {"method": method} | METHODS[method], None, CLIENTS)
    assert found < 1.1 * clean


def test_votes_by_examples_are_lost_to_who_claims_them_and_equal_votes_are_not(
    tmp_path: Path, clean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Real rows a hundred times over: training is the same, the weight is not.
    for client in BAD:
        inputs, labels = DATA[client]
        monkeypatch.setitem(DATA, client, (inputs.repeat(100, 1), labels.repeat(100)))
    attack = ATTACKS["sign-flipped"]
    believed = loss_after_training(tmp_path / "1", {"method": "coordinate_median"}, attack, CLIENTS)
    equal = loss_after_training(tmp_path / "2", {"method": "coordinate_median", "votes": "equal"}, attack, CLIENTS)
    assert believed > 5 * clean
    assert equal < 1.15 * clean
