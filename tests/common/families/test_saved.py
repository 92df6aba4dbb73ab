"""A family written to a folder and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.families import family_from_description
from common.families.saved import load_saved_model, read_family, write_family
from tests.common.families.tiny import TASKS, text_family


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    family = text_family("bert")
    write_family(family.describe(), family.assets(), tmp_path / "family")
    description, assets = read_family(tmp_path / "family")
    assert description == family.describe()
    assert assets == family.assets()
    assert family_from_description(description, assets, TASKS).blueprint() == family.blueprint()


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
