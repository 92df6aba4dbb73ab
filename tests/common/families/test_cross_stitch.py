"""Columns that read each other: what the mixtures are, who trains what, and the identity with separate networks."""

from __future__ import annotations

import pytest
import torch

from common.parameter_rates import parameter_rates
from common.training import TrainSettings
from tests.common.families.tabular import TASKS, batch, loaded, outputs, tabular

COLUMN = [5, 3]


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_identity_gives_the_outputs_of_single_task(per_channel: bool) -> None:
    alone = outputs(loaded(tabular("single_task", column=COLUMN)))
    stitched = outputs(loaded(tabular("cross_stitch", column=COLUMN, stay=1.0, per_channel=per_channel)))
    for task in TASKS:
        torch.testing.assert_close(stitched[task], alone[task])


def test_each_column_goes_on_from_its_row_of_the_mixture() -> None:
    model = loaded(tabular("cross_stitch", column=COLUMN, tower=[]))
    with torch.no_grad():
        for parameter in model.get_submodule("stitches").parameters():
            parameter.copy_(torch.randn(parameter.shape))
    values, rows = dict(model.named_parameters()), batch()["features"]
    states = dict.fromkeys(TASKS, rows)
    for layer in range(2):
        hidden = {
            task: torch.relu(
                x @ values[f"columns.{task}.layers.{layer}.weight"].T + values[f"columns.{task}.layers.{layer}.bias"]
            )
            for task, x in states.items()
        }
        states = {
            task: sum(
                (values[f"stitches.{layer}.{task}"][j] * hidden[other] for j, other in enumerate(TASKS)),
                torch.zeros(()),
            )
            for task in TASKS
        }
    wanted = states["b"] @ values["heads.b.output.weight"].T + values["heads.b.output.bias"]
    torch.testing.assert_close(model("b", batch()), wanted)


@pytest.mark.parametrize(("per_channel", "shape"), [(False, (3,)), (True, (3, 5))])
def test_rows_begin_near_the_column_and_sum_to_one(per_channel: bool, shape: tuple[int, ...]) -> None:
    row = tabular("cross_stitch", column=COLUMN, stay=0.8, per_channel=per_channel).initial_values(1)["stitches.0.b"]
    assert row.shape == shape
    torch.testing.assert_close(row.reshape(3, -1)[:, 0], torch.tensor([0.1, 0.8, 0.1]))


def test_a_single_task_reads_itself() -> None:
    family = tabular("cross_stitch", {"a": TASKS["a"]}, column=COLUMN)
    assert family.initial_values(1)["stitches.0.a"].tolist() == [1.0]
    torch.testing.assert_close(
        outputs(loaded(family, ["a"]), ["a"])["a"],
        outputs(loaded(tabular("single_task", column=COLUMN)), ["a"])["a"],
    )


def test_a_client_of_one_task_holds_all_columns_but_no_other_tasks_last_mixture() -> None:
    family = tabular("cross_stitch", column=COLUMN)
    names = dict(loaded(family, ["b"]).named_parameters())
    assert {name for name in names if name.startswith("stitches")} == {
        "stitches.0.a", "stitches.0.b", "stitches.0.c", "stitches.1.b",
    }  # fmt: skip
    assert set(names) == {p.name for p in family.blueprint().used_by("b")}
    assert "columns.a.layers.1.weight" in names


def test_one_tasks_loss_trains_everything_that_it_reads() -> None:
    family = tabular("cross_stitch", column=COLUMN)
    model = loaded(family)
    model("b", batch(64)).square().sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert moved == {p.name for p in family.blueprint().parameters if "b" in p.trained_by}


def test_mixtures_can_learn_faster_and_never_decay() -> None:
    specs = tabular("cross_stitch", column=COLUMN, per_channel=True).blueprint().parameters
    settings = TrainSettings.model_validate(
        {"local_epochs": 1, "weight_decay": 0.1, "groups": [{"match": "stitches.*", "learning_rate": 100}]}
    )
    rates = parameter_rates(specs, settings)
    assert {spec.name: rates[spec.name].multiplier for spec in specs if spec.group == "stitch"} == {
        f"stitches.{layer}.{task}": 100.0 for layer in range(2) for task in TASKS
    }
    assert rates["stitches.0.a"].weight_decay == 0
    assert rates["columns.a.layers.0.weight"].weight_decay == 0.1
    assert rates["columns.a.layers.0.weight"].multiplier == 1.0
