"""Models trained all at once become what each becomes alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.families.tabular_family import MODELS, TabularFamily
from common.seeds import derive_seed
from experiments.batched import BatchedModels, BatchedRows, Schedule
from experiments.synthetic_family import TASKS, synthetic_family

INPUTS = 5
SCHEDULE = Schedule(steps=12, batch_size=8, learning_rate=0.02)
SIZES: dict[str, dict[str, object]] = {
    "single_task": {"column": [6]},
    "shared_bottom": {"bottom": [6]},
    "omoe": {"experts": {"number": 3, "hidden": [4]}},
    "mmoe": {"experts": {"number": 3, "hidden": [4]}, "gate": {"balance": 0.1}},
    "ple": {
        "levels": [{"shared": {"number": 2, "hidden": [4]}, "own": {"number": 1, "hidden": [4]}}] * 2,
    },
    "cross_stitch": {"column": [6, 5]},
    "soft_sharing": {"column": [6]},
    "progressive": {"column": [6, 5], "adapter": 3},
    "adversarial": {"bottom": [6], "column": [5]},
}


def rows(models: int, count: int = 40, *, shared: bool = False) -> BatchedRows:
    generator = torch.Generator().manual_seed(1)
    shape = (count, INPUTS) if shared else (models, count, INPUTS)
    return BatchedRows(
        torch.randn(shape, generator=generator), torch.randn(models, count, len(TASKS), generator=generator)
    )


def trained_alone(family: TabularFamily, seed: int, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """One model trained by the plain loop."""
    model = family.build(TASKS)
    model.load_state_dict(family.initial_values(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=SCHEDULE.learning_rate)
    per_epoch = len(features) // SCHEDULE.batch_size
    for step in range(SCHEDULE.steps):
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(derive_seed(9, "order", epoch))
        order = torch.randperm(len(features), generator=generator)
        chosen = order[place * SCHEDULE.batch_size : (place + 1) * SCHEDULE.batch_size]
        found = model.training_pass(dict.fromkeys(TASKS, slice(None)), {"features": features[chosen]})
        losses = [(found.outputs[task] - labels[chosen, k]).square().mean() for k, task in enumerate(TASKS)]
        optimizer.zero_grad()
        torch.stack([*losses, *([] if found.penalty is None else [found.penalty])]).sum().backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("name", [name for name in SIZES if name in MODELS])
@pytest.mark.parametrize("shared", [False, True], ids=["own rows", "shared rows"])
def test_a_batch_of_models_is_the_loop_over_them(name: str, shared: bool) -> None:
    family = synthetic_family(name, INPUTS, SIZES[name])
    seeds, data = [3, 4, 3], rows(3, shared=shared)
    models = BatchedModels(family, seeds)
    models.train(data, SCHEDULE, order_seed=9)
    for index, seed in enumerate(seeds):
        features = data.features if shared else data.features[index]
        alone = trained_alone(family, seed, features, data.labels[index])
        for tensor, value in models.values.items():
            assert torch.allclose(value[index], alone[tensor], atol=1e-5), tensor


def test_training_starts_from_the_familys_initial_values() -> None:
    family = synthetic_family("shared_bottom", INPUTS, SIZES["shared_bottom"])
    models = BatchedModels(family, [3, 4])
    for index, seed in enumerate([3, 4]):
        for name, value in family.initial_values(seed).items():
            assert torch.equal(models.values[name][index], value)


def test_an_evaluation_in_blocks_is_the_mean_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    family = synthetic_family("shared_bottom", INPUTS, SIZES["shared_bottom"])
    data, models = rows(2), BatchedModels(family, [3, 4])
    whole = models.evaluate(data).losses
    monkeypatch.setattr("experiments.batched.EVALUATION_ROWS", 7)
    assert torch.allclose(models.evaluate(data).losses, whole, rtol=1e-5)
    model = family.build(TASKS)
    model.load_state_dict(family.initial_values(4))
    for k, task in enumerate(TASKS):
        alone = (model(task, {"features": data.features[1]}) - data.labels[1, :, k]).square().mean()
        assert whole[1, k] == pytest.approx(alone.item(), rel=1e-5)


def test_each_model_draws_a_dropout_of_its_own() -> None:
    family = synthetic_family("shared_bottom", INPUTS, {**SIZES["shared_bottom"], "dropout": 0.5})
    models = BatchedModels(family, [3, 3])
    data = rows(2)
    same = BatchedRows(data.features[:1].expand(2, -1, -1), data.labels[:1].expand(2, -1, -1))
    models.train(same, SCHEDULE, order_seed=9)
    weights = models.values["encoder.layers.0.weight"]
    assert not torch.allclose(weights[0], weights[1])


def test_a_caller_can_end_the_training() -> None:
    def stop(step: int) -> None:
        if step == 2:
            raise InterruptedError

    models = BatchedModels(synthetic_family("shared_bottom", INPUTS, SIZES["shared_bottom"]), [3])
    with pytest.raises(InterruptedError):
        models.train(rows(1), SCHEDULE, order_seed=9, on_step=stop)
