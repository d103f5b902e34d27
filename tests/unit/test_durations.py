"""Time spans: what may be typed, and what is shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.durations import parse_duration
from launch.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800), ("1h30m", 5400), ("1.5h", 5400), ("1 d 12 h", 129_600),
     ("45", 45), (45, 45), (0.5, 0.5)],
)  # fmt: skip
def test_a_time_span_may_be_typed_in_many_ways(text: Any, seconds: float) -> None:
    assert parse_duration(text, where="--timeout") == seconds


@pytest.mark.parametrize(
    "text", ["", "5x", "h", "-5s", "0", 0, -1, "1h-5m", True, None, float("inf"), float("nan"), "٣s"]
)
def test_what_is_no_time_span_is_named(text: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text, where="--timeout")
    assert str(caught.value) == f"--timeout: should be a time span, such as 90s, 30m, 2h or 7d, not {text!r}"


@given(st.integers(min_value=0, max_value=99), st.integers(min_value=0, max_value=99), st.integers(1, 99))
def test_parts_add_up(days: int, hours: int, seconds: int) -> None:
    assert parse_duration(f"{days}d{hours}h{seconds}s", where="x") == days * 86_400 + hours * 3600 + seconds
