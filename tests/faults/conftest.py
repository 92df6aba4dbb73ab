"""Fixtures of the fault tests: the programs of the end-to-end tests."""

from __future__ import annotations

from tests.e2e.conftest import programs

__all__ = ["programs"]
