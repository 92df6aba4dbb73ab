"""The ways of fine-tuning that `benchmarks.local_training` compares: ours, the Hugging Face Trainer, plain loops.

Each starts from the same values, sees the same rows as often, with the same batch size, rate schedule, clipping and
dropout, and hands back the time of its steps and a validation score. Run in a process of its own, so that peak memory
is its own too.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from client.trainer import LocalTrainer, TaskData
from common.families.base import Family
from common.families.encoded_text import EncodedText
from common.plan import SharingPlan
from common.training import Position, TrainSettings

#: What the example scripts pad to.
PAD_TO: Final = 128
#: Share of the steps over which the rate rises.
WARMUP: Final = 0.1


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        family: the model; first-token pooling through the pooler, as in `AutoModelForSequenceClassification`.
        task: its name.
        train: training rows.
        validation: rows to score on.
        steps: optimiser steps to time, and to learn from.
        warm: steps before the clock starts (their learning counts in the baselines; ours does them apart).
        batch_size: examples per step.
        learning_rate: peak rate.
        seed: of initial values, order and dropout.
        bf16: autocast to bfloat16.
        overrides: settings of ours, such as ``{"compact_vocabulary": False}``.
    """

    family: Family
    task: str
    train: EncodedText
    validation: EncodedText
    steps: int
    warm: int
    batch_size: int
    learning_rate: float
    seed: int
    bf16: bool
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a method did: seconds of `examples` examples, and the share of predictions that are right."""

    seconds: float
    examples: int
    accuracy: float


def ours(job: Job) -> Outcome:
    """One round of `LocalTrainer.train`, from received values to deltas, all of it on the clock."""
    plan = SharingPlan.shared(job.family.blueprint())
    slice_, initial = plan.slice([job.task]), job.family.initial_values(job.seed)
    values = {slot.id: initial[slot.parameter] for slot in slice_.slots}
    settings = TrainSettings(
        **{
            "local_steps": job.steps,
            "batch_size": job.batch_size,
            "learning_rate": job.learning_rate,
            "head_learning_rate": 1.0,
            "warmup": WARMUP,
            "precision": "auto",
            **job.overrides,
        }
    )
    trainer = LocalTrainer(job.family, {job.task: TaskData(job.train, job.validation)}, torch.device("cpu"))

    def train(chosen: TrainSettings) -> dict[str, Any]:
        position, never = Position(1, 1), threading.Event()
        result = trainer.train(slice_, values, chosen, position, job.seed, "bench", lambda _: None, never)
        return dict(result.deltas)

    train(settings.model_copy(update={"local_steps": max(1, job.warm)}))
    began = time.perf_counter()
    deltas = train(settings)
    seconds = time.perf_counter() - began
    final = {slot: value + _dense(deltas[slot]) if slot in deltas else value for slot, value in values.items()}
    evaluation = trainer.evaluate(slice_, final, settings)[job.task]
    examples = _examples_in(job, job.steps)
    return Outcome(seconds, examples, evaluation.metrics["accuracy"])


def plain_loop(job: Job) -> Outcome:
    """A careful PyTorch loop: random batches padded to their longest row, `torch.optim.AdamW` as it comes."""
    return _loop(job, lambda rows: job.train.collate(np.asarray(rows)))


def pad128(job: Job) -> Outcome:
    """The habit of the example scripts: the same loop with every row padded to 128 tokens."""

    def collate(rows: list[int]) -> dict[str, Tensor]:
        batch = job.train.collate(np.asarray(rows))
        missing = PAD_TO - batch["input_ids"].shape[1]
        fill = {"input_ids": job.train.pad_id}
        return {
            name: nn.functional.pad(tensor, (0, missing), value=fill.get(name, 0)) for name, tensor in batch.items()
        }

    return _loop(job, collate)


def trainer_default(job: Job) -> Outcome:
    """`transformers.Trainer` with its defaults; its default collator pads each batch to its longest row."""
    return _hugging_face(job, {})


def trainer_best(job: Job) -> Outcome:
    """The Trainer with length-grouped batches, the fused optimiser, and nothing logged, saved or shown."""
    best = {
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "bf16": job.bf16,
    }
    return _hugging_face(job, best)


METHODS: Final[Mapping[str, Callable[[Job], Outcome]]] = {
    "ours": ours,
    "pad128": pad128,
    "trainer_default": trainer_default,
    "trainer_best": trainer_best,
    "plain_loop": plain_loop,
}


class Rows(Dataset[dict[str, Any]]):
    """Tokenised rows as the Trainer wants them: lists of ids, made once."""

    def __init__(self, split: EncodedText) -> None:
        labels = split.labels.tolist()
        self.rows: list[dict[str, Any]] = []
        for row, label in enumerate(labels):
            place = slice(int(split.offsets[row]), int(split.offsets[row + 1]))
            ids = split.ids[place].tolist()
            one = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
            if split.type_ids is not None:
                one["token_type_ids"] = split.type_ids[place].tolist()
            self.rows.append(one)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return dict(self.rows[row])


def _loop(job: Job, collate: Callable[[list[int]], dict[str, Tensor]]) -> Outcome:
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(job.seed)
    model = _sequence_classifier(job)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, weight_decay=0.01)
    total = job.warm + job.steps
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * total), total)  # type: ignore[no-untyped-call]
    order: Any = list(range(len(job.train)))
    loader: DataLoader[Any] = DataLoader(order, batch_size=job.batch_size, shuffle=True, collate_fn=lambda rows: rows)
    seen, began = 0, time.perf_counter()
    for step, rows in enumerate(_endless(loader, total)):
        if step == job.warm:
            seen, began = 0, time.perf_counter()
        labels = job.train.labels[torch.tensor(rows)]
        with torch.autocast("cpu", torch.bfloat16, enabled=job.bf16):
            loss = model(**collate(rows), labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen += len(rows)
    return Outcome(time.perf_counter() - began, seen, _accuracy(model, job))


def _endless(loader: DataLoader[Any], total: int) -> Iterator[list[int]]:
    step = 0
    while True:
        for rows in loader:
            if step == total:
                return
            yield rows
            step += 1


def _hugging_face(job: Job, chosen: dict[str, Any]) -> Outcome:
    import transformers
    from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    clock: dict[str, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
            if state.global_step == job.warm:
                clock["began"] = time.perf_counter()
            clock["ended"] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_bytes(job.family.assets()["tokenizer.json"])
        tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_file=str(Path(folder) / "tokenizer.json"),
            pad_token="[PAD]",  # noqa: S106  # not a password
            sep_token="[SEP]",  # noqa: S106
            cls_token="[CLS]",  # noqa: S106
            unk_token="[UNK]",  # noqa: S106
            mask_token="[MASK]",  # noqa: S106
        )
        total = job.warm + job.steps
        arguments = TrainingArguments(
            **{
                "output_dir": folder,
                "max_steps": total,
                "per_device_train_batch_size": job.batch_size,
                "learning_rate": job.learning_rate,
                "weight_decay": 0.01,
                "warmup_steps": int(WARMUP * total),
                "seed": job.seed,
                "report_to": "none",
                "use_cpu": True,
                **chosen,
            }
        )
        model = _sequence_classifier(job)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(job.train),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = clock["ended"] - clock["began"]
    return Outcome(
        seconds, _examples_in(job, job.warm + job.steps) - _examples_in(job, job.warm), _accuracy(model, job)
    )


def _sequence_classifier(job: Job) -> nn.Module:
    """`AutoModelForSequenceClassification` with the family's initial values."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = dict(job.family.describe()["encoder"])
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings, num_labels=2)
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    names = {"encoder.": "bert.", f"heads.{job.task}.output.": "classifier."}
    values: dict[str, Tensor] = {}
    for name, value in job.family.initial_values(job.seed).items():
        old = next(prefix for prefix in names if name.startswith(prefix))
        values[names[old] + name.removeprefix(old)] = value
    missing, unexpected = model.load_state_dict(values, strict=False)
    if missing or unexpected:
        raise SystemExit(f"the classifier and the family differ: {missing} missing, {unexpected} unexpected")
    return model


def _accuracy(model: nn.Module, job: Job) -> float:
    """Share of validation rows whose larger logit is the label's."""
    model.eval()
    right = 0
    order = np.argsort(job.validation.lengths, kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            logits = model(**job.validation.collate(rows)).logits
            right += int((logits.argmax(dim=1) == job.validation.labels[torch.from_numpy(rows)]).sum())
    return right / len(order)


def _examples_in(job: Job, steps: int) -> int:
    """Examples in so many steps of whole epochs; an epoch's last batch may be smaller."""
    per_epoch = math.ceil(len(job.train) / job.batch_size)
    epochs, rest = divmod(steps, per_epoch)
    return epochs * len(job.train) + min(rest * job.batch_size, len(job.train))


def _dense(delta: Any) -> Tensor:  # noqa: ANN401  # a tensor, or rows of one
    dense: Tensor = delta if isinstance(delta, Tensor) else delta.dense()
    return dense
