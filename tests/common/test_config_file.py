"""YAML files and overrides; what is wrong is said in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config_file import apply_overrides, read_yaml
from common.errors import ConfigError


def read(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return read_yaml(path)


def test_a_mapping_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a: {b: [1, 2]}\nc: text\n") == {"a": {"b": [1, 2]}, "c": "text"}


def test_merge_keys_work(tmp_path: Path) -> None:
    text = "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n"
    assert read(tmp_path, text)["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "the key 'a' is given twice"),
        ("s:\n  a: 1\n  b: 2\n  a: 3\n", "the key 'a' is given twice"),
        ("? [1, 2]\n: x\n", "cannot be a key"),
        ("- a\n- b\n", "this is list"),
        ("", "this is NoneType"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text)
    assert words in str(raised.value)
    assert "some.yaml" in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: cannot read"):
        read_yaml(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.rounds=5", 5),
        ("run.rounds=2.5", 2.5),
        ("run.rounds=[1, 2]", [1, 2]),
        ("run.rounds=a=b", "a=b"),
        ("run.rounds=", None),
        ("run.rounds=true", True),
    ],
)
def test_overrides_are_yaml_values(override: str, value: object) -> None:
    data = {"run": {"rounds": 1, "seed": 2}}
    assert apply_overrides(data, [override]) == {"run": {"rounds": value, "seed": 2}}
    assert data == {"run": {"rounds": 1, "seed": 2}}, "the original stays"


def test_overrides_make_sections_and_the_last_counts() -> None:
    assert apply_overrides({}, ["a.b.c=1", "a.b.d=2", "a.b.c=3"]) == {"a": {"b": {"c": 3, "d": 2}}}


@pytest.mark.parametrize("override", ["run.rounds", "=5", "run.rounds=[", "run.seed.x=1"])
def test_an_override_that_makes_no_sense_is_named(override: str) -> None:
    with pytest.raises(ConfigError) as raised:
        apply_overrides({"run": {"seed": 1}}, [override])
    assert f"--set {override!r}" in str(raised.value)
