"""Where results are to go is looked at before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError
from experiments.__main__ import app
from experiments.out_folder import made_folder, made_place


def test_folders_are_made_as_deep_as_asked_for(tmp_path: Path) -> None:
    assert made_folder(tmp_path / "a" / "b").is_dir()
    assert made_place(tmp_path / "c" / "report.html") == tmp_path / "c" / "report.html"
    assert (tmp_path / "c").is_dir()


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="taken/out can't be made"):
        made_folder(tmp_path / "taken" / "out")


def test_a_folder_where_a_file_should_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder; name the file"):
        made_place(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--dataset", "nowhere.yaml"),
        ("baselines", "--dataset", "nowhere.yaml"),
        ("dynamics", "--dataset", "nowhere.yaml"),
        ("correlation",),
        ("report", "nowhere"),
    ],
)
def test_no_command_computes_what_it_can_not_write(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "taken").write_text("")
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "taken" / "out")])
    assert done.exit_code == 2
    assert "can't be made" in done.stderr
