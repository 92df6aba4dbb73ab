"""Tokens: no secret is kept, two commands at once lose nothing, a changed file counts, a broken one admits none."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from server.tokens import LiveTokens, StoredToken, TokenStore, find, utc_now


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "run" / "tokens.json")


def test_the_secret_is_shown_and_not_kept(store: TokenStore) -> None:
    token, record = store.add("client", "alice", ["sst2"])
    prefix, token_id, secret = token.split("_", 2)
    assert (prefix, token_id) == ("fmtl", record.id)
    assert len(secret) == 43, "32 random bytes"
    kept = store.path.read_text()
    assert secret not in kept
    assert hashlib.sha256(secret.encode()).hexdigest() in kept
    assert store.read() == {record.id: record}
    assert store.add("client", "alice", ["sst2"])[0] != token


def test_only_the_owner_reads_the_file_whatever_the_umask_and_a_temporary_file_left_behind(store: TokenStore) -> None:
    store.path.parent.mkdir()
    store.path.with_name("tokens.json.tmp").write_text("left by a crash, open to all")
    store.path.with_name("tokens.json.tmp").chmod(0o666)
    store.add("operator", "bob")
    store.add("operator", "carol")
    for file in store.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_find_knows_a_token_by_its_secret_alone(store: TokenStore) -> None:
    token, record = store.add("client", "alice", "*")
    other, _ = store.add("client", "mallory", ["qqp"])
    tokens = store.read()
    assert find(token, tokens) == record
    # alice's id with mallory's secret, cut short, too long, nothing, an id nobody has
    for wrong in (
        token[:18] + other[18:],
        token[:-1],
        token + "x",
        token.upper(),
        None,
        "",
        "fmtl_" + "0" * 12 + token[17:],
        "\x00é" * 20,
    ):
        assert find(wrong, tokens) is None, wrong


@given(st.text())
def test_find_takes_any_text_for_nobody(text: str) -> None:
    assert find(text, {}) is None


def test_an_unknown_id_is_compared_like_a_known_one(store: TokenStore) -> None:
    token, _ = store.add("client", "alice", ["sst2"])
    with patch("server.tokens.hmac.compare_digest", return_value=False) as compare:
        for presented in (token, "fmtl_" + "0" * 12 + token[17:], "no token", None):
            find(presented, store.read())
    assert compare.call_count == 4
    assert {len(part) for call in compare.call_args_list for part in call.args} == {64}


def test_a_token_ends_when_it_expires_or_is_revoked(store: TokenStore) -> None:
    now = utc_now()
    _, record = store.add("client", "alice", ["sst2"], now + timedelta(hours=1))
    assert record.state(now) == "active"
    assert record.state(now + timedelta(hours=1)) == "expired"
    (revoked,) = store.revoke(lambda token: token.client_id == "alice")
    assert revoked.state(now) == "revoked"
    assert store.revoke(lambda _: True) == [], "it is revoked already"
    assert store.read()[record.id].revoked == revoked.revoked


def _add_some(path: Path, name: str) -> None:
    for number in range(8):
        TokenStore(path).add("client", f"{name}.{number}", ["sst2"])


def test_commands_at_once_lose_nothing(store: TokenStore) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_some, args=(store.path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert {token.client_id for token in store.read().values()} == {f"{n}.{i}" for n in "abc" for i in range(8)}


@pytest.mark.parametrize(
    "change",
    [
        {"secret_sha256": "abc"},
        {"role": "admin"},
        {"tasks": []},
        {"tasks": "sst2"},
        {"client_id": "a b"},
        {"expires": "tomorrow"},
        {"expires": "2030-01-01T00:00:00"},
        {"role": "operator"},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_record_that_is_not_one_is_refused_without_showing_the_file(store: TokenStore, change: object) -> None:
    store.add("client", "alice", ["sst2"])
    document = json.loads(store.path.read_text())
    digest = document["tokens"][0]["secret_sha256"]
    document["tokens"][0] |= change
    store.path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="is not a file of tokens") as raised:
        store.read()
    assert str(store.path) in str(raised.value)
    assert digest not in str(raised.value)
    with pytest.raises(ConfigError):
        store.add("client", "bob", ["sst2"])
    assert json.loads(store.path.read_text()) == document, "a file that is not understood is left as it is"


def test_two_records_of_one_id_are_refused(store: TokenStore) -> None:
    store.add("client", "alice", ["sst2"])
    document = json.loads(store.path.read_text())
    document["tokens"] *= 2
    store.path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="two tokens have one id"):
        store.read()


def test_a_running_server_sees_what_the_commands_change(store: TokenStore) -> None:
    token, record = store.add("client", "alice", ["sst2"])
    live = LiveTokens(store.path)
    assert find(token, live.current()) == record
    second, _ = store.add("client", "bob", ["sst2"])
    assert find(second, live.current()) is not None
    store.revoke(lambda token: token.id == record.id)
    assert live.current()[record.id].state(utc_now()) == "revoked"


def test_an_unchanged_file_is_not_read_again(store: TokenStore) -> None:
    store.add("client", "alice", ["sst2"])
    live = LiveTokens(store.path)
    live.current()
    with patch("server.tokens.parse_tokens") as parse:
        assert len(live.current()) == 1
    parse.assert_not_called()


def test_a_file_that_breaks_while_the_server_runs_lets_nobody_in_and_says_so_once(
    store: TokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.add("client", "alice", ["sst2"])
    live = LiveTokens(store.path)
    assert live.current()
    good = store.path.read_bytes()
    for spoil in (lambda: store.path.write_bytes(good[: len(good) // 2]), store.path.unlink, store.path.mkdir):
        caplog.clear()
        spoil()
        assert (live.current(), live.current(), live.broken) == ({}, {}, True)
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "nobody is let in" in errors[0].getMessage()
    store.path.rmdir()
    store.path.write_bytes(good)
    assert live.current()
    assert not live.broken


def test_a_record_says_which_moment_it_means() -> None:
    record = StoredToken(
        id="0" * 12, secret_sha256="0" * 64, role="operator", client_id="a", created=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert '"2026-01-01T00:00:00Z"' in record.model_dump_json()
