"""The `tokens` commands: what they print, where the file lies, what they refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from common.errors import ConfigError
from server.tokens import TokenStore, find
from server.tokens_command import app, parse_expiry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def configured(folder: Path, **sections: Any) -> Path:  # noqa: ANN401  # of the configuration
    path = folder / "c.yaml"
    data = {"model": {"family": "transformer", "encoder": "x"}, "tasks": {t: {"use": t} for t in ("sst2", "qqp")}}
    path.write_text(yaml.safe_dump(data | sections))
    return path


def test_add_prints_the_token_alone_so_that_a_script_can_take_it(tmp_path: Path) -> None:
    result = run("add", "--client-id", "alice", "--tasks", "sst2", "qqp", "--expires", "30d", "--run-dir", tmp_path)
    assert result.exit_code == 0
    record = find(result.stdout.strip(), TokenStore(tmp_path / "tokens.json").read())
    assert record is not None
    assert (record.role, record.client_id, record.tasks) == ("client", "alice", ("sst2", "qqp"))
    assert record.expires is not None
    assert record.expires - record.created == pytest.approx(timedelta(days=30), abs=timedelta(minutes=1))


@pytest.mark.parametrize(
    ("words", "tasks"),
    [
        (["--tasks", "b,a", "b"], ("b", "a")),
        (["--tasks", "a", "--tasks", "b"], ("a", "b")),
        (["--all-tasks"], "*"),
    ],
)
def test_tasks_are_given_in_any_of_the_usual_ways(words: list[str], tasks: object, tmp_path: Path) -> None:
    assert run("add", "--client-id", "alice", *words, "--run-dir", tmp_path).exit_code == 0
    assert [token.tasks for token in TokenStore(tmp_path / "tokens.json").read().values()] == [tasks]


def test_what_scripts_read_holds_no_secret_but_the_new_tokens_own(tmp_path: Path) -> None:
    added = json.loads(run("add", "--operator", "--name", "carol", "--run-dir", tmp_path, "--json").stdout)
    assert (added["role"], added["client_id"], added["state"]) == ("operator", "carol", "active")
    shown = [run("list", "--run-dir", tmp_path, *words).stdout for words in ((), ("--json",))]
    shown.append(run("revoke", "--name", "carol", "--run-dir", tmp_path, "--json").stdout)
    kept = (tmp_path / "tokens.json").read_text()
    for text in (*shown, kept):
        assert added["id"] in text
        assert added["token"].split("_", 2)[2] not in text
    digest = json.loads(kept)["tokens"][0]["secret_sha256"]
    assert not any(digest in text for text in shown)
    assert json.loads(shown[1])[0]["state"] == "active"
    assert json.loads(shown[2])[0]["state"] == "revoked"


def test_revoke_takes_all_of_a_client_or_one(tmp_path: Path) -> None:
    for words in (("--client-id", "x"), ("--client-id", "x"), ("--client-id", "y")):
        run("add", *words, "--all-tasks", "--run-dir", tmp_path)
    run("add", "--operator", "--name", "x", "--run-dir", tmp_path)
    store = TokenStore(tmp_path / "tokens.json")

    def active() -> list[tuple[str, str]]:
        return [(token.role, token.client_id) for token in store.read().values() if token.revoked is None]

    first = next(iter(store.read()))
    assert run("revoke", "--id", first, "--run-dir", tmp_path).exit_code == 0
    assert active() == [("client", "x"), ("client", "y"), ("operator", "x")]
    assert run("revoke", "--client-id", "x", "--run-dir", tmp_path).exit_code == 0
    assert active() == [("client", "y"), ("operator", "x")]
    assert run("revoke", "--client-id", "x", "--run-dir", tmp_path).exit_code == 0, "again"
    assert run("revoke", "--name", "x", "--run-dir", tmp_path).exit_code == 0
    assert active() == [("client", "y")]


def test_the_file_is_where_a_server_with_this_configuration_looks(tmp_path: Path) -> None:
    named = configured(tmp_path, server={"auth": {"tokens": "secret/t.json"}}, run={"dir": str(tmp_path / "r")})
    add = ("add", "--client-id", "a", "--tasks", "sst2", "--config")
    assert run(*add, named).exit_code == 0
    assert (tmp_path / "secret" / "t.json").exists()
    assert run(*add, configured(tmp_path, run={"dir": str(tmp_path / "r")})).exit_code == 0
    assert (tmp_path / "r" / "tokens.json").exists()
    assert run(*add, configured(tmp_path), "--run-dir", tmp_path / "q").exit_code == 0
    assert (tmp_path / "q" / "tokens.json").exists()


def test_a_run_that_exists_says_itself_where_its_tokens_are_and_which_tasks_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    configured(tmp_path, server={"auth": {"tokens": str(elsewhere)}}).rename(tmp_path / "config.yaml")
    assert run("add", "--client-id", "a", "--tasks", "mnli", "--run-dir", tmp_path).exit_code == 2
    assert "no task mnli; this run has: qqp, sst2" in caplog.text
    assert run("add", "--client-id", "a", "--tasks", "sst2", "--run-dir", tmp_path).exit_code == 0
    assert elsewhere.exists()
    assert not (tmp_path / "tokens.json").exists()


def test_the_first_token_beside_a_running_server_says_that_it_does_not_ask_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "server.json").write_text("{}")
    for _ in range(2):
        run("add", "--client-id", "a", "--all-tasks", "--run-dir", tmp_path)
    assert caplog.text.count("from its next start") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "--client-id", "a"], "--all-tasks"),
        (["add", "--client-id", "a", "--tasks", "x", "--all-tasks"], "--all-tasks"),
        (["add", "--tasks", "x"], "--client-id ID"),
        (["add", "--client-id", "a b", "--tasks", "x"], "letters"),
        (["add", "--operator"], "--name NAME"),
        (["add", "--operator", "--name", "é"], "letters"),
        (["add", "--operator", "--name", "a", "--tasks", "x"], "no client id or tasks"),
        (["add", "--client-id", "a", "--name", "b", "--tasks", "x"], "whose token"),
        (["add", "--client-id", "a", "--tasks", "x", "--expires", "soon"], "30d"),
        (["revoke"], "--id ID"),
        (["revoke", "--id", "x", "--name", "y"], "one of"),
        (["revoke", "--client-id", "nobody"], "no such token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_makes_no_sense_ends_with_2_and_says_why(
    words: list[str], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(*words, "--run-dir", tmp_path).exit_code == 2
    assert told in caplog.text
    assert not (tmp_path / "tokens.json").exists()


def test_a_run_has_to_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run("list").exit_code == 2
    assert "--run-dir DIR or --config FILE" in caplog.text
    assert run("list", "--config", configured(tmp_path)).exit_code == 2
    assert "set server.auth.tokens to a file, or run.dir" in caplog.text


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", NOW + timedelta(minutes=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("30d", NOW + timedelta(days=30)),
        ("8w", NOW + timedelta(weeks=8)),
        ("2026-03-02", datetime(2026, 3, 2, tzinfo=UTC)),
        ("2026-03-01T15:00", datetime(2026, 3, 1, 15, tzinfo=UTC)),
        ("2026-03-01T15:00+02:00", datetime(2026, 3, 1, 13, tzinfo=UTC)),
    ],
)
def test_when_a_token_ends(text: str, moment: datetime) -> None:
    assert parse_expiry(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "0d", "2026-03-01", "30", "d", "-1d", "1y", "999999w", "2026-13-01", "٣d"])
def test_no_end_that_is_past_or_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--expires"):
        parse_expiry(text, NOW)


@given(st.text())
def test_any_text_is_an_end_in_the_future_or_an_error_of_ours(text: str) -> None:
    try:
        moment = parse_expiry(text, NOW)
    except ConfigError:
        return
    assert moment > NOW
