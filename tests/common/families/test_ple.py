"""Shared experts and experts of each task's own, in levels."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from common.errors import ConfigError
from common.families.expert_config import PLEConfig
from tests.common.families.tabular import TASKS, batch, loaded, outputs, tabular

LEVEL = {"shared": {"number": 2, "hidden": [5]}, "own": {"number": 1, "hidden": [5]}}


def test_one_level_without_own_experts_gives_the_outputs_of_mmoe() -> None:
    mmoe = loaded(tabular("mmoe", experts={"number": 3, "hidden": [6, 5]}))
    levels = [{"shared": {"number": 3, "hidden": [6, 5]}, "own": {"number": 0}}]
    model = loaded(tabular("ple", levels=levels))

    def ours(name: str) -> str:
        return name.replace("experts.", "levels.0.shared.").replace("gate.", "levels.0.gate.")

    model.load_state_dict({ours(name): value for name, value in mmoe.state_dict().items()})
    expected = outputs(mmoe)
    for task, found in outputs(model).items():
        torch.testing.assert_close(found, expected[task], rtol=0, atol=1e-6)


def test_two_levels_compute_what_the_paper_says() -> None:
    model = loaded(tabular("ple", levels=[LEVEL, LEVEL]))
    values = dict(model.named_parameters())

    def expert(name: str, x: Tensor) -> Tensor:
        return torch.relu(x @ values[f"{name}.layers.0.weight"].T + values[f"{name}.layers.0.bias"])

    def gated(name: str, x: Tensor, experts: list[Tensor]) -> Tensor:
        weights = torch.softmax(x @ values[f"levels.{name}.weight"].T, dim=1)
        return torch.stack([weights[:, i, None] * found for i, found in enumerate(experts)]).sum(0)

    x = batch()["features"]
    shared = [expert(f"levels.0.shared.{n}", x) for n in range(2)]
    own = {task: expert(f"levels.0.own.{task}.0", x) for task in TASKS}
    stream = gated("0.shared_gate", x, [*own.values(), *shared])
    above = [expert(f"levels.1.shared.{n}", stream) for n in range(2)]
    for task in TASKS:
        mine = gated(f"0.gate.{task}", x, [own[task], *shared])
        last = gated(f"1.gate.{task}", mine, [expert(f"levels.1.own.{task}.0", mine), *above])
        torch.testing.assert_close(model(task, batch()), model.heads[task](last))  # type: ignore[index, operator]


def test_a_client_of_one_task_holds_others_experts_only_below_the_last_level() -> None:
    blueprint = tabular("ple", levels=[LEVEL, LEVEL]).blueprint()
    groups = {spec.group for spec in blueprint.used_by("a")}
    assert {"expert.0.own.a.0", "expert.0.own.b.0", "expert.0.own.c.0", "expert.1.own.a.0"} <= groups
    assert "expert.1.own.b.0" not in groups
    names = {spec.name for spec in blueprint.used_by("a") if spec.group == "gate"}
    assert names == {"levels.0.gate.a.weight", "levels.0.shared_gate.weight", "levels.1.gate.a.weight"}
    alone = tabular("ple", levels=[LEVEL]).blueprint()
    assert {spec.group for spec in alone.used_by("a")} == {"expert.0.own.a.0", *_shared(0), "gate", "head"}


def _shared(level: int) -> set[str]:
    return {f"expert.{level}.shared.{n}" for n in range(2)}


def test_gates_name_their_experts_in_the_order_of_their_weights() -> None:
    family = tabular("ple", levels=[LEVEL, LEVEL])
    model = loaded(family)
    assert model.gates("b") == {
        "0.own.b": ("expert.0.own.b.0", "expert.0.shared.0", "expert.0.shared.1"),
        "0.shared": (
            "expert.0.own.a.0", "expert.0.own.b.0", "expert.0.own.c.0", "expert.0.shared.0", "expert.0.shared.1"
        ),
        "1.own.b": ("expert.1.own.b.0", "expert.1.shared.0", "expert.1.shared.1"),
    }  # fmt: skip


def test_experts_that_one_gate_sums_must_have_equal_widths() -> None:
    level = {**LEVEL, "own": {"number": 1, "hidden": [4]}}
    with pytest.raises(ValidationError, match=r"the last of shared.hidden is 5, of own.hidden 4"):
        PLEConfig.model_validate({"family": "ple", "numeric": {"a": {}}, "levels": [level]})


def test_no_gate_may_choose_more_experts_than_it_has() -> None:
    with pytest.raises(ValidationError, match="top_k is 3, and there is a gate over only 2"):
        tabular("ple", levels=[LEVEL, {**LEVEL, "own": {"number": 0}}], gate={"top_k": 3})


def test_no_shared_gate_may_weigh_more_experts_than_can_be_reported() -> None:
    many = {**LEVEL, "own": {"number": 85, "hidden": [5]}}
    assert tabular("ple", levels=[LEVEL, many]).blueprint().parameters, "the last level has no shared gate"
    with pytest.raises(ConfigError, match=r"levels\.0: .* weigh 257 experts, 2 shared and 85 of each of 3 tasks"):
        tabular("ple", levels=[many, LEVEL]).blueprint()
