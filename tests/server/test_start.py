"""What a resumed run may be resumed with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.errors import ConfigError
from server.config import load_config
from server.start import require_same_run, resolved

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_goes_on_with_its_own_configuration_and_other_keys_of_the_process(path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "config.yaml"
    kept.write_text(yaml.safe_dump(resolved(load_config(path), "some-run")))
    assert require_same_run(load_config(path), kept) == "some-run"
    require_same_run(load_config(path, ["run.rounds=99", "server.port=0", "federation.min_clients=1"]), kept)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("run.seed=12345", "run.seed"),
        ("federation.mode=per_task", "federation.mode"),
        ("model.dropout=0.5", "model"),
        ("tasks.sst2.data.train=7", "tasks"),
    ],
)
def test_a_configuration_that_makes_another_run_is_refused_by_key(change: str, key: str, tmp_path: Path) -> None:
    demo, kept = next(path for path in CONFIGS if path.stem == "demo"), tmp_path / "config.yaml"
    kept.write_text(yaml.safe_dump(resolved(load_config(demo), "some-run")))
    with pytest.raises(ConfigError, match=rf"demo.yaml: {key}: not what the run"):
        require_same_run(load_config(demo, [change]), kept)
