"""What every client is told when it comes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from common.families import build_family
from common.messages import Hello, Welcome
from common.wire import decode_frame, encode_frame
from server.config import LoadedConfig, load_config
from server.welcome import Introduction

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def loaded() -> LoadedConfig:
    """The demo's configuration."""
    return load_config(DEMO)


@pytest.fixture(scope="module")
def introduction(loaded: LoadedConfig) -> Introduction:
    """Of the demo."""
    family = build_family(loaded.config.model, loaded.specs, base_dir=loaded.base_dir)
    return Introduction(loaded.config, loaded.specs, family, "run-1")


def greeted(introduction: Introduction, sync: str = "slice") -> Welcome:
    hello = Hello.model_validate({"protocol": (1,), "client_id": "sst2_client", "sync": sync}, strict=False)
    welcome = introduction.welcome(hello, frozenset({"sst2"}), 1, "raw", "raw")
    assert decode_frame(encode_frame(welcome)) == welcome, "it travels"
    return welcome


def test_a_client_is_told_its_own_tasks(introduction: Introduction, loaded: LoadedConfig) -> None:
    welcome = greeted(introduction)
    assert (welcome.run_id, welcome.client_id, welcome.tasks) == ("run-1", "sst2_client", ("sst2",))
    assert welcome.specs == {"sst2": loaded.specs["sst2"].model_dump(mode="json")}
    assert (welcome.seed, welcome.target_rounds) == (loaded.config.run.seed, loaded.config.run.rounds)
    limits = loaded.config.server.limits
    assert (welcome.heartbeat_s, welcome.silence_s) == (limits.heartbeat_s, limits.silence_s)
    assert welcome.chunk_bytes == limits.chunk_bytes


def test_a_client_of_the_whole_model_is_told_all_tasks_and_trains_its_own(introduction: Introduction) -> None:
    welcome = greeted(introduction, "full")
    assert welcome.specs.keys() == {"sst2", "qqp", "stsb"}
    assert welcome.tasks == ("sst2",)


def test_assets_are_listed_with_their_hashes(introduction: Introduction) -> None:
    welcome = greeted(introduction)
    assert len({asset.stream for asset in welcome.assets}) == len(welcome.assets) == len(introduction.assets) > 0
    for asset in welcome.assets:
        content = introduction.assets[asset.name]
        assert (asset.nbytes, asset.sha256) == (len(content), hashlib.sha256(content).hexdigest())
