"""A short soak: clients are killed in every round and the server keeps nothing of them. `make soak` is the long one."""

from __future__ import annotations

import signal
from dataclasses import replace

from scripts.soak import Crowd, Sample, configuration, soak, verdict
from tests.e2e.programs import Programs

CLIENTS = 6
ROUNDS = 12


def test_clients_that_die_leave_nothing_behind(programs: Programs) -> None:
    server = programs.server(configuration(CLIENTS))
    crowd = Crowd(server.address, CLIENTS)
    try:
        samples = soak(server.url, server.pid, crowd, rounds=ROUNDS, deaths=2, seed=0)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        crowd.end()
    assert crowd.killed == 2 * ROUNDS
    assert [each.round for each in samples] == list(range(1, ROUNDS + 1))
    assert verdict(samples, ROUNDS // 2, CLIENTS)[1] == []
    history = server.summary()["history"]
    assert [len(row["participants"]) for row in history[1 : ROUNDS + 1]] == [CLIENTS] * ROUNDS


def test_what_grows_is_named() -> None:
    steady = [Sample(n, 400.0, 10, 30, 40, float(n)) for n in range(1, 41)]
    assert verdict(steady, 20, CLIENTS) == (
        {
            "rounds": 40,
            "rss_mb": {"round": 20, "then": 400.0, "last": 400.0},
            "growth": 0.0,
            "threads": {"then": 10, "last": 10, "most": 10},
            "descriptors": {"then": 30, "last": 30, "most": 30},
            "tasks": {"then": 40, "last": 40, "most": 40},
            "round_s": {"then": 1.0, "last": 1.0},
        },
        [],
    )
    assert verdict([replace(each, rss_mb=400.0 + each.round) for each in steady], 20, CLIENTS)[1] == []
    assert verdict([replace(each, rss_mb=400.0 + 2 * each.round) for each in steady], 20, CLIENTS)[1] == [
        "memory grew by 9.1%"
    ]
    assert verdict([replace(each, tasks=40 + each.round) for each in steady], 20, CLIENTS)[1] == [
        "tasks: 55.5 around round 20, 75.5 at the end"
    ]
