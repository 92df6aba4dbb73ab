"""Work on block after block, by several threads."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import BlockPool

POOLS = {threads: BlockPool(threads) for threads in (1, 3)}


@given(st.integers(0, 200), st.integers(1, 50), st.sampled_from(sorted(POOLS)))
def test_every_element_is_in_one_block_and_results_come_in_order(count: int, block: int, threads: int) -> None:
    found = list(POOLS[threads].each(lambda start, stop: list(range(start, stop)), count, block))
    assert [index for part in found for index in part] == list(range(count))
    assert all(0 < len(part) <= block for part in found)


def test_who_catches_an_error_may_close_the_files() -> None:
    """No thread works any more: this one would read on until it is told that the error was caught."""
    second_reads, caught = threading.Event(), threading.Event()
    done = threading.Event()

    def work(start: int, _stop: int) -> None:
        if start == 0:
            assert second_reads.wait(10)
            raise OSError("torn")
        second_reads.set()
        caught.wait(0.2)
        done.set()

    with pytest.raises(OSError, match="torn"):
        POOLS[3].run(work, 2, 1)
    was_done = done.is_set()
    caught.set()
    assert was_done
