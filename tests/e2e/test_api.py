"""Every HTTP path of a live server, in the middle of a run."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load, load_file

from common.messages import Work
from common.plan import SharingPlan
from tests.e2e.configs import small
from tests.e2e.peers import MadeUpWork, events, see_through, session, until
from tests.e2e.programs import PATIENCE_S, Programs, Server

ROUND = {
    "round", "seconds", "bytes_down", "bytes_up", "participants", "phases", "training_examples", "attempts", "tasks",
    "groups",
}  # fmt: skip


OVERRIDES = [
    {"clients": ["sst2_*"], "set": {"batch_size": 8, "local_epochs": 1.5}},
    {"tasks": ["sst2"], "set": {"batch_size": 4}},
]


async def test_every_path_of_the_api(programs: Programs) -> None:
    config = small(["sst2", "qqp"], federation={"min_clients": 2})
    server = programs.server(config | {"training_overrides": OVERRIDES})
    gate = threading.Event()
    batch_sizes = set()

    def wait_in_round_two(work: Work, cancelled: threading.Event) -> None:
        del cancelled
        assert work.training is not None
        batch_sizes.add((work.training["batch_size"], work.training["local_steps"], work.training["local_epochs"]))
        assert work.round == 1 or gate.wait(PATIENCE_S)

    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE_S) as http:
        await _before_anybody_came(http)
        feed = events(server.url)
        assert (await until(feed, "status"))["state"] == "running"
        clients = [
            session(server.address, name, MadeUpWork(wait_in_round_two)) for name in ("sst2_client", "qqp_client")
        ]
        runs = [asyncio.create_task(client.run()) for client in clients]
        try:
            started = await until(feed, "round_started", round=2)
            assert started["cohort"] == ["qqp_client", "sst2_client"]
            await _in_the_second_round(http, server)
        finally:
            gate.set()
        kinds = [(await until(feed, kind))["kind"] for kind in ("update_accepted", "evaluated", "finished")]
        assert kinds[-1] == "finished"
    await see_through(server, *runs)
    assert batch_sizes == {(16, 2, None), (4, None, 1.5)}
    assert [event async for event in feed] == []


async def _before_anybody_came(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    page = await http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<html" in page.text
    assert "://" not in page.text.replace("http://www.w3.org/", ""), "the page loads something from elsewhere"
    status = (await http.get("/api/v1/status")).json()
    assert (status["state"], status["rounds_completed"], status["connected_clients"]) == ("running", 0, 0)
    assert (await http.get("/api/v1/clients")).json() == []
    assert (await http.get("/api/v1/nothing")).status_code == 404


async def _when_version_one_is_evaluated(http: httpx.AsyncClient) -> dict[str, Any]:
    """The status; a client that trains has sent its evaluation, but it may be on its way."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status: dict[str, Any] = (await http.get("/api/v1/status")).json()
            if [metrics["accuracy"] for metrics in status["tasks"].values()] == [1.0, 1.0]:
                return status


async def _in_the_second_round(http: httpx.AsyncClient, server: Server) -> None:
    status = await _when_version_one_is_evaluated(http)
    assert status["run_id"] == server.summary()["run_id"]
    assert (status["state"], status["round"], status["target_rounds"]) == ("running", 2, 2)
    assert (status["connected_clients"], status["model_version"]) == (2, 1)
    assert status["tasks"]["sst2"]["accuracy"] == 1.0

    rounds = (await http.get("/api/v1/rounds")).json()
    assert [row["round"] for row in rounds] == [0, 1]
    assert all(row.keys() == ROUND for row in rounds)
    assert rounds[1]["participants"] == ["qqp_client", "sst2_client"]
    assert rounds[1]["training_examples"] == {"qqp": 10, "sst2": 10}
    assert rounds[1]["phases"].keys() >= {"clients", "reduce"}
    assert rounds[1]["bytes_down"] > 20_000
    assert rounds[1]["bytes_up"] > 20_000
    one = (await http.get("/api/v1/rounds/1")).json()
    changes = {"batch_size": 4, "local_epochs": 1.5}
    assert [(update["client_id"], update["training_changes"]) for update in one["updates"]] == [
        ("qqp_client", {}),
        ("sst2_client", changes),
    ]
    assert {key: one[key] for key in ROUND - {"phases"}} == {key: rounds[1][key] for key in ROUND - {"phases"}}
    await _bytes_per_slot(http, one)
    assert (await http.get("/api/v1/rounds/2")).status_code == 404
    assert (await http.get("/api/v1/rounds/x")).status_code == 422

    clients = (await http.get("/api/v1/clients")).json()
    assert [(row["client_id"], row["tasks"], row["rounds"]) for row in clients] == [
        ("qqp_client", ["qqp"], 1),
        ("sst2_client", ["sst2"], 1),
    ]
    assert all(row["state"] == "working" and row["bytes_down"] > 20_000 for row in clients)
    assert [row["training_changes"] for row in clients] == [{}, changes]

    plan = (await http.get("/api/v1/plan")).json()
    assert SharingPlan.from_dict(plan["current"]).digest == server.summary()["plan"]
    assert [entry["since_version"] for entry in plan["history"]] == [0]

    await _model_of_a_task(http, server)
    await _metrics(http)


async def _bytes_per_slot(http: httpx.AsyncClient, one: dict[str, Any]) -> None:
    """Both clients got and returned the encoder and their head, each element 4 bytes."""
    assert {group: (sides["down"], sides["up"]) for group, sides in one["groups"].items()} == {
        "embeddings": (2 * 4 * 3_472, 2 * 4 * 3_472),
        "layer.0": (2 * 4 * 2_224, 2 * 4 * 2_224),
        "head": (2 * 4 * 34, 2 * 4 * 34),
    }
    assert one["slots"]["heads.sst2.output.bias@sst2"] == {"down": 8, "up": 8}
    assert sum(slot["up"] for slot in one["slots"].values()) == sum(update["bytes"] for update in one["updates"])
    with_slots = (await http.get("/api/v1/rounds", params={"slots": "true"})).json()
    assert [row["slots"] for row in with_slots] == [{}, one["slots"]]


async def _model_of_a_task(http: httpx.AsyncClient, server: Server) -> None:
    """The weights served are those of the committed file, for the task that was asked."""
    answer = await http.get("/api/v1/models/sst2")
    served = load(answer.content)
    committed = load_file(server.run_dir / "model" / "round-00001.safetensors")
    expected = {slot.partition("@")[0]: value for slot, value in committed.items() if "sst2" in slot.partition("@")[2]}
    assert served.keys() == expected.keys()
    assert all(served[name].equal(value) for name, value in expected.items())
    assert any(name.startswith("heads.sst2.") for name in served)
    assert not any(name.startswith("heads.qqp.") for name in served)
    missing = await http.get("/api/v1/models/mnli")
    assert missing.status_code == 404
    assert "qqp, sst2" in missing.text
    assert not list(server.run_dir.glob("*.safetensors")), "the file that was served is left behind"


async def _metrics(http: httpx.AsyncClient) -> None:
    text = (await http.get("/metrics")).text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found[("fedmtl_round",)] == 1
    assert found[("fedmtl_target_rounds",)] == 2
    assert found[("fedmtl_clients_connected",)] == 2
    assert found[("fedmtl_bytes_total", "down")] > 20_000
    assert found[("fedmtl_validation", "accuracy", "sst2")] == 1.0
