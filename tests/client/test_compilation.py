from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from client import compilation
from client.compilation import compiled, require_compiler
from client.trainer import LocalTrainer
from common.errors import ConfigError
from common.training import Position, TrainSettings
from tests.client.tiny_family import TinyFamily, shared_slice, tiny_data, values_of


def test_a_machine_without_a_compiler_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError, match=r"training.compile: .* \(none of no-such-compiler, g\+\+, clang\+\+ is here\)"
    ):
        compiled(nn.Linear(1, 1), torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="triton"):
        require_compiler(torch.device("cuda"))


def test_each_module_is_compiled_once_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch makes of it takes a minute, so here it is only asked for."""
    asked: list[nn.Module] = []
    calls: list[str] = []

    class Compiled(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.inner = module

        def forward(self, task: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            calls.append(task)
            outputs: torch.Tensor = self.inner(task, batch)
            return outputs

    def compile_(module: nn.Module, *, dynamic: bool) -> nn.Module:
        assert dynamic
        asked.append(module)
        return Compiled(module)

    monkeypatch.setattr(compilation, "require_compiler", lambda _: None)
    monkeypatch.setattr(torch, "compile", compile_)
    family = TinyFamily()
    slice_ = shared_slice(family, "mood")
    trainer = LocalTrainer(family, tiny_data({"mood": 8}), torch.device("cpu"))
    for round_ in (1, 2):
        settings = TrainSettings(local_steps=2, batch_size=4, compile=True)
        values = values_of(family, slice_)
        trainer.train(slice_, values, settings, Position(round_, 2), 1, "c", lambda _: None, threading.Event())
    assert len(asked) == 1
    assert calls == ["mood"] * 4
