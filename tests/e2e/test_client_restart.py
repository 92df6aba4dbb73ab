"""A client process that dies and is started again: its finished update is sent, an unfinished one redone to the bit."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.configs import small
from tests.e2e.peers import events, until
from tests.e2e.programs import Program, Programs, Server

CLIENTS = ("sst2_client", "qqp_client")
#: A dead client is waited for, so that the rounds have the same participants as those of an undisturbed run.
SECTIONS: dict[str, Any] = {
    "run": {"rounds": 2},
    "federation": {"min_clients": 2, "rejoin_grace_s": 60.0},
    "training": {"local_steps": 4},
}
CONFIG = small(["sst2", "qqp"], **SECTIONS)


def digest(server: Server) -> str:
    """Of the last version's file."""
    newest = max((server.run_dir / "model").glob("round-*.safetensors"))
    return hashlib.sha256(newest.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the model that nothing disturbed."""
    programs = Programs(tmp_path_factory.mktemp("undisturbed"))
    try:
        server = programs.server(CONFIG)
        clients = [programs.client(server, client_id) for client_id in CLIENTS]
        assert [program.wait() for program in (*clients, server)] == [0, 0, 0]
        return digest(server)
    finally:
        programs.end()


def kept(programs: Programs) -> list[Path]:
    return sorted(programs.state_dir.rglob("*.update"))


def trained(*lives: Program) -> int:
    return sum(program.log().count("sst2 trained on") for program in lives)


def killed_at(programs: Programs, server: Server, point: str) -> Program:
    """The sst2 client, killed where told."""
    first = programs.client(server, "sst2_client", failpoint=f"{point}=kill")
    programs.client(server, "qqp_client")
    assert first.wait() == -signal.SIGKILL
    return first


def see_through(programs: Programs, server: Server) -> Program:
    """Start the killed client again, and see the run end well."""
    again = programs.client(server, "sst2_client")
    assert again.wait() == 0
    assert server.wait() == 0
    return again


@pytest.mark.parametrize("point", ["client.kept", "client.update_half_sent", "client.update_sent"])
def test_a_finished_update_is_sent_after_a_restart_and_nothing_is_trained_again(
    programs: Programs, undisturbed: str, point: str
) -> None:
    server = programs.server(CONFIG)
    first = killed_at(programs, server, point)
    assert len(kept(programs)) == 1
    again = see_through(programs, server)
    assert trained(first, again) == 2, "one training per round, whatever was killed"
    assert digest(server) == undisturbed
    assert kept(programs) == [], "what the server has is not kept"


@pytest.mark.parametrize("point", ["client.training", "client.keeping"])
def test_what_was_not_finished_is_trained_again_to_the_same_bits(
    programs: Programs, undisturbed: str, point: str
) -> None:
    server = programs.server(CONFIG)
    killed_at(programs, server, point)
    assert kept(programs) == []
    see_through(programs, server)
    assert digest(server) == undisturbed
    assert [path for path in programs.state_dir.rglob("*") if path.is_file()] == [
        programs.state_dir / client_id / ".lock" for client_id in sorted(CLIENTS, reverse=True)
    ]


@pytest.mark.parametrize("damage", ["torn", "altered"])
def test_a_kept_update_that_is_damaged_is_trained_again_to_the_same_bits(
    programs: Programs, undisturbed: str, damage: str
) -> None:
    server = programs.server(CONFIG)
    first = killed_at(programs, server, "client.kept")
    [path] = kept(programs)
    content = bytearray(path.read_bytes())
    if damage == "torn":
        del content[-1000:]
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    again = see_through(programs, server)
    assert "a kept update is of no use, round 1 is trained again" in again.log()
    assert trained(first, again) == 3
    assert digest(server) == undisturbed


def test_a_full_disk_does_not_end_the_run(programs: Programs, undisturbed: str, tmp_path: Path) -> None:
    server = programs.server(CONFIG)
    full = {"FEDMTL_FAILPOINT_WHILE": str(tmp_path)}
    clients = [
        programs.client(server, client_id, failpoint="client.keeping=enospc", environment=full) for client_id in CLIENTS
    ]
    assert [program.wait() for program in (*clients, server)] == [0, 0, 0]
    assert "could not be kept" in clients[0].log()
    assert "No space left on device" in clients[0].log()
    assert digest(server) == undisturbed
    assert not [path for path in programs.state_dir.rglob("*.*") if path.name != ".lock"]


async def test_a_suspended_client_comes_back_by_itself(programs: Programs, undisturbed: str) -> None:
    """SIGSTOP for longer than the silence limit, as by a laptop's sleep: the server gives the connection up."""
    config = small(["sst2", "qqp"], **{**SECTIONS, "server": {"limits": {"silence_s": 3.0}}})
    server = programs.server(config)
    feed = events(server.url)
    await until(feed, "status")
    sleeper = programs.client(server, "sst2_client")
    await until(feed, "client_joined", client_id="sst2_client")
    sleeper.signal(signal.SIGSTOP)
    await until(feed, "client_left", client_id="sst2_client")
    other = programs.client(server, "qqp_client")
    await until(feed, "client_joined", client_id="qqp_client")
    sleeper.signal(signal.SIGCONT)
    codes = [await asyncio.to_thread(program.wait) for program in (sleeper, other, server)]
    assert codes == [0, 0, 0]
    assert "sst2_client has been silent for 3" in server.log()
    assert digest(server) == undisturbed
    assert trained(sleeper) == 2
