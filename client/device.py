"""Which device a client computes on, and the process-wide settings that one piece of work may need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from common.errors import ConfigError
from common.training import Precision


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes CUDA, else MPS (Apple), else the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ConfigError: the name is none of these, or this machine has no such device.
    """
    found = _available()
    if name == "auto":
        return torch.device(found[0])
    asked = "cuda:0" if name == "cuda" else name
    if asked not in found:
        known = name in {"cpu", "cuda", "mps"} or (name.startswith("cuda:") and name[5:].isdigit())
        problem = "is not on this machine" if known else "is no device name (auto, cpu, cuda, cuda:N, mps)"
        raise ConfigError(f"device {name!r} {problem}; found here: {', '.join(found)}")
    return torch.device(asked)


def describe_device(device: torch.device) -> str:
    """One line for the log: the device, its product name or threads, and torch's version."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}), torch {torch.__version__}"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads), torch {torch.__version__}"
    return f"{device}, torch {torch.__version__}"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which forward passes run.

    Args:
        device: where.
        precision: ``fp32`` or ``bf16``; what ``auto`` stands for is decided before (`client.precision`).

    Raises:
        ConfigError: the device has no bfloat16.
    """
    if precision == "auto":
        raise AssertionError("precision auto is resolved before anything is computed")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"precision 'bf16': {describe_device(device)} has no bfloat16; set training.precision to fp32"
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, within a container's share of processor time.

    torch itself counts the machine's cores, and in a container that has a share of them starts more threads than get
    to run.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(bound, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups here, or no limit in them ("max")
        return bound


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` CPU threads inside; None leaves the number as it is."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Allow inside only operations that give the same bits each time (torch raises where there is none)."""
    if not enabled:
        yield
        return
    # cuBLAS gives the same bits only with a fixed workspace; it reads this when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module whose attribute is made at run time
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory only makes the use of it uninitialised visible, and costs a pass over each tensor.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


@contextmanager
def dropout_stream(device: torch.device, seed: int) -> Iterator[None]:
    """Start torch's own random stream, which dropout draws from, at `seed`; put it back as it was afterwards.

    On MPS the device's stream is not put back: torch has no way to fork it.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on the device; to CUDA through pinned memory, so that the host doesn't wait for the copy."""
    if device.type == "cuda":
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _available() -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, "cpu"]
