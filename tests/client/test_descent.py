"""Learning equivalence: our descent does what a plain loop of torch's own parts does, written out here."""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from client.batches import round_batches
from client.device import choose_device, threads
from client.trainer import LocalResult, LocalTrainer, Progress, TaskData
from common.families.base import Family
from common.plan import SharingPlan, Slice
from common.tasks import TaskSpec
from common.training import Position, TrainSettings
from tests.common.families.tiny import TASKS, WORDS, text_family, texts

ROUNDS: Final = 2
TASK: Final = "sst2"
#: Multipliers for three layers at a decay of a half, the last pattern that fits counts.
MULTIPLIERS: Final = {
    r"encoder\.embeddings": 0.0625,
    r"encoder\..*layer\.0": 0.125,
    r"encoder\..*layer\.1": 0.25,
    r"encoder\..*layer\.2": 0.5,
    r"encoder\.pooler": 1.0,
    r"heads": 5.0,
    r"LayerNorm": 0.2,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For both sides of a comparison; and tensors as small as these gain nothing from more."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def family() -> Family:
    return text_family("bert", tasks={TASK: TASKS[TASK]}, dropout=0.0, encoder_dropout=0.0, pooling="cls")


def rows_of(family: Family, repeats: int = 4) -> dict[str, TaskData]:
    return {TASK: TaskData(family.encode(TASK, texts(TASK, WORDS * repeats)))}


def one_round(
    family: Family,
    data: dict[str, TaskData],
    values: dict[str, Tensor],
    settings: TrainSettings,
    number: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> LocalResult:
    trainer = LocalTrainer(family, data, choose_device("cpu"), clock=clock)
    position = Position(number, ROUNDS)
    return trainer.train(
        slice_of(family), values, settings, position, 3, "c", lambda _: None, threading.Event()
    )  # fmt: skip


def slice_of(family: Family) -> Slice:
    return SharingPlan.shared(family.blueprint()).slice([TASK])


def start_of(family: Family) -> dict[str, Tensor]:
    initial = family.initial_values(3)
    return {slot.id: initial[slot.parameter] for slot in slice_of(family).slots}


def plain_model(family: Family, values: dict[str, Tensor]) -> nn.Module:
    model = family.build([TASK])
    model.load_state_dict({slot.partition("@")[0]: value.clone() for slot, value in values.items()}, strict=False)
    return model.train()


def plain_steps(
    model: nn.Module, data: dict[str, TaskData], settings: TrainSettings, number: int
) -> Iterator[Callable[[], None]]:
    """For each step of the round a function that leaves its gradient in the model."""
    split = data[TASK].train
    for batch in round_batches({TASK: split.lengths}, settings, Position(number, ROUNDS), 3, "c"):
        rows = batch.rows[TASK]

        def backward(rows: Any = rows) -> None:  # noqa: ANN401  # indices
            model.zero_grad()
            nn.functional.cross_entropy(model(TASK, split.collate(rows)), split.labels[rows]).backward()  # type: ignore[no-untyped-call]

        yield backward


def multiplier(name: str) -> float:
    return next(value for pattern, value in reversed(MULTIPLIERS.items()) if re.search(pattern, name))


def plain_group(name: str, parameter: nn.Parameter) -> dict[str, Any]:
    decay = 2.0 if "embeddings" in name or "layer.0." in name else 0.5
    return {
        "params": [parameter], "lr": 1e-3 * multiplier(name), "weight_decay": 0.0 if parameter.ndim == 1 else decay,
    }  # fmt: skip


def plain_factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """As in transformers' schedules, but for a warm-up that begins one step later than at 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[schedule]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_groups_decay_and_schedule_are_those_of_a_plain_loop(family: Family, schedule: str) -> None:
    data, values = rows_of(family), start_of(family)
    settings = TrainSettings.model_validate(
        {
            "batch_size": 4, "local_epochs": 2, "learning_rate": 1e-3, "layer_decay": 0.5, "weight_decay": 0.5,
            "warmup_steps": 7, "schedule": schedule, "max_grad_norm": 0.5,
            "groups": [
                {"match": "norms", "learning_rate": 0.2},
                {"match": ["layers:0", "embeddings"], "weight_decay": 2.0},
            ],
        }
    )  # fmt: skip
    model = plain_model(family, values)
    steps, done = 10, 0
    for number in (1, 2):
        optimizer = AdamW([plain_group(name, parameter) for name, parameter in model.named_parameters()], fused=False)
        before = done

        def factor(step: int, before: int = before) -> float:
            return plain_factor(schedule, before + step, ROUNDS * steps, 7)

        scheduler = LambdaLR(optimizer, factor)
        for backward in plain_steps(model, data, settings, number):
            backward()
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            done += 1
        assert done == number * steps
        deltas = one_round(family, data, values, settings, number).deltas
        values = {slot: value + deltas[slot] if slot in deltas else value for slot, value in values.items()}
    for name, parameter in model.named_parameters():
        moved = values[f"{name}@{TASK}"]
        torch.testing.assert_close(moved, parameter.detach(), rtol=0, atol=2e-6, msg=name)


def test_what_opens_later_starts_with_a_fresh_optimiser_state(family: Family) -> None:
    data, values = rows_of(family), start_of(family)
    settings = TrainSettings.model_validate(
        {
            "batch_size": 4, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0, "max_grad_norm": None,
            "weight_decay": 0, "head_learning_rate": 1,
            "unfreeze": [{"epoch": 0, "open": "heads"}, {"epoch": 0.5, "open": ["pooler", "layers:2"]}],
        }
    )  # fmt: skip
    model = plain_model(family, values)
    heads = [p for name, p in model.named_parameters() if name.startswith("heads")]
    upper = [p for name, p in model.named_parameters() if "layer.2." in name or "pooler" in name]
    optimizers = [AdamW(heads, lr=1e-3, weight_decay=0, fused=False)]
    for step, backward in enumerate(plain_steps(model, data, settings, 1)):
        if step == 2:  # of 5: half an epoch, rounded down
            optimizers.append(AdamW(upper, lr=1e-3, weight_decay=0, fused=False))
        backward()
        for optimizer in optimizers:
            optimizer.step()
    deltas = one_round(family, data, values, settings).deltas
    opened = {id(parameter) for parameter in (*heads, *upper)}
    assert deltas.keys() == {f"{name}@{TASK}" for name, p in model.named_parameters() if id(p) in opened}
    for name, parameter in model.named_parameters():
        slot = f"{name}@{TASK}"
        moved = values[slot] + deltas[slot] if slot in deltas else values[slot]
        torch.testing.assert_close(
            moved, parameter.detach() if id(parameter) in opened else values[slot], rtol=0, atol=2e-6
        )


# --- a batch in pieces


def weighted_family() -> Family:
    spec = TASKS[TASK].model_dump(mode="json")
    spec["loss"] = {"kind": "cross_entropy", "class_weights": {"negative": 3.0}}
    return text_family("bert", tasks={TASK: TaskSpec.model_validate(spec)}, dropout=0.0, encoder_dropout=0.0)


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [
        ("sgd", 1e-6),
        # Adam divides by the gradient's own size: where that is near 0, rounding decides about the sign of a step.
        ("adamw", 1e-4),
    ],
)
def test_a_batch_in_pieces_makes_the_step_of_the_whole(optimizer: str, tolerance: float) -> None:
    """With class weights, so that a mean of the pieces' means would be another one."""
    family = weighted_family()
    data, values = rows_of(family), start_of(family)
    base = {"batch_size": 8, "optimizer": optimizer, "learning_rate": 1e-3 if optimizer == "adamw" else 0.1}
    whole = one_round(family, data, values, TrainSettings.model_validate(base))
    parts = one_round(family, data, values, TrainSettings.model_validate({**base, "micro_batch_size": 3}))
    assert (parts.reports[TASK].num_examples, parts.reports[TASK].num_steps) == (20, 3)
    assert parts.reports[TASK].loss == pytest.approx(whole.reports[TASK].loss, rel=1e-5)
    assert whole.deltas.keys() == parts.deltas.keys()
    gone = torch.cat([delta.to_dense().flatten() for delta in whole.deltas.values()])
    off = torch.cat([(parts.deltas[slot] - delta).to_dense().flatten() for slot, delta in whole.deltas.items()])
    assert float(off.norm() / gone.norm()) < tolerance


# --- a time budget


def budgeted(family: Family, seconds: float | None, **settings: Any) -> tuple[LocalResult, list[Progress]]:  # noqa: ANN401
    """A round in which every look at the clock takes a second: one at its beginning, one after each step."""
    seen: list[Progress] = []
    given = TrainSettings.model_validate(
        {"batch_size": 4, "optimizer": "sgd", "learning_rate": 0.1, "warmup": 0, "max_seconds": seconds, **settings}
    )
    ticks = itertools.count()
    trainer = LocalTrainer(family, rows_of(family), choose_device("cpu"), clock=lambda: float(next(ticks)))
    position = Position(1, ROUNDS)
    result = trainer.train(
        slice_of(family), start_of(family), given, position, 3, "c", seen.append, threading.Event()
    )  # fmt: skip
    return result, seen


def dense(result: LocalResult) -> dict[str, Tensor]:
    return {slot: delta.to_dense() for slot, delta in result.deltas.items()}


def test_a_time_budget_ends_the_round_after_a_step_and_tells_what_was_done(family: Family) -> None:
    result, seen = budgeted(family, 2.5, schedule="constant")
    report = result.reports[TASK]
    assert (report.num_steps, report.num_examples) == (3, 12)
    assert (seen[-1].done_steps, seen[-1].total_steps) == (3, 5)
    assert seen[-1].loss == pytest.approx(report.loss)
    three, _ = budgeted(family, None, schedule="constant", local_steps=3)
    assert all(torch.equal(three.deltas[slot].to_dense(), delta.to_dense()) for slot, delta in result.deltas.items())


def test_a_budget_leaves_at_least_one_step_and_all_of_them_when_there_is_time(family: Family) -> None:
    assert budgeted(family, 1e-9)[0].reports[TASK].num_steps == 1
    result, seen = budgeted(family, 1000.0)
    assert result.reports[TASK].num_steps == 5
    assert [report.done_steps for report in seen].count(5) == 1


def test_the_rates_of_a_round_that_was_cut_short_are_those_of_the_planned_one(family: Family) -> None:
    steps = {
        schedule: [dense(budgeted(family, seconds, schedule=schedule)[0]) for seconds in (0.5, 1.5)]
        for schedule in ("constant", "linear")
    }
    for slot, first in steps["constant"][0].items():
        assert torch.equal(steps["linear"][0][slot], first)
        second = steps["constant"][1][slot] - first
        # Two rounds of five steps are planned: of ten steps nine are left.
        torch.testing.assert_close(steps["linear"][1][slot] - first, 0.9 * second, rtol=1e-3, atol=1e-6)


def test_what_would_have_opened_after_the_budget_was_used_up_is_not_sent(family: Family) -> None:
    stages = [{"epoch": 0, "open": "heads"}, {"epoch": 0.9, "open": "everything"}]
    result, _ = budgeted(family, 2.5, unfreeze=stages)
    assert {slot.partition(".")[0] for slot in result.deltas} == {"heads"}
    result, _ = budgeted(family, None, unfreeze=stages)
    assert {slot.partition(".")[0] for slot in result.deltas} == {"heads", "encoder"}
