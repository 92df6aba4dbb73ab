"""The tables beside the paper's."""

from __future__ import annotations

from experiments.report.census import census_section
from experiments.report.groups import grouped
from experiments.report.markup import Figure, Section, Table
from experiments.report.results import TrainResult
from tests.experiments.report.samples import train


def section(*documents: dict[str, object]) -> Section:
    runs = [(f"{i}.json", TrainResult.model_validate(document)) for i, document in enumerate(documents)]
    found = census_section(grouped(runs))
    assert found is not None
    return found


def rows(found: Section) -> dict[object, tuple[object, ...]]:
    table = found.parts[0]
    assert isinstance(table, Table)
    return {row[0]: row[1:] for row in table.rows}


def test_each_family_is_beside_the_papers_numbers_for_it() -> None:
    own = train("shared_bottom", 0, 0.937)
    second = {**train("shared_bottom", 1, 0.939), "test": {"income": {"auc": 0.939}, "marital": {"auc": 0.992}}}
    found = rows(section(own, second))
    mean, best, marital, at_best, *paper, seeds, epochs = found["shared_bottom"]
    assert (mean, best, at_best, seeds, epochs) == ("0.9380 ± 0.0127", 0.939, 0.992, 2, 3)
    assert marital == "0.9910 ± 0.0127"
    assert paper == [0.9295, 0.9361, 0.9915, 0.9921]
    assert "MMoE (paper only)" in found
    assert "Shared-Bottom (paper only)" not in found


def test_trees_are_beside_both_and_have_no_published_row() -> None:
    found = section(
        train("lightgbm", 0, 0.949), *(train("mmoe", s, 0.940 + s / 1000) for s in (0, 1)),
        *(train("omoe", s, 0.938 + s / 1000) for s in (0, 1)),
    )  # fmt: skip
    assert rows(found)["lightgbm"] == ("0.9490", 0.949, "0.9900", 0.99, None, None, None, None, 1, 3)
    spread = next(text for text in found.paragraphs if text.startswith("Our networks' means on income"))
    assert "0.0020 apart, from omoe to mmoe" in spread
    assert "Gradient boosting is 0.0085 above the best of them." in spread


def test_federated_runs_are_not_in_the_tables() -> None:
    found = section(train(income=0.94), train(income=0.5, federated=10, partition="iid"))
    assert rows(found)["mmoe"][1] == 0.94


def test_a_single_task_model_may_come_as_a_run_per_task() -> None:
    alone = [
        {**train("single_task"), "test": {"income": {"auc": 0.93}}},
        {**train("single_task"), "test": {"marital": {"auc": 0.98}}},
    ]
    assert rows(section(*alone))["single_task"][:4] == ("0.9300", 0.93, "0.9800", 0.98)


def test_runs_on_a_part_of_the_rows_are_said_to_be_no_reproduction() -> None:
    assert not any("--limit" in text for text in section(train()).paragraphs)
    assert any("--limit" in text for text in section(train(settings={"limit": 100})).paragraphs)


def test_plots_show_ours_and_theirs_for_each_task() -> None:
    found = section(train(seed=0), train(seed=1))
    shown = [part for part in found.parts if isinstance(part, Figure)]
    assert [figure.name for figure in shown] == ["census-census-kdd-income", "census-census-kdd-marital"]
    assert [trace["x"] for trace in shown[0].traces] == [[0.94], [0.9359], [0.9410]]
