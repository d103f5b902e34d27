"""Counters and histograms of an installation, which its processes add to in Redis: they outlive each of them.

What scripts do is counted by the scripts. What only a process sees (how long a claim took, what a build came to) it
keeps in a :class:`Meter`, which rides along with the next read of records: no round trip of its own, and if that read
fails, no more is lost than a few counts.

In Redis one hash, ``launch:stats``: a field for each counter, its name and the values of its labels with ``|`` between
them, and for a histogram one for each bound and one for the sum (``wait|gpu-box|60``, ``wait|gpu-box|sum``). A bound's
field counts what lies between it and the bound before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

SPAN_BOUNDS = ("0.1", "0.5", "1", "5", "15", "60", "300", "1800", "3600", "21600", "86400", "604800", "+Inf")
"""Seconds of what takes its time: waits, runs, builds. The scripts have them too."""
LATENCY_BOUNDS = ("0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.5", "2.5", "+Inf")
"""Seconds of what should take none."""
STATS = "launch:stats"


@dataclass(frozen=True)
class Metric:
    """One metric: what it is called here and at Prometheus, and what it says."""

    key: str
    name: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[str, ...] = ()
    """Of a histogram; none: a counter."""


METRICS = (
    Metric("enqueued", "launch_runs_enqueued", "Runs put into the queue.", ("queue",)),
    Metric("ended", "launch_runs_ended", "Runs that have ended.", ("queue", "state", "cause")),
    Metric("retried", "launch_runs_retried", "Failed attempts that another one follows.", ("queue",)),
    Metric("adopted", "launch_runs_adopted", "Runs taken over from another agent.", ("queue",)),
    Metric("unclaimed", "launch_runs_unclaimed", "Runs put back because their target was away.", ("queue",)),
    Metric("wait", "launch_run_wait_seconds", "From enqueue to the first claim.", ("queue",), SPAN_BOUNDS),
    Metric(
        "duration", "launch_run_duration_seconds", "From the start at the target to the end.", ("queue",), SPAN_BOUNDS
    ),
    Metric("built", "launch_builds", "Images and environments asked for, by what came of it.", ("builder", "result")),
    Metric("build", "launch_build_seconds", "How long asking for one took.", ("builder",), SPAN_BOUNDS),
    Metric("enqueue", "launch_enqueue_seconds", "One call to Redis that records runs.", (), LATENCY_BOUNDS),
    Metric("claim", "launch_claim_seconds", "One call to Redis that claims a run.", (), LATENCY_BOUNDS),
    Metric("bells", "launch_bells", "Messages that agents have received.", ("queue", "kind")),
    Metric("mended", "launch_bells_mended", "Messages that the reconciler added or removed.", ("queue", "how")),
)
"""All there are; ``ended`` with the states and causes of :mod:`launch.models`."""
_BY_KEY = {metric.key: metric for metric in METRICS}


class Meter:
    """What one process has counted and not handed on yet; any thread may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._sums: dict[str, float] = {}

    def count(self, key: str, *labels: str, by: int = 1) -> None:
        """Add to a counter of :data:`METRICS`."""
        assert len(labels) == len(_BY_KEY[key].labels), key
        with self._lock:
            self._add("|".join((key, *labels)), by)

    def observe(self, key: str, *labels: str, seconds: float) -> None:
        """Add a span of time to a histogram of :data:`METRICS`."""
        bounds = _BY_KEY[key].bounds
        bound = next(bound for bound in bounds if bound == "+Inf" or seconds <= float(bound))
        series = "|".join((key, *labels))
        with self._lock:
            self._add(f"{series}|{bound}", 1)
            self._sums[f"{series}|sum"] = self._sums.get(f"{series}|sum", 0.0) + seconds

    @contextmanager
    def timing(self, key: str, *labels: str) -> Iterator[None]:
        """Observe how long a block takes, whether or not it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.observe(key, *labels, seconds=time.perf_counter() - started)

    @contextmanager
    def building(self, builder: str) -> Iterator[Callable[[bool], None]]:
        """Observe a build, and count what came of it: call what is yielded with whether something was reused."""
        results: list[str] = []
        try:
            with self.timing("build", builder):
                yield lambda reused: results.append("reused" if reused else "made")
        finally:
            self.count("built", builder, results[0] if results else "failed")

    def _add(self, field: str, by: int) -> None:
        self._counts[field] = self._counts.get(field, 0) + by

    def hand_on(self, pipe: Any) -> None:
        """Put what was counted into a pipeline of Redis commands."""
        if not self._counts:
            return
        with self._lock:
            counts, self._counts = self._counts, {}
            sums, self._sums = self._sums, {}
        for field, by in counts.items():
            pipe.hincrby(STATS, field, by)
        for field, seconds in sums.items():
            pipe.hincrbyfloat(STATS, field, seconds)


@dataclass(frozen=True)
class Series:
    """One line of a counter, or one histogram, with the values of its labels."""

    labels: tuple[str, ...]
    value: float
    """A counter's value, or the sum of a histogram."""
    buckets: tuple[tuple[str, float], ...] = ()
    """``[(bound, how many lie at or below it)]``, all bounds in order."""


def read_stats(raw: Mapping[str, str]) -> dict[str, list[Series]]:
    """Return ``{metric's key: its series}`` of what the hash holds; a field that no metric knows is left out."""
    found: dict[str, dict[tuple[str, ...], dict[str, float]]] = {}
    for field, text in raw.items():
        key, *rest = field.split("|")
        metric = _BY_KEY.get(key)
        last: Literal[""] | str = rest.pop() if metric and metric.bounds and rest else ""
        if metric is not None and len(rest) == len(metric.labels):
            found.setdefault(key, {}).setdefault(tuple(rest), {})[last] = float(text)
    return {key: [_series(_BY_KEY[key], *item) for item in sorted(found[key].items())] for key in found}


def _series(metric: Metric, labels: tuple[str, ...], values: Mapping[str, float]) -> Series:
    if not metric.bounds:
        return Series(labels, values[""])
    buckets, below = [], 0.0
    for bound in metric.bounds:
        below += values.get(bound, 0.0)
        buckets.append((bound, below))
    return Series(labels, values.get("sum", 0.0), tuple(buckets))
