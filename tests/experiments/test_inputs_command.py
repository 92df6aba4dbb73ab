"""The sections that are printed are those that a model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.families.tabular_config import SingleTaskConfig
from experiments.inputs_command import WIDTH, command


def test_what_is_printed_of_a_table_is_a_model_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"a rather long value no. {i}" for i in range(12)]
    rows = [f"{i},{i % 2},{words[i % 12]},{['yes', 'no', '-'][i % 3]},{i % 2}" for i in range(48)]
    (tmp_path / "t.csv").write_text("\n".join(["age,code,words,yes,left", *rows]))
    command(str(tmp_path / "t.csv"), leave_out=["left"], numeric=["code"], missing="-")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    printed = yaml.safe_load(text)
    assert list(printed["numeric"]) == ["age", "code"]
    assert printed["categorical"] == {"words": sorted(words), "yes": ["no", "yes"]}
    config = SingleTaskConfig(family="single_task", **printed)
    assert (config.missing, config.numeric["code"].mean) == ("-", 0.5)


def test_of_a_problem_its_own_inputs_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("adult.data", "adult.test"):
        (tmp_path / name).write_text("")
    command("adult", tmp_path)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["categorical"]["sex"] == ["Female", "Male"]
    assert "marital_status" not in printed["categorical"]
