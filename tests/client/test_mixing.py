from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.mixing import Indices, by_length, compositions, deal, passes
from tests.client.test_batches import sentence_lengths

counts = st.lists(st.integers(0, 400), min_size=1, max_size=5).filter(any)


def epochs(size: int, seed: int = 0) -> Iterator[Indices]:
    for number in count():
        yield np.random.default_rng((seed, number)).permutation(size)


@given(counts, st.integers(1, 40), st.integers(0, 99))
def test_steps_are_full_and_hold_all_rows_evenly_spread(rows: list[int], size: int, seed: int) -> None:
    table = compositions({str(i): n for i, n in enumerate(rows)}, size, np.random.default_rng(seed))
    total = sum(rows)
    assert table.sum(axis=0).tolist() == rows
    assert table.sum(axis=1).tolist() == [size] * (total // size) + [total % size] * (total % size > 0)
    others = len(rows) - 1
    for place, of_task in enumerate(rows):
        assert np.abs(table[:-1, place] - size * of_task / total).max(initial=0) <= 1 + others + 1e-9


def test_a_rare_task_comes_as_often_in_every_step() -> None:
    seen = np.zeros(8)
    for seed in range(2000):
        seen += compositions({"often": 60, "rare": 4}, 8, np.random.default_rng(seed))[:, 1]
    assert seen.sum() == 4 * 2000
    np.testing.assert_allclose(seen / 2000, 0.5, atol=0.06)


def dealt(buckets: bool, size: int = 16) -> list[dict[str, Indices]]:
    sizes = {"a": 900, "b": 150, "c": 14}
    lengths = {task: sentence_lengths(n, seed) for seed, (task, n) in enumerate(sizes.items())}
    table = compositions(sizes, size, np.random.default_rng(1))
    streams = {task: epochs(n) for task, n in sizes.items()}
    return list(deal(table, streams, lengths, np.random.default_rng(2), pool_steps=50, buckets=buckets))


@pytest.mark.parametrize("buckets", [False, True])
def test_an_epoch_deals_every_row_once(buckets: bool) -> None:
    steps = dealt(buckets)
    assert [sum(map(len, step.values())) for step in steps].count(16) >= len(steps) - 1
    for task, size in {"a": 900, "b": 150, "c": 14}.items():
        assert sorted(np.concatenate([step[task] for step in steps if task in step]).tolist()) == list(range(size))
    assert all(len(rows) for step in steps for rows in step.values())


@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 5), st.integers(0, 99))
def test_copies_of_a_row_do_not_meet_in_one_step(size: int, width: int, times: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(size) for _ in range(times)])
    found = by_length(rows, sentence_lengths(size), width)
    assert sorted(found) == sorted(rows)
    if size >= width:
        for start in range(len(found) - width + 1):
            assert len(set(found[start : start + width])) == width


def test_rows_that_come_once_are_in_order_of_length() -> None:
    lengths = sentence_lengths(100)
    found = by_length(np.random.default_rng(0).permutation(100), lengths, 7)
    assert (np.diff(lengths[found]) >= 0).all()


def padding(
    steps: list[dict[str, Indices]], lengths: dict[str, np.ndarray], *, cut: bool = True
) -> tuple[float, float]:
    """Share of padded tokens, and passes per step."""
    real = computed = portions = 0
    for step in steps:
        for portion in passes(step, lengths) if cut else [step]:
            of_rows = np.concatenate([lengths[task][rows] for task, rows in portion.items()])
            real, computed = real + int(of_rows.sum()), computed + len(of_rows) * int(of_rows.max())
            portions += 1
    return 1 - real / computed, portions / len(steps)


def test_padding_stays_below_a_tenth_whether_lengths_agree_or_not() -> None:
    sizes = {"short": 6000, "also_short": 3000, "long": 4000}
    lengths = {task: sentence_lengths(n, seed) for seed, (task, n) in enumerate(sizes.items())}
    lengths["long"] = np.clip(lengths["long"] * 2 + 10, 12, 128)
    for tasks, most_passes in ((["short", "also_short"], 1.2), (list(sizes), 3.0)):
        chosen = {task: sizes[task] for task in tasks}
        table = compositions(chosen, 32, np.random.default_rng(1))
        streams = {task: epochs(n) for task, n in chosen.items()}
        steps = list(deal(table, streams, lengths, np.random.default_rng(2), pool_steps=50, buckets=True))
        waste, portions = padding(steps, lengths)
        assert waste < 0.1
        assert portions < most_passes
        if "long" in tasks:
            assert padding(steps, lengths, cut=False)[0] > 0.2


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 60), min_size=1, max_size=40), min_size=1))
def test_portions_hold_the_step_and_nothing_else(known: dict[str, list[int]]) -> None:
    lengths = {task: np.array(values) for task, values in known.items()}
    rows = {task: np.random.default_rng(0).permutation(len(values)) for task, values in known.items()}
    portions = passes(rows, lengths)
    held = Counter((task, int(row)) for portion in portions for task, part in portion.items() for row in part)
    assert held == Counter((task, row) for task, values in known.items() for row in range(len(values)))
    for portion in portions:  # in the order of the step
        for task, part in portion.items():
            order = [int(np.flatnonzero(rows[task] == row)[0]) for row in part]
            assert order == sorted(order)
    if len(known) == 1:
        assert len(portions) == 1
