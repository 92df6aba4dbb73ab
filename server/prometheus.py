"""`/metrics`: the run's figures in Prometheus' text form, read off the federation at each scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from server.federation import Federation


class FederationCollector(Collector):
    """Reads one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    def collect(self) -> Iterator[Metric]:
        """The metrics as they stand."""
        federation = self._federation
        yield GaugeMetricFamily("fedmtl_round", "Rounds completed.", value=federation.model.version)
        yield GaugeMetricFamily("fedmtl_target_rounds", "Rounds wanted.", value=federation.config.run.rounds)
        connected = len(federation.decisions.connected)
        yield GaugeMetricFamily("fedmtl_clients_connected", "Clients that take part now.", value=connected)
        traffic = CounterMetricFamily("fedmtl_bytes", "Bytes of frames.", labels=["direction"])
        traffic.add_metric(["down"], federation.traffic.down)
        traffic.add_metric(["up"], federation.traffic.up)
        yield traffic
        refused = CounterMetricFamily("fedmtl_refused", "Messages and updates refused.", labels=["code"])
        for code, count in sorted(federation.refusals.items()):
            refused.add_metric([code], count)
        yield refused
        seconds = GaugeMetricFamily("fedmtl_last_round_seconds", "Duration of the last round.", labels=["phase"])
        last = federation.scoreboard.rounds[max(federation.scoreboard.rounds)]
        seconds.add_metric(["all"], last.seconds)
        for phase, value in sorted(last.phases.items()):
            seconds.add_metric([phase], value)
        yield seconds
        quality = GaugeMetricFamily("fedmtl_validation", "Newest validation metric.", labels=["task", "metric"])
        for task, metrics in federation.scoreboard.latest().items():
            for name, value in metrics.items():
                quality.add_metric([task, name], value)
        yield quality


def registry_of(federation: Federation) -> CollectorRegistry:
    """A registry that holds this federation's figures only."""
    registry = CollectorRegistry()
    registry.register(FederationCollector(federation))
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that a scrape gets."""
    return generate_latest(registry)
