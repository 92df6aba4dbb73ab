"""A scrape of a live server in the middle of a run: every metric is there, documented, and says what is."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from common.messages import Chunk, Finished, Rejected, RoundClosed, UpdateAck, Work
from tests.e2e.configs import small
from tests.e2e.peers import MadeUpWork, events, peer, see_through, session, until, work_done
from tests.e2e.programs import PATIENCE_S, Programs, Server

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
Samples = dict[tuple[str, ...], float]


async def scrape(server: Server) -> tuple[set[str], Samples]:
    """Names of all metric families, and each sample by name and label values."""
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE_S) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}, samples


async def test_a_scrape_says_what_a_run_is_doing(programs: Programs) -> None:
    """Round 1 was repeated, as one of two updates was refused; of round 2 one update has come."""
    rules = {"min_clients": 2, "quorum": 1.0, "evaluate": "none"}
    server = programs.server(small(["sst2", "qqp"], federation=rules))
    feed = events(server.url)
    await until(feed, "status")
    opened = threading.Event()

    def wait_in_round_two(work: Work, cancelled: threading.Event) -> None:
        del cancelled
        assert work.round == 1 or opened.wait(PATIENCE_S)

    member = asyncio.create_task(session(server.address, "sst2_client", MadeUpWork(wait_in_round_two)).run())
    async with peer(server.address) as other:
        await other.join("qqp_other")
        update = work_done(await other.take_work(), ["qqp"], "other")
        await other.send_update(update, plan="0" * 64)
        await other.expect(Rejected)
        for _ in range(2):  # round 1 again, and round 2
            update = work_done(await other.take_work(skip=(RoundClosed, UpdateAck)), ["qqp"], "other")
            await other.send_update(update)
        await until(feed, "update_accepted", round=2, client_id="qqp_other")
        names, samples = await scrape(server)
        opened.set()
        await other.expect(Finished, skip=(Chunk, RoundClosed, UpdateAck, Work))
    await see_through(server, member)
    _says_what_is(samples, server)
    documented = set(re.findall(r"^\| `(\w+)`", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    ours = {name for name in names if name.startswith("fedmtl_") and not name.endswith("_created")}
    assert ours == {name for name in documented if name.startswith("fedmtl_")}


def _says_what_is(samples: Samples, server: Server) -> None:
    expected = {
        ("fedmtl_run_info", "mtl", server.summary()["run_id"]): 1,
        ("fedmtl_state", "running"): 1,
        ("fedmtl_state", "paused"): 0,
        ("fedmtl_round",): 1,
        ("fedmtl_target_rounds",): 2,
        ("fedmtl_clients_connected",): 2,
        ("fedmtl_clients_quarantined",): 0,
        ("fedmtl_refused_total", "plan_mismatch"): 1,
        ("fedmtl_updates_accepted_total",): 3,
        ("fedmtl_rounds_repeated_total",): 1,
        ("fedmtl_round_seconds_count",): 1,
        ("fedmtl_round_seconds_bucket", "+Inf"): 1,
        ("fedmtl_queue_depth", "events"): 0,
        ("fedmtl_queue_depth", "messages"): 0,
        ("fedmtl_queue_depth_max",): 0,
    }
    assert {key: samples.get(key) for key in expected} == expected
    assert ("fedmtl_queue_depth", "jobs") in samples
    assert samples["fedmtl_round_seconds_sum",] == samples["fedmtl_last_round_seconds", "all"] > 0
    assert samples["fedmtl_last_round_seconds", "reduce"] > 0
    # Three updates of 40,000 parameters went up; one of them lies in the spool, the others may still do.
    update_bytes = 4 * server.summary()["model"]["shared_parameters"]
    assert samples["fedmtl_bytes_total", "up"] > 3 * update_bytes
    assert samples["fedmtl_bytes_total", "down"] > 4 * update_bytes
    assert update_bytes < samples["fedmtl_spool_bytes",] < 4 * update_bytes
    lag = "fedmtl_event_loop_lag"
    assert samples[f"{lag}_seconds_count",] > 0
    assert 0 <= samples[f"{lag}_last_seconds",] <= samples[f"{lag}_max_seconds",] < 60
    # The loop's own, one for each connection and its three parts, the timer and the scrape.
    assert 8 < samples["fedmtl_asyncio_tasks",] < 60
    assert samples["process_resident_memory_bytes",] > 1e8
    assert samples["process_open_fds",] > 5
