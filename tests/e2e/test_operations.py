"""What an operator does with a running server: pause, resume, look, stop; and what the next server makes of it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.session import Session
from common.errors import Refused
from common.messages import PROTOCOL_VERSION, Finished, Hello, Refusal, Work
from tests.e2e.configs import small
from tests.e2e.peers import PATIENCE_S, MadeUpWork, events, peer, see_through, session, until
from tests.e2e.programs import ROOT, Programs, Server
from tests.e2e.test_faults import gate


def operate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run an operator's command."""
    words = [sys.executable, "-m", "server", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


async def command(*arguments: str | Path) -> str:
    """Run an operator's command that goes well; returns what it prints."""
    done = await asyncio.to_thread(operate, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def status(server: Server) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        answer: dict[str, Any] = (await http.get("/api/v1/status")).json()
        return answer


def start(*members: Session) -> list[asyncio.Task[Finished]]:
    return [asyncio.create_task(member.run()) for member in members]


async def test_a_paused_run_takes_updates_but_closes_no_round_even_after_a_restart(programs: Programs) -> None:
    server = programs.server(small(["sst2", "qqp"], federation={"min_clients": 2, "evaluate": "none"}))
    feed = events(server.url)
    await until(feed, "status")
    opened, work = gate(1)
    members = start(session(server.address, "sst2_client", work), session(server.address, "qqp_client"))
    await until(feed, "update_accepted", client_id="qqp_client")
    assert "paused" in await command("pause", "--run-dir", server.run_dir)
    opened.set()
    await until(feed, "update_accepted", client_id="sst2_client")
    now = await status(server)
    assert (now["state"], now["rounds_completed"], now["phase"]) == ("paused", 0, "training")
    assert "operator" in now["paused_for"]
    await feed.aclose()  # type: ignore[attr-defined]  # an async generator

    server.signal(signal.SIGKILL)
    await asyncio.to_thread(server.wait)
    port = server.url.rpartition(":")[2]
    again = programs.server(None, "--resume", "--set", f"server.port={port}")
    assert (await status(again))["state"] == "paused", "a pause outlives the process"
    assert "running" in await command("resume", "--run-dir", again.run_dir)
    await see_through(again, *members)
    assert again.summary()["rounds_completed"] == 2


async def test_a_run_that_missed_its_quorum_too_often_pauses_and_goes_on_when_told(programs: Programs) -> None:
    rules = {"min_clients": 2, "quorum": 1.0, "round_deadline_s": 0.7, "max_attempts": 2, "evaluate": "none"}
    server = programs.server(small(["sst2", "qqp"], run={"rounds": 1}, federation=rules))
    feed = events(server.url)
    await until(feed, "status")
    opened, work = gate(1)
    members = start(session(server.address, "sst2_client", work), session(server.address, "qqp_client"))
    async for event in feed:
        if event["kind"] == "note" and "paused" in event["text"]:
            break
    now = await status(server)
    assert now["state"] == "paused"
    assert "missed its quorum 2 times (1 of 2 updates came)" in now["paused_for"]["quorum"]
    assert now["rounds_completed"] == 0, "no bad version was made"
    opened.set()
    await command("resume", "--url", server.url)
    await see_through(server, *members)
    assert server.summary()["history"][1]["participants"] == ["qqp_client", "sst2_client"]


async def test_a_server_that_resumes_answers_that_it_is_not_ready_yet(programs: Programs) -> None:
    """Held up for some seconds in the thread of model and files, as by a large spool that is verified."""
    first = programs.server(small(["sst2"], federation={"min_clients": 2}))
    address = first.url
    first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait) == 0
    port = address.rpartition(":")[2]
    again = programs.server(
        None, "--resume", "--set", f"server.port={port}", ready=False, failpoint="start.restoring=sleep:4"
    )
    async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=address, trust_env=False) as http:
        seen: set[str] = set()
        while "ready" not in seen:
            try:
                answer = await http.get("/readyz")
            except httpx.TransportError:
                continue
            known = len(seen)
            seen.add(answer.json()["detail"] if answer.status_code == 503 else answer.json()["status"])
            if answer.status_code == 503 and not known:
                assert (await http.get("/healthz")).status_code == 200
                assert (await http.get("/api/v1/status")).json()["state"] == "resuming"
                async with peer(address.replace("http", "ws") + "/ws", alive=False) as early:
                    await early.send(Hello(protocol=(PROTOCOL_VERSION,), client_id="sst2_early"))
                    assert (await early.expect(Refusal)).code == "busy"
    assert "the run is being restored" in seen
    assert await asyncio.to_thread(again.came_up)


async def test_sigterm_in_the_middle_of_training_stops_soon_and_loses_nothing(programs: Programs) -> None:
    server = programs.server(small(["sst2", "qqp"], federation={"min_clients": 2, "evaluate": "none"}))
    feed = events(server.url)
    await until(feed, "status")
    opened, work = gate(1, 2)
    members = start(session(server.address, "sst2_client", work), session(server.address, "qqp_client"))
    await until(feed, "update_accepted", client_id="qqp_client")
    await feed.aclose()  # type: ignore[attr-defined]  # an async generator
    server.signal(signal.SIGTERM)
    began = time.monotonic()
    assert await asyncio.to_thread(server.wait) == 0
    assert time.monotonic() - began < 10
    opened.set()
    port = server.url.rpartition(":")[2]
    again = programs.server(None, "--resume", "--set", f"server.port={port}")
    await see_through(again, *members)
    assert "round 1 goes on with the updates of qqp_client" in again.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_before_the_server_is_up_ends_it_well(programs: Programs, number: signal.Signals) -> None:
    server = programs.server(small(["sst2"]), ready=False, failpoint="start.database_made=sleep:30")
    while not (programs.folder / "run" / "run.db").exists():
        assert server.running, server.log()
    server.signal(number)
    assert server.wait() == 0
    assert "stopped before the run was up" in server.log()
    assert programs.server(None, "--resume", "--set", "server.port=0").running


async def test_a_second_client_of_one_name_takes_over_where_that_is_wanted(programs: Programs) -> None:
    config = small(["sst2", "qqp"], server={"duplicate_client": "take_over"}, federation={"min_clients": 2})
    server = programs.server(config)
    async with peer(server.address) as first:
        await first.join("sst2_client")
        second = session(server.address, "sst2_client")
        members = start(second, session(server.address, "qqp_client"))
        while True:
            message = await first.receive()
            if message.type == "refusal":
                break
        assert getattr(message, "code", "") == "taken_over"
        await see_through(server, *members)
    assert server.summary()["history"][1]["participants"] == ["qqp_client", "sst2_client"]


async def test_a_real_client_that_is_replaced_leaves_for_good(programs: Programs) -> None:
    config = small(["sst2", "qqp"], server={"duplicate_client": "take_over"}, federation={"min_clients": 2})
    server = programs.server(config)
    feed = events(server.url)
    await until(feed, "status")
    older = asyncio.create_task(session(server.address, "sst2_client").run())
    await until(feed, "client_joined", client_id="sst2_client")
    newer = session(server.address, "sst2_client")
    members = start(newer)
    with pytest.raises(Refused, match="taken_over"):
        await older
    await see_through(server, *members, session(server.address, "qqp_client"))


async def test_over_selection_takes_the_first_and_leaves_the_slow_behind(programs: Programs) -> None:
    rules = {"min_clients": 3, "cohort": {"count": 2, "over_selection": 0.5}, "evaluate": "none", "quorum": 1.0}
    server = programs.server(small(run={"rounds": 2}, federation=rules))
    _, slow = gate(1, 2)  # until the round is closed without it
    members = [session(server.address, "sst2_client", slow)]
    members += [session(server.address, f"{task}_client") for task in ("qqp", "stsb")]
    await see_through(server, *members)
    history = server.summary()["history"]
    assert [row["participants"] for row in history[1:]] == [["qqp_client", "stsb_client"]] * 2
    assert "round 1 left sst2_client behind: enough updates came" in server.log()


async def test_late_updates_count_in_asynchronous_rounds_and_outlive_the_server(programs: Programs) -> None:
    """The slow client's update of round one counts in a later round; the server is killed when it has taken it."""
    rules = {
        "min_clients": 3,
        "late_updates": "async",
        "buffer": {"size": 2, "max_staleness": 3},
        "evaluate": "none",
        "rejoin_grace_s": 60.0,
    }
    server = programs.server(small(run={"rounds": 4}, federation=rules), failpoint="update.acknowledged=kill@5")
    trained: list[int] = []
    third_round = threading.Event()

    def slow(work: Work, cancelled: threading.Event) -> None:
        trained.append(work.round)
        if work.round == 1:
            assert third_round.wait(PATIENCE_S)
            assert not cancelled.is_set(), "a slow client is left at its work"

    def fast(work: Work, cancelled: threading.Event) -> None:
        if work.round == 3:
            third_round.set()
            # The late update comes first, so that the round closes with it.
            assert cancelled.wait(2.0) or True

    members = start(
        session(server.address, "sst2_client", MadeUpWork(slow)),
        session(server.address, "qqp_client"),
        session(server.address, "stsb_client", MadeUpWork(fast)),
    )
    assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
    again = programs.server(None, "--resume", "--set", f"server.port={server.url.rpartition(':')[2]}")
    await see_through(again, *members)
    history = again.summary()["history"]
    assert [row["participants"] for row in history[1:3]] == [["qqp_client", "stsb_client"]] * 2
    assert "sst2_client" in history[3]["participants"], "its late update counts in round three"
    assert trained.count(1) == 1
