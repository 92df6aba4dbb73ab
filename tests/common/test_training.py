from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.strict_model import StrictModel
from common.training import (
    GroupRates,
    Opening,
    Position,
    TrainSettings,
    holds_several,
    learning_rate_factor,
    mixed_examples,
    mixes,
    round_steps,
    steps_until,
)


def test_compiled_models_and_mixed_batches_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="compile has no use with mixed_batches"):
        TrainSettings(compile=True, mixed_batches=True)


def factors(settings: TrainSettings, rounds: int, steps: int) -> list[float]:
    return [
        learning_rate_factor(settings, Position(number, rounds), step, steps)
        for number, step in itertools.product(range(1, rounds + 1), range(steps))
    ]


def test_the_rate_rises_and_falls_once_over_the_whole_run() -> None:
    assert factors(TrainSettings(warmup=0.2), rounds=5, steps=2) == pytest.approx(
        [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert factors(TrainSettings(warmup=0.5, schedule="constant"), rounds=2, steps=2) == pytest.approx([0.5, 1, 1, 1])


def test_a_warm_up_in_steps_and_half_a_cosine() -> None:
    curve = factors(TrainSettings(warmup_steps=2, schedule="cosine"), rounds=3, steps=2)
    assert curve == pytest.approx([0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert factors(TrainSettings(warmup_steps=8), rounds=2, steps=2) == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])
    assert factors(TrainSettings(warmup_steps=0, schedule="constant"), rounds=1, steps=2) == [1, 1]


SCHEDULES = st.fixed_dictionaries({"schedule": st.sampled_from(["linear", "cosine", "constant"])}).flatmap(
    lambda given: st.one_of(
        st.floats(0, 1).map(lambda share: TrainSettings.model_validate({**given, "warmup": share})),
        st.integers(0, 200).map(lambda steps: TrainSettings.model_validate({**given, "warmup_steps": steps})),
    )
)


@given(SCHEDULES, st.integers(1, 12), st.integers(1, 12))
def test_the_rate_stays_above_zero_and_has_one_peak(settings: TrainSettings, rounds: int, steps: int) -> None:
    curve = factors(settings, rounds, steps)
    assert all(0 < factor <= 1 for factor in curve)
    rises = [after > before for before, after in itertools.pairwise(curve) if after != before]
    assert rises == sorted(rises, reverse=True)


@given(SCHEDULES, st.integers(1, 12), st.integers(1, 12))
def test_rounds_follow_each_other_as_one_long_run_of_one_machine(
    settings: TrainSettings, rounds: int, steps: int
) -> None:
    long = factors(settings, 1, rounds * steps)
    assert factors(settings, rounds, steps) == long
    # Nothing jumps, least of all where a round ends: no step is longer than the rise's, or the fall's at its steepest.
    total = rounds * steps
    warmup = settings.warmup_steps if settings.warmup is None else settings.warmup * total
    assert warmup is not None
    longest = max(1 / max(1, warmup), math.pi / 2 / max(1, total - warmup))
    assert all(abs(after - before) <= longest + 1e-12 for before, after in itertools.pairwise(long))


def test_even_the_last_of_very_many_steps_learns() -> None:
    settings = TrainSettings(schedule="cosine", warmup=0)
    assert learning_rate_factor(settings, Position(10**6, 10**6), 10**6 - 1, 10**6) > 0


def test_a_position_outside_the_run_is_refused() -> None:
    for number in (0, 6):
        with pytest.raises(ValueError, match="does not lie in"):
            Position(number, 5)


def test_epochs_or_steps_but_not_both() -> None:
    assert TrainSettings().local_epochs == 1
    assert TrainSettings(local_steps=5).local_epochs is None
    with pytest.raises(ValidationError, match="exclude each other"):
        TrainSettings(local_epochs=1, local_steps=5)


def test_a_warm_up_by_share_or_by_steps_but_not_both() -> None:
    assert TrainSettings().warmup == 0.1
    assert TrainSettings(warmup_steps=0).warmup is None
    with pytest.raises(ValidationError, match=r"warmup \(0.1\) and warmup_steps \(5\) exclude each other"):
        TrainSettings(warmup=0.1, warmup_steps=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"batch_size": 0},
        {"warmup": 1.5},
        {"optimizer": "adam"},
        {"precision": "fp16"},
        {"momentum": 0.9},
        {"local_epochs": float("inf")},
        {"learn_rate": 0.1},
        {"max_grad_norm": 0},
        {"threads": 0},
        {"max_seconds": 0},
        {"micro_batch_size": 0},
        {"layer_decay": 0},
        {"layer_decay": 1.1},
        {"warmup_steps": -1},
        {"schedule": "polynomial"},
        {"groups": [{"match": "norms"}]},
        {"groups": [{"match": "nrms", "learning_rate": 1}]},
        {"groups": [{"match": [], "learning_rate": 1}]},
        {"groups": [{"match": "norms", "learning_rate": 0}]},
        {"groups": [{"match": "norms", "weight_decay": -1}]},
        {"unfreeze": [{"epoch": 0.5, "open": "heads"}]},
        {"unfreeze": [{"epoch": 0, "open": "layers:3-1"}]},
        {"unfreeze": [{"epoch": 0, "open": "heads"}, {"epoch": 0, "open": "upper"}]},
        {"unfreeze": [{"epoch": 0, "open": "heads"}, {"epoch": 1, "open": "upper"}]},
    ],
)
def test_settings_out_of_bounds_or_unknown_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainSettings.model_validate(wrong)


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(),
        TrainSettings(local_steps=3, warmup_steps=9),
        TrainSettings(max_grad_norm=None),
        TrainSettings.model_validate(
            {
                "groups": [{"match": "norms", "learning_rate": 2}, {"match": ["upper", "heads"], "weight_decay": 0}],
                "local_epochs": 3,
                "unfreeze": [{"epoch": 0, "open": ["heads", "pooler"]}, {"epoch": 1.5, "open": "everything"}],
            }
        ),
    ],
)
def test_settings_survive_the_wire(settings: TrainSettings) -> None:
    assert TrainSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("model", [TrainSettings, GroupRates, Opening])
def test_every_setting_is_documented(model: type[StrictModel]) -> None:
    assert all(field.description for field in model.model_fields.values())


def test_a_selector_may_stand_alone() -> None:
    assert Opening.model_validate({"epoch": 0, "open": "heads"}).open == ("heads",)
    assert GroupRates.model_validate({"match": ["norms", "x.*"], "learning_rate": 1}).match == ("norms", "x.*")


def test_steps_of_a_round() -> None:
    sizes = {"a": 65, "b": 32}
    assert round_steps(TrainSettings(batch_size=32), sizes) == 4
    assert round_steps(TrainSettings(batch_size=32, local_epochs=0.5), sizes) == 2
    assert round_steps(TrainSettings(batch_size=32, local_epochs=0.01), sizes) == 1
    assert round_steps(TrainSettings(batch_size=1, local_epochs=0.07), {"a": 100}) == 7
    assert round_steps(TrainSettings(local_steps=9), sizes) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"surgery": "pcgrad"}, r"surgery 'pcgrad' compares .* set mixed_batches: true"),
        ({"loss_weighting": "gradnorm"}, r"loss_weighting 'gradnorm' compares .* set mixed_batches: true"),
        ({"loss_weighting": "dwa", "loss_weights": {"a": 2}}, r"loss_weights .* are for loss_weighting 'fixed'"),
        ({"loss_weights": {"a": 0}}, "greater than 0"),
        ({"sampling_temperature": 0.5}, "greater than or equal to 1"),
        ({"task_sampling": "weakest"}, "performance"),
        ({"surgery": "nashmtl", "mixed_batches": True}, "aligned_mtl"),
        ({"same_rows": True, "mixed_batches": True}, "same_rows and mixed_batches exclude each other"),
        ({"same_rows": True, "task_sampling": "even"}, "task_sampling 'even' has no use with same_rows"),
    ],
)
def test_settings_for_several_tasks_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings.model_validate(settings)


def test_settings_for_several_tasks_travel() -> None:
    settings = TrainSettings(mixed_batches=True, surgery="cagrad", loss_weights={"a": 2.0}, task_sampling="annealed")
    assert TrainSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_round_of_mixed_batches_has_the_steps_of_its_examples() -> None:
    sizes = {"a": 33, "b": 31, "c": 1}
    apart = TrainSettings(batch_size=32)
    mixed = apart.model_copy(update={"mixed_batches": True})
    assert (round_steps(apart, sizes), round_steps(mixed, sizes)) == (4, 3)
    half = mixed.model_copy(update={"local_epochs": 0.5})
    assert (mixed_examples(half, sizes), round_steps(half, sizes)) == (33, 2)
    steps = TrainSettings(batch_size=32, local_steps=5, mixed_batches=True)
    assert (mixed_examples(steps, sizes), round_steps(steps, sizes)) == (160, 5)
    assert round_steps(mixed.model_copy(update={"local_epochs": 1.5}), {"a": 40}) == 3  # one task: as without


def test_a_step_of_the_same_rows_is_one_of_each_task() -> None:
    sizes = {"a": 40, "b": 40}
    settings = TrainSettings(same_rows=True, batch_size=16, local_epochs=2)
    assert (round_steps(settings, sizes), steps_until(settings, sizes, 2)) == (6, 6)
    assert holds_several(settings, sizes)
    assert not mixes(settings, sizes)
    assert not holds_several(settings, {"a": 40})
    assert not holds_several(TrainSettings(), sizes)
    assert holds_several(TrainSettings(mixed_batches=True), sizes)
    assert TrainSettings(same_rows=True, surgery="pcgrad").surgery == "pcgrad"


def test_the_last_epoch_ends_with_the_round() -> None:
    sizes = {"a": 40, "b": 11}
    for more in ({}, {"mixed_batches": True}):
        for epochs in (1, 2, 5):
            settings = TrainSettings.model_validate({"batch_size": 8, "local_epochs": epochs, **more})
            assert steps_until(settings, sizes, epochs) == round_steps(settings, sizes)
