"""What federation costs and gives in quality: SST-2, QQP and STS-B, real text, one pretrained encoder, equal budgets.

Every condition sees the same rows the same number of times, starts from the same weights and is
evaluated on the same validation rows:

* ``alone``     each task by itself, centrally;
* ``central``   all tasks together, centrally: MT-DNN's mixed batches, one task each (Liu et al. 2019);
* ``per_task``  a server and three client processes, one model per task (standard FL);
* ``uniform``   the same, one unified model, tasks weigh the same in the encoder;
* ``examples``  the same, tasks weigh by their training examples.

Federated conditions start ``python -m server`` and three ``python -m client`` and read summary.json.
Central ones use the same local trainer on all rows at once, with one optimiser over the whole budget.

Where clients of three tasks share an encoder, the mean of three deltas moves it a third as far as three deltas one
after the other would. ``--task-step sum`` (the default here) adds them; with ``mean`` these conditions need a
higher ``--learning-rate``. Heads are averaged with nobody, and have the same rate everywhere.

Read it so: within a task, ``uniform`` close to ``central`` means that federating costs little, ``uniform``
above ``per_task`` that the other tasks help. Differences of a point on 872 to 2,000 rows are noise.

The folder given by ``--data`` holds sst2/, qqp/, stsb/ in GLUE's columns (see configs/glue-local.yaml). The last
line printed is one JSON object; ``--out`` keeps it too.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.federated_run import ROOT, federate, metrics

CONFIG: Final = ROOT / "configs" / "glue-local.yaml"
TASKS: Final = ("sst2", "qqp", "stsb")
FEDERATED: Final = {
    "per_task": ["federation.mode=per_task"],
    "uniform": ["federation.task_weights=uniform"],
    "examples": ["federation.task_weights=examples"],
}


def overrides(arguments: argparse.Namespace, learning_rate: float) -> list[str]:
    """The ``--set`` values that all conditions have in common."""
    limits = dict(zip(TASKS, arguments.train, strict=True))
    return [
        f"run.seed={arguments.seed}",
        f"run.rounds={arguments.rounds}",
        f"federation.evaluate_every={arguments.evaluate_every}",
        f"training.learning_rate={learning_rate}",
        f"training.head_learning_rate={arguments.head_learning_rate / learning_rate}",
        f"training.local_epochs={arguments.epochs / arguments.rounds}",
        *([f"model.layers={arguments.layers}"] if arguments.layers else []),
        *(f"tasks.{task}.data.limits.train={limits[task]}" for task in TASKS),
        *(f"tasks.{task}.data.limits.validation={arguments.validation}" for task in TASKS),
    ]


def centrally(arguments: argparse.Namespace, groups: list[tuple[str, ...]]) -> dict[str, Any]:
    """Train each group of tasks on all its rows in one process."""
    import torch

    from client.trainer import LocalTrainer, TaskData
    from common.data import load_examples
    from common.families import build_family
    from common.plan import SharingPlan
    from common.training import Position
    from server.config import load_config

    loaded = load_config(CONFIG, overrides(arguments, arguments.central_learning_rate))
    family = build_family(loaded.config.model, loaded.specs, base_dir=loaded.base_dir)
    plan, initial = SharingPlan.shared(family.blueprint()), family.initial_values(arguments.seed)
    settings = loaded.config.training.model_copy(update={"local_epochs": arguments.epochs})
    began, results = time.perf_counter(), {}
    for group in groups:
        data = {}
        for task in group:
            rows = [
                load_examples(loaded.specs[task], split, data=arguments.data, shard=None, seed=arguments.seed)
                for split in ("train", "validation")
            ]
            data[task] = TaskData(family.encode(task, rows[0]), family.encode(task, rows[1]))
        slice_ = plan.slice(group)
        values = {slot.id: initial[slot.parameter] for slot in slice_.slots}
        trainer = LocalTrainer(family, data, torch.device("cpu"))
        result = trainer.train(
            slice_, values, settings, Position(1, 1), arguments.seed, "central", lambda _: None, threading.Event()
        )
        final = {slot: value + result.deltas[slot] for slot, value in values.items()}
        for task, evaluation in trainer.evaluate(slice_, final, settings).items():
            results[task] = dict(evaluation.metrics)
    return {"tasks": results, "seconds": time.perf_counter() - began}


def federated(arguments: argparse.Namespace, condition: str) -> dict[str, Any]:
    """Run a server and a client per task; the result is the last version's."""
    shared = condition != "per_task"
    step = [f"federation.task_step={arguments.task_step}"] if shared else []
    rate = arguments.learning_rate if shared else arguments.central_learning_rate
    sets = [*overrides(arguments, rate), *FEDERATED[condition], *step]
    summary = federate(CONFIG, sets, {f"{task}_client": [task] for task in TASKS}, arguments.data)
    history = [
        {"round": row["round"], "tasks": {t: metrics(m) for t, m in row["tasks"].items()}}
        for row in summary["history"]
        if row["tasks"]
    ]
    return {
        "tasks": history[-1]["tasks"],
        "seconds": summary["seconds"],
        "bytes_down": summary["bytes_down"],
        "bytes_up": summary["bytes_up"],
        "history": history,
    }


def main() -> None:
    """Run the conditions asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="first layers of the encoder; default all")
    parser.add_argument("--train", type=int, nargs=3, default=[4000, 4000, 4000], metavar=("SST2", "QQP", "STSB"))
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the rows, in every condition")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--evaluate-every", type=int, default=6, help="rounds between two evaluations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="where tasks on different clients share")
    parser.add_argument("--central-learning-rate", type=float, default=1e-4, help="alone, central and per_task")
    parser.add_argument("--head-learning-rate", type=float, default=2e-3, help="of the heads, in every condition")
    parser.add_argument("--task-step", choices=("mean", "sum"), default="sum", help="of uniform and examples")
    parser.add_argument("--conditions", nargs="+", default=["alone", "central", *FEDERATED])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results: dict[str, Any] = {}
    for condition in arguments.conditions:
        if condition == "alone":
            results[condition] = centrally(arguments, [(task,) for task in TASKS])
        elif condition == "central":
            results[condition] = centrally(arguments, [TASKS])
        else:
            results[condition] = federated(arguments, condition)
        print(condition, json.dumps(results[condition]["tasks"]), f"{results[condition]['seconds']:.0f} s", flush=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    del settings["data"], settings["out"]
    line = json.dumps({"benchmark": "real_run", "settings": settings, "results": results})
    if arguments.out:
        arguments.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
