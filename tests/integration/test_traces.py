"""What an agent tells programs of its runs: an OpenTelemetry trace each, and log lines as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.client import Client
from tests.agents import Fleet, wait_until
from tests.receivers import receiving

pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry: pip install 'openlaunch[otel]'")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

pytestmark = pytest.mark.redis


class Collector:
    """Takes OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[Any] = []

    def take(self, body: bytes) -> int:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return 200

    def names(self) -> Counter[str]:
        return Counter(span.name for span in self.spans)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    with receiving(collector.take) as collector.endpoint:
        yield collector


@pytest.fixture
def traced(fleet: Fleet, collector: Collector) -> Fleet:
    fleet.environment |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    return fleet


def test_a_run_is_one_trace(client: Client, traced: Fleet, collector: Collector) -> None:
    """Every stretch of its life is a span below one root, in order, and a failure is said."""
    traced.start("q")
    run = client.enqueue(command=["sh", "-c", "sleep 0.3; exit 3"], queue="q", tracking="optional").wait(30)
    wait_until(lambda: f"run {run.spec.title}" in collector.names(), what="the root span")

    (root,) = [span for span in collector.spans if not span.parent_span_id]
    below = {span.name: span for span in collector.spans if span.parent_span_id}

    assert list(below) == ["enqueue", "wait", "fetch", "build", "submit", "start", "run", "upload"]
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    assert {span.parent_span_id for span in below.values()} == {root.span_id}
    starts = [span.start_time_unix_nano for span in below.values()]
    assert starts == sorted(starts)
    assert below["run"].end_time_unix_nano - below["run"].start_time_unix_nano > 0.25e9
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert "3" in root.status.message
    said = {item.key: item.value for item in root.attributes}
    assert said["launch.run"].string_value == run.id
    assert said["launch.state"].string_value == "failed"
    assert said["launch.cause"].string_value == "exit_code"


def test_an_adopted_run_goes_on_with_its_trace(
    client: Client, traced: Fleet, collector: Collector, tmp_path: Path
) -> None:
    """The agent that follows it to its end closes the trace that another began."""
    go = tmp_path / "go"
    first = traced.start("q", name="first")
    command = ["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done"]
    run = client.enqueue(command=command, queue="q", tracking="optional")
    wait_until(lambda: "start" in collector.names(), what="the first agent's spans")
    first.kill()
    traced.start("q", name="second")
    wait_until(lambda: "second" in (client.store.record(run.id).agent or ""), what="its adoption")
    go.touch()
    run.wait(30)
    wait_until(lambda: f"run {run.spec.title}" in collector.names(), what="the root span")

    assert len({span.trace_id for span in collector.spans}) == 1
    assert collector.names()["run"] == 1
    assert collector.names()["wait"] == 1


def test_an_agents_log_is_json_about_its_runs(client: Client, fleet: Fleet) -> None:
    """Not on a terminal, each line is an object, and those about a run say run, attempt, queue and agent."""
    agent = fleet.start("q", name="box")
    run = client.enqueue(command=["true"], queue="q", tracking="optional").wait(30)
    agent.terminate()

    lines = [json.loads(line) for line in agent.log.read_text().splitlines() if line.startswith("{")]
    about = [line for line in lines if line.get("run") == run.id]
    assert about
    for line in about:
        assert line["attempt"] == 1
        assert line["queue"] == "q"
        assert line["agent"].startswith("box-")
