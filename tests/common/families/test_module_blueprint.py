"""Tied tensors once, buffers where they are state, constants never."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.families.module_blueprint import blueprint_of, federated_tensors


class _Tied(nn.Module):
    """An embedding tied to an output layer, and every kind of buffer."""

    ids: Tensor
    mean: Tensor
    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("ids", torch.arange(5))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.same = nn.Module()
        self.same.register_buffer("mean", self.mean)
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 1)})


def test_each_tensor_is_listed_once_and_only_state_is() -> None:
    names = [name for name, _ in federated_tensors(_Tied())]
    assert names == [
        "embed.weight",
        "norm.weight",
        "norm.bias",
        "heads.a.weight",
        "heads.a.bias",
        "heads.b.weight",
        "heads.b.bias",
        "mean",
        "norm.running_mean",
        "norm.running_var",
    ]


def test_heads_belong_to_their_task_and_buffers_are_marked() -> None:
    blueprint = blueprint_of(_Tied(), "tied", ("a", "b"), lambda name: name.split(".")[0])
    by_name = blueprint.by_name
    assert by_name["heads.a.weight"].used_by == frozenset("a")
    assert by_name["embed.weight"].used_by == frozenset("ab")
    assert {p.name for p in blueprint.parameters if p.kind == "buffer"} == {
        "mean",
        "norm.running_mean",
        "norm.running_var",
    }
    assert all(p.trained_by == p.used_by for p in blueprint.parameters)
    assert by_name["embed.weight"].group == "embed"
