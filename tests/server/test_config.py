"""The configuration: every file loads, every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from server.config import load_config, resolve_config

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = {"family": "transformer", "encoder": "some/encoder"}
INLINE = {"config": {"model_type": "bert"}, "tokenizer": "synthetic-words"}


def load(**sections: Any) -> Any:  # noqa: ANN401  # a loaded configuration
    data: dict[str, Any] = {"model": MODEL, "tasks": {"sst2": {"use": "sst2"}, "qqp": {"use": "qqp"}}}
    return resolve_config(data | sections, "my.yaml", Path())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    loaded = load_config(path)
    assert loaded.specs
    assert loaded.base_dir == CONFIGS.resolve()


def test_the_defaults() -> None:
    config = load().config
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8771)
    assert config.federation.mode == "mtl"
    assert config.federation.task_weights == "uniform"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"run": {"round": 5}},
            "my.yaml: run.round: unknown key; the keys here are dir, keep_versions, name, rounds, seed",
        ),
        ({"sever": {}}, "my.yaml: sever: unknown key"),
        ({"federation": {"cohort": {"share": 0.5}}}, "my.yaml: federation.cohort.share: unknown key"),
        ({"run": {"rounds": 0}}, "my.yaml: run.rounds: Input should be greater than or equal to 1 (found: 0)"),
        ({"run": {"rounds": "many"}}, "(found: 'many')"),
        ({"federation": {"mode": "mlt"}}, "Input should be 'mtl' or 'per_task' (found: 'mlt')"),
        ({"federation": {"quorum": 1.5}}, "my.yaml: federation.quorum:"),
        ({"federation": {"cohort": {"fraction": 0.5, "count": 2}}}, "give fraction or count, not both"),
        ({"federation": {"task_weights": {"sst2": 1, "qqp": -1}}}, "task_weights must be positive and finite"),
        ({"federation": {"task_weights": {"sst2": 1, "qqp": float("inf")}}}, "positive and finite"),
        ({"federation": {"task_weights": {"sst2": 1}}}, "federation.task_weights: give a weight for each of"),
        ({"federation": {"task_weights": {"sst2": 1, "qqp": 1, "x": 1}}}, "['qqp', 'sst2']"),
        ({"server": {"port": 70000}}, "my.yaml: server.port:"),
        (
            {"server": {"limits": {"inflight_bytes": 20 << 20}}},
            "inflight_bytes (20971520) must be at least 33554432, twice the longest frame",
        ),
        ({"server": {"limits": {"heartbeat_s": 3}}}, "silence_s (4.5) must be at least twice heartbeat_s (3.0)"),
        ({"server": {"limits": {"chunk_bytes": 4100}}}, "my.yaml: server.limits.chunk_bytes:"),
        ({"server": {"limits": {"control_bytes": 1 << 25}}}, "my.yaml: server.limits.control_bytes:"),
        ({"tasks": {}}, "my.yaml: tasks:"),
        ({"model": {"family": "forest"}}, "my.yaml: model"),
        ({"model": {**MODEL, "encoder": INLINE, "revision": "main"}}, "my.yaml: model"),
        ({"run": {"name": "a/b"}}, "my.yaml: run.name:"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_value(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(**sections)
    assert words in str(raised.value)
    assert "my.yaml" in str(raised.value)
    assert raised.value.exit_code == 2


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        load(run={"rounds": 0, "sed": 1})
    assert len(str(raised.value).splitlines()) == 2


def test_a_section_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml: model: this key is required"):
        resolve_config({"tasks": {"sst2": {"use": "sst2"}}}, "my.yaml", Path())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104  # refused
def test_off_loopback_only_when_told(host: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.allow_anonymous: true"):
        load(server={"host": host})
    assert load(server={"host": host, "allow_anonymous": True}).config.server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_word(host: str) -> None:
    assert load(server={"host": host}).config.server.host == host


def test_overrides_reach_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {family: transformer, encoder: x}\ntasks: {sst2: {use: sst2}}\nrun: {rounds: 3}\n")
    loaded = load_config(path, ["run.rounds=7", "server.limits.heartbeat_s=0.5"])
    assert loaded.config.run.rounds == 7
    assert loaded.config.server.limits.heartbeat_s == 0.5
    with pytest.raises(ConfigError, match=rf"{path}: run\.rund: unknown key"):
        load_config(path, ["run.rund=7"])
