from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client import token_cache
from client.token_cache import TokenCache, default_cache_dir
from common.data.examples import Examples
from common.errors import ConfigError
from common.families.base import EncodedSplit, Family
from common.families.encoded_text import EncodedText
from tests.client.tiny_family import TinyFamily
from tests.common.families.tiny import WORDS, text_family, texts

FAMILY = text_family()


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def tokens_of(folder: Path) -> Path:
    (path,) = folder.rglob("*.tokens")
    return path


def same(one: EncodedSplit, other: EncodedSplit) -> bool:
    assert isinstance(one, EncodedText)
    assert isinstance(other, EncodedText)
    every = np.arange(len(one))
    left, right = one.collate(every), other.collate(every)
    return (
        left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
        and torch.equal(one.labels, other.labels)
        and one.labels.dtype == other.labels.dtype
        and (one.lengths == other.lengths).all()
        and (one.weights is None) == (other.weights is None)
        and (one.weights is None or other.weights is None or torch.equal(one.weights, other.weights))
    )


class Counting:
    """A family that counts how often it tokenises."""

    def __init__(self, family: Family = FAMILY) -> None:
        self.family, self.times = family, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.family, name)

    def encode(self, task: str, examples: Examples) -> EncodedSplit:
        self.times += 1
        return self.family.encode(task, examples)


@pytest.mark.parametrize("task", ["sst2", "qqp", "stsb"])
def test_the_second_time_rows_are_mapped_and_not_tokenised(task: str, tmp_path: Path) -> None:
    family = Counting()
    cache = TokenCache(tmp_path, worthwhile_rows=1)
    first = cache.encode(family, task, texts(task))  # type: ignore[arg-type]
    again = TokenCache(tmp_path, worthwhile_rows=1).encode(family, task, texts(task))  # type: ignore[arg-type]
    assert family.times == 1
    assert same(first, again)
    weighted = replace(texts(task), weights=np.arange(len(texts(task)), dtype=np.float32))
    assert same(cache.encode(family, task, weighted), FAMILY.encode(task, weighted))  # type: ignore[arg-type]
    assert same(FAMILY.encode(task, texts(task)), again)
    assert isinstance(again, EncodedText)
    assert not again.ids.flags.writeable
    assert [path.stat().st_mode & 0o077 for path in files(tmp_path)] == [0, 0]


def test_other_texts_tasks_lengths_and_tokenizers_have_files_of_their_own(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, worthwhile_rows=1)
    cache.encode(FAMILY, "sst2", texts("sst2"))
    cache.encode(FAMILY, "sst2", texts("sst2", [*WORDS[:-1], "bad"]))
    cache.encode(FAMILY, "qqp", texts("qqp"))
    cache.encode(text_family(max_length=16), "sst2", texts("sst2"))
    cache.encode(text_family("roberta"), "qqp", texts("qqp"))
    assert len(list(tmp_path.rglob("*.tokens"))) == 5
    cache.encode(text_family("minilm"), "sst2", texts("sst2"))  # another encoder, the same ids
    assert len(list(tmp_path.rglob("*.tokens"))) == 5


@given(
    one=st.lists(st.text(max_size=4), min_size=1, max_size=4),
    other=st.lists(st.text(max_size=4), min_size=1, max_size=4),
)
def test_different_rows_have_different_digests(one: list[str], other: list[str]) -> None:
    one, other = ([text.encode(errors="replace").decode() for text in rows] for rows in (one, other))
    assert (token_cache._digest("k", [one]) == token_cache._digest("k", [other])) == (one == other)


@pytest.mark.parametrize("damage", ["cut", "one byte", "other file", "empty"])
def test_a_damaged_file_is_told_and_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TokenCache(tmp_path, worthwhile_rows=1)
    wanted = cache.encode(FAMILY, "qqp", texts("qqp"))
    path = tokens_of(tmp_path)
    content = path.read_bytes()
    damaged = {
        "cut": content[:-5],
        "one byte": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "other file": b"something else altogether, but long enough",
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert same(cache.encode(FAMILY, "qqp", texts("qqp")), wanted)
    assert "made again" in caplog.text
    assert path.read_bytes() == content


def test_few_rows_and_families_without_a_key_leave_no_file(tmp_path: Path) -> None:
    TokenCache(tmp_path).encode(FAMILY, "sst2", texts("sst2"))
    family = TinyFamily()
    assert family.encoding_key("mood") is None
    TokenCache(None, worthwhile_rows=1).encode(FAMILY, "sst2", texts("sst2"))
    assert files(tmp_path) == []


def test_a_folder_that_can_not_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file", worthwhile_rows=1)
    with caplog.at_level(logging.WARNING):
        assert same(cache.encode(FAMILY, "sst2", texts("sst2")), FAMILY.encode("sst2", texts("sst2")))
    assert "could not be kept" in caplog.text


def test_a_folder_that_can_only_be_read_serves_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    TokenCache(tmp_path, worthwhile_rows=1).encode(FAMILY, "sst2", texts("sst2"))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    family = Counting()
    with caplog.at_level(logging.WARNING):
        found = TokenCache(tmp_path, worthwhile_rows=1).encode(family, "sst2", texts("sst2"))  # type: ignore[arg-type]
    assert same(found, FAMILY.encode("sst2", texts("sst2")))
    assert family.times == 0
    assert not caplog.text


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TokenCache(tmp_path, worthwhile_rows=1)
    cache.encode(FAMILY, "sst2", texts("sst2"))
    oldest = tokens_of(tmp_path)
    monkeypatch.setattr(token_cache, "LIMIT_BYTES", oldest.stat().st_size)
    cache.encode(FAMILY, "sst2", texts("sst2", ["fine"]))
    assert not oldest.exists()
    assert tokens_of(tmp_path) != oldest


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "fedmtl"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "fedmtl"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home.")))
    with pytest.raises(ConfigError, match="--cache-dir"):
        default_cache_dir()
