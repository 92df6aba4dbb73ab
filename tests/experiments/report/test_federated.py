"""The section on federated beside central."""

from __future__ import annotations

import math
from typing import Any

import pytest

from experiments.report.federated import comparisons, federated_section
from experiments.report.groups import grouped
from experiments.report.markup import Figure
from experiments.report.results import TrainResult
from tests.experiments.report.samples import train

CLIENTS: dict[str, Any] = {"federated": 10, "partition": "iid"}


def runs(*documents: dict[str, Any]) -> list[tuple[str, TrainResult]]:
    return [(f"{i}.json", TrainResult.model_validate(document)) for i, document in enumerate(documents)]


def test_runs_of_the_same_seed_are_compared_in_auc_points() -> None:
    # Seeds differ by far more than the two ways of training do.
    found, alone = comparisons(
        grouped(
            runs(
                train(seed=0, income=0.90), train(seed=1, income=0.94), train(seed=2, income=0.80),
                train(seed=0, income=0.899, **CLIENTS), train(seed=1, income=0.938, **CLIENTS),
            )
        )
    )  # fmt: skip
    income = found[0]
    assert (income.task, income.paired, income.points.count) == ("income", True, 2)
    assert income.points.mean == pytest.approx(-0.15)
    assert alone == ()


def test_a_central_run_of_other_length_is_no_comparison() -> None:
    found, alone = comparisons(grouped(runs(train(epochs=6), train(**CLIENTS))))
    assert found == ()
    assert [group.place for group in alone] == ["10 clients, iid"]
    assert federated_section(grouped(runs(train(epochs=6), train(**CLIENTS)))) is None


def test_ways_of_weighing_experts_are_told_apart() -> None:
    settings = [{"expert_weights": how} for how in (None, "examples")]
    found, _ = comparisons(grouped(runs(train(), *(train(**CLIENTS, settings=s) for s in settings))))
    labels = {c.label for c in found if c.task == "income"}
    assert labels == {f"mmoe, 10 clients, iid, expert weights {how}: income" for how in ("examples", "routing")}


@pytest.mark.parametrize(("income", "verdict"), [(0.9351, "yes"), (0.9349, "no"), (0.9451, "above")])
def test_the_margin_is_half_a_point(income: float, verdict: str) -> None:
    section = federated_section(grouped(runs(train(income=0.94), train(income=income, **CLIENTS))))
    assert section is not None
    figure = section.parts[0]
    assert isinstance(figure, Figure)
    assert figure.table.rows[0][-1] == verdict


def test_other_seeds_are_compared_by_their_means() -> None:
    found, _ = comparisons(grouped(runs(train(seed=0, income=0.94), train(seed=5, income=0.93, **CLIENTS))))
    assert not found[0].paired
    assert found[0].points.mean == pytest.approx(-1.0)
    assert math.isinf(found[0].points.half_width)
