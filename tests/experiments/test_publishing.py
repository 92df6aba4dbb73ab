"""What becomes of results, whatever happens to one of the places that they go to."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from experiments import publishing
from experiments.results import TrainResult
from tests.experiments.test_tracking import RESULT


def test_a_tracking_store_that_fails_loses_no_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(result: TrainResult) -> None:
        del result
        raise OSError("file is not a database\nand more")

    monkeypatch.setattr(publishing, "keep", fails)
    with caplog.at_level(logging.WARNING, logger="fedmtl.experiments"):
        publishing.publish([RESULT, RESULT], tmp_path, track=True, as_json=True)
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["results"]) == 2
    assert json.loads((tmp_path / "mmoe-people-s3.json").read_text())["test"] == RESULT.test
    assert "mmoe-people-s3 is not tracked: MLflow's store fails: OSError: file is not a database" in caplog.text
