"""A disk that fills up pauses the run; when there is room it goes on by itself and ends with the undisturbed model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from common.failpoints import WHILE_VARIABLE
from tests.e2e.peers import PATIENCE_S, events, until
from tests.e2e.programs import Programs, Server
from tests.faults.small_run import ROUNDS, config, finish, start_clients, trained

#: Where a write may find no room: in the spool, and on the way of a version to the disk.
POINTS = ("spool.written", "commit.written", "commit.synced", "commit.recording", "commit.recorded", "summary.written")


async def paused(server: Server) -> dict[str, str]:
    """Wait for the pause; returns what the status says of it."""
    async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        async for _ in events(server.url):  # each is a reason to look
            status = (await http.get("/api/v1/status")).json()
            if status["state"] == "paused":
                reasons: dict[str, str] = status["paused_for"]
                return reasons
    raise AssertionError(f"it never paused:\n{server.log()}")


@pytest.mark.parametrize("point", POINTS)
async def test_a_write_without_room_waits_for_it(programs: Programs, right: str, point: str, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.touch()
    environment = {WHILE_VARIABLE: str(full)}
    # Version 0 is written before anybody is there to be paused for.
    server = programs.server(config(), failpoint=f"{point}=enospc@3", environment=environment)
    clients = start_clients(programs, server)
    assert "storage" in await paused(server)
    full.unlink()
    assert await asyncio.to_thread(finish, server, clients) == right
    assert [trained(client) for client in clients] == [list(range(1, ROUNDS + 1))] * 3, "no training was thrown away"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S607


def fill(ballast: Path) -> None:
    """Until not a byte fits."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


async def test_a_real_disk_that_fills_up_and_is_freed(programs: Programs, right: str, small_disk: Path) -> None:
    server = programs.server(config(), run_dir=small_disk / "run")
    feed = events(server.url)
    await until(feed, "status")
    clients = start_clients(programs, server)
    await until(feed, "evaluated", version=0)
    ballast = small_disk / "ballast"
    fill(ballast)
    reasons = await paused(server)
    assert "free some room" in reasons["storage"]
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        assert (await http.get("/healthz")).status_code == 200
    ballast.unlink()
    assert await asyncio.to_thread(finish, server, clients) == right
    assert "the run goes on" in server.log()
    assert "Traceback" not in server.log()


async def test_a_server_that_starts_on_a_full_disk_loses_nothing(
    programs: Programs, right: str, small_disk: Path
) -> None:
    """It says so and ends; with room it goes on from where the run was."""
    first = programs.server(config(), run_dir=small_disk / "run")
    feed = events(first.url)
    await until(feed, "status")
    clients = start_clients(programs, first)
    await until(feed, "evaluated", version=1)
    first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, 15.0) == 0
    ballast = small_disk / "ballast"
    fill(ballast)
    port = first.url.rpartition(":")[2]
    arguments = ("--resume", "--set", f"server.port={port}")
    early = programs.server(None, *arguments, run_dir=small_disk / "run", ready=False)
    if not early.came_up():
        assert await asyncio.to_thread(early.wait) == 2
        assert "Traceback" not in early.log()
        ballast.unlink()
        early = programs.server(None, *arguments, run_dir=small_disk / "run")
    else:
        ballast.unlink()
    assert await asyncio.to_thread(finish, early, clients) == right
    assert "resuming from version" in early.log()
    assert list((small_disk / "run").glob("run.db.damaged*")) == []


async def test_a_server_stopped_while_its_disk_is_full_goes_on_later(
    programs: Programs, right: str, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.touch()
    server = programs.server(config(), failpoint="commit.synced=enospc@3", environment={WHILE_VARIABLE: str(full)})
    clients = start_clients(programs, server)
    await paused(server)
    server.signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait, 10.0) == 0
    again = programs.server(None, "--resume", "--set", f"server.port={server.url.rpartition(':')[2]}")
    assert await asyncio.to_thread(finish, again, clients) == right
