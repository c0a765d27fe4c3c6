"""What Prometheus reads at /metrics."""

import time
from collections.abc import Iterator

import prometheus_client
from prometheus_client import core
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma.serving.request import Engine

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
# What of the engine's counts never falls.
_TOTALS = {"tokens", "requests", "hits", "misses"}


class Metrics:
  """Counts requests, and asks the engine for what it counts itself."""

  def __init__(self, engine: Engine):
    self.registry = prometheus_client.CollectorRegistry()
    self.registry.register(_OfEngine(engine))
    prometheus_client.ProcessCollector(registry=self.registry)
    self.requests = prometheus_client.Counter(
      "paligemma_http_requests",
      "Requests by path and status.",
      ("path", "status"),
      registry=self.registry,
    )
    self.seconds = prometheus_client.Histogram(
      "paligemma_http_seconds",
      "From a request's headers to the end of its answer.",
      ("path",),
      buckets=_SECONDS,
      registry=self.registry,
    )
    self.first = prometheus_client.Histogram(
      "paligemma_http_first_seconds",
      "From a request's headers to the beginning of its answer.",
      ("path",),
      buckets=_SECONDS,
      registry=self.registry,
    )

  def text(self) -> bytes:
    """All of it, in the format of Prometheus."""
    return prometheus_client.generate_latest(self.registry)


class _OfEngine:
  def __init__(self, engine):
    self._engine = engine

  def collect(self) -> Iterator[core.Metric]:
    for name, value in self._engine.counts().items():
      kind = core.GaugeMetricFamily
      if any(name.startswith(x) or name.endswith(x) for x in _TOTALS):
        kind = core.CounterMetricFamily
      yield kind(
        f"paligemma_engine_{name}", f"{name} of the engine.", value=value
      )


class Measured:
  """Counts what an application is asked, whatever answers it."""

  def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]):
    self._app, self._metrics, self._paths = app, metrics, paths

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers one request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    path = scope["path"] if scope["path"] in self._paths else "other"
    start, status = time.perf_counter(), "none"  # of a client that has left

    async def note(message: Message) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = str(message["status"])
        self._metrics.first.labels(path).observe(time.perf_counter() - start)
      await send(message)

    try:
      await self._app(scope, receive, note)
    finally:
      self._metrics.requests.labels(path, status).inc()
      self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
