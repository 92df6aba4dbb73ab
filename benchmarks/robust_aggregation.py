"""What robust aggregation costs: seconds to fold a round by each method, beside the weighted sum in the same run.

Run it with nothing else on the machine::

    python -m benchmarks.robust_aggregation [--parameters 4385920] [--clients 10] [--repeats 9]

The model is that of `benchmarks.tensor_path` (one embedding table with nine tenths of the parameters and 38 smaller
tensors), deltas are float32 in memory, a third of the clients counts as bad. Each figure is the median of the
repeats, methods taken in turn. ``rows`` is the same with deltas that hold 5 % of the embedding's rows, different
ones for each client, as a round of text gives. Deltas are normal noise around a common direction: costs do not
depend on it, except for the steps that the geometric median takes.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks.tensor_path import make_model
from server.aggregation import (
    Aggregator,
    CoordinateMedian,
    Delta,
    DenseDelta,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    RowsDelta,
    SlotUpdate,
    TrimmedMean,
    WeightedSum,
)

EMBEDDING = "embedding@a+b+c"
ROWS_TOUCHED = 0.05


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=4_385_920)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.manual_seed(7)
    model = make_model(arguments.parameters)
    dense = updates_of(model, arguments.clients, rows=False)
    rows = updates_of(model, arguments.clients, rows=True)
    seconds = {
        "dense": measure(methods(arguments.clients), model, dense, arguments.repeats),
        "rows": measure(methods(arguments.clients), model, rows, arguments.repeats),
    }
    ratios = {
        kind: {name: round(spent / found["weighted_sum"], 1) for name, spent in found.items()}
        for kind, found in seconds.items()
    }
    print(f"{'method':<20}{'dense s':>10}{'of the sum':>12}{'rows s':>10}{'of the sum':>12}")
    for name in seconds["dense"]:
        cells = "".join(f"{seconds[kind][name]:>10.3f}{ratios[kind][name]:>12.1f}" for kind in ("dense", "rows"))
        print(f"{name:<20}{cells}")
    result = {
        "benchmark": "robust_aggregation",
        "settings": vars(arguments) | {"tensors": len(model), "rows_touched": ROWS_TOUCHED},
        "seconds": {kind: {name: round(spent, 4) for name, spent in found.items()} for kind, found in seconds.items()},
        "of_weighted_sum": ratios,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(result))


def measure(
    found: Mapping[str, Aggregator], model: Mapping[str, Tensor], updates: Mapping[str, list[SlotUpdate]], repeats: int
) -> dict[str, float]:
    """Method to its median seconds of `repeats` after one that does not count; in turn, as machines have moods."""
    spent: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats + 1):
        for name, aggregator in found.items():
            begin = time.perf_counter()
            fold(aggregator, model, updates)
            spent[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def methods(clients: int) -> dict[str, Aggregator]:
    """Every method, against a third of the clients."""
    bad = (clients - 1) // 3
    return {
        "weighted_sum": WeightedSum(),
        "norm_clipping": NormClipping(),
        "geometric_median": GeometricMedian(),
        "krum": Krum(bad),
        "multi_krum": MultiKrum(bad),
        "trimmed_mean": TrimmedMean(bad / clients),
        "coordinate_median": CoordinateMedian(),
    }


def updates_of(model: Mapping[str, Tensor], clients: int, *, rows: bool) -> dict[str, list[SlotUpdate]]:
    """Slot to its updates, of clients with 1, 2, 3 ... examples."""
    total = clients * (clients + 1) / 2
    common = {slot: 1e-3 * torch.randn_like(value) for slot, value in model.items()}
    return {
        slot: [
            SlotUpdate(f"c{k:03}", (k + 1) / total, k + 1, delta_of(common[slot], rows=rows and slot == EMBEDDING))
            for k in range(clients)
        ]
        for slot in model
    }


def delta_of(common: Tensor, *, rows: bool) -> Delta:
    """A client's delta."""
    if not rows:
        return DenseDelta.of(common + 1e-3 * torch.randn_like(common))
    indices = torch.randperm(len(common))[: int(ROWS_TOUCHED * len(common))].sort().values
    values = common[indices] + 1e-3 * torch.randn(len(indices), common.shape[1])
    return RowsDelta.of(tuple(common.shape), indices, values)


def fold(aggregator: Aggregator, model: Mapping[str, Tensor], updates: Mapping[str, list[SlotUpdate]]) -> None:
    """Reduce every slot once."""
    for slot, value in model.items():
        aggregator.reduce(value, updates[slot])


if __name__ == "__main__":
    main()
