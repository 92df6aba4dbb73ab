"""Relations on made-up losses: each is borne out, contradicted or left open as the numbers say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experiments.relations import Losses, Relation, about_zero, above, relations, table

SEEDS = 8


def cells(**at: tuple[float, float, float]) -> list[dict[str, Any]]:
    """Family to its loss at 0.9 and at 0, and the deviation over seeds."""
    draw = np.random.default_rng(1)
    return [
        {"family": family, "correlation": correlation, "seed": seed, "test_loss": loss + spread * noise}
        for family, (alike, apart, spread) in at.items()
        for correlation, loss in ((0.9, alike), (0.0, apart))
        for seed, noise in enumerate(draw.standard_normal(SEEDS))
    ]


PAPER = cells(
    single_task=(0.060, 0.060, 0.002),
    shared_bottom=(0.071, 0.100, 0.006),
    omoe=(0.041, 0.050, 0.001),
    mmoe=(0.041, 0.041, 0.001),
)


def found(given: list[dict[str, Any]]) -> dict[str, Relation]:
    losses = Losses.from_cells(given)
    assert losses is not None
    return {relation.name: relation for relation in relations(losses)}


def test_losses_like_the_papers_bear_out_every_finding() -> None:
    relation = found(PAPER)
    assert {name: r.holds for name, r in relation.items()} == dict.fromkeys(
        [
            "mmoe_flat",
            "omoe_worse_when_unlike",
            "shared_bottom_worse_when_unlike",
            "omoe_as_mmoe_when_alike",
            "omoe_worse_than_mmoe_when_unlike",
            "omoe_loses_more",
            "mmoe_better_than_shared_bottom",
            "omoe_better_than_shared_bottom",
            "shared_bottom_spread",
        ],
        "yes",
    )
    assert relation["omoe_worse_when_unlike"].estimate == pytest.approx(0.050 / 0.041 - 1, abs=0.05)
    assert all(r.low <= r.estimate <= r.high and r.seeds == SEEDS for r in relation.values())


def test_tasks_of_opposite_weights_are_not_unlike() -> None:
    opposite = [{**cell, "correlation": -0.5, "test_loss": 9.0} for cell in PAPER if cell["correlation"] == 0.0]
    assert found([*PAPER, *opposite])["mmoe_flat"] == found(PAPER)["mmoe_flat"]


def test_losses_the_other_way_round_contradict() -> None:
    relation = found(
        cells(shared_bottom=(0.05, 0.03, 0.001), omoe=(0.06, 0.04, 0.001), mmoe=(0.04, 0.08, 0.005)),
    )
    assert {r.holds for r in relation.values()} == {"no"}


def test_seeds_that_differ_more_than_families_leave_it_open() -> None:
    relation = found(cells(shared_bottom=(0.05, 0.05, 0.02), mmoe=(0.05, 0.05, 0.02)))
    assert {r.holds for r in relation.values()} == {"unclear"}


def test_only_complete_seeds_and_common_correlations_count() -> None:
    extra = {"family": "mmoe", "correlation": 0.5, "seed": 0, "test_loss": 9.0}
    losses = Losses.from_cells([*PAPER[:-1], extra])
    assert losses is not None
    assert losses.correlations.tolist() == [0.0, 0.9]
    assert losses.of["omoe"].shape == (2, SEEDS - 1)
    assert Losses.from_cells([cell for cell in PAPER if cell["seed"] == 0]) is None
    assert Losses.from_cells([]) is None


def test_families_or_correlations_that_are_missing_leave_out_their_relations() -> None:
    assert set(found([c for c in PAPER if c["correlation"] == 0.9])) == {
        "mmoe_better_than_shared_bottom",
        "omoe_better_than_shared_bottom",
        "shared_bottom_spread",
    }
    assert found([c for c in PAPER if c["family"] == "single_task"]) == {}


def test_a_spread_needs_more_than_a_few_seeds() -> None:
    assert "shared_bottom_spread" not in found([c for c in PAPER if c["seed"] < 3])
    assert "shared_bottom_spread" in found([c for c in PAPER if c["seed"] < 4])


@pytest.mark.parametrize(("low", "high", "verdict"), [(1.1, 2, "yes"), (0.5, 0.9, "no"), (0.5, 1.5, "unclear")])
def test_above(low: float, high: float, verdict: str) -> None:
    assert above(low, high, 1) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.05, 0.09, "yes"), (0.11, 0.2, "no"), (-0.3, -0.2, "no"), (0.05, 0.2, "unclear")]
)
def test_about_zero(low: float, high: float, verdict: str) -> None:
    assert about_zero(low, high) == verdict


def test_the_table_says_what_holds() -> None:
    lines = table(list(found(PAPER).values())).splitlines()
    assert lines[0].split() == ["relation", "estimate", "95%", "interval", "holds"]
    assert len(lines) == 10
    assert lines[1].startswith("MMoE is flat")
    assert lines[1].endswith("yes")
