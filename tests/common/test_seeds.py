"""Seeds depend on the root and the whole path, and on nothing else."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from common.seeds import derive_numpy, derive_random, derive_seed

paths = st.lists(st.text(max_size=5) | st.integers(), max_size=4).map(tuple)


@given(st.integers(), paths, st.integers(), paths)
def test_seeds_are_equal_exactly_when_root_and_path_are(
    root: int, path: tuple[str | int, ...], other_root: int, other_path: tuple[str | int, ...]
) -> None:
    equal = derive_seed(root, *path) == derive_seed(other_root, *other_path)
    assert equal == ((root, path) == (other_root, other_path))


def test_a_number_and_its_text_are_different_purposes() -> None:
    assert derive_seed(7, "round", 3) != derive_seed(7, "round", "3")
    assert derive_seed(7, "ab", "c") != derive_seed(7, "a", "bc")


@given(st.integers(), paths)
def test_a_seed_fits_every_generator(root: int, path: tuple[str | int, ...]) -> None:
    assert 0 <= derive_seed(root, *path) < 2**63


def test_the_value_is_pinned_so_that_old_runs_can_be_repeated() -> None:
    assert derive_seed(7, "round", 3, "client", "sst2_client") == PINNED


def test_another_process_derives_the_same_seed() -> None:
    code = "from common.seeds import derive_seed; print(derive_seed(7, 'round', 3, 'client', 'sst2_client'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == PINNED


def test_generators_repeat_and_do_not_touch_global_state() -> None:
    assert derive_random(1, "a").random() == derive_random(1, "a").random()
    assert derive_numpy(1, "a").random() == derive_numpy(1, "a").random()
    assert derive_random(1, "a").random() != derive_random(1, "b").random()


PINNED = 7789682042565401427
