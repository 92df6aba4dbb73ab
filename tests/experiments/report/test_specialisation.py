"""The section on which inputs go to which expert."""

from __future__ import annotations

from experiments.report.groups import grouped
from experiments.report.markup import Figure
from experiments.report.results import TrainResult
from experiments.report.specialisation import specialisation_section
from tests.experiments.report.samples import specialisation, train


def figures(**found: object) -> list[Figure]:
    run = TrainResult.model_validate(train(specialisation=found))
    section = specialisation_section(grouped([("run.json", run)]))
    return [] if section is None else [part for part in section.parts if isinstance(part, Figure)]


def test_a_lift_stands_at_its_input_and_expert() -> None:
    [figure] = figures(**specialisation())
    [trace] = figure.traces
    assert (trace["x"], trace["y"], trace["z"]) == (["0", "1"], ["status = Never married"], [[1.8, None]])
    assert figure.table.rows == (("0", "65.0%", "status = Never married", 1.8, "40.0%"),)


def test_a_gate_that_two_tasks_share_is_shown_once() -> None:
    gates = {"gate": specialisation()["income"]["income"]}
    [figure] = figures(income=gates, marital=gates)
    assert "gate gate of income and marital" in figure.caption


def test_a_gate_that_prefers_nothing_is_left_out() -> None:
    assert figures(income={"gate": {"experts": [{"expert": "expert.0", "load": 1.0, "top": []}]}}) == []
