"""The configuration: every file loads, every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from server.aggregation import AggregationConfig
from server.config import load_config, resolve_config
from server.start import resolved

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
            "my.yaml: run.round: unknown key; the keys here are dir, fsync, keep_versions, name, rounds, seed",
        ),
        ({"sever": {}}, "my.yaml: sever: unknown key"),
        ({"federation": {"cohort": {"share": 0.5}}}, "my.yaml: federation.cohort.share: unknown key"),
        ({"run": {"rounds": 0}}, "my.yaml: run.rounds: Input should be greater than or equal to 1 (found: 0)"),
        ({"run": {"rounds": "many"}}, "(found: 'many')"),
        ({"run": {"rounds": 2**31}}, "my.yaml: run.rounds: Input should be less than or equal to 2147483646"),
        ({"run": {"name": ".."}}, "my.yaml: run.name:"),
        ({"federation": {"round_deadline_s": float("inf")}}, "my.yaml: federation.round_deadline_s: Input should be a"),
        ({"server": {"limits": {"silence_s": float("inf")}}}, "my.yaml: server.limits.silence_s: Input should be a"),
        ({"server": {"limits": {"heartbeat_s": 1e-9}}}, "my.yaml: server.limits.heartbeat_s:"),
        ({"federation": {"mode": "mlt"}}, "Input should be 'mtl' or 'per_task' (found: 'mlt')"),
        ({"federation": {"quorum": 1.5}}, "my.yaml: federation.quorum:"),
        ({"federation": {"resident": ["norm"]}}, "'norm' selects nothing: allowed are everything, backbone, heads"),
        (
            {"federation": {"correction": "scaffold"}},
            "scaffold needs training.optimizer: sgd with momentum 0 (found: a",
        ),
        (
            {
                "federation": {"correction": "scaffold"},
                "training": {"optimizer": "sgd", "momentum": 0.9},
            },
            "scaffold needs training.optimizer: sgd with momentum 0 (found: sgd, momentum 0.9)",
        ),
        (
            {"federation": {"correction": "scaffold", "late_updates": "async"}},
            "correction: scaffold is of synchronous rounds",
        ),
        ({"training": {"proximal": -1}}, "my.yaml: training.proximal: Input should be greater than or equal to 0"),
        ({"federation": {"cohort": {"fraction": 0.5, "count": 2}}}, "give fraction or count, not both"),
        ({"federation": {"task_weights": {"sst2": 1, "qqp": -1}}}, "task_weights must be positive and finite"),
        ({"federation": {"task_weights": {"sst2": 1, "qqp": float("inf")}}}, "Input should be a finite number"),
        ({"federation": {"task_weights": {"sst2": 1}}}, "federation.task_weights: give a weight for each of"),
        ({"federation": {"task_weights": {"sst2": 1, "qqp": 1, "x": 1}}}, "['qqp', 'sst2']"),
        (
            {"federation": {"aggregation": {"use": {"method": "krum"}}}},
            "my.yaml: federation.aggregation.use.krum.byzantine: this key is required",
        ),
        ({"server": {"port": 70000}}, "my.yaml: server.port:"),
        ({"server": {"tls": {"cert": "c.pem"}}}, "my.yaml: server.tls.key: this key is required"),
        ({"server": {"auth": {"token": "t"}}}, "my.yaml: server.auth.token: unknown key; the keys here are tokens"),
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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104  # asked about
def test_an_address_that_others_reach_loads_but_is_not_loopback(host: str) -> None:
    assert not load(server={"host": host}).config.server.on_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_an_address_of_this_machine_alone_is_loopback(host: str) -> None:
    assert load(server={"host": host}).config.server.on_loopback


def test_files_of_the_server_lie_beside_the_configuration() -> None:
    given = {"tls": {"cert": "c.pem", "key": "/keys/k.pem"}, "auth": {"tokens": "../tokens.json"}}
    data: dict[str, Any] = {"model": MODEL, "tasks": {"sst2": {"use": "sst2"}}, "server": given}
    server = resolve_config(data, "my.yaml", Path("/etc/fedmtl")).config.server
    assert server.tls is not None
    assert (server.tls.cert, server.tls.key) == (Path("/etc/fedmtl/c.pem"), Path("/keys/k.pem"))
    assert server.tls.client_ca is None
    assert server.auth.tokens == Path("/etc/fedmtl/../tokens.json")


def test_overrides_reach_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {family: transformer, encoder: x}\ntasks: {sst2: {use: sst2}}\nrun: {rounds: 3}\n")
    loaded = load_config(path, ["run.rounds=7", "server.limits.heartbeat_s=0.5"])
    assert loaded.config.run.rounds == 7
    assert loaded.config.server.limits.heartbeat_s == 0.5
    with pytest.raises(ConfigError, match=rf"{path}: run\.rund: unknown key"):
        load_config(path, ["run.rund=7"])


def test_aggregation_is_kept_with_the_run_as_it_was_configured() -> None:
    given = {
        "use": {"method": "trimmed_mean", "trim": 0.3},
        "per_slot": [{"match": "head.*", "use": {"method": "norm_clipping", "bound": 2.0}}],
    }
    loaded = load(federation={"aggregation": given})
    kept = resolve_config(resolved(loaded, "a-run"), "config.yaml", Path())
    assert kept.config.federation.aggregation == loaded.config.federation.aggregation
    assert kept.config.federation.aggregation == AggregationConfig.model_validate(given)
