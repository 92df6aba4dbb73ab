from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.data import sharding
from common.data.sharding import Shard
from common.errors import ConfigError, DataError

seeds = st.integers(0, 2**32)
counts = st.integers(1, 7)


def _shards(count: int) -> list[Shard]:
    return [Shard(index, count) for index in range(count)]


def _assert_partition(parts: list[sharding.Positions], rows: int) -> None:
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert all((np.diff(part) > 0).all() for part in parts), "positions are ascending"


@given(rows=st.integers(1, 200), count=counts, seed=seeds)
def test_iid_shards_are_disjoint_complete_and_even(rows: int, count: int, seed: int) -> None:
    parts = [sharding.iid(rows, shard, seed) for shard in _shards(count)]
    _assert_partition(parts, rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200), count=counts, alpha=st.floats(0.05, 100), seed=seeds
)
def test_dirichlet_shards_are_disjoint_complete_and_none_is_empty(
    labels: list[int], count: int, alpha: float, seed: int
) -> None:
    array = np.array(labels)
    try:
        parts = [sharding.dirichlet(array, shard, alpha, seed) for shard in _shards(count)]
    except DataError:
        # In a hundred draws only where there are few rows for the shards, or the division is very skewed.
        assume(len(labels) > 10 * count and alpha >= 1)
        raise
    _assert_partition(parts, len(labels))
    assert all(len(part) for part in parts)


def test_a_small_alpha_gives_clients_few_labels_and_a_large_one_gives_all_the_same_mixture() -> None:
    labels = np.arange(6000) % 6

    def shares(alpha: float) -> np.ndarray:
        parts = [sharding.dirichlet(labels, shard, alpha, seed=3) for shard in _shards(3)]
        return np.array([np.bincount(labels[part], minlength=6) / len(part) for part in parts])

    assert np.abs(shares(1e5) - 1 / 6).max() < 0.02
    assert np.abs(shares(0.1) - 1 / 6).max() > 0.2


def test_dirichlet_refuses_more_shards_than_rows() -> None:
    with pytest.raises(DataError, match=r"3 rows .* 5 shards"):
        sharding.dirichlet(np.array([0, 1, 1]), Shard(0, 5), 1.0, seed=0)


@given(values=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=100), count=counts)
def test_shards_by_value_keep_each_value_in_one_shard(values: list[str], count: int) -> None:
    distinct = len(set(values))
    if distinct < count:
        with pytest.raises(DataError, match=f"{distinct} distinct values"):
            sharding.by_value(values, Shard(0, count))
        return
    parts = [sharding.by_value(values, shard) for shard in _shards(count)]
    _assert_partition(parts, len(values))
    assert all(len(part) for part in parts)
    owners = Counter(value for part in parts for value in {values[i] for i in part})
    assert set(owners.values()) == {1}


@given(
    scores=st.lists(st.floats(0, 5, width=32), min_size=1, max_size=100),
)
def test_score_bins_are_at_most_ten_and_rise_with_the_score(scores: list[float]) -> None:
    array = np.array(scores, dtype=np.float32)
    bins = sharding.score_bins(array)
    assert len(np.unique(bins)) <= sharding.BINS
    assert (np.diff(bins[np.argsort(array, kind="stable")]) >= 0).all()


@given(rows=st.integers(2, 300), fraction=st.floats(0.001, 0.999), seed=seeds)
def test_a_held_out_fraction_leaves_and_takes_at_least_one_row(rows: int, fraction: float, seed: int) -> None:
    mask = sharding.held_out(rows, fraction, seed)
    assert 1 <= mask.sum() <= rows - 1
    assert abs(mask.sum() - rows * fraction) <= 1
    assert (mask == sharding.held_out(rows, fraction, seed)).all()


def test_one_row_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="1 row"):
        sharding.held_out(1, 0.5, 0)


@given(rows=st.integers(1, 300), smaller=st.integers(1, 300), larger=st.integers(1, 300), seed=seeds)
def test_the_sample_for_a_smaller_limit_is_part_of_that_for_a_larger(
    rows: int, smaller: int, larger: int, seed: int
) -> None:
    smaller, larger = sorted((min(smaller, rows), min(larger, rows)))
    small, large = sharding.sample(rows, smaller, seed), sharding.sample(rows, larger, seed)
    assert len(small) == smaller
    assert set(small.tolist()) <= set(large.tolist()) <= set(range(rows))


@given(count=st.integers(1, 1000), data=st.data())
def test_a_shard_reads_what_it_writes(count: int, data: st.DataObject) -> None:
    shard = Shard(data.draw(st.integers(0, count - 1)), count)
    assert Shard.parse(str(shard)) == shard


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "0/0", "a/b", "0/3 ", "1.0/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="0/3"):
        Shard.parse(text)
