"""``/metrics`` over a real Redis, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, QueueSpec, RetryRule, RunState
from launch.server.app import create_app
from launch.server.metrics import add_metrics
from launch.store import Claimed, RunStore
from launch.tracking import TrackingStore

pytestmark = pytest.mark.redis

ERROR = Cause(kind=CauseKind.EXIT_CODE, message="It exited with 1.", exit_code=1)


def launches(queue: str, count: int) -> list[LaunchSpec]:
    job = Job(source=CommandSource(), entrypoint=("true",))
    return [LaunchSpec(run_id=f"{queue}-{n}", queue=queue, resource="process", job=job) for n in range(count)]


def claim(store: RunStore, queue: str) -> Claimed:
    claimed = store.claim(queue, "a-1")
    assert isinstance(claimed, Claimed)
    return claimed


class Scrape:
    """One scrape of a server."""

    def __init__(self, store: RunStore, home: Path) -> None:
        app = create_app(TrackingStore(store.redis), home)
        add_metrics(app, store)
        self._app = app

    async def _get(self) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://server") as web:
            return await web.get("/metrics")

    def values(self) -> dict[tuple[str, str], float]:
        """Return ``{(sample's name, values of its labels, by their names): value}``."""
        answer = asyncio.run(self._get())
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        return {
            (sample.name, " ".join(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }


def test_what_runs_do_is_counted(store: RunStore, tmp_path: Path) -> None:
    """Waiting, claimed, retried and ended runs are told apart, and times are in histograms."""
    store.create_queue(QueueSpec(name="q", resource="process"))
    store.create_queue(QueueSpec(name="idle", resource="process"))
    store.enqueue_many(launches("q", 4))
    failed, again, finished = (claim(store, "q") for _ in range(3))
    for claimed in (failed, finished):
        store.advance(claimed.record.id, claimed.fence, RunState.STARTING)
        store.advance(claimed.record.id, claimed.fence, RunState.RUNNING, handle="h")
    store.finish(failed.record.id, failed.fence, RunState.FAILED, ERROR)
    store.finish(finished.record.id, finished.fence, RunState.FINISHED, ERROR.model_copy(update={"exit_code": 0}))
    store.finish(finished.record.id, finished.fence, RunState.FINISHED, ERROR)  # said again: counted once
    store.retry(again.record, again.fence, ERROR, log_archive=None, rule=RetryRule(times=1))
    store.heartbeat("a-1", agent(max_jobs=3, runs=["q-1"]), gap_s=6)

    scrape = Scrape(store, tmp_path)
    found = scrape.values()

    assert found["launch_runs_enqueued_total", "q"] == 4
    assert found["launch_queue_runs", "waiting q"] == 1
    assert found["launch_queue_runs", "delayed q"] == 1
    assert found["launch_queue_runs", "active q"] == 0
    assert found["launch_runs_ended_total", "exit_code q failed"] == 1
    assert found["launch_runs_ended_total", "exit_code q finished"] == 1
    assert found["launch_runs_retried_total", "q"] == 1
    assert found["launch_run_wait_seconds_count", "q"] == 3
    assert found["launch_run_duration_seconds_bucket", "+Inf q"] == 2
    assert found["launch_claim_seconds_count", ""] == 3
    assert found["launch_enqueue_seconds_count", ""] == 1
    assert 0 < found["launch_queue_head_age_seconds", "q"] < 60
    assert found["launch_queue_head_age_seconds", "idle"] == 0
    assert found["launch_queue_agents", "q"] == 1
    assert found["launch_queue_agents", "idle"] == 0
    assert found["launch_agents", ""] == 1
    assert found["launch_agent_slots", "a-1 host a"] == 3
    assert found["launch_agent_slots_used", "a-1 host a"] == 1
    assert found["launch_redis_used_bytes", ""] > 0
    assert scrape.values()["launch_tracking_requests_total", "/metrics 200"] == 1


def agent(*, max_jobs: int, runs: list[str]) -> dict[str, object]:
    return {
        **{"name": "a", "host": "host", "pid": 1, "version": "0", "queues": ["q"], "localities": [], "runs": runs},
        **{"max_jobs": max_jobs, "state": "serving", "problems": [], "started_at": 0.0},
    }


def test_a_deleted_queue_is_forgotten(store: RunStore, tmp_path: Path) -> None:
    """Its counters go with it; those of a queue whose name begins the same stay."""
    for name in ("gone", "gone-not"):
        store.create_queue(QueueSpec(name=name, resource="process"))
        store.enqueue_many(launches(name, 1))
        claimed = claim(store, name)
        store.finish(claimed.record.id, claimed.fence, RunState.FAILED, ERROR)
    store.delete_queue("gone")

    found = Scrape(store, tmp_path).values()

    assert not [key for key in found if "gone" in key[1].split()]
    assert found["launch_runs_ended_total", "exit_code gone-not failed"] == 1
