"""Published numbers, copied by hand: what a slip of the hand would break."""

from __future__ import annotations

from experiments.paper_tables import PUBLISHED


def test_a_best_run_is_not_below_the_mean_of_the_main_task() -> None:
    for table in PUBLISHED.values():
        assert all(row.main_best > row.main_mean for row in table.rows), table.dataset


def test_all_but_tensor_factorisation_are_good_and_near_each_other() -> None:
    for table in PUBLISHED.values():
        scores = [row.main_mean for row in table.rows if row.family]
        assert max(scores) - min(scores) < 0.01
        assert all(min(row.marital_mean, row.marital_at_best) > 0.99 for row in table.rows if row.family)


def test_the_marital_column_of_a_single_task_is_the_same_in_both_tables() -> None:
    # It learns alone, so what it is paired with cannot matter.
    rows = [next(r for r in table.rows if r.family == "single_task") for table in PUBLISHED.values()]
    assert len({(row.marital_mean, row.marital_at_best) for row in rows}) == 1
