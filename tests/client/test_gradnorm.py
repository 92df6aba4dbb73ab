from __future__ import annotations

import pytest
import torch
from torch import Tensor

from client.gradnorm import LEAST_WEIGHT, GradNormWeights, last_shared
from common.plan import SharingPlan
from tests.client.tiny_family import TinyFamily
from tests.common.families.cases import family_of
from tests.common.families.tiny import text_family

CPU = torch.device("cpu")


def scalars(**values: float) -> dict[str, Tensor]:
    return {task: torch.tensor(value) for task, value in values.items()}


def weights_of(weights: GradNormWeights, *tasks: str) -> list[float]:
    return [float(weights.of(task)) for task in tasks]


def test_the_task_of_the_larger_gradient_loses_weight_and_the_sum_stays() -> None:
    weights = GradNormWeights(["a", "b"], 0.0, 0.1, {}, CPU)
    weights.learn(scalars(a=1.0, b=1.0), scalars(a=3.0, b=1.0))
    # Mean norm 2: a falls by 0.1 * 3 / 2, b rises by 0.1 * 1 / 2; the sum is brought back from 1.9 to 2.
    assert weights_of(weights, "a", "b") == pytest.approx([0.85 * 2 / 1.9, 1.05 * 2 / 1.9])
    for _ in range(200):
        weights.learn(scalars(a=1.0, b=1.0), scalars(a=3.0, b=1.0))
    a, b = weights_of(weights, "a", "b")
    assert 3 * a == pytest.approx(b, rel=0.3)  # steps of a fixed rate swing around the balance


def test_a_task_that_lags_gains_weight() -> None:
    weights = GradNormWeights(["a", "b"], 1.5, 0.01, {}, CPU)
    weights.learn(scalars(a=2.0, b=10.0), scalars(a=1.0, b=1.0))
    assert weights_of(weights, "a", "b") == pytest.approx([1.0, 1.0])
    weights.learn(scalars(a=2.0, b=1.0), scalars(a=1.0, b=1.0))  # b fell to a tenth, a not at all
    a, b = weights_of(weights, "a", "b")
    assert a > 1 > b


def test_what_was_learnt_goes_on_in_the_next_round() -> None:
    first = GradNormWeights(["a", "b"], 1.5, 0.1, {}, CPU)
    first.learn(scalars(a=4.0, b=2.0), scalars(a=3.0, b=1.0))
    kept = first.numbers({})
    assert kept.keys() == {f"loss:{name}:{task}" for name in ("gradnorm", "gradnorm-first") for task in "ab"}
    assert kept["loss:gradnorm-first:a"] == 4
    again = GradNormWeights(["a", "b"], 1.5, 0.1, kept, CPU)
    for weights in (first, again):
        weights.learn(scalars(a=1.0, b=2.0), scalars(a=1.0, b=1.0))
    assert again.numbers({}) == pytest.approx(first.numbers({}))


def test_a_step_of_one_task_teaches_nothing_but_its_first_loss() -> None:
    weights = GradNormWeights(["a", "b", "c"], 1.5, 0.1, {}, CPU)
    weights.learn(scalars(a=2.0), scalars(a=3.0))
    weights.learn(scalars(a=1.0), {})
    assert weights_of(weights, "a", "b", "c") == [1, 1, 1]
    assert weights.numbers({})["loss:gradnorm-first:a"] == 2
    weights.learn(scalars(a=1.0, b=1.0), scalars(a=3.0, b=1.0))  # of three tasks two are in the step
    assert sum(weights_of(weights, "a", "b", "c")) == pytest.approx(3)


def test_weights_stay_positive_and_finite_whatever_comes() -> None:
    weights = GradNormWeights(["a", "b"], 1.5, 1.0, {}, CPU)
    for a in (0.0, 1e30, 1e-30, 5.0):
        weights.learn(scalars(a=a, b=0.0), scalars(a=a, b=0.0))
        assert all(LEAST_WEIGHT / 2 < weight < 2 for weight in weights_of(weights, "a", "b"))


def test_the_last_shared_layer_is_the_pooler_or_the_highest_layer_of_all_tasks() -> None:
    both = frozenset({"sst2", "qqp"})
    for pooling, expected in (("cls", "encoder.pooler."), ("mean", "encoder.encoder.layer.2.")):
        plan = SharingPlan.shared(text_family(pooling=pooling).blueprint())
        found = last_shared(plan.slice(sorted(both)).slots, both)
        assert {slot.split("@")[0].startswith(expected) for slot in found} == {True}
    plan = SharingPlan.separate(text_family().blueprint())
    assert last_shared(plan.slice(sorted(both)).slots, both) == frozenset()


def test_experts_that_all_tasks_share_come_after_every_layer_and_of_several_levels_the_last() -> None:
    plan = SharingPlan.shared(text_family(experts={"number": 2}).blueprint())
    found = last_shared(plan.slice(["qqp", "sst2"]).slots, frozenset({"qqp", "sst2"}))
    assert {plan.by_id[slot].spec.group for slot in found} == {"expert.0", "expert.1"}
    plan = SharingPlan.shared(family_of("ple, two levels").blueprint())
    found = last_shared(plan.slice(["a", "b"]).slots, frozenset({"a", "b"}))
    assert {plan.by_id[slot].spec.group for slot in found} == {"expert.1.shared.0", "expert.1.shared.1"}


def test_a_layer_that_one_task_may_not_train_is_not_shared() -> None:
    family = TinyFamily(["mood", "score"], trained_by={name: frozenset({"mood"}) for name in ("hidden.weight",)})
    slots = [s for s in SharingPlan.shared(family.blueprint()).slots if s.spec.kind == "parameter"]
    names = {slot.split("@")[0] for slot in last_shared(slots, frozenset({"mood", "score"}))}
    assert names == {"hidden.bias", "norm.weight", "norm.bias"}
