from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from client.device import autocast, choose_device, describe_device, deterministic, threads, usable_cores
from common.errors import ConfigError


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=1, mps=True)
    assert choose_device("auto") == torch.device("cuda:0")
    machine(monkeypatch, mps=True)
    assert choose_device() == torch.device("mps")
    machine(monkeypatch)
    assert choose_device("auto") == torch.device("cpu")


def test_a_named_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=2)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    with pytest.raises(ConfigError, match=f"{name}.*not on this machine.*cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cuda:-1"])
def test_what_is_no_device_name_is_refused_with_the_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=1)
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        choose_device(name)


def fail_inside(count: int) -> None:
    with threads(count), deterministic(True):
        assert torch.get_num_threads() == count
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError


def test_threads_and_determinism_are_put_back_even_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError):
        fail_inside(before + 1)
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_bfloat16_needs_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "old card")
    with pytest.raises(ConfigError, match=r"old card.*no bfloat16"):
        autocast(torch.device("cuda:0"), "bf16")


def test_the_log_line_names_device_and_threads() -> None:
    assert describe_device(torch.device("cpu")).startswith("cpu (")


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("", 6)])
def test_usable_cores_are_those_of_the_process_within_its_containers_share(
    limit: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: limit)
    assert usable_cores() == cores
