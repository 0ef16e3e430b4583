"""Numbers of a running server, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import Scope

if TYPE_CHECKING:
    from attempt_cli.server.catalogue import Catalogue
    from attempt_cli.server.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts answers, and reads the engine's own counts when it is asked."""

    def __init__(self, engine: Engine, catalogue: Catalogue) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "attempt_requests", "Requests that were answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "attempt_request_seconds", "Seconds to the end of an answer.", ["route"], buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._under_way = Gauge(
            "attempt_requests_under_way", "Requests that were taken and not answered yet.", registry=self._registry
        )
        self._registry.register(self)

    def taken(self) -> None:
        """Counts a request that has begun."""
        self._under_way.inc()

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts an answer under its route: a path of a client's own choice would be a new name every time."""
        route = getattr(scope.get("route"), "path", "other")
        self._under_way.dec()
        self._answers.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Returns all numbers."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yields what the engine counts."""
        engine, cache = self._engine, self._engine.backbone.input_cache
        yield GaugeMetricFamily("attempt_waiting_inputs", "Inputs in the queue.", engine.waiting)
        for name, text, value in (
            *engine.own_counts(),
            ("attempt_labels", "Labels that were answered.", engine.counts.labels),
            ("attempt_texts", "Texts that were generated.", engine.counts.texts),
            ("attempt_tokens", "Tokens of these texts.", engine.counts.tokens),
        ):
            yield CounterMetricFamily(name, text, value)
        if cache is not None:
            yield CounterMetricFamily("attempt_kept_inputs_found", "Inputs whose keys were kept.", cache.hits)
            yield CounterMetricFamily("attempt_kept_inputs_missed", "Inputs that were read anew.", cache.misses)
            yield GaugeMetricFamily("attempt_kept_bytes", "Bytes of kept inputs.", cache.bytes)
