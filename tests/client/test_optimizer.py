from __future__ import annotations

import pytest
from torch.optim import SGD, AdamW

from client.device import choose_device
from client.optimizer import build_optimizer, decays, set_learning_rate
from client.slot_model import SlotModel
from common.training import TrainSettings
from tests.client.tiny_family import TinyFamily, shared_slice


@pytest.mark.parametrize(("name", "kind"), [("adamw", AdamW), ("sgd", SGD)])
def test_groups_hold_every_slot_once_with_its_decay_and_rate(name: str, kind: type) -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, "mood")
    model = SlotModel(family, slice_, ["mood"], choose_device("cpu"))
    settings = TrainSettings.model_validate({"optimizer": name, "weight_decay": 0.1})
    optimizer = build_optimizer(model, model.parameter_slots, settings)
    assert isinstance(optimizer, kind)
    set_learning_rate(optimizer, 0.01)
    found = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert {slot.parameter: found[id(model.parameter(i))] for i, slot in model.parameter_slots.items()} == {
        "embeddings.weight": (0, 0.01),
        "hidden.weight": (0.1, 0.01),
        "hidden.bias": (0, 0.01),
        "norm.weight": (0, 0.01),
        "norm.bias": (0, 0.01),
        "heads.mood.weight": (0.1, 0.05),
        "heads.mood.bias": (0, 0.05),
    }


def test_embeddings_decay_only_where_the_settings_say_so() -> None:
    slice_ = shared_slice(TinyFamily(), "mood")
    table = slice_.slot_of("mood", "embeddings.weight")
    weight = slice_.slot_of("mood", "hidden.weight")
    none, all_ = TrainSettings(weight_decay=0), [{"match": "lower", "weight_decay": 0.1}]
    assert not decays(table, TrainSettings(), slice_.slots)
    assert decays(weight, TrainSettings(), slice_.slots)
    assert not decays(weight, none, slice_.slots)
    assert decays(table, TrainSettings.model_validate({"groups": all_}), slice_.slots)
