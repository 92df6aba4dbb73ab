"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.programs import Programs, start_fork_server


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts servers and clients, and ends them after the test."""
    start_fork_server()
    started = Programs(tmp_path)
    yield started
    started.end()


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Programs]:
    """The same, each program started with ``python -m`` as a user does."""
    started = Programs(tmp_path, as_commands=True)
    yield started
    started.end()
