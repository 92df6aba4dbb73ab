"""summary.json: the run in one document, written after every commit and at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.federation import Federation


def summarise(federation: Federation) -> dict[str, Any]:
    """The run as it stands. Metrics are those of aggregated models on the clients' validation data."""
    return {
        "run_id": federation.run_id,
        "state": federation.state,
        "reason": federation.ended_for,
        "rounds_completed": federation.model.version,
        "target_rounds": federation.config.run.rounds,
        "mode": federation.config.federation.mode,
        "tasks": federation.ledger.scoreboard.latest(),
        "best": federation.course.best(),
        "stopped": federation.course.stopped(federation.model.version),
        "history": federation.ledger.scoreboard.history(),
        "model": {**federation.summary_of_model.to_dict(), "sha256": federation.sha256},
        "plan": federation.model.plan.digest,
        "data": {
            client_id: {task: report.model_dump() for task, report in sorted(known.data.items())}
            for client_id, known in sorted(federation.ledger.participants.items())
        },
        "bytes_down": federation.ledger.traffic.down,
        "bytes_up": federation.ledger.traffic.up,
        "seconds": time.time() - federation.ledger.started,
    }
