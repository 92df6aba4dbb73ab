"""The server is killed at every named point of a run's life, started again, and the model is the undisturbed one.

Real processes: one server, three clients that train. At which of the times that the run comes to a point the server
dies is drawn from a seed, so that early and late rounds have their turn.
"""

from __future__ import annotations

import signal

import pytest

from common.failpoints import SERVER_POINTS
from common.seeds import derive_random
from tests.e2e.programs import Programs, Server
from tests.faults.small_run import CLIENTS, ROUNDS, config, finish, start_clients, trained

SEED = 2026
#: How often the run comes to each point at the least.
TIMES = {
    **dict.fromkeys(SERVER_POINTS, 1),
    **dict.fromkeys(("commit.written", "commit.synced", "commit.renamed"), 1 + ROUNDS),
    **dict.fromkeys(("round.begun", "round.closed"), ROUNDS),
    **dict.fromkeys(("reduce.begun", "reduce.half", "reduce.done"), ROUNDS),
    **dict.fromkeys(
        ("commit.recording", "commit.recorded", "commit.spool_discarded", "commit.pruned", "commit.done"), ROUNDS
    ),
    **dict.fromkeys(("spool.written", "spool.synced", "spool.renamed"), ROUNDS * len(CLIENTS)),
    **dict.fromkeys(("update.spooled", "update.counted", "update.acknowledged"), ROUNDS * len(CLIENTS)),
    **dict.fromkeys(("round.dispatched", "upload.announced"), ROUNDS * len(CLIENTS)),
    "upload.receiving": ROUNDS * len(CLIENTS),
    "summary.written": ROUNDS + 2,
    "evaluation.begun": len(CLIENTS),
}


@pytest.mark.parametrize("point", SERVER_POINTS)
def test_a_server_killed_anywhere_ends_with_the_undisturbed_model(programs: Programs, right: str, point: str) -> None:
    time = derive_random(SEED, point).randint(1, TIMES[point])
    first = programs.server(config(), ready=False, failpoint=f"{point}=kill@{time}")
    clients, port = [], "0"
    if first.came_up():
        port = first.url.rpartition(":")[2]
        clients = start_clients(programs, first)
    assert first.wait() == -signal.SIGKILL, f"the server never came to {point} for the {time}th time"

    again = restart(programs, port)
    clients = clients or start_clients(programs, again)
    assert finish(again, clients) == right
    assert [trained(client) for client in clients] == [list(range(1, ROUNDS + 1))] * len(clients), "work was done twice"


@pytest.mark.parametrize("point", ["round.dispatched", "update.acknowledged", "commit.recorded", "commit.done"])
def test_a_round_waits_for_those_it_began_with_whoever_is_back_first(
    programs: Programs, right: str, point: str
) -> None:
    """With the default that one client is enough for a round, and one client that is slow to come back."""
    relaxed = config(federation={"min_clients": 1, "round_deadline_s": None})
    relaxed["federation"]["min_clients"] = len(CLIENTS)
    first = programs.server(relaxed, failpoint=f"{point}=kill@3")
    port = first.url.rpartition(":")[2]
    clients = start_clients(programs, first)
    assert first.wait() == -signal.SIGKILL
    clients[0].signal(signal.SIGSTOP)
    one_is_enough = ("--set", "federation.min_clients=1")
    again = programs.server(None, "--resume", "--set", f"server.port={port}", *one_is_enough)
    while again.log().count(" joined with ") < len(CLIENTS) - 1:
        assert again.running, again.log()
    clients[0].signal(signal.SIGCONT)
    assert finish(again, clients) == right


def restart(programs: Programs, port: str) -> Server:
    """Go on with the run, or begin it again when the server died before it had written down what to go on with."""
    begun = (programs.folder / "run" / "config.yaml").exists()
    arguments = ("--resume",) if begun else ()
    return programs.server(None if begun else config(), *arguments, "--set", f"server.port={port}")
