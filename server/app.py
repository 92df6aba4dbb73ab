"""HTTP and WebSocket on one port: the federation at `/ws`, REST beside it (`/api/v1/openapi.json` lists it)."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from starlette.background import BackgroundTask

from common.plan import SharingPlan
from common.plan_diff import diff
from server.connection import Connection
from server.federation import Federation
from server.gate import Gate
from server.operator_api import OperatorGate, add_operator_api
from server.prometheus import exposition, registry_of
from server.run_directory import DOWNLOAD_PREFIX, load_version
from server.slot_traffic import as_rows
from server.training_settings import changes_for


def create_app(federation: Federation, gate: Gate) -> FastAPI:
    """The application of one run behind one gate."""
    # No docs_url: its page loads scripts from elsewhere, and this one has to work without a network.
    app = FastAPI(
        title="fedmtl",
        description="Federated multi-task learning",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    operators = OperatorGate(federation.authenticator, on_loopback=federation.config.server.on_loopback)
    _add_operations(app, federation, registry_of(federation, gate))
    _add_api(app, federation, operators)
    add_operator_api(app, federation, operators, lambda: status_of(federation))

    @app.websocket("/ws")
    async def federate(socket: WebSocket) -> None:
        if operators.is_foreign(socket):
            await socket.close()  # before it is accepted: the answer is a plain 403
        else:
            await Connection(socket, federation.reception).serve()

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return resources.files("server").joinpath("status.html").read_text(encoding="utf-8")

    return app


def _add_operations(app: FastAPI, federation: Federation, registry: CollectorRegistry) -> None:
    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        if federation.state == "resuming":
            raise HTTPException(503, "the run is being restored")
        if federation.over:
            raise HTTPException(503, "the run is over")
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(exposition(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_api(app: FastAPI, federation: Federation, operators: OperatorGate) -> None:
    @app.get("/api/v1/status")
    async def status() -> dict[str, Any]:
        return status_of(federation)

    @app.get("/api/v1/rounds")
    def rounds(slots: bool = False) -> list[dict[str, Any]]:
        rows = federation.ledger.scoreboard.history()
        if not slots:
            return rows
        counted = federation.ledger.slots_of()
        return [{**row, "slots": as_rows(counted.get(row["round"], {}))} for row in rows]

    @app.get("/api/v1/rounds/{number}")
    def one_round(number: int) -> dict[str, Any]:
        for row in federation.ledger.scoreboard.history():
            if row["round"] == number:
                slots = as_rows(federation.ledger.slots_of(number).get(number, {}))
                return {**row, "slots": slots, "updates": federation.history.updates(number)}
        raise HTTPException(404, f"round {number} is not done; {federation.model.version} are")

    @app.get("/api/v1/clients")
    async def clients() -> list[dict[str, Any]]:
        return clients_of(federation)

    @app.get("/api/v1/plan")
    def plan() -> dict[str, Any]:
        return plan_of(federation)

    @app.get("/api/v1/models/{task}")
    async def model(task: str, request: Request) -> FileResponse:
        operators.operator(request)
        if task not in federation.specs:
            raise HTTPException(404, f"no task {task!r}; this run has: {', '.join(sorted(federation.specs))}")
        path = await asyncio.to_thread(_weights_file, federation, task)
        name = f"{federation.run_id}-{task}.safetensors"
        return FileResponse(path, filename=name, background=BackgroundTask(path.unlink))

    @app.get("/api/v1/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(_event_stream(federation), media_type="text/event-stream")


def status_of(federation: Federation) -> dict[str, Any]:
    """Where the run stands."""
    return {
        "run_id": federation.run_id,
        "state": federation.state,
        "paused_for": federation.paused_for,
        "phase": federation.decisions.phase.value,
        "round": federation.ledger.open_round.round_id if federation.ledger.open_round else 0,
        "rounds_completed": federation.model.version,
        "target_rounds": federation.config.run.rounds,
        "model_version": federation.model.version,
        "mode": federation.config.federation.mode,
        "connected_clients": len(federation.decisions.connected),
        "clients": sorted(federation.decisions.connected),
        "tasks": federation.ledger.scoreboard.latest(),
        "model": federation.summary_of_model.to_dict(),
        "bytes_down": federation.ledger.traffic.down,
        "bytes_up": federation.ledger.traffic.up,
    }


def plan_of(federation: Federation) -> dict[str, Any]:
    """The plan of the round that is open or comes next, and how it came to be; reads the history."""
    plans = {row["digest"]: SharingPlan.from_dict(row["plan"]) for row in federation.history.plans()}
    changes: list[dict[str, Any]] = []
    before: SharingPlan | None = None
    for row in federation.history.commits():
        after = plans.get(row["plan"])
        if after is None or (before is not None and not (found := diff(before, after))):
            continue
        lines = [] if before is None else str(found).splitlines()
        # A version is stored with the plan of the round that starts from it.
        changes.append({"from_round": row["version"] + 1, "digest": row["plan"], "changes": lines})
        before = after
    return {
        "current": federation.model.plan.to_dict(),
        "history": federation.history.plans(),
        "changes": changes,
        "trained_tasks": sorted(federation.decisions.outlook.trained),
        "stopped_tasks": federation.course.stopped(federation.model.version),
    }


def clients_of(federation: Federation) -> list[dict[str, Any]]:
    """Everybody who has taken part in this process's time."""
    current = federation.decisions.round
    rows = []
    for client_id, known in sorted(federation.ledger.participants.items()):
        live = known.connection
        working = current is not None and client_id in current.seated
        rows.append(
            {
                "client_id": client_id,
                "tasks": sorted(known.tasks),
                "state": "away" if live is None else "working" if working else "idle",
                "last_seen": known.last_seen if live is None else live.last_seen,
                "rounds": known.rounds,
                "refused": sum(known.refusals.values()),
                "refusals": known.refusals,
                "last_refusal": known.last_refusal,
                "quarantined_until": federation.decisions.quarantine.until(client_id),
                "progress": known.progress,
                "data": {task: report.model_dump() for task, report in sorted(known.data.items())},
                "training_changes": changes_for(federation.config.training_overrides, client_id, known.tasks),
                "bytes_down": known.bytes_down + (live.bytes_down if live else 0),
                "bytes_up": known.bytes_up + (live.bytes_up if live else 0),
            }
        )
    return rows


def _weights_file(federation: Federation, task: str) -> Path:
    """The committed weights of one task under parameter names; from disk, as the model in memory may be moving."""
    newest = federation.history.last_commit()
    if newest is None:
        raise HTTPException(503, "no version is committed yet")
    committed = load_version(federation.directory.version_path(newest))
    values = {name: value.contiguous() for name, value in committed.for_task(task).items()}
    about = {"run_id": federation.run_id, "task": task, "version": str(committed.version)}
    with tempfile.NamedTemporaryFile(dir=federation.directory.path, prefix=DOWNLOAD_PREFIX, delete=False) as file:
        path = Path(file.name)
    try:
        save_file(values, path, metadata=about)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


async def _event_stream(federation: Federation) -> AsyncIterator[str]:
    # Listening first: what happens while the status is on its way is not lost.
    with federation.ledger.feed.listening() as events:
        yield f"event: status\ndata: {json.dumps(status_of(federation))}\n\n"
        # The stream ends with the run: an open one would hold up the server's own end.
        while not federation.over or not events.empty():
            event = await events.get()
            yield f"id: {event['id']}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n"
