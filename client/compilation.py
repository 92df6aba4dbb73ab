"""`torch.compile` of a model's modules."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import nn

from common.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its forward and backward pass compiled when it is first called, for any batch shape.

    Raises:
        ConfigError: this machine lacks what compiling needs.
    """
    require_compiler(device)
    made: Any = torch.compile(module, dynamic=True)  # a module, though its type says a function
    return cast("nn.Module", made)


def compiled_function(function: Callable[P, R], device: torch.device) -> Callable[P, R]:
    """As `compiled`, for a method of a module."""
    require_compiler(device)
    return torch.compile(function, dynamic=True)


def require_compiler(device: torch.device) -> None:
    """Raises ConfigError where torch could not compile for this device."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError("training.compile: compiling for CUDA needs the package triton; set it to false")
        return
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"training.compile: compiling for the {device.type} needs a C++ compiler (none of {', '.join(names)} is "
            "here). Install one, name one in CXX, or set training.compile to false"
        )
