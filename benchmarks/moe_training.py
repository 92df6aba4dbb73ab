"""How fast an MMoE learns: examples per second of our engine and of LibMTL's Trainer, at equal sizes.

Census-Income (KDD) with both tasks of the MMoE paper, the same one-hot inputs, 8 experts of 16 units and towers of 8,
batch 512, Adam, the same number of threads. Methods run in turn, each in a process of its own, and the median over the
turns counts; an epoch is timed after a first one that warms up. An example is a row, whichever number of labels it has.

* ``ours``              `LocalTrainer.train` as a client calls it, from received values to deltas, ``same_rows``
* ``libmtl_per_row``    LibMTL's Trainer with a `DataLoader(rows, batch_size=512, shuffle=True)`, as its examples do
* ``libmtl_per_batch``  the same with a loader that takes a batch by one index: the best that can be done for it
* ``matmul_bound``      nothing but the products of a step with the first layer's weights, forward and for its gradient:
                        no implementation that computes with dense inputs is faster than this

LibMTL is wanted for the comparison: ``pip install --no-deps LibMTL==1.1.5`` (its other dependencies are not needed).
The folder given by ``--data`` (or FEDMTL_DATA) holds census_income_kdd/. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
METHODS: Final = ("ours", "libmtl_per_batch", "libmtl_per_row", "matmul_bound")
TASKS: Final = ("income", "marital")
EXPERTS, UNITS, TOWER = 8, 16, 8


def work(arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement in this process."""
    import torch
    from sklearn.metrics import roc_auc_score

    from common.data import SplitName, load_examples
    from common.families import build_family
    from common.families.encoded_rows import EncodedRows
    from common.families.expert_config import MMoEConfig
    from experiments.problems import load_problem

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    problem = load_problem("census-kdd", arguments.data)
    config = MMoEConfig.model_validate(
        {
            "family": "mmoe",
            **problem.inputs,
            "experts": {"number": EXPERTS, "hidden": [UNITS]},
            "gate": {"bias": True},  # as LibMTL's
            "tower": [TOWER],
        }
    )
    family = build_family(config, problem.tasks, base_dir=ROOT)
    splits: dict[SplitName, dict[str, Any]] = {"train": {}, "test": {}}
    for split, encoded in splits.items():
        for task in TASKS:
            limit = arguments.rows if split == "train" else 20_000
            limits = problem.tasks[task].data.limits.model_copy(update={split: limit})
            spec = problem.tasks[task].model_copy(
                update={"data": problem.tasks[task].data.model_copy(update={"limits": limits})}
            )
            rows = load_examples(spec, split, data=problem.folder, shard=None, seed=1, columns=family.feature_columns)
            encoded[task] = family.encode(task, rows)
            assert isinstance(encoded[task], EncodedRows)
    features = {split: _features(encoded[TASKS[0]]) for split, encoded in splits.items()}
    labels = {split: {task: encoded[task].labels for task in TASKS} for split, encoded in splits.items()}
    inputs = features["train"].shape[1]
    if arguments.worker == "matmul_bound":
        return {"examples_per_second": _bound(features["train"], arguments.batch_size), "inputs": inputs}
    if arguments.worker == "ours":
        speed, outputs = _ours(family, splits, arguments)
    else:
        speed, outputs = _libmtl(features, labels, inputs, arguments)
    aucs = {task: float(roc_auc_score(labels["test"][task].numpy(), outputs[task].numpy())) for task in TASKS}
    return {"examples_per_second": speed, "inputs": inputs, **{f"auc_{task}": auc for task, auc in aucs.items()}}


def _ours(family: Any, splits: Any, arguments: argparse.Namespace) -> tuple[float, dict[str, Any]]:  # noqa: ANN401
    import torch

    from client.slot_model import SlotModel
    from client.trainer import LocalTrainer, TaskData
    from common.plan import SharingPlan
    from common.training import Position, TrainSettings

    settings = TrainSettings(
        local_epochs=arguments.epochs + 1,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        head_learning_rate=1.0,
        weight_decay=0.0,
        warmup=0.0,
        schedule="constant",
        max_grad_norm=None,
        same_rows=True,
        threads=arguments.threads,
    )
    slice_ = SharingPlan.shared(family.blueprint()).slice(TASKS)
    values = {slot.id: family.initial_values(arguments.seed)[slot.parameter] for slot in slice_.slots}
    ends = []
    last: dict[str, Any] = {}

    def after_epoch(epoch: int, model: SlotModel) -> None:
        ends.append(time.perf_counter())
        if epoch == arguments.epochs + 1:
            with torch.inference_mode():
                for task in TASKS:
                    test = splits["test"][task]
                    batch = test.collate(torch.arange(len(test)).numpy())
                    last[task] = torch.softmax(model.forward(task, batch), dim=-1)[:, 1]

    trainer = LocalTrainer(family, {task: TaskData(splits["train"][task]) for task in TASKS}, torch.device("cpu"))
    trainer.train(
        slice_,
        values,
        settings,
        Position(1, 1),
        arguments.seed,
        "bench",
        lambda _: None,
        threading.Event(),
        after_epoch=after_epoch,
    )
    return len(splits["train"][TASKS[0]]) * arguments.epochs / (ends[-1] - ends[0]), last


def _libmtl(
    features: Mapping[Any, Any], labels: Mapping[Any, Any], inputs: int, arguments: argparse.Namespace
) -> tuple[float, dict[str, Any]]:
    import torch

    from benchmarks.moe_training_libmtl import Rows, train

    speed, _, model = train(
        Rows(features["train"], labels["train"]),
        Rows(features["test"][:1024], {task: found[:1024] for task, found in labels["test"].items()}),
        tasks=TASKS,
        sizes=(inputs, EXPERTS, UNITS, TOWER),
        batch_size=arguments.batch_size,
        epochs=arguments.epochs + 1,
        learning_rate=arguments.learning_rate,
        loader="per_row" if arguments.worker == "libmtl_per_row" else "per_batch",
    )
    model.eval()
    with torch.inference_mode():
        outputs = model(features["test"])
    return speed, {task: torch.softmax(outputs[task], dim=-1)[:, 1] for task in TASKS}


def _features(rows: Any) -> Any:  # noqa: ANN401
    import numpy as np

    return rows.collate(np.arange(len(rows)))["features"]


def _bound(features: Any, batch_size: int) -> float:  # noqa: ANN401
    import torch

    weight = torch.randn(EXPERTS * UNITS + len(TASKS) * EXPERTS, features.shape[1])
    gradient = torch.randn(batch_size, len(weight))
    times = []
    for number in range(300):
        start = number * batch_size % (len(features) - batch_size)
        rows = features[start : start + batch_size]
        began = time.perf_counter()
        torch.mm(rows, weight.t())
        torch.mm(gradient.t(), rows)
        times.append(time.perf_counter() - began)
    return batch_size / statistics.median(times)


def measure(arguments: argparse.Namespace, method: str, turn: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    words = ["--worker", method, "--seed", str(turn)]
    for name in ("data", "rows", "epochs", "batch_size", "threads", "learning_rate"):
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    command = [sys.executable, "-m", "benchmarks.moe_training", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"turn {turn} {method}: {result['examples_per_second']:,.0f} rows/s", flush=True)
    return result


def main() -> None:
    """Measure, or (in a process started by this one) do a single measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEDMTL_DATA") or ROOT.parent / "shared/data"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs, after one that is not")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    if arguments.worker:
        print(json.dumps(work(arguments)))
        return
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for turn in range(1, arguments.turns + 1):
        for method in METHODS:
            rows[method].append(measure(arguments, method, turn))
    speed = {m: statistics.median(row["examples_per_second"] for row in seen) for m, seen in rows.items()}
    result = {
        "benchmark": "moe_training",
        "examples_per_second": {method: round(value) for method, value in speed.items()},
        "ours_over": {method: round(speed["ours"] / value, 2) for method, value in speed.items()},
        "turns": {m: [round(row["examples_per_second"]) for row in seen] for m, seen in rows.items()},
        "test_auc": {
            method: {task: round(statistics.mean(row[f"auc_{task}"] for row in seen), 4) for task in TASKS}
            for method, seen in rows.items()
            if method != "matmul_bound"
        },
        "settings": {
            "inputs": rows["ours"][0]["inputs"],
            **{name: getattr(arguments, name) for name in ("rows", "batch_size", "threads", "epochs", "turns")},
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
