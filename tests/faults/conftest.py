"""Fixtures of the fault tests: those of the end-to-end tests."""

from __future__ import annotations

from tests.e2e.conftest import commands, programs

__all__ = ["commands", "programs"]
