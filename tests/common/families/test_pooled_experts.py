"""Experts between a transformer and its heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.blueprint import Blueprint
from common.errors import ProtocolError
from common.families import family_from_description
from common.families.base import Family, MultiTaskModel
from common.families.encoded_text import EncodedText, collate_parts
from common.parameter_rates import parameter_rates
from common.selectors import select
from common.training import TrainSettings
from tests.common.families.tiny import TASKS, text_family, texts

EXPERTS: dict[str, Any] = {"number": 3, "hidden": [7, 6]}


def with_experts(kind: str, **settings: Any) -> Family:  # noqa: ANN401  # any `model:` setting
    return text_family("bert", **{"layers": 2, "experts": {**EXPERTS, "kind": kind}, **settings})


def loaded(family: Family, *tasks: str) -> MultiTaskModel:
    model = family.build(tasks)
    values = family.initial_values(3)
    model.load_state_dict({name: values[name] for name, _ in model.named_parameters()}, strict=False)
    return model.eval()


def rows(family: Family, task: str) -> tuple[EncodedText, np.ndarray]:
    encoded = family.encode(task, texts(task))
    assert isinstance(encoded, EncodedText)
    return encoded, np.arange(len(encoded))


def joint(family: Family, *tasks: str) -> tuple[dict[str, slice], dict[str, Tensor]]:
    """A batch of five rows of each task."""
    batch = collate_parts([rows(family, task) for task in tasks])
    return {task: slice(5 * place, 5 * place + 5) for place, task in enumerate(tasks)}, batch


def own(blueprint: Blueprint, task: str) -> set[str]:
    return {spec.name for spec in blueprint.parameters if spec.trained_by == {task}}


@pytest.mark.parametrize("kind", ["omoe", "mmoe"])
def test_experts_are_groups_that_all_tasks_train_and_gates_belong_as_the_kind_says(kind: str) -> None:
    family = with_experts(kind)
    blueprint = family.blueprint()
    groups = {spec.name: spec.group for spec in blueprint.parameters}
    assert {name: group for name, group in groups.items() if name.startswith("experts.")} == {
        f"experts.{n}.layers.{layer}.{leaf}": f"expert.{n}"
        for n in range(3)
        for layer in range(2)
        for leaf in ("weight", "bias")
    }
    gates = {name for name, group in groups.items() if group == "gate"}
    assert gates == ({"gate.weight"} if kind == "omoe" else {f"gate.{task}.weight" for task in TASKS})
    assert own(blueprint, "qqp") == {"heads.qqp.output.weight", "heads.qqp.output.bias"} | (
        {"gate.qqp.weight"} if kind == "mmoe" else set()
    )
    held = {name for name, _ in loaded(family, "qqp").named_parameters()}
    assert {spec.name for spec in blueprint.used_by("qqp")} == held
    assert family.initial_values(1)["experts.0.layers.0.bias"].any(), "drawn as linear layers are"


@pytest.mark.parametrize("kind", ["omoe", "mmoe"])
def test_a_loss_reaches_what_its_task_trains_and_nothing_else(kind: str) -> None:
    family = with_experts(kind)
    model = loaded(family, *TASKS)
    parts, batch = joint(family, "sst2", "qqp")
    found = model.training_pass(parts, batch)
    torch.autograd.backward(found.outputs["qqp"].square().sum())
    reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    blueprint = family.blueprint()
    assert reached <= {spec.name for spec in blueprint.parameters if "qqp" in spec.trained_by}
    above = {name for name in reached if not name.startswith("encoder.")}
    assert above == {spec.name for spec in blueprint.used_by("qqp") if not spec.name.startswith("encoder.")}


@pytest.mark.parametrize("kind", ["omoe", "mmoe"])
def test_heads_read_the_weighted_sum_of_experts_alone_and_in_a_joint_pass(kind: str) -> None:
    family = with_experts(kind)
    model = loaded(family, *TASKS)
    values = dict(model.named_parameters())
    parts, batch = joint(family, "sst2", "qqp")
    found = model.training_pass(parts, batch)
    pooled = loaded(text_family("bert", layers=2), "sst2")._vectors(batch)  # type: ignore[operator]
    for task, where in parts.items():
        x = pooled[where]
        gate = values["gate.weight" if kind == "omoe" else f"gate.{task}.weight"]
        weights = torch.softmax(x @ gate.T, dim=1)
        mixture = torch.zeros(5, 6)
        for n in range(3):
            hidden = x
            for layer in range(2):
                name = f"experts.{n}.layers.{layer}"
                hidden = torch.relu(hidden @ values[f"{name}.weight"].T + values[f"{name}.bias"])
            mixture = mixture + weights[:, n, None] * hidden
        expected = mixture @ values[f"heads.{task}.output.weight"].T + values[f"heads.{task}.output.bias"]
        torch.testing.assert_close(found.outputs[task], expected, rtol=0, atol=1e-5)
        alone = loaded(family, task)(task, {name: tensor[where] for name, tensor in batch.items()})
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
        (gate_name,) = model.gates(task)
        assert gate_name == ("gate" if kind == "omoe" else task)
        assert model.gates(task)[gate_name] == ("expert.0", "expert.1", "expert.2")
        torch.testing.assert_close(found.gates[task][gate_name].mass, weights.sum(0), rtol=1e-4, atol=1e-5)


def test_texts_of_separate_pairs_pass_the_experts_one_by_one_and_count_as_one_example() -> None:
    family = with_experts("mmoe", pairs="separate", head="mlp")
    model = loaded(family, "qqp")
    encoded = family.encode("qqp", texts("qqp"))
    found = model.training_pass({"qqp": slice(0, 3)}, encoded.collate(np.arange(3)))
    assert found.outputs["qqp"].shape == (3, 2)
    torch.testing.assert_close(found.gates["qqp"]["qqp"].mass.sum(), torch.tensor(3.0))
    assert dict(model.named_parameters())["heads.qqp.hidden.weight"].shape == (6, 24), "[u, v, |u-v|, u*v] of mixtures"


def test_a_balance_penalty_is_asked_for_in_training_alone() -> None:
    family = with_experts("omoe", experts={**EXPERTS, "kind": "omoe", "gate": {"balance": 1.0, "top_k": 2}})
    model = loaded(family, "sst2")
    parts, batch = joint(family, "sst2")
    assert model.training_pass(parts, batch).penalty is None
    penalty = model.train().training_pass(parts, batch).penalty
    assert penalty is not None
    assert penalty > 0


def test_a_client_rebuilds_the_same_model_and_refuses_experts_it_does_not_know() -> None:
    family = with_experts("mmoe")
    client = family_from_description(family.describe(), family.assets(), TASKS)
    assert client.blueprint() == family.blueprint()
    damaged = family.describe()
    damaged["experts"]["surprise"] = 1
    with pytest.raises(ProtocolError):
        family_from_description(damaged, family.assets(), TASKS)


def test_experts_and_gates_learn_and_thaw_as_what_stands_on_the_encoder() -> None:
    specs = with_experts("mmoe").blueprint().parameters
    rates = parameter_rates(specs, TrainSettings(layer_decay=0.5))
    assert rates["experts.0.layers.0.weight"].multiplier == rates["gate.qqp.weight"].multiplier == 1.0
    upper = select("upper", specs)
    assert {"experts.2.layers.1.bias", "gate.sst2.weight"} <= upper
    assert not any(name.startswith(("experts.", "gate.")) for name in select(["lower", "middle", "layers:1"], specs))
    lora = with_experts("omoe", lora={"rank": 2}).blueprint().by_name
    assert lora["experts.0.layers.0.weight"].trained_by == set(TASKS)
    assert lora["gate.weight"].trained_by == set(TASKS)
