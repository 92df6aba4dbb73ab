"""The run that the fault tests disturb: three real clients, four rounds, a hash at its end that nothing may change."""

from __future__ import annotations

import re
from typing import Any, Final

from tests.e2e.configs import TASKS, small
from tests.e2e.programs import Program, Programs, Server

ROUNDS: Final = 4
CLIENTS: Final = tuple(f"{task}_client" for task in TASKS)
#: Seats are kept and clients waited for, however long a busy machine takes to bring a process back.
PATIENT: Final = {"rejoin_grace_s": 120.0, "rejoin_timeout_s": 300.0}


def config(**sections: Any) -> dict[str, Any]:  # noqa: ANN401  # sections of a configuration
    """Three clients of one task each; `sections` are laid over it."""
    federation = {"min_clients": len(CLIENTS), **PATIENT, **sections.pop("federation", {})}
    return small(rows=32, run={"rounds": ROUNDS}, federation=federation, **sections)


def start_clients(programs: Programs, server: Server) -> list[Program]:
    """A process for each client."""
    return [programs.client(server, client_id) for client_id in CLIENTS]


def finish(server: Server, clients: list[Program]) -> str:
    """See a run through; returns the SHA-256 of its last version."""
    codes = [program.wait() for program in (server, *clients)]
    assert codes == [0] * len(codes), codes
    summary = server.summary()
    assert (summary["state"], summary["rounds_completed"]) == ("finished", ROUNDS)
    return str(summary["model"]["sha256"])


def trained(*logs: Program) -> list[int]:
    """The rounds that a client trained, by the logs of its processes, as often as it did."""
    return [int(number) for log in logs for number in re.findall(r"round (\d+): \w+ trained on", log.log())]


def undisturbed(programs: Programs) -> str:
    """The hash of the run without faults."""
    server = programs.server(config(), run_dir=programs.folder / "undisturbed")
    return finish(server, start_clients(programs, server))
