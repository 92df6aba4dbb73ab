"""Admission: tokens bind id and tasks, refusals tell strangers nothing, and no server is open by accident."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, ProtocolError
from server.authentication import Authenticator, Credentials, OperatorRefused, build_authenticator
from server.config import ServerConfig
from server.tls import Peer
from server.tokens import LiveTokens, TokenStore, utc_now

TASKS = ("sst2", "qqp", "stsb")
HERE = Peer("192.0.2.7")


def certified(name: str) -> Peer:
    return Peer("192.0.2.7", {"subject": ((("organizationName", "x"),), (("commonName", name),))})


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "tokens.json")


def asking(store: TokenStore, **options: Any) -> Authenticator:  # noqa: ANN401  # of Authenticator
    return Authenticator(TASKS, LiveTokens(store.path), **options)


def refusal(of: Authenticator, token: str | None, client_id: str, *tasks: str, peer: Peer = HERE) -> tuple[str, str]:
    with pytest.raises(ProtocolError) as raised:
        of.client(token, client_id, tasks, peer)
    return raised.value.code, raised.value.reason


def test_a_token_admits_its_client_to_its_tasks(store: TokenStore) -> None:
    token, record = store.add("client", "alice", ["sst2", "qqp"])
    gate = asking(store)
    assert gate.on
    admitted = gate.client(token, "alice", ["qqp"], HERE)
    assert admitted.tasks == {"qqp"}
    assert admitted.credentials == Credentials(record.id)
    assert gate.client(token, "alice", ["qqp", "sst2"], HERE).tasks == {"qqp", "sst2"}


def test_a_token_does_not_admit_another_id_or_task(store: TokenStore) -> None:
    token, _ = store.add("client", "alice", ["sst2", "qqp"])
    gate = asking(store)
    code, reason = refusal(gate, token, "bob", "sst2")
    assert code == "authentication"
    assert "alice" not in reason
    code, reason = refusal(gate, token, "alice", "sst2", "stsb")
    assert (code, reason) == ("task_not_allowed", "the token is not for stsb, but for: qqp, sst2")
    assert refusal(gate, token, "alice", "mnli")[0] == "unknown_task"


def test_a_stranger_cannot_tell_a_wrong_secret_from_an_unknown_id_and_hears_of_no_task(store: TokenStore) -> None:
    token, _ = store.add("client", "alice", ["sst2"])
    other, _ = store.add("client", "bob", ["sst2"])
    gate = asking(store)
    wrong = [token[:18] + other[18:], "fmtl_" + "0" * 12 + token[17:], "nonsense"]
    answers = {refusal(gate, presented, "alice", "no_such_task") for presented in wrong}
    assert len(answers) == 1
    ((code, reason),) = answers
    assert code == "authentication"
    assert "tokens add" in reason
    assert "--token" in reason
    assert not re.search("sst2|qqp|stsb", reason)
    for nothing in (None, ""):
        assert "asks for a token" in refusal(gate, nothing, "alice")[1]


def test_an_operators_token_does_not_take_part(store: TokenStore) -> None:
    token, _ = store.add("operator", "alice")
    assert refusal(asking(store), token, "alice", "sst2")[0] == "authentication"


@pytest.mark.parametrize(
    ("client_id", "allowed", "expected"),
    [
        ("hospital", ["qqp"], {"qqp"}),
        ("sst2_site", ["sst2", "qqp"], {"sst2"}),
        ("sst2_qqp", ["sst2", "stsb"], {"sst2"}),
        ("hospital", ["sst2", "qqp"], None),
        ("sst2_qqp", ["sst2", "qqp"], None),
        ("stsb_site", "*", {"stsb"}),
        ("hospital", "*", None),
        ("hospital", ["of_another_run"], None),
        ("hospital", ["of_another_run", "sst2"], {"sst2"}),
    ],
)
def test_without_tasks_the_token_says_them_where_it_leaves_one_choice(
    store: TokenStore, client_id: str, allowed: Sequence[str], expected: set[str] | None
) -> None:
    token, _ = store.add("client", client_id, "*" if allowed == "*" else allowed)
    if expected is None:
        assert refusal(asking(store), token, client_id)[0] == "unknown_task"
    else:
        assert asking(store).client(token, client_id, (), HERE).tasks == expected


def test_the_whole_model_needs_a_token_for_all_tasks(store: TokenStore) -> None:
    some, _ = store.add("client", "alice", ["sst2", "qqp"])
    every, _ = store.add("client", "alice", "*")
    listed, _ = store.add("client", "alice", TASKS)
    gate = asking(store)
    with pytest.raises(ProtocolError, match=r"task_not_allowed: the whole model .*sync slice"):
        gate.client(some, "alice", ["sst2"], HERE, whole_model=True)
    for token in (every, listed):
        assert gate.client(token, "alice", ["sst2"], HERE, whole_model=True).tasks == {"sst2"}


def test_an_expired_or_revoked_token_is_refused_and_ends_what_it_admitted(store: TokenStore) -> None:
    now = [utc_now()]

    def clock() -> datetime:
        return now[0]

    short, _ = store.add("client", "alice", ["sst2"], now[0] + timedelta(hours=1))
    long, record = store.add("client", "alice", ["sst2"])
    gate = asking(store, now=clock)
    admitted = [gate.client(token, "alice", (), HERE).credentials for token in (short, long)]
    assert [gate.still_valid(each) for each in admitted] == [True, True]
    now[0] += timedelta(hours=1)
    assert [gate.still_valid(each) for each in admitted] == [False, True]
    assert "has expired" in refusal(gate, short, "alice")[1]
    store.revoke(lambda token: token.id == record.id)
    assert [gate.still_valid(each) for each in admitted] == [False, False]
    assert "was revoked" in refusal(gate, long, "alice")[1]


def test_a_file_that_breaks_lets_nobody_in_and_throws_nobody_out(store: TokenStore) -> None:
    token, _ = store.add("client", "alice", ["sst2"])
    boss, _ = store.add("operator", "boss")
    for mutual in (False, True):
        gate, peer = asking(store, mutual_tls=mutual), certified("alice")
        credentials = gate.client(token, "alice", (), peer).credentials
        good = store.path.read_bytes()
        for spoil in (lambda: store.path.write_bytes(b"{"), store.path.unlink):
            spoil()
            assert gate.still_valid(credentials), "who is in stays: it may be back in a second"
            assert refusal(gate, token, "alice", peer=peer)[0] == "authentication"
            assert refusal(gate, None, "alice", peer=peer)[0] == "authentication"
            with pytest.raises(OperatorRefused):
                gate.operator(f"Bearer {boss}", peer)
        store.path.write_bytes(good)
        assert gate.still_valid(credentials)


def test_failed_operators_are_reported_with_their_address(store: TokenStore) -> None:
    token, _ = store.add("client", "alice", ["sst2"])
    boss, _ = store.add("operator", "boss")
    gate = asking(store)
    failures: list[str] = []
    gate.on_failure = failures.append
    gate.operator(f"Bearer {boss}", HERE)
    assert failures == []
    for header, peer in ((f"Bearer {token}", Peer("2001:db8::1")), (None, HERE)):
        with pytest.raises(OperatorRefused):
            gate.operator(header, peer)
    assert failures == ["2001:db8::1", "192.0.2.7"]


# --- certificates


def test_mutual_tls_binds_the_client_id_to_the_certificate(tmp_path: Path) -> None:
    gate = Authenticator(TASKS, LiveTokens(tmp_path / "tokens.json", may_come=True), mutual_tls=True)
    assert gate.client(None, "alice", ["qqp"], certified("alice")).tasks == {"qqp"}
    assert gate.still_valid(Credentials())
    for peer in (certified("bob"), certified("alice.example"), Peer(), Peer("x", {})):
        assert refusal(gate, None, "alice", "qqp", peer=peer)[0] == "authentication"
    dns: Mapping[str, Any] = {"subjectAltName": (("DNS", "other"), ("DNS", "alice"), ("IP Address", "192.0.2.1"))}
    assert gate.client(None, "alice", ["qqp"], Peer("", dns)).tasks == {"qqp"}
    assert refusal(gate, None, "192.0.2.1", "qqp", peer=Peer("", dns))[0] == "authentication"


def test_under_mutual_tls_a_clients_token_is_asked_once_there_is_one(store: TokenStore) -> None:
    gate = Authenticator(TASKS, LiveTokens(store.path, may_come=True), mutual_tls=True)
    boss, _ = store.add("operator", "boss")
    assert gate.client(None, "alice", ["qqp"], certified("alice")).tasks == {"qqp"}
    assert gate.operator(f"Bearer {boss}", HERE) == "boss"
    token, record = store.add("client", "alice", ["sst2"])
    assert refusal(gate, None, "alice", "qqp", peer=certified("alice"))[0] == "authentication"
    assert refusal(gate, token, "alice", "sst2", peer=certified("bob"))[0] == "authentication"
    assert gate.client(token, "alice", (), certified("alice")).tasks == {"sst2"}
    store.revoke(lambda token: token.id == record.id)
    assert refusal(gate, None, "alice", "qqp", peer=certified("alice"))[0] == "authentication"


# --- operators


def test_operators_are_known_by_name(store: TokenStore) -> None:
    token, _ = store.add("operator", "carol")
    gate = asking(store)
    for header in (f"Bearer {token}", f"bearer   {token} "):
        assert gate.operator(header, HERE) == "carol"


def test_who_is_no_operator_gets_401_or_403(store: TokenStore) -> None:
    boss, record = store.add("operator", "carol")
    client, _ = store.add("client", "carol", "*")
    old, _ = store.add("operator", "dave", (), utc_now() - timedelta(seconds=1))
    gate = asking(store)

    def status(header: str | None) -> int:
        with pytest.raises(OperatorRefused) as raised:
            gate.operator(header, HERE)
        return raised.value.status

    assert status(f"Bearer {client}") == 403
    for header in (None, "", "Bearer", f"Basic {boss}", boss, f"Bearer {boss[:-1]}", f"Bearer {old}"):
        assert status(header) == 401, header
    store.revoke(lambda token: token.id == record.id)
    assert status(f"Bearer {boss}") == 401


# --- what is decided at start


def test_on_loopback_it_just_works(tmp_path: Path) -> None:
    gate = build_authenticator(ServerConfig(), tmp_path / "run", TASKS)
    assert not gate.on
    assert gate.client(None, "sst2_client", (), HERE).tasks == {"sst2"}
    assert gate.client("whatever", "x", ["qqp"], HERE, whole_model=True).tasks == {"qqp"}
    assert gate.operator(None, HERE) == "anonymous"
    assert refusal(gate, None, "x")[0] == "unknown_task"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104  # nothing listens
def test_off_loopback_it_starts_only_with_authentication_or_when_told(host: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError) as raised:
        build_authenticator(ServerConfig(host=host), run, TASKS)
    for words in (host, "tokens add", str(run), "server.auth.tokens", "--tls-client-ca", "--allow-anonymous"):
        assert words in str(raised.value)
    assert not build_authenticator(ServerConfig(host=host, allow_anonymous=True), run, TASKS).on
    mutual = ServerConfig.model_validate({"host": host, "tls": {"cert": "c", "key": "k", "client_ca": "a"}})
    assert build_authenticator(mutual, run, TASKS).on
    with pytest.raises(ConfigError, match="allow_anonymous"):
        build_authenticator(ServerConfig.model_validate({"host": host, "tls": {"cert": "c", "key": "k"}}), run, TASKS)
    TokenStore(run / "tokens.json").add("client", "alice", ["sst2"])
    assert build_authenticator(ServerConfig(host=host), run, TASKS).on
    assert build_authenticator(ServerConfig(host=host, allow_anonymous=True), run, TASKS).on
    assert build_authenticator(ServerConfig(), run, TASKS).on, "on loopback too"


def test_tokens_that_are_named_have_to_be_there(tmp_path: Path) -> None:
    named = ServerConfig.model_validate({"auth": {"tokens": tmp_path / "nowhere.json"}})
    with pytest.raises(ConfigError, match=r"nowhere\.json: the file of tokens can't be used"):
        build_authenticator(named, tmp_path, TASKS)
    (tmp_path / "tokens.json").write_text("{}x")
    with pytest.raises(ConfigError, match=r"tokens\.json: the file of tokens can't be used"):
        build_authenticator(ServerConfig(allow_anonymous=True), tmp_path, TASKS)
    (tmp_path / "tokens.json").unlink()
    (tmp_path / "tokens.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="can't be used"):
        build_authenticator(ServerConfig(), tmp_path, TASKS)


def test_tokens_in_the_clear_are_warned_of(store: TokenStore, caplog: pytest.LogCaptureFixture) -> None:
    store.add("client", "alice", ["sst2"])
    build_authenticator(ServerConfig(host="192.0.2.1"), store.path.parent, TASKS)
    assert "unencrypted" in caplog.text
    caplog.clear()
    build_authenticator(ServerConfig(), store.path.parent, TASKS)
    assert "unencrypted" not in caplog.text
