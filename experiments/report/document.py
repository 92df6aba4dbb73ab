"""From result files to the sections of the report."""

from __future__ import annotations

from experiments.report.census import census_section
from experiments.report.correlation import correlation_section
from experiments.report.dynamics import dynamics_section
from experiments.report.federated import federated_section
from experiments.report.gates import gates_section
from experiments.report.groups import grouped
from experiments.report.markup import Section
from experiments.report.results import Results
from experiments.report.runs import runs_section
from experiments.report.specialisation import specialisation_section


def sections(results: Results) -> tuple[Section, ...]:
    """The sections that have something to show, in the order of the page."""
    groups = grouped(results.train)
    made = (
        correlation_section(results.correlation),
        census_section(groups),
        federated_section(groups),
        gates_section(groups),
        specialisation_section(groups),
        dynamics_section(results.dynamics),
        runs_section(groups),
    )
    return tuple(section for section in made if section is not None)
