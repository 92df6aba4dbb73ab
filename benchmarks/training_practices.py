"""What each practice of fine-tuning gives and costs: score, bytes and seconds, on real text, over several seeds.

Every variant is a whole federation of real processes (``python -m server``, ``python -m client``) that starts from the
same pretrained encoder and sees the same rows the same number of times. Three clients hold one task each, except in
the variants of samplers, where one client holds all three. Groups:

* ``freezing``    nothing frozen; everything (a feature extractor with heads as drawn: nobody trains); the backbone;
                  one task's head;
* ``unfreezing``  heads first, then the upper layers, then all, against all from the first round (``freezing/none``);
* ``heads``       the heads' learning rate 1, 5 and 10 times the encoder's;
* ``samplers``    how one client shares its steps among tasks of 400, 1,600 and 800 rows;
* ``lora``        low-rank adapters of rank 2, 8 and 32 with trained heads.

The folder given by ``--data`` holds sst2/, qqp/, stsb/ in GLUE's columns (see configs/glue-local.yaml). Each run is
added to ``--out`` as a line when it is done, and runs that are there already are not repeated. The last line printed
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.federated_run import ROOT, federate, metrics

CONFIG: Final = ROOT / "configs" / "glue-local.yaml"
TASKS: Final = ("sst2", "qqp", "stsb")
PRIMARY: Final = {"sst2": "accuracy", "qqp": "accuracy", "stsb": "pearson"}
SEPARATE: Final = {f"{task}_client": (task,) for task in TASKS}
TOGETHER: Final = {"all_client": TASKS}


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        sets: ``key.path=value`` beside those of all variants.
        clients: client id to its tasks.
        rows: training rows of each task; None as given on the command line.
    """

    sets: Sequence[str] = ()
    clients: Mapping[str, Sequence[str]] = field(default_factory=lambda: SEPARATE)
    rows: tuple[int, int, int] | None = None


def _sampler(*sets: str) -> Variant:
    return Variant(sets, TOGETHER, (400, 1600, 800))


STAGES: Final = "[{from_round: 1, open: [heads]}, {from_round: 2, open: [upper]}, {from_round: 4, open: [everything]}]"
VARIANTS: Final[Mapping[str, Variant]] = {
    "freezing/none": Variant(),
    "freezing/everything": Variant(["freezing.freeze=[everything]"]),
    "freezing/backbone": Variant(["freezing.freeze=[backbone]"]),
    "freezing/head_sst2": Variant(["freezing.freeze=['head:sst2']"]),
    "unfreezing/stages": Variant([f"freezing.schedule={STAGES}"]),
    "heads/1": Variant(["training.head_learning_rate=1"]),
    "heads/5": Variant(["training.head_learning_rate=5"]),
    "heads/10": Variant(["training.head_learning_rate=10"]),
    "samplers/proportional": _sampler("training.task_sampling=proportional"),
    "samplers/even": _sampler("training.task_sampling=even"),
    "samplers/sqrt": _sampler("training.task_sampling=sqrt"),
    "samplers/temperature": _sampler("training.task_sampling=temperature"),
    "samplers/annealed": _sampler("training.task_sampling=annealed"),
    "samplers/performance": _sampler("training.task_sampling=performance"),
    "samplers/even_mixed": _sampler("training.task_sampling=even", "training.mixed_batches=true"),
    **{f"lora/{rank}": Variant([f"model.lora={{rank: {rank}, alpha: {2 * rank}}}"]) for rank in (2, 8, 32)},
}


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One federation; returns its scores and costs."""
    variant = VARIANTS[name]
    rows = variant.rows or arguments.train
    # A LoRA matrix starts from zero and has a scale of its own: it takes a higher rate than a pretrained weight.
    rate = arguments.lora_learning_rate if name.startswith("lora/") else arguments.learning_rate
    sets = [
        f"run.seed={seed}",
        f"run.rounds={arguments.rounds}",
        f"federation.evaluate_every={arguments.rounds}",
        f"federation.min_clients={len(variant.clients)}",
        f"training.learning_rate={rate}",
        f"training.local_epochs={arguments.epochs / arguments.rounds}",
        f"model.layers={arguments.layers}",
        *(f"tasks.{task}.data.limits.train={count}" for task, count in zip(TASKS, rows, strict=True)),
        *(f"tasks.{task}.data.limits.validation={arguments.validation}" for task in TASKS),
        *variant.sets,
    ]
    threads = max(1, (os.cpu_count() or 1) // len(variant.clients))
    summary = federate(CONFIG, sets, variant.clients, arguments.data, threads)
    tasks = {task: metrics(row) for task, row in summary["tasks"].items()}
    return {
        "variant": name,
        "seed": seed,
        "tasks": tasks,
        "score": statistics.fmean(tasks[task][PRIMARY[task]] for task in TASKS),
        "bytes_down": summary["bytes_down"],
        "bytes_up": summary["bytes_up"],
        "seconds": summary["seconds"],
    }


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Mean over the seeds, and the lowest and highest score, as Markdown."""
    lines = [
        "| variant | mean score (low to high) | SST-2 accuracy | QQP accuracy | STS-B Pearson | MB down | MB up | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["variant"] for row in runs):
        rows = [row for row in runs if row["variant"] == name]
        scores = [100 * row["score"] for row in rows]
        cells = [f"{statistics.fmean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})"]
        cells += [f"{statistics.fmean(100 * row['tasks'][task][PRIMARY[task]] for row in rows):.1f}" for task in TASKS]
        cells += [f"{statistics.fmean(row[key] for row in rows) / 1e6:.1f}" for key in ("bytes_down", "bytes_up")]
        cells.append(f"{statistics.median(row['seconds'] for row in rows):.0f}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the variants asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=2, help="first layers of the encoder")
    parser.add_argument("--train", type=int, nargs=3, default=[800, 800, 800], metavar=("SST2", "QQP", "STSB"))
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the rows")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--lora-learning-rate", type=float, default=1e-3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names, or groups such as lora")
    parser.add_argument("--out", type=Path, required=True, help="file of finished runs, a JSON object a line")
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = [name for name in VARIANTS if {name, name.split("/")[0]} & set(arguments.variants)]
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    runs: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for seed in arguments.seeds:
        for name in chosen:
            if any((row["variant"], row["seed"]) == (name, seed) for row in runs):
                continue
            runs.append(run(name, seed, arguments))
            with arguments.out.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            print(name, seed, f"{runs[-1]['score']:.3f}", f"{runs[-1]['seconds']:.0f} s", flush=True)
    print(table(runs))
    settings = {k: v for k, v in vars(arguments).items() if k not in ("data", "out", "variants")}
    print(json.dumps({"benchmark": "training_practices", "settings": settings, "runs": runs}))


if __name__ == "__main__":
    main()
