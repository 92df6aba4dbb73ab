"""LibMTL's MMoE on the CPU: its own Trainer, architecture and weighting, fed in two ways.

LibMTL 1.1.5 trains on ``cuda:0`` only and reads its loader by ``iterator.next()``, which torch has dropped; the two
methods that say so are replaced here, nothing else. Its packages' ``__init__`` would import torchvision for networks
over images, which this comparison does not need: its modules are loaded from its folder without them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

Loader = Literal["per_row", "per_batch"]
_PACKAGES = ("LibMTL", "LibMTL.architecture", "LibMTL.weighting")


def load_libmtl() -> dict[str, Any]:
    """LibMTL's Trainer, MMoE, equal weighting, loss and metric, by name.

    Raises:
        SystemExit: it is not installed.
    """
    found = importlib.util.find_spec("LibMTL")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("LibMTL is not installed: pip install --no-deps LibMTL==1.1.5")
    root = Path(found.submodule_search_locations[0])
    for name in _PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    wanted = {
        "Trainer": "LibMTL.trainer",
        "MMoE": "LibMTL.architecture.MMoE",
        "EW": "LibMTL.weighting.EW",
        "CELoss": "LibMTL.loss",
        "AccMetric": "LibMTL.metrics",
    }
    return {name: getattr(importlib.import_module(module), name) for name, module in wanted.items()}


class Rows(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Rows as LibMTL wants them: inputs, and a label per task.

    Args:
        features: (N, F) float32.
        labels: task to (N,) int64.
    """

    def __init__(self, features: Tensor, labels: Mapping[str, Tensor]) -> None:
        self._features, self._labels = features, labels

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ANN401  # a row or a list of rows
        return self._features[index], {task: labels[index] for task, labels in self._labels.items()}


def dataloader(rows: Rows, batch_size: int, loader: Loader) -> DataLoader[Any]:
    """``per_row``: as its examples do, rows fetched one by one and stacked; ``per_batch``: a batch by one index."""
    if loader == "per_row":
        return DataLoader(rows, batch_size=batch_size, shuffle=True)
    return DataLoader(rows, sampler=BatchSampler(RandomSampler(rows), batch_size, drop_last=False), batch_size=None)


def train(
    rows: Rows,
    held_out: Rows,
    *,
    tasks: tuple[str, ...],
    sizes: tuple[int, int, int, int],
    batch_size: int,
    epochs: int,
    learning_rate: float,
    loader: Loader,
) -> tuple[float, float, nn.Module]:
    """Train for some epochs; its Trainer evaluates on `held_out` after each, which is not counted.

    Args:
        rows: the training rows.
        held_out: a few rows: its Trainer wants a test set.
        tasks: their names.
        sizes: inputs, experts, units of an expert, units of a tower.
        batch_size: rows per step.
        epochs: passes over the rows.
        learning_rate: of Adam.
        loader: how rows become batches.

    Returns:
        rows per second of the epochs after the first, of the first, and the trained model.
    """
    libmtl = load_libmtl()
    trainer_class: Any = libmtl["Trainer"]
    inputs, experts, units, tower = sizes
    seconds: list[float] = []

    class OnCpu(trainer_class):  # type: ignore[misc]  # found at run time
        def _prepare_model(self, *arguments: object) -> None:
            self.device = torch.device("cpu")
            super()._prepare_model(*arguments)

        def _process_data(self, source: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
            try:
                data, label = next(source[1])
            except StopIteration:
                source[1] = iter(source[0])
                data, label = next(source[1])
            return data, label

        def test(self, *arguments: object, **named: object) -> None:
            seconds.append(self.meter.end_time - self.meter.beg_time)
            super().test(*arguments, **named)

    described = {
        task: {
            "metrics": ["Acc"],
            "metrics_fn": libmtl["AccMetric"](),
            "loss_fn": libmtl["CELoss"](),
            "weight": [1],
        }
        for task in tasks
    }
    decoders = {task: nn.Sequential(nn.Linear(units, tower), nn.ReLU(), nn.Linear(tower, 2)) for task in tasks}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = OnCpu(
            task_dict=described,
            weighting=libmtl["EW"],
            architecture=libmtl["MMoE"],
            encoder_class=lambda: nn.Sequential(nn.Linear(inputs, units), nn.ReLU()),
            decoders=nn.ModuleDict(decoders),
            rep_grad=False,
            multi_input=False,
            optim_param={"optim": "adam", "lr": learning_rate},
            scheduler_param=None,
            weight_args={},
            arch_args={"img_size": [inputs], "num_experts": [experts]},
        )
        trainer.train(dataloader(rows, batch_size, loader), dataloader(held_out, batch_size, "per_batch"), epochs)
        first = seconds[0]
    later = seconds[1:] or seconds
    return len(rows) * len(later) / sum(later), len(rows) / first, trainer.model
