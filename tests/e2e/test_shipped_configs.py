"""The files in configs/: each loads; the census runs on the real UCI files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.families.config import TransformerConfig
from server.config import load_config
from tests.e2e.programs import ROOT, Programs

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DATA = Path(os.environ.get("FEDMTL_DATA", ROOT.parent / "shared" / "data")).resolve()


def test_the_configurations_that_the_readme_names_are_there() -> None:
    assert {path.name for path in CONFIGS} >= {
        "demo.yaml",
        "glue.yaml",
        "glue-local.yaml",
        "census.yaml",
        "census-kdd.yaml",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_loads_and_says_how_to_use_it(path: Path) -> None:
    loaded = load_config(path)
    assert loaded.config.federation.min_clients == len(loaded.specs), "one client per task, as its comment says"
    lines = path.read_text().splitlines()
    for program in ("server", "client"):
        assert any(line.startswith("#") and f"python -m {program} --" in line for line in lines)


def test_the_hub_configuration_asks_the_hub() -> None:
    loaded = load_config(ROOT / "configs" / "glue.yaml")
    assert isinstance(loaded.config.model, TransformerConfig)
    assert loaded.config.model.encoder == "prajjwal1/bert-tiny"
    assert [spec.source for spec in loaded.specs.values()] == [
        f"hub dataset nyu-mll/glue ({task})" for task in ("sst2", "qqp", "stsb")
    ]


@pytest.mark.skipif(
    not (DATA / "census_income" / "adult.data").exists(),
    reason=f"no UCI Adult under {DATA}; FEDMTL_DATA names the folder that holds census_income/",
)
def test_the_census_learns_on_real_rows(programs: Programs) -> None:
    """configs/census.yaml as it is, but for fewer rows and rounds; client ids name the tasks."""
    overrides = ["server.port=0", "run.rounds=2", "training.batch_size=32"]
    overrides += [
        f"tasks.{task}.data.limits={{train: 3000, validation: 2000}}" for task in ("income", "marital_status")
    ]
    words = [word for override in overrides for word in ("--set", override)]
    server = programs.server(None, "--config", str(ROOT / "configs" / "census.yaml"), *words)
    clients = [programs.client(server, f"{task}_client", "--data", str(DATA)) for task in ("income", "marital_status")]
    assert [client.wait() for client in clients] == [0, 0]
    assert server.wait() == 0
    summary = server.summary()
    assert summary["model"]["family"] == "shared_bottom"
    assert summary["data"]["income_client"]["income"]["train"] == 3000
    assert "adult.data" in summary["data"]["income_client"]["income"]["source"]
    for task in ("income", "marital_status"):
        before, after = summary["history"][0]["tasks"][task], summary["tasks"][task]
        assert after["examples"] == 2000
        assert after["auc"] > 0.8, "a tree on these columns reaches about 0.9"
        assert after["loss"] < before["loss"]
