"""Which version of a run is exported; what is in the folder is `tests.server.test_export`'s matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from server.export_run import export_run


@pytest.mark.parametrize(
    ("version", "summary", "words"),
    [
        ("best", None, "summary.json can't be read"),
        ("best", {"best": {}}, "no version of mood has been evaluated yet"),
        ("best", {"best": {"mood": {"version": 7}}}, "--version best: on disk are round-00000"),
        ("newest", None, "--version newest: allowed are best, last, or the number of a version"),
    ],
)
def test_a_version_that_cannot_be_found_is_refused(version: str, summary: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("run.db", "model/round-00000.safetensors"):
        (tmp_path / name).touch()
    task = {"kind": "classification", "text": "t", "labels": ["a", "b"]}
    (tmp_path / "config.yaml").write_text(json.dumps({"tasks": {"mood": task}}))
    if summary is not None:
        (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError) as caught:
        export_run(tmp_path, "mood", tmp_path / "out", version)
    assert words in str(caught.value)
