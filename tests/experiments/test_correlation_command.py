"""``python -m experiments correlation``: what it writes and prints."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from experiments.__main__ import app


def call(folder: Path, *more: str) -> Result:
    tiny = [
        "--inputs",
        "3",
        "--train-rows",
        "256",
        "--test-rows",
        "9",
        "--steps",
        "2",
        "--threads",
        "1",
        "--seeds",
        "2",
    ]
    named = ["--values", "-0.1,0.9", "--families", "shared_bottom,single_task", "--learning-rates", "1e-2"]
    return CliRunner().invoke(app, ["correlation", "--out", str(folder), *tiny, *named, *more])


def test_the_result_is_a_file_and_the_last_line(tmp_path: Path) -> None:
    found = call(tmp_path, "--json")
    assert found.exit_code == 0, found.output
    assert "Shared bottom is worse at |p| <= 0.1 than at p = 0.9" in found.stdout
    written = json.loads((tmp_path / "correlation.json").read_text())
    assert json.loads(found.stdout.splitlines()[-1]) == written
    assert written["kind"] == "correlation"
    assert written["settings"]["correlations"] == [0.9, -0.1]
    assert len(written["cells"]) == 8
    assert written["cells"][0].keys() >= {
        "family", "correlation", "label_correlation", "seed", "learning_rate", "test_loss", "train_loss", "parameters",
    }  # fmt: skip
    assert [relation["name"] for relation in written["relations"]] == ["shared_bottom_worse_when_unlike"]


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    assert call(tmp_path).exit_code == 0
    found = call(tmp_path, "--steps", "3")
    assert found.exit_code == 2
    assert "steps 2 there, 3 now" in found.stderr


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    found = call(tmp_path, "--values", "0.5,high")
    assert found.exit_code == 2
    assert "--values: '0.5,high'" in found.stderr


def test_families_may_stand_side_by_side(tmp_path: Path) -> None:
    # All that are given are wanted, not only the last.
    found = call(tmp_path, "--families", "omoe", "nonesuch")
    assert found.exit_code == 2
    assert "['nonesuch'] unknown" in found.stderr
