"""Counters as they stand in Redis, and as they are read from there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.metrics import METRICS, SPAN_BOUNDS, STATS, Meter, read_stats


class Pipeline:
    """What a pipeline of commands would make of the hash."""

    def __init__(self) -> None:
        self.hash: Counter[str] = Counter()

    def hincrby(self, key: str, field: str, by: int) -> None:
        assert key == STATS
        self.hash[field] += by

    hincrbyfloat: Any = hincrby

    @property
    def raw(self) -> dict[str, str]:
        return {field: str(value) for field, value in self.hash.items()}


@given(st.lists(st.floats(min_value=0, max_value=1e7)))
def test_a_histogram_counts_every_span_once(spans: list[float]) -> None:
    """What lies at or below each bound is counted there, however it was handed on, and the sum is the sum."""
    meter, pipe = Meter(), Pipeline()
    for place, seconds in enumerate(spans):
        meter.observe("build", "docker", seconds=seconds)
        if place % 3 == 0:
            meter.hand_on(pipe)
    meter.hand_on(pipe)

    found = read_stats(pipe.raw)

    if not spans:
        assert found == {}
        return
    (series,) = found["build"]
    assert series.labels == ("docker",)
    assert series.value == pytest.approx(sum(spans))
    assert dict(series.buckets) == {
        bound: sum(seconds <= float(bound.replace("+Inf", "inf")) for seconds in spans) for bound in SPAN_BOUNDS
    }


def test_what_was_handed_on_is_not_handed_on_again() -> None:
    """A meter's counts leave it once; with nothing new, no command is sent."""
    meter, pipe = Meter(), Pipeline()
    meter.count("bells", "q", "own")
    meter.count("bells", "q", "own", by=2)

    meter.hand_on(pipe)
    meter.hand_on(pipe)

    assert pipe.raw == {"bells|q|own": "3"}
    assert [one.value for one in read_stats(pipe.raw)["bells"]] == [3]


def test_a_build_is_counted_by_what_came_of_it() -> None:
    """Made, reused, or failed: each once, and each took its time."""
    meter, pipe = Meter(), Pipeline()
    for reused in (True, False, False):
        with meter.building("docker") as note_reused:
            note_reused(reused)
    with pytest.raises(ValueError), meter.building("docker"):
        raise ValueError
    meter.hand_on(pipe)

    found = read_stats(pipe.raw)

    counts = {series.labels[1]: series.value for series in found["built"]}
    assert counts == {"reused": 1, "made": 2, "failed": 1}
    assert dict(found["build"][0].buckets)["+Inf"] == 4


def test_fields_of_another_version_are_left_out() -> None:
    """A counter that this version does not know, or that has other labels, breaks no page."""
    assert read_stats({"future|q": "1", "enqueued": "1", "enqueued|q|x": "1", "enqueued|q": "4"}).keys() == {"enqueued"}


def test_scripts_and_readers_agree_on_the_bounds() -> None:
    """The scripts' histograms have the bounds that the readers expect."""
    prelude = Path("launch/scripts/prelude.lua").read_text()
    (bounds,) = re.findall(r"^local BOUNDS = \{(.*)\}$", prelude, re.MULTILINE)
    assert tuple(re.findall(r"'([^']+)'", bounds)) == SPAN_BOUNDS


def test_metrics_have_prometheus_names() -> None:
    """Base units, one prefix, and no suffix that the exposition adds itself."""
    for metric in METRICS:
        assert re.fullmatch(r"launch_[a-z_]+", metric.name), metric
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket")), metric
        assert bool(metric.bounds) == metric.name.endswith("_seconds"), metric
