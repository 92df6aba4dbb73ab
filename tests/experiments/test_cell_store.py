"""Cells outlive the run that computed them, and are not mixed with those of other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError, DataError
from experiments.cell_store import CellStore


def test_a_cell_is_found_by_the_next_run(tmp_path: Path) -> None:
    CellStore(tmp_path / "cells", {"steps": 3, "rates": (0.1, 0.2)}).put("a", {"loss": 0.5})
    again = CellStore(tmp_path / "cells", {"rates": [0.1, 0.2], "steps": 3})
    assert (again.get("a"), again.get("b"), list(again)) == ({"loss": 0.5}, None, [{"loss": 0.5}])


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    CellStore(tmp_path, {"steps": 3, "rows": 10}).put("a", {"loss": 0.5})
    with pytest.raises(ConfigError, match=r"other settings \(steps 3 there, 4 now\)"):
        CellStore(tmp_path, {"steps": 4, "rows": 10})


def test_what_a_crash_left_half_written_is_no_cell(tmp_path: Path) -> None:
    store = CellStore(tmp_path, {})
    (tmp_path / "a.json.tmp").write_text('{"loss"')
    assert (store.get("a"), list(store)) == (None, [])


@pytest.mark.parametrize("content", ['{"loss"', "[1]"])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    store = CellStore(tmp_path, {})
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json.*remove the file"):
        store.get("a")
