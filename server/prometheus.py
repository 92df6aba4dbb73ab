"""`/metrics`: the run's figures in Prometheus' text form; docs/operations.md lists them.

What can be read off the federation is read at each scrape (`FederationCollector`); what has to be observed when it
happens is kept in `Measures`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from server.loop_lag import LoopLag

if TYPE_CHECKING:
    from server.federation import Federation
    from server.gate import Gate

STATES: Final = ("resuming", "running", "paused", "stopped", "finished", "failed")
#: Seconds: a round of no work on one machine, up to one of clients that train for hours.
ROUND_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 7200, 14400, 43200)


class Measures:
    """What one run's process counts as it happens; from zero in each process.

    Attributes:
        registry: holds them, and everything else that a scrape shows.
        round_seconds: observed once for each round that was aggregated.
        rounds_repeated: further attempts at a round that missed its quorum.
        updates_accepted: acknowledged updates, each counted once.
        loop_lag: how late the event loop is, once somebody runs its `measure`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.round_seconds = Histogram(
            "fedmtl_round_seconds",
            "Duration of rounds, from the choice of the cohort to the aggregated version.",
            buckets=ROUND_BUCKETS,
            registry=self.registry,
        )
        self.rounds_repeated = Counter(
            "fedmtl_rounds_repeated", "Attempts at a round that had missed its quorum.", registry=self.registry
        )
        self.updates_accepted = Counter(
            "fedmtl_updates_accepted", "Updates that were acknowledged and count.", registry=self.registry
        )
        self.loop_lag = LoopLag(self.registry)


class FederationCollector(Collector):
    """Reads one federation; belongs on its event loop."""

    def __init__(self, federation: Federation, gate: Gate) -> None:
        self._federation = federation
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """The metrics as they stand."""
        yield from self._run()
        yield from self._clients_and_bytes()
        yield from self._queues()
        yield from self._at_the_gate()
        yield from self._last_round()

    def _run(self) -> Iterator[Metric]:
        federation = self._federation
        about = {"run_id": federation.run_id, "mode": federation.config.federation.mode}
        yield InfoMetricFamily("fedmtl_run", "The run.", value=about)
        states = dict.fromkeys(STATES, 0) | {federation.state: 1}
        yield _gauges("fedmtl_state", "State of the run: 1 for the one that holds.", "state", states)
        reasons: dict[str, float] = dict.fromkeys(sorted(federation.decisions.pauses), 1)
        yield _gauges("fedmtl_paused", "Why the run is paused: 1 for each reason.", "reason", reasons)
        yield GaugeMetricFamily("fedmtl_round", "Rounds completed.", value=federation.model.version)
        yield GaugeMetricFamily("fedmtl_target_rounds", "Rounds wanted.", value=federation.config.run.rounds)

    def _clients_and_bytes(self) -> Iterator[Metric]:
        federation = self._federation
        connected = len(federation.decisions.connected)
        yield GaugeMetricFamily("fedmtl_clients_connected", "Clients that take part now.", value=connected)
        traffic = {"down": federation.ledger.traffic.down, "up": federation.ledger.traffic.up}
        yield _counters("fedmtl_bytes", "Bytes of frames.", "direction", traffic)
        yield _counters(
            "fedmtl_refused", "Messages and updates refused.", "code", dict(sorted(federation.ledger.refusals.items()))
        )
        version, quarantine = federation.decisions.version, federation.decisions.quarantine
        held = sum(quarantine.holds(client_id, version) for client_id in federation.ledger.participants)
        yield GaugeMetricFamily(
            "fedmtl_clients_quarantined", "Known clients that are left out for a while.", value=held
        )
        spooled = bytes_below(federation.directory.spool)
        yield GaugeMetricFamily("fedmtl_spool_bytes", "Updates on disk that no committed version holds.", value=spooled)

    def _queues(self) -> Iterator[Metric]:
        depths = self._federation.queue_depths()
        queues = {"events": depths.events, "jobs": depths.jobs, "messages": depths.messages}
        yield _gauges("fedmtl_queue_depth", "What waits for the coordinator, the lane, the sockets.", "queue", queues)
        most = depths.messages_of_one_client
        yield GaugeMetricFamily("fedmtl_queue_depth_max", "Most messages that wait for one client.", value=most)
        lag = self._federation.ledger.measures.loop_lag
        yield GaugeMetricFamily("fedmtl_event_loop_lag_last_seconds", "The newest measurement.", value=lag.last_s)
        yield GaugeMetricFamily("fedmtl_event_loop_lag_max_seconds", "Worst of the last minute.", value=lag.worst_s)
        yield GaugeMetricFamily("fedmtl_asyncio_tasks", "Tasks of the event loop.", value=len(asyncio.all_tasks()))

    def _at_the_gate(self) -> Iterator[Metric]:
        turned_away = dict(sorted(self._gate.turned_away.items()))
        yield _counters("fedmtl_turned_away", "Connections closed without a word of the protocol.", "why", turned_away)
        held = {"in": self._gate.incoming.held, "out": self._gate.outgoing.held}
        yield _gauges("fedmtl_inflight_bytes", "Bytes of frames on their way through memory.", "direction", held)

    def _last_round(self) -> Iterator[Metric]:
        board = self._federation.ledger.scoreboard
        last = board.rounds[max(board.rounds)]
        phases = {"all": last.seconds, **dict(sorted(last.phases.items()))}
        yield _gauges("fedmtl_last_round_seconds", "Duration of the last round.", "phase", phases)
        quality = GaugeMetricFamily("fedmtl_validation", "Newest validation metric.", labels=["task", "metric"])
        for task, metrics in board.latest().items():
            for name, value in metrics.items():
                quality.add_metric([task, name], value)
        yield quality


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def bytes_below(folder: Path) -> int:
    """Size of all files below a folder; what disappears meanwhile counts nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return total


def registry_of(federation: Federation, gate: Gate) -> CollectorRegistry:
    """A registry that holds this federation's figures and those of the process."""
    registry = federation.ledger.measures.registry
    registry.register(FederationCollector(federation, gate))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that a scrape gets."""
    return generate_latest(registry)
