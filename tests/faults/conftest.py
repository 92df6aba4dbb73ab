"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import commands, programs
from tests.e2e.programs import Programs, start_fork_server
from tests.faults.small_run import undisturbed

__all__ = ["commands", "programs", "right"]


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The hash that the small run ends with when nothing disturbs it."""
    start_fork_server()
    started = Programs(tmp_path_factory.mktemp("undisturbed"))
    yield undisturbed(started)
    started.end()
