"""Figures for Prometheus, of one server: its own registry, so that two servers in a process do not mix."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nanochat_pl.serve.models import Served

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Count what happens over HTTP, and read the workers' own figures when asked."""

    def __init__(self, models: Sequence[Served]):
        self.registry = CollectorRegistry()
        self.requests = Counter("nanochat_requests", "Requests over HTTP", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "nanochat_request_seconds",
            "From a request's arrival to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "nanochat_time_to_first_token_seconds",
            "From a request's submission to its first token, waiting included",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Workers(models))
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _Workers(Collector):
    """Figures that the workers count themselves."""

    def __init__(self, models: Sequence[Served]):
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        states = [(served.id, served.worker.state()) for served in self._models]
        for name, what, field in (
            ("nanochat_active_rows", "Requests that are being generated", "active"),
            ("nanochat_rows", "Requests that can be generated at once", "batch_size"),
            ("nanochat_queue_length", "Requests that wait for a row", "waiting"),
        ):
            gauge = GaugeMetricFamily(name, what, labels=["model"])
            for model, state in states:
                gauge.add_metric([model], getattr(state, field))
            yield gauge
        for name, what, field in (
            ("nanochat_prompt_tokens", "Tokens of prompts that were read", "prompt_tokens"),
            ("nanochat_completion_tokens", "New tokens, those of tools among them", "new_tokens"),
            ("nanochat_engine_steps", "Steps of the engine", "steps"),
            ("nanochat_engine_faults", "Failures of the engine", "faults"),
        ):
            counter = CounterMetricFamily(name, what, labels=["model"])
            for model, state in states:
                counter.add_metric([model], getattr(state, field))
            yield counter
        ended = CounterMetricFamily("nanochat_generations", "Generations that ended", labels=["model", "end"])
        for model, state in states:
            for end, count in state.ended.items():
                ended.add_metric([model, end], count)
        yield ended
