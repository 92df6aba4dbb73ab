from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.batches import by_length, epoch, round_batches
from common.training import Position, TrainSettings, round_steps

NOW = Position(2, 5)


def sentence_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Token counts like SST-2's phrases: mean about 13, many short, a tail to 60."""
    return np.clip(np.random.default_rng(seed).lognormal(2.3, 0.7, count).astype(np.int64), 3, 64)


@given(st.integers(1, 300), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_an_epoch_holds_every_example_once_in_full_batches(size: int, batch: int, buckets: bool, seed: int) -> None:
    lengths = sentence_lengths(size)
    batches = epoch(lengths, batch, np.random.default_rng(seed), buckets=buckets)
    assert sorted(np.concatenate(batches).tolist()) == list(range(size))
    assert sum(len(rows) < batch for rows in batches) <= 1
    assert all(len(rows) <= batch for rows in batches)


def padding_waste(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    computed = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1 - int(lengths.sum()) / computed


def test_buckets_keep_padding_below_a_tenth() -> None:
    lengths = sentence_lengths(10_000)
    rng = np.random.default_rng(1)
    assert padding_waste(lengths, epoch(lengths, 32, rng, buckets=True)) < 0.1
    assert padding_waste(lengths, epoch(lengths, 32, rng, buckets=False)) > 0.4
    assert padding_waste(lengths, by_length(lengths, 128)) < 0.05


def test_short_and_long_batches_come_mixed() -> None:
    lengths = sentence_lengths(3_200)
    tops = [int(lengths[rows].max()) for rows in epoch(lengths, 32, np.random.default_rng(1), buckets=True)]
    assert abs(np.corrcoef(tops, np.arange(len(tops)))[0, 1]) < 0.3


def drawn(
    settings: TrainSettings, sizes: dict[str, int], *, position: Position = NOW, client: str = "c"
) -> list[tuple[str, list[int]]]:
    lengths = {task: sentence_lengths(size) for task, size in sizes.items()}
    return [
        (task, rows.tolist())
        for batch in round_batches(lengths, settings, position, 7, client)
        for task, rows in batch.rows.items()
    ]


def test_batches_follow_from_seed_round_and_client() -> None:
    settings, sizes = TrainSettings(batch_size=8), {"a": 70, "b": 30}
    assert drawn(settings, sizes) == drawn(settings, dict(reversed(sizes.items())))
    assert drawn(settings, sizes) != drawn(settings, sizes, client="d")
    assert drawn(settings, sizes) != drawn(settings, sizes, position=Position(3, 5))


def test_steps_beyond_an_epoch_go_on_with_a_fresh_permutation() -> None:
    rows = drawn(TrainSettings(local_steps=10, batch_size=10), {"a": 50})
    first, second = rows[:5], rows[5:]
    for half in (first, second):
        assert sorted(index for _, indices in half for index in indices) == list(range(50))
    assert first != second


def test_one_step_over_a_batch_larger_than_the_data_takes_all_of_it() -> None:
    ((task, rows),) = drawn(TrainSettings(local_steps=1, batch_size=100), {"a": 50})
    assert task == "a"
    assert sorted(rows) == list(range(50))


@pytest.mark.parametrize(
    ("sampling", "steps"),
    [("proportional", {"a": 160, "b": 10}), ("even", {"a": 85, "b": 85}), ("sqrt", {"a": 136, "b": 34})],
)
def test_tasks_share_the_steps_as_configured(sampling: str, steps: dict[str, int]) -> None:
    settings = TrainSettings.model_validate({"task_sampling": sampling, "batch_size": 10})
    order = [task for task, _ in drawn(settings, {"a": 1600, "b": 100})]
    assert Counter(order) == steps
    assert order != sorted(order)


def test_mixed_batches_hold_every_example_of_an_epoch_once() -> None:
    settings = TrainSettings(mixed_batches=True, batch_size=16)
    sizes = {"a": 300, "b": 90}
    lengths = {task: sentence_lengths(size) for task, size in sizes.items()}
    batches = list(round_batches(lengths, settings, NOW, 7, "c"))
    assert len(batches) == round_steps(settings, sizes) == 25
    assert [len(batch) for batch in batches].count(16) == 24
    for task, size in sizes.items():
        rows = [row for batch in batches for row in batch.rows.get(task, [])]
        assert sorted(rows) == list(range(size))
    assert all(set(batch.rows) == {"a", "b"} for batch in batches if len(batch) == 16)


def test_the_same_rows_come_for_all_tasks_once_an_epoch() -> None:
    settings = TrainSettings(same_rows=True, batch_size=8, local_epochs=2)
    lengths = {task: np.ones(30, dtype=np.int64) for task in "ab"}
    batches = list(round_batches(lengths, settings, NOW, 7, "c"))
    assert len(batches) == round_steps(settings, {"a": 30, "b": 30}) == 8
    assert all(batch.same_rows and batch.rows["a"].tolist() == batch.rows["b"].tolist() for batch in batches)
    epochs = [[row for batch in part for row in batch.rows["a"].tolist()] for part in (batches[:4], batches[4:])]
    assert [sorted(rows) for rows in epochs] == [list(range(30))] * 2
    assert epochs[0] != epochs[1]
    assert drawn(settings, {"a": 60}) == drawn(settings.model_copy(update={"same_rows": False}), {"a": 60})


def test_mixed_batches_follow_from_seed_round_and_client() -> None:
    settings, sizes = TrainSettings(mixed_batches=True, batch_size=8, task_sampling="even"), {"a": 70, "b": 30}
    assert drawn(settings, sizes) == drawn(settings, dict(reversed(sizes.items())))
    assert drawn(settings, sizes) != drawn(settings, sizes, client="d")
    assert drawn(settings, sizes) != drawn(settings, sizes, position=Position(3, 5))


def test_a_client_of_one_task_has_the_same_batches_mixed_or_not() -> None:
    for more in ({"local_epochs": 1.5}, {"local_steps": 7}):
        plain = TrainSettings.model_validate({"batch_size": 8, **more})
        mixed = plain.model_copy(update={"mixed_batches": True})
        assert drawn(plain, {"a": 60}) == drawn(mixed, {"a": 60})


@pytest.mark.parametrize("mixed", [False, True])
def test_the_weakest_task_gets_most_of_the_round(mixed: bool) -> None:
    settings = TrainSettings(task_sampling="performance", mixed_batches=mixed, batch_size=10)
    lengths = {task: sentence_lengths(500) for task in "ab"}
    batches = list(round_batches(lengths, settings, NOW, 7, "c", {"a": 0.1, "b": 0.3}))
    assert len(batches) == 100
    seen = Counter({task: sum(len(batch.rows.get(task, [])) for batch in batches) for task in "ab"})
    assert seen == {"a": 300, "b": 700}
