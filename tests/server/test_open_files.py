from __future__ import annotations

import resource

import pytest

from common.errors import ConfigError
from server.config import LimitsConfig
from server.open_files import files_needed, raise_file_limit


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limit of a process that may open 1,024 files, and 4,096 when it asks."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    return limits


def test_the_soft_limit_is_raised_to_what_the_limits_need(allowed: list[tuple[int, int]]) -> None:
    raise_file_limit(LimitsConfig(), 1024)
    assert allowed[1:] == [(files_needed(LimitsConfig(), 1024), 4096)]
    raise_file_limit(LimitsConfig(), 1024)
    assert len(allowed) == 2


def test_more_than_the_system_allows_is_refused_with_what_would_do(allowed: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match=r"5000 clients.*lets it open 4096: set server.limits.connections to 1152"):
        raise_file_limit(LimitsConfig(connections=5000), 1024)
    assert len(allowed) == 1
    raise_file_limit(LimitsConfig(connections=1152), 1024)
    assert allowed[-1] == (4096, 4096)
