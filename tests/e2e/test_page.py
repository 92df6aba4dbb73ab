"""The status page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.configs import TASKS, small
from tests.e2e.programs import PATIENCE_S, Programs, Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def rendered(server: Server, profile: Path) -> str:
    """The page's document after its scripts have run for three seconds of the browser's time."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def wait_for_clients(server: Server) -> None:
    """Read the server's events until every task's client has joined."""
    with httpx.stream("GET", f"{server.url}/api/v1/events", timeout=PATIENCE_S) as events:
        for line in events.iter_lines():
            if line.startswith("data: ") and len(httpx.get(f"{server.url}/api/v1/clients").json()) == len(TASKS):
                return


def test_the_page_shows_the_run_its_clients_and_every_metric(programs: Programs, tmp_path: Path) -> None:
    # Four clients are wanted and three come, so that the run waits while the page is looked at.
    server = programs.server(small(federation={"min_clients": 4}, run={"name": "shown"}))
    for task in TASKS:
        programs.client(server, f"{task}_client")
    wait_for_clients(server)
    waiting = rendered(server, tmp_path / "profile")
    assert "shown" in waiting
    assert "0 of 2 rounds" in waiting
    assert all(f"{task}_client" in waiting for task in TASKS)
    assert "shared parameters" in waiting
    assert '<p id="lost" hidden' in waiting
