"""Overrides of the training settings: for whom, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blueprint import Blueprint
from common.errors import ConfigError
from common.training import TrainSettings
from server.config import resolve_config
from server.start import resolved
from server.training_settings import TrainingOverride, changed, changes_for, check_selectors
from tests.common.test_selectors import encoder

BLUEPRINT = Blueprint("text", ("sst2", "qqp"), tuple(encoder(3)))


def overrides(*given: dict[str, Any]) -> list[TrainingOverride]:
    return [TrainingOverride.model_validate(entry) for entry in given]


def load(*given: dict[str, Any], **training: Any) -> Any:  # noqa: ANN401  # a loaded configuration
    data = {
        "model": {"family": "transformer", "encoder": "some/encoder"},
        "tasks": {"sst2": {"use": "sst2"}, "qqp": {"use": "qqp"}},
        "training": training,
        "training_overrides": list(given),
    }
    return resolve_config(data, "my.yaml", Path())


def used(base: TrainSettings, given: list[TrainingOverride], client_id: str, *tasks: str) -> TrainSettings:
    return changed(base, changes_for(given, client_id, tasks))


def test_an_override_is_for_clients_that_fit_its_patterns_and_whose_tasks_are_all_named() -> None:
    given = overrides(
        {"clients": ["bank_*", "hospital"], "set": {"batch_size": 8}},
        {"tasks": ["sst2", "qqp"], "set": {"learning_rate": 2e-5}},
        {"clients": ["*"], "tasks": ["sst2"], "set": {"local_steps": 7}},
    )
    base = TrainSettings()
    assert changes_for(given, "bank_7", ["stsb"]) == {"batch_size": 8}
    assert changes_for(given, "hospital", ["sst2", "stsb"]) == {"batch_size": 8}
    assert changes_for(given, "shop", ["qqp", "sst2"]) == {"learning_rate": 2e-5}
    assert changes_for(given, "hospital", ["sst2"]) == {"batch_size": 8, "learning_rate": 2e-5, "local_steps": 7}
    assert changes_for(given, "shop", ["stsb"]) == {}
    assert used(base, given, "shop", "stsb") is base
    settings = used(base, given, "hospital", "sst2")
    assert (settings.batch_size, settings.learning_rate, settings.local_steps) == (8, 2e-5, 7)
    assert settings.local_epochs is None


def test_the_later_of_two_overrides_counts_also_between_keys_that_exclude_each_other() -> None:
    given = overrides(
        {"clients": ["*"], "set": {"local_steps": 7, "warmup_steps": 3, "batch_size": 4}},
        {"clients": ["a"], "set": {"local_epochs": 2, "warmup": 0.2}},
    )
    base = TrainSettings(local_epochs=3)
    first, both = used(base, given, "b"), used(base, given, "a")
    assert (first.local_epochs, first.local_steps, first.warmup, first.warmup_steps) == (None, 7, None, 3)
    assert (both.local_epochs, both.local_steps, both.warmup, both.warmup_steps) == (2, None, 0.2, None)
    assert both.batch_size == 4


@given(st.lists(st.fixed_dictionaries({"a": st.booleans(), "value": st.integers(1, 9)}), max_size=6))
def test_of_a_key_that_several_set_the_last_one_for_the_client_counts(entries: list[dict[str, Any]]) -> None:
    given = overrides(
        *({"clients": ["a" if entry["a"] else "b"], "set": {"batch_size": entry["value"]}} for entry in entries)
    )
    mine = [entry["value"] for entry in entries if entry["a"]]
    assert used(TrainSettings(batch_size=77), given, "a").batch_size == ([77, *mine])[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"set": {"batch_size": 1}}], "training_overrides.0: give clients, tasks or both"),
        ([{"clients": [], "set": {"batch_size": 1}}], "training_overrides.0.clients:"),
        ([{"clients": ["a"], "set": {}}], "training_overrides.0.set:"),
        ([{"clients": ["a"], "put": {"batch_size": 1}}], "training_overrides.0.put: unknown key"),
        ([{"tasks": ["mnli"], "set": {"batch_size": 1}}], "training_overrides.0.tasks: no such task ['mnli']"),
        (
            [{"clients": ["a"], "set": {"batch_size": 1}}, {"clients": ["b"], "set": {"learning_rate": 0}}],
            "training_overrides.1.set.learning_rate: Input should be greater than 0 (found: 0)",
        ),
        (
            [{"clients": ["a"], "set": {"learn_rate": 1}}],
            "my.yaml: training_overrides.0.set.learn_rate: unknown key; the keys here are batch_size,",
        ),
        (
            [{"clients": ["a"], "set": {"groups": [{"match": "nrms", "learning_rate": 1}]}}],
            "training_overrides.0.set.groups.0.match.0: 'nrms' selects nothing",
        ),
        (
            [{"clients": ["a"], "set": {"momentum": 0.9}}],
            "my.yaml: training_overrides.0.set: momentum (0.9) belongs to optimizer 'sgd'; 'adamw' has its own "
            "(found: {'momentum': 0.9})",
        ),
        (
            [{"clients": ["a"], "set": {"local_epochs": 1, "local_steps": 5}}],
            "training_overrides.0.set: local_epochs (1.0) and local_steps (5) exclude each other",
        ),
        (
            [
                {"clients": ["a*"], "set": {"optimizer": "sgd", "momentum": 0.9}},
                {"tasks": ["qqp"], "set": {"optimizer": "adamw"}},
            ],
            "training_overrides.1.set, together with training_overrides.0.set: momentum (0.9) belongs",
        ),
    ],
)
def test_a_mistake_is_named_by_its_key(given: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(*given)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "whom",
    [
        ({"clients": ["a"]}, {"clients": ["b", "c"]}),
        ({"clients": ["a*"]}, {"clients": ["b"]}),
        ({"tasks": ["sst2"]}, {"clients": ["*"], "tasks": ["qqp"]}),
    ],
)
def test_what_contradicts_itself_but_is_never_for_one_client_is_allowed(whom: tuple[dict[str, Any], ...]) -> None:
    one, other = whom
    sgd, adamw = {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adamw"}
    assert load({**one, "set": sgd}, {**other, "set": adamw}).config.training_overrides
    with pytest.raises(ConfigError, match="together with"):
        load({**one, "set": sgd}, {**one, "set": adamw})


def test_overrides_are_kept_with_the_run() -> None:
    loaded = load({"clients": ["a"], "set": {"groups": [{"match": "norms", "learning_rate": 2}], "warmup_steps": 4}})
    kept = resolve_config(resolved(loaded, "a-run"), "config.yaml", Path())
    assert kept.config.training_overrides == loaded.config.training_overrides
    assert kept.config.training == loaded.config.training


def check(given: list[TrainingOverride] | None = None, **training: Any) -> None:  # noqa: ANN401  # settings
    check_selectors(TrainSettings.model_validate(training), given or [], BLUEPRINT, "my.yaml")


def test_selectors_that_the_model_knows_pass() -> None:
    groups = [{"match": ["layers:0-2", "head:sst2"], "weight_decay": 0.1}, {"match": "norms", "learning_rate": 2}]
    stages = [{"epoch": 0, "open": "heads"}, {"epoch": 0.5, "open": "upper"}]
    check(groups=groups, unfreeze=stages)
    one = {"epoch": 0, "open": "head:sst2"}
    check(overrides({"tasks": ["sst2"], "set": {"unfreeze": [one]}}))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (
            {"groups": [{"match": "norms", "learning_rate": 1}, {"match": ["heads", "layers:3"], "learning_rate": 1}]},
            "training.groups.1.match: 'layers:3' matches no parameter",
        ),
        ({"groups": [{"match": "adapters", "learning_rate": 1}]}, "training.groups.0.match: 'adapters' matches no"),
        ({"groups": [{"match": "norms", "weight_decay": 1}]}, "training.groups.0.weight_decay: norms means biases"),
        ({"unfreeze": [{"epoch": 0, "open": "head:mnli"}]}, "training.unfreeze.0.open: 'head:mnli' matches no"),
        ({"unfreeze": [{"epoch": 0, "open": "head:sst2"}]}, "opens nothing that the tasks ['qqp'] may train"),
    ],
)
def test_a_selector_that_means_nothing_is_named_by_its_key(training: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(**training)
    assert str(raised.value).startswith("my.yaml: training.")
    assert words in str(raised.value)
    with pytest.raises(ConfigError, match=r"my\.yaml: training_overrides\.1\.set\."):
        check(overrides({"clients": ["a"], "set": {"batch_size": 2}}, {"clients": ["a"], "set": training}))


def test_a_loss_weight_of_no_task_is_named() -> None:
    check(loss_weights={"sst2": 2.0})
    with pytest.raises(ConfigError, match=r"my\.yaml: training\.loss_weights: no such task \['sts2'\]"):
        check(loss_weights={"sst2": 2.0, "sts2": 1.0})
    with pytest.raises(ConfigError, match=r"training_overrides\.0\.set\.loss_weights: no such task"):
        check(overrides({"clients": ["a"], "set": {"loss_weights": {"x": 1.0}}}))
