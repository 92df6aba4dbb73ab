"""Tasks weigh before clients do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blueprint import ParameterSpec
from common.plan import Slot
from server.weights import TaskWeights, slot_weights

TASKS = frozenset("abc")


def slot(trained_by: str = "abc", **changes: Any) -> Slot:  # noqa: ANN401  # fields of `Slot`
    return Slot(ParameterSpec("w", (2,), "float32", TASKS, frozenset(trained_by), "g"), TASKS, **changes)


examples = st.dictionaries(
    st.sampled_from(["p", "q", "r", "s"]),
    st.dictionaries(st.sampled_from(sorted(TASKS)), st.integers(0, 10**7), max_size=3),
    max_size=4,
)
rules = st.sampled_from(["uniform", "examples", "sqrt_examples", {"a": 0.2, "b": 5.0, "c": 1.0}])


def by_task(given_examples: dict[str, dict[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for counts in given_examples.values():
        for task, count in counts.items():
            totals[task] = totals.get(task, 0) + count
    return {task: total for task, total in totals.items() if total}


@given(examples, rules, st.sampled_from(["abc", "ab", "c"]))
def test_weights_sum_to_one_over_those_who_trained(
    given_examples: dict[str, dict[str, int]], rule: TaskWeights, trained_by: str
) -> None:
    weights = slot_weights(slot(trained_by), given_examples, rule)
    trained = {c for c, counts in given_examples.items() if any(counts.get(task) for task in trained_by)}
    assert weights.keys() == trained
    assert list(weights) == sorted(trained)
    if trained:
        assert sum(weights.values()) == pytest.approx(1.0, abs=1e-12)
        assert min(weights.values()) > 0


@given(examples, rules)
def test_the_order_of_clients_and_tasks_does_not_matter(
    given_examples: dict[str, dict[str, int]], rule: TaskWeights
) -> None:
    back = {c: dict(reversed(counts.items())) for c, counts in reversed(given_examples.items())}
    assert slot_weights(slot(), back, rule) == slot_weights(slot(), given_examples, rule)


@given(examples, rules)
def test_the_formula(given_examples: dict[str, dict[str, int]], rule: TaskWeights) -> None:
    """theta += sum_t omega_t sum_{k in t} (n_k / N_t) delta_k, as it is written."""
    totals = by_task(given_examples)

    def omega(task: str) -> float:
        if isinstance(rule, dict):
            return float(rule[task])
        by_rule = {"uniform": 1.0, "examples": float(totals[task]), "sqrt_examples": float(totals[task] ** 0.5)}
        return by_rule[str(rule)]

    norm = sum(omega(task) for task in totals)
    for client_id, weight in slot_weights(slot(), given_examples, rule).items():
        wanted = sum(omega(t) / norm * n / totals[t] for t, n in given_examples[client_id].items() if n)
        assert weight == pytest.approx(wanted, rel=1e-12)


def test_uniform_gives_each_task_present_the_same_say() -> None:
    three = {"sst2": {"a": 67349}, "qqp": {"b": 363846}, "stsb": {"c": 5749}}
    assert slot_weights(slot(), three) == pytest.approx(dict.fromkeys(three, 1 / 3))
    assert slot_weights(slot(), three, "examples")["stsb"] == pytest.approx(5749 / 436944)
    del three["qqp"]
    assert slot_weights(slot(), three) == pytest.approx(dict.fromkeys(three, 1 / 2)), "an absent task has no share"


def test_within_a_task_examples_count() -> None:
    two = {"p": {"a": 30}, "q": {"a": 10}, "r": {"b": 1}}
    assert slot_weights(slot(), two) == pytest.approx({"p": 0.375, "q": 0.125, "r": 0.5})


def test_a_client_of_two_tasks_has_its_part_in_both() -> None:
    weights = slot_weights(slot(), {"p": {"a": 10, "b": 5}, "q": {"b": 15}})
    assert weights == pytest.approx({"p": 0.5 + 0.125, "q": 0.375})


def test_given_weights_are_normalised_over_the_tasks_present() -> None:
    weights = slot_weights(slot(), {"p": {"a": 1}, "q": {"b": 1}}, {"a": 3.0, "b": 1.0, "c": 100.0})
    assert weights == pytest.approx({"p": 0.75, "q": 0.25})


@pytest.mark.parametrize("nobody", [{}, {"p": {}}, {"p": {"a": 0}}, {"p": {"b": 5}}])
def test_a_slot_that_nobody_trained_has_no_weights(nobody: dict[str, dict[str, int]]) -> None:
    assert slot_weights(slot("a"), nobody) == {}


def test_a_frozen_slot_has_no_weights() -> None:
    assert slot_weights(slot(frozen=True), {"p": {"a": 5}}) == {}
