"""Admission with real processes and sockets: who is let in, who is not, and what it takes to operate a run."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from common.messages import PROTOCOL_VERSION, Chunk, Finished, Hello, Refusal, Rejected, UpdateAck, Welcome
from server.tokens import TokenStore
from tests.certificates import Authority, Files
from tests.e2e.configs import small
from tests.e2e.peers import Peer, peer, work_done
from tests.e2e.programs import PATIENCE_S, Programs, Server

TASKS = ["sst2", "qqp"]


def issue(programs: Programs, *words: str) -> str:
    """A token, by the command, for the run directory of the test."""
    command = programs.command("server", "tokens", "add", *words, "--run-dir", str(programs.folder / "run"))
    token = command.line()
    assert command.wait() == 0, command.log()
    return token


def config(**sections: Any) -> dict[str, Any]:  # noqa: ANN401  # of the configuration
    return small(TASKS, **{"federation": {"min_clients": 1}, **sections})


async def refusal(address: str, client_id: str, tls: ssl.SSLContext | None = None, **hello: Any) -> str:  # noqa: ANN401
    """The code with which the server refuses a hello; empty when it says welcome."""
    async with connect(address, compression=None, proxy=None, ssl=tls) as socket:
        bare = Peer(socket)
        await bare.send(Hello(protocol=(PROTOCOL_VERSION,), client_id=client_id, **hello))
        answer = await bare.receive()
        assert isinstance(answer, Refusal | Welcome)
        return answer.code if isinstance(answer, Refusal) else ""


async def test_tokens_say_who_takes_part_in_what(programs: Programs) -> None:
    alice = issue(programs, "--client-id", "alice", "--tasks", "sst2")
    bob = issue(programs, "--client-id", "bob", "--tasks", "sst2", "qqp")
    boss = issue(programs, "--operator", "--name", "carol")
    old = issue(programs, "--client-id", "old", "--all-tasks")
    _expire(programs.folder / "run" / "tokens.json", "old")
    server = programs.server(config())
    for client_id, token, tasks, code in (
        ("alice", None, ["sst2"], "authentication"),
        ("alice", "guessed", ["sst2"], "authentication"),
        ("alice", alice[:-1] + "!", ["sst2"], "authentication"),
        ("alice", bob, ["sst2"], "authentication"),
        ("alice", boss, ["sst2"], "authentication"),
        ("old", old, ["sst2"], "authentication"),
        ("alice", alice, ["qqp"], "task_not_allowed"),
        ("alice", alice, ["sst2", "qqp"], "task_not_allowed"),
        ("bob", bob, [], "unknown_task"),
        ("alice", alice, [], ""),
        ("bob", bob, ["qqp", "sst2"], ""),
    ):
        found = await refusal(server.address, client_id, token=token, tasks=tuple(tasks))
        assert found == code, (client_id, tasks, server.log())
    assert await refusal(server.address, "alice", token=alice, sync="full") == "task_not_allowed"
    for secret in (alice, bob, boss, old):
        assert secret.split("_", 2)[2] not in server.log()


def _expire(path: Path, client_id: str) -> None:
    document = json.loads(path.read_text())
    for token in document["tokens"]:
        if token["client_id"] == client_id:
            token["expires"] = token["created"]
    path.write_text(json.dumps(document))


def test_a_real_client_takes_part_with_its_token_and_ends_with_4_without(programs: Programs) -> None:
    token = issue(programs, "--client-id", "hospital", "--tasks", "sst2")
    server = programs.server(config(run={"rounds": 1}))
    for words in ([], ["--token", "fmtl_guessed"], ["--token", token, "--tasks", "qqp"]):
        stranger = programs.client(server, "hospital", *words)
        assert stranger.wait() == 4, stranger.log()
    assert programs.client(server, "clinic", "--token", token).wait() == 4
    assert programs.client(server, "hospital", "--token", token).wait() == 0
    assert server.wait() == 0
    assert server.summary()["history"][-1]["participants"] == ["hospital"]


async def test_a_revoked_client_is_sent_away_and_its_update_is_not_taken(programs: Programs) -> None:
    """One that listens hears why; one that goes on sending, without reading, gets nothing into the model."""
    tokens = {name: issue(programs, "--client-id", name, "--tasks", "sst2") for name in ("polite", "deaf", "other")}
    rules = {"min_clients": 3, "evaluate": "none", "quorum": 0.1, "rejoin_grace_s": 0.2}
    server = programs.server(config(run={"rounds": 1}, federation=rules))
    async with peer(server.address) as polite, peer(server.address) as deaf, peer(server.address) as other:
        for bare, name in ((polite, "polite"), (deaf, "deaf"), (other, "other")):
            await bare.join(name, token=tokens[name])
        for bare in (polite, deaf, other):
            await bare.take_work()
        store = TokenStore(programs.folder / "run" / "tokens.json")
        store.revoke(lambda token: token.client_id != "other")
        assert deaf.work is not None
        await deaf.send_update(work_done(deaf.work, ["sst2"], "deaf"))
        verdict = await deaf.expect(Rejected, skip=(Chunk, Refusal))
        assert verdict.code == "authentication"
        told = await polite.expect(Refusal)
        assert told.code == "authentication"
        assert "revoked" in told.reason
        await polite.socket.wait_closed()
        assert await refusal(server.address, "polite", token=tokens["polite"]) == "authentication"
        assert other.work is not None
        await other.send_update(work_done(other.work, ["sst2"], "other"))
        await other.expect(Finished, skip=(Chunk, UpdateAck))
    assert await asyncio.to_thread(server.wait) == 0
    assert server.summary()["history"][1]["participants"] == ["other"]


async def test_open_off_loopback_is_refused_before_anything_is_made(programs: Programs, tmp_path: Path) -> None:
    everywhere = config(server={"host": "0.0.0.0"})  # noqa: S104  # refused
    server = programs.server(everywhere, ready=False)
    assert server.wait() == 2
    assert server.line() == ""
    for words in ("0.0.0.0", "tokens add", "--tls-client-ca", "--allow-anonymous"):  # noqa: S104
        assert words in server.log()
    assert not (tmp_path / "run").exists()


async def test_what_changes_a_run_or_gives_out_weights_needs_an_operator(programs: Programs) -> None:
    client = issue(programs, "--client-id", "alice", "--all-tasks")
    boss = issue(programs, "--operator", "--name", "carol")
    server = programs.server(config())
    paths = [("GET", "models/sst2"), ("POST", "pause"), ("POST", "resume"), ("POST", "clients/alice/release")]
    async with httpx.AsyncClient(base_url=f"{server.url}/api/v1/", trust_env=False, timeout=PATIENCE_S) as http:
        for method, path in paths:
            for token, status in ((None, 401), ("guessed", 401), (client, 403)):
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                answer = await http.request(method, path, headers=headers)
                assert answer.status_code == status, (method, path, token)
                assert ("www-authenticate" in answer.headers) is (status == 401)
        known = {"Authorization": f"Bearer {boss}"}
        assert (await http.get("models/sst2", headers=known)).status_code == 200
        assert (await http.post("pause", headers=known | {"Origin": "http://evil.example"})).status_code == 403
        for open_path in ("status", "rounds", "clients", "plan"):
            assert (await http.get(open_path)).status_code == 200
    command = programs.command("server", "pause", "--url", server.url, "--token", client)
    assert command.wait() == 4
    assert "403" in command.log()


async def test_a_page_of_another_site_opens_no_federation_socket(programs: Programs) -> None:
    server = programs.server(config())
    port = server.url.rpartition(":")[2]
    for origin in ("http://evil.example", f"http://evil.example:{port}", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus) as raised:
            async with connect(server.address, additional_headers={"Origin": origin}, proxy=None):
                pass
        assert raised.value.response.status_code == 403
    async with connect(server.address, additional_headers={"Origin": server.url}, proxy=None):
        pass


@asynccontextmanager
async def _encrypted(programs: Programs, authority: Authority, *words: str) -> AsyncIterator[Server]:
    files = authority.server()
    yield programs.server(config(), "--tls-cert", str(files.cert), "--tls-key", str(files.key), *words)


async def test_tls_proves_the_server(programs: Programs, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    token = issue(programs, "--client-id", "alice", "--tasks", "sst2")
    async with _encrypted(programs, authority) as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert server.address.startswith("wss://")
        assert await refusal(server.address, "alice", authority.trusted(), token=token) == ""
        assert await refusal(server.address, "alice", authority.trusted()) == "authentication"
        with pytest.raises(ssl.SSLCertVerificationError):
            await refusal(server.address, "alice", Authority(tmp_path / "other").trusted(), token=token)
        old = authority.trusted()
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        assert await refusal(server.address, "alice", old, token=token) == ""
        with pytest.raises((OSError, WebSocketException)):
            await refusal(server.address.replace("wss", "ws"), "alice", token=token)
        status = programs.command("server", "status", "--url", server.url, "--ca", str(authority.ca))
        assert status.wait() == 0, status.log()
        untrusted = programs.command("server", "status", "--url", server.url)
        assert untrusted.wait() == 3
        assert "--ca FILE" in untrusted.log()


async def test_mutual_tls_binds_a_client_to_its_certificate(programs: Programs, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    alice, bob = authority.client("alice"), authority.client("host-7", "bob")
    async with _encrypted(programs, authority, "--tls-client-ca", str(authority.ca)) as server:

        async def answer(client_id: str, own: Files | None) -> str:
            return await refusal(server.address, client_id, authority.trusted(own), tasks=("sst2",))

        assert [await answer("alice", alice), await answer("bob", bob), await answer("host-7", bob)] == ["", "", ""]
        assert [await answer("bob", alice), await answer("alice", bob)] == ["authentication"] * 2
        for own in (None, Authority(tmp_path / "stranger").client("alice")):
            with pytest.raises((OSError, WebSocketException)):
                await answer("alice", own)
        # What the paths of the API say goes to holders of a certificate only; weights to operators alone.
        context = authority.trusted(alice)
        async with httpx.AsyncClient(verify=context, base_url=server.url, trust_env=False) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/api/v1/models/sst2")).status_code == 401
            boss = issue(programs, "--operator", "--name", "carol")
            known = {"Authorization": f"Bearer {boss}"}
            assert (await http.get("/api/v1/models/sst2", headers=known)).status_code == 200
        assert await answer("alice", alice) == "", "an operator's token does not lock the clients out"


def test_tls_files_that_do_not_work_are_told_before_anything_starts(programs: Programs, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    files, other = authority.server(), authority.server("other")
    for words, told in (
        (["--tls-cert", str(files.cert)], "--tls-key is missing"),
        (["--tls-cert", str(files.cert), "--tls-key", str(other.key)], "is not the private key"),
        (["--tls-cert", str(files.cert), "--tls-key", str(tmp_path / "nowhere")], "server.tls.key: cannot read"),
    ):
        server = programs.server(config(), *words, ready=False)
        assert server.wait() == 2
        assert told in server.log()
        assert not (tmp_path / "run").exists()


async def test_a_resumed_run_asks_for_what_it_asked_for_before(programs: Programs, tmp_path: Path) -> None:
    """`--resume --run-dir` alone finds certificates and tokens again, whatever the paths were relative to."""
    authority = Authority(tmp_path / "ca")
    files = authority.server()
    tokens = TokenStore(tmp_path / "secrets" / "t.json")
    token, _ = tokens.add("client", "alice", ["sst2"])
    settings = {"tls": {"cert": "ca/server.pem", "key": str(files.key)}, "auth": {"tokens": "secrets/t.json"}}
    first = programs.server(config(server=settings))
    assert await refusal(first.address, "alice", authority.trusted(), token=token) == ""
    await _killed(first)
    again = programs.server(None, "--resume")
    assert again.address.startswith("wss://")
    assert await refusal(again.address, "alice", authority.trusted(), token=token) == ""
    assert await refusal(again.address, "alice", authority.trusted()) == "authentication"
    await _killed(again)
    tokens.path.unlink()
    last = programs.server(None, "--resume", ready=False)
    assert await asyncio.to_thread(last.wait) == 2
    assert "t.json" in last.log()


async def _killed(server: Server) -> None:
    server.signal(signal.SIGKILL)
    assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
