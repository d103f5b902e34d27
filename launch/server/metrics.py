"""``/metrics``: what an installation does and has done, for Prometheus.

All of it is read from Redis when it is asked for, so every server of an installation says the same: scrape one, or
take the maximum. Only the requests that this server has answered are its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.metrics import METRICS, Series
from launch.metrics import Metric as Counted
from launch.records import AgentRecord
from launch.store import RunStore

_KINDS = ("waiting", "held", "delayed", "active")


class Metrics:
    """A Prometheus collector over an installation's store."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._answered: Counter[tuple[str, str]] = Counter()

    def note(self, route: str, status: int) -> None:
        """Count a request that was answered."""
        self._answered[route, str(status)] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family there is."""
        agents = [agent for agent in self._store.agents() if agent.is_alive]
        yield from self._queues(agents)
        yield from _agents(agents)
        yield from self._redis()
        stats = self._store.stats()
        for counted in METRICS:
            yield _family(counted, stats.get(counted.key, []))
        requests = CounterMetricFamily("launch_tracking_requests", "Requests answered.", labels=("route", "status"))
        for labels, count in sorted(self._answered.items()):
            requests.add_metric(labels, count)
        yield requests

    def _queues(self, agents: Sequence[AgentRecord]) -> Iterator[Metric]:
        queues = self._store.queues()
        names = [queue.name for queue in queues]
        now, oldest = self._store.now(), self._store.oldest(names)
        depth = GaugeMetricFamily("launch_queue_runs", "Runs of a queue that have not ended.", labels=("queue", "kind"))
        for name, counts in self._store.counts(names).items():
            for kind in _KINDS:
                depth.add_metric((name, kind), getattr(counts, kind))
        age = GaugeMetricFamily(
            "launch_queue_head_age_seconds", "Since when the run that is next has been queued.", labels=("queue",)
        )
        paused = GaugeMetricFamily("launch_queue_paused", "1 while a queue gives out no runs.", labels=("queue",))
        served = GaugeMetricFamily("launch_queue_agents", "Living agents that serve a queue.", labels=("queue",))
        serving = Counter(name for agent in agents for name in agent.queues)
        for queue in queues:
            age.add_metric((queue.name,), max(0.0, now - oldest[queue.name]) if queue.name in oldest else 0.0)
            paused.add_metric((queue.name,), int(queue.paused))
            served.add_metric((queue.name,), serving[queue.name])
        yield from (depth, age, paused, served)

    def _redis(self) -> Iterator[Metric]:
        memory = self._store.redis.info("memory")
        yield GaugeMetricFamily("launch_redis_used_bytes", "Memory that Redis uses.", value=memory["used_memory"])
        yield GaugeMetricFamily(
            "launch_redis_limit_bytes", "Memory that Redis may use; 0: no limit.", value=memory.get("maxmemory", 0)
        )
        info = GaugeMetricFamily("launch_info", "The version of this server.", labels=("version",))
        info.add_metric((version("openlaunch"),), 1)
        yield info


def _agents(agents: Sequence[AgentRecord]) -> Iterator[Metric]:
    labels = ("agent", "name", "host")
    slots = GaugeMetricFamily("launch_agent_slots", "Runs an agent carries at most.", labels=labels)
    used = GaugeMetricFamily("launch_agent_slots_used", "Runs an agent carries.", labels=labels)
    blocked = GaugeMetricFamily("launch_agent_problems", "What keeps an agent from taking runs.", labels=labels)
    for agent in agents:
        values = (agent.id, agent.name, agent.host)
        slots.add_metric(values, agent.max_jobs)
        used.add_metric(values, len(agent.runs))
        blocked.add_metric(values, len(agent.problems))
    yield GaugeMetricFamily("launch_agents", "Living agents.", value=len(agents))
    yield from (slots, used, blocked)


def _family(counted: Counted, series: list[Series]) -> CounterMetricFamily | HistogramMetricFamily:
    if not counted.bounds:
        counter = CounterMetricFamily(counted.name, counted.help, labels=counted.labels)
        for one in series:
            counter.add_metric(one.labels, one.value)
        return counter
    histogram = HistogramMetricFamily(counted.name, counted.help, labels=counted.labels)
    for one in series:
        histogram.add_metric(one.labels, list(one.buckets), one.value)
    return histogram


class _Counting:
    """Counts answers by route; plain ASGI, so that uploads and downloads stream through it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and count what was answered."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.note(getattr(scope.get("route"), "path", "unknown"), message["status"])
            await send(message)

        return await self._app(scope, receive, counting)


def add_metrics(app: FastAPI, store: RunStore) -> None:
    """Let an application count its answers and answer ``/metrics``."""
    metrics = Metrics(store)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)

    app.add_middleware(_Counting, metrics=metrics)

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(await run_in_threadpool(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)
