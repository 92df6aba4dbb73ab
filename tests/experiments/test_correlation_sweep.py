"""The sweep computes what is missing, once, and each cell as if it were alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, RunFailed
from experiments import correlation_sweep
from experiments.batched import BatchedModels, BatchedRows, Schedule
from experiments.cell_store import CellStore
from experiments.correlation_sweep import Sweep, cell_name, choose_rates, run_sweep
from experiments.synthetic import SyntheticSpec

TINY = Sweep(
    families=("single_task", "shared_bottom"),
    correlations=(0.9, 0.0),
    seeds=2,
    learning_rates=(0.01, 0.02),
    schedule=Schedule(steps=4, batch_size=16),
    tasks=SyntheticSpec(0.0, inputs=4, train=40, validation=10, test=20),
)


def run(sweep: Sweep, folder: Path, threads: int = 1) -> list[dict[str, Any]]:
    store = CellStore(folder, sweep.cell_settings)
    run_sweep(sweep, store, threads)
    return list(store)


def test_every_cell_is_computed_and_says_what_it_is(tmp_path: Path) -> None:
    cells = run(TINY, tmp_path, threads=2)
    assert sorted((cell["family"], cell["correlation"], cell["seed"]) for cell in cells) == [
        (family, correlation, seed)
        for family in ("shared_bottom", "single_task")
        for correlation in (0.0, 0.9)
        for seed in (0, 1)
    ]
    cell = cells[0]
    assert [score["learning_rate"] for score in cell["rates"]] == [0.01, 0.02]
    assert cell["rates"][0]["test_loss"] == pytest.approx(sum(cell["rates"][0]["test_losses"].values()) / 2)
    assert cell["parameters"] == 4 * 113 + 113 + 2 * (113 * 8 + 8 + 8 + 1)
    assert cell["label_correlation"] != cells[2]["label_correlation"]


def test_only_tasks_with_gates_of_their_own_have_a_distance_between_them(tmp_path: Path) -> None:
    cells = run(replace(TINY, families=("mmoe", "omoe"), seeds=1, learning_rates=(0.01,)), tmp_path)
    distances = {(cell["family"], cell["correlation"]): cell["rates"][0].get("gate_distance") for cell in cells}
    assert 0 < distances["mmoe", 0.9] < 1
    assert distances["omoe", 0.9] is None
    assert distances["mmoe", 0.9] != distances["mmoe", 0.0]


def test_a_stopped_sweep_goes_on_and_ends_as_one_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(TINY, tmp_path / "whole")
    trained: list[str] = []
    train = BatchedModels.train

    def killed(self: BatchedModels, rows: BatchedRows, *rest: Any) -> None:  # noqa: ANN401  # passed on
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(self.family.name)
        train(self, rows, *rest)

    monkeypatch.setattr(BatchedModels, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, tmp_path / "killed")
    kept = list(CellStore(tmp_path / "killed", TINY.cell_settings))
    assert {(cell["family"], cell["seed"]) for cell in kept} == {("single_task", 0)}
    monkeypatch.setattr(BatchedModels, "train", train)
    assert run(TINY, tmp_path / "killed") == whole


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(replace(TINY, seeds=1), tmp_path)
    computed = []
    compute = correlation_sweep._compute

    def watched(sweep: Sweep, name: str, seed: int, *rest: Any) -> list[dict[str, Any]]:  # noqa: ANN401  # passed on
        computed.append((name, seed))
        return compute(sweep, name, seed, *rest)

    monkeypatch.setattr(correlation_sweep, "_compute", watched)
    run(TINY, tmp_path)
    assert computed == [("single_task", 1), ("shared_bottom", 1)]


def test_a_cell_is_the_same_whatever_is_computed_beside_it(tmp_path: Path) -> None:
    together = {c["family"] + str(c["correlation"]): c for c in run(replace(TINY, seeds=1), tmp_path / "both")}
    alone = run(replace(TINY, seeds=1, families=("shared_bottom",), correlations=(0.0,)), tmp_path / "one")
    for score, expected in zip(alone[0]["rates"], together["shared_bottom0.0"]["rates"], strict=True):
        assert score["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-4)


def cell(family: str, seed: int, *validation: float | None) -> dict[str, Any]:
    rates = [
        {"learning_rate": 0.1 * (n + 1), "validation_loss": loss, "test_loss": None if loss is None else loss * 2}
        for n, loss in enumerate(validation)
    ]
    return {"family": family, "seed": seed, "rates": rates}


def test_each_family_has_one_learning_rate_that_is_best_on_average() -> None:
    given = [cell("mmoe", 0, 0.1, 0.2), cell("mmoe", 1, 0.9, 0.3), cell("omoe", 0, 0.1, 0.2)]
    assert [(c["learning_rate"], c["test_loss"]) for c in choose_rates(given)] == [(0.2, 0.4), (0.2, 0.6), (0.1, 0.2)]


def test_a_rate_that_diverged_is_not_chosen_and_one_must_be_left() -> None:
    assert choose_rates([cell("mmoe", 0, None, 0.5), cell("mmoe", 1, 0.1, 0.5)])[1]["learning_rate"] == 0.2
    with pytest.raises(RunFailed, match="mmoe diverged at every learning rate"):
        choose_rates([cell("mmoe", 0, None)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"families": ("mmmoe",)}, "'mmmoe'.*allowed: .*shared_bottom"),
        ({"correlations": (0.5, 0.5)}, "each once"),
        ({"correlations": (1.5,)}, "-1 to 1"),
        ({"learning_rates": ()}, "at least one"),
        ({"learning_rates": (-0.1,)}, "above 0"),
        ({"seeds": 0}, "0 seeds"),
        ({"tasks": SyntheticSpec(0.0, train=10)}, "10 training rows"),
    ],
)
def test_what_can_not_be_swept_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **wrong)


def test_cells_of_close_correlations_have_names_of_their_own() -> None:
    assert cell_name("mmoe", 0.1234567, 0) != cell_name("mmoe", 0.1234568, 0)
