"""One OpenTelemetry trace for each run: enqueue, wait, fetch, build or pull, submit, start, run, upload.

On when ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``..._TRACES_ENDPOINT``) is set; without it nothing is imported and nothing
is done. The ids of a run's trace and of its root span are made from the run's id, so that an agent that adopts a run
goes on with its trace, and whoever ends it closes it. Times are Redis' own, as in the record. What cannot be delivered
is dropped, and never holds up a run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from launch.errors import ConfigError, LaunchError
from launch.models import ImageSource, RunRecord, RunState

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SPANS = {
    **{"fetch": "fetch", "build": "build", "submit": "submit", "record": "start", "follow": "run"},
    "conclude": "upload",
}
"""``{step of workers.execute: the span that begins with it}``."""


def make_tracer(environ: Mapping[str, str], agent: str) -> Tracer | None:
    """Return what sends traces where the environment says; none when it says nothing.

    Raises:
        ConfigError: it says so, and OpenTelemetry is not installed.
    """
    if not any(environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as exc:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_ENDPOINT: needs {exc.name}: pip install 'openlaunch[otel]'") from exc
    return Tracer(BatchSpanProcessor(OTLPSpanExporter()), agent)


class Tracer:
    """Sends the spans of the runs that an agent carries."""

    def __init__(self, processor: BatchSpanProcessor, agent: str) -> None:
        from opentelemetry.sdk.resources import Resource

        self._processor = processor
        self._resource = Resource.create({"service.name": "openlaunch", "service.instance.id": agent})

    def send(
        self,
        record: RunRecord,
        name: str | None,
        start: float,
        end: float,
        *,
        problem: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Send one span of a run, in Unix seconds; no name: its root, which all others are below."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        digest = hashlib.sha256(f"launch {record.id}".encode()).digest()
        trace, root = int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
        own = root if name is None else int.from_bytes(os.urandom(8))

        def context(span: int) -> SpanContext:
            return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

        said = {"launch.run": record.id, "launch.queue": record.spec.queue, "launch.job": record.spec.title}
        span = ReadableSpan(
            name=name or f"run {record.spec.title}",
            context=context(own),
            parent=None if name is None else context(root),
            resource=self._resource,
            attributes={**said, "launch.attempt": record.attempt, **(attributes or {})},
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, problem) if problem is not None else Status(StatusCode.OK),
            start_time=int(start * 1e9),
            end_time=int(max(start, end) * 1e9),
        )
        self._processor.on_end(span)

    def close(self) -> None:
        """Send what has not been sent yet, for as long as an agent that leaves may take."""
        self._processor.force_flush(1000)


class RunTrace:
    """The spans of one run in one agent's hands, one at a time."""

    def __init__(self, tracer: Tracer, record: RunRecord, now: Callable[[], float]) -> None:
        self._tracer = tracer
        self._record = record
        self._now = now
        self._open: tuple[str, float] | None = None
        if record.state is RunState.BUILDING and record.attempt == 1 and record.claimed_at is not None:
            tracer.send(record, "enqueue", record.created_at, record.created_at)
            tracer.send(record, "wait", record.created_at, record.claimed_at)

    def step(self, step: str) -> None:
        """Note that ``workers.execute`` is at a step: the span before ends, and the step's own begins."""
        self._end_open()
        name = _SPANS.get(step)
        if name == "build" and isinstance(self._record.spec.job.source, ImageSource):
            name = "pull"
        if name is not None:
            self._open = (name, self._now())

    def _end_open(self) -> None:
        if self._open is not None:
            name, since = self._open
            self._open = None
            self._tracer.send(self._record, name, since, self._now())

    def end(self, record: RunRecord) -> None:
        """Note that this agent has done with the run: ended, gone back to its queue, or let go of."""
        self._end_open()
        if record.ended_at is None:
            return
        cause = record.cause
        problem = None if record.state is RunState.FINISHED or cause is None else cause.message
        said = {"launch.state": str(record.state), "launch.cause": str(cause.kind) if cause else ""}
        self._tracer.send(record, None, record.created_at, record.ended_at, problem=problem, attributes=said)


class Traces:
    """The traces of the runs an agent has in hand; without a tracer, nothing.

    Args:
        tracer: what sends them.
        now: Redis' time in Unix seconds, at no cost.
    """

    def __init__(self, tracer: Tracer | None, now: Callable[[], float]) -> None:
        self._tracer = tracer
        self._now = now
        self._open: dict[str, RunTrace] = {}

    @contextmanager
    def of(self, record: RunRecord, read_again: Callable[[], RunRecord]) -> Iterator[None]:
        """Trace a run for a block that carries it."""
        if self._tracer is None:
            yield
            return
        trace = self._open[record.id] = RunTrace(self._tracer, record, self._now)
        try:
            yield
        finally:
            self._open.pop(record.id, None)
            try:
                trace.end(read_again())
            except LaunchError as exc:
                log.warning("run %s: its trace has no end: %s", record.id, exc)

    def step(self, step: str, run_id: str) -> None:
        """Note that a run is at a step of ``workers.execute``."""
        trace = self._open.get(run_id)
        if trace is not None:
            trace.step(step)

    def close(self) -> None:
        """Send what has not been sent yet."""
        if self._tracer is not None:
            self._tracer.close()
