"""Metrics of a service, as Prometheus reads them."""

import os
from collections.abc import Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service.

    metrics = Metrics()
    metrics.answers.labels("/recommend", 200).inc()
    metrics.text()
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time, open files
        named: dict[str, Any] = {"registry": self._registry, "namespace": "twotower"}
        self.requests = Counter("requests", "By route and status.", ["route", "status"], **named)
        self.seconds = Histogram(
            "request_seconds",
            "From the first byte to the answer.",
            ["route"],
            buckets=SECONDS,
            **named,
        )
        self.stage_seconds = Histogram(
            "stage_seconds",
            "Of a batch: sources, merge, stages.",
            ["stage"],
            buckets=(0.0001, 0.0002, 0.0005, *SECONDS),
            **named,
        )
        self.batch = Histogram("batch_requests", "Requests of a batch.", buckets=ROWS, **named)
        self.wait = Histogram(
            "batch_wait_seconds", "Of the first request of a batch.", buckets=SECONDS, **named
        )
        self.missing = Counter("sources_missing", "Late or failed sources.", ["source"], **named)
        self.empty = Counter("empty_answers", "Answers without an item.", **named)
        self.fallback = Counter("fallback_answers", "Answers by the fallback source.", **named)
        self.events = Counter("events", "Acknowledged events.", ["event"], **named)
        self.deploys = Counter("deploys", "By result: live, refused.", ["result"], **named)
        self.processes = Gauge(
            "processes", "Processes that answer.", multiprocess_mode="livesum", **named
        )
        # Of several processes, a value of each, and none of those that have ended.
        live = {**named, "multiprocess_mode": "liveall"}
        self.running = Gauge("requests_running", "Requests under way.", **live)
        self.queued = Gauge("requests_queued", "Requests that wait for a batch.", **live)
        self.items = Gauge("index_items", "Items that a search may find.", **live)
        self.version = Gauge("model_info", "1 for what is live.", ["model_version"], **live)
        self._were_live: set[str] = set()
        self.cache_hits = Gauge("query_cache_hits", "Of the live bundle.", **live)
        self.cache_misses = Gauge("query_cache_misses", "Of the live bundle.", **live)

    def set_live(self, model_versions: Sequence[str]) -> None:
        """Notes which trainings are live. Those that were before have a 0 from now on, since the
        metrics of several processes cannot lose a line."""
        self._were_live.update(model_versions)
        for version in self._were_live:
            self.version.labels(version).set(version in model_versions)

    def text(self) -> bytes:
        """All of them, those of other processes of the service too, in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        all_processes = CollectorRegistry()
        multiprocess.MultiProcessCollector(all_processes)  # type: ignore[no-untyped-call]
        return generate_latest(all_processes)


def forget_process(pid: int | None) -> None:
    """Removes an ended process from the gauges of its service. Its counters stay."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
