"""A family written to a folder and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.families import family_from_description
from common.families.saved import load_saved_model, read_family, write_family
from tests.common.families.tabular import TASKS as TABULAR_TASKS
from tests.common.families.tabular import loaded, tabular
from tests.common.families.tiny import TASKS, table, text_family


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    family = text_family("bert")
    write_family(family.describe(), family.assets(), tmp_path / "family")
    description, assets = read_family(tmp_path / "family")
    assert description == family.describe()
    assert assets == family.assets()
    assert family_from_description(description, assets, TASKS).blueprint() == family.blueprint()


@pytest.mark.parametrize("name", ["cross_stitch", "progressive", "adversarial", "ple"])
def test_what_is_read_back_computes_the_same_whatever_the_order_of_names(name: str, tmp_path: Path) -> None:
    """Columns are inputs in the order in which they are declared, and some families read tasks in theirs."""
    tasks = {task: TABULAR_TASKS[task] for task in ("c", "a", "b")}
    inputs = {"numeric": {"two": {}, "one": {"mean": 1.0}}, "categorical": {"z": ["q", "p"], "y": ["r"]}}
    family = tabular(name, tasks, **inputs)
    write_family(family.describe(), {}, tmp_path / "family")
    again = family_from_description(*read_family(tmp_path / "family"), tasks)
    numbers = np.array([[1.0, 2.0], [3.0, 4.0]])
    examples = table("a", {"one": numbers[0], "two": numbers[1], "y": ["r", "s"], "z": ["p", "q"]}, np.arange(2))
    rows = [made.encode("a", examples).collate(np.arange(2)) for made in (family, again)]
    assert torch.equal(rows[0]["features"], rows[1]["features"])
    models = [loaded(made, list(tasks)) for made in (family, again)]
    models[1].load_state_dict(models[0].state_dict())
    for task in tasks:
        assert torch.equal(models[0].eval()(task, rows[0]), models[1].eval()(task, rows[0])), task


@pytest.mark.parametrize("name", ["../out", "a/b", "", "..", "family.json"])
def test_assets_stay_inside_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plain file name"):
        write_family({}, {name: b"x"}, tmp_path / "family")
    assert not (tmp_path / "family").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"description": {}, "assets": ["gone"]}', '{"assets": ["../x"]}'])
def test_a_folder_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("secret")
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "family.json").write_text(content)
    with pytest.raises(ConfigError):
        read_family(folder)
    with pytest.raises(ConfigError):
        load_saved_model(folder)


def test_an_asset_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("secret")
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "family.json").write_text('{"description": {}, "assets": ["../x"]}')
    with pytest.raises(ConfigError, match="no plain file names"):
        read_family(tmp_path / "family")


def test_a_family_without_a_task_is_no_export(tmp_path: Path) -> None:
    family = text_family("bert")
    write_family(family.describe(), family.assets(), tmp_path)
    with pytest.raises(ConfigError, match="no exported task"):
        load_saved_model(tmp_path)
