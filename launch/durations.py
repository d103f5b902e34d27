"""Time spans as people write and read them: ``90s``, ``30m``, ``1h30m``, ``7d``. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

from launch.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SPAN = re.compile(rf"(?:{_NUMBER}[smhd])+")
_PART = re.compile(rf"({_NUMBER})([smhd])")


def parse_duration(value: Any, *, where: str) -> float:
    """Return a time span in seconds.

    Args:
        value: ``"90s"``, ``"30m"``, ``"2h"``, ``"7d"``, several in a row (``"1h30m"``), or a number of seconds.
        where: what it is, for the message.

    Raises:
        ConfigError: it is none of these, or not more than 0.
    """
    seconds = _seconds(value)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigError(f"{where}: should be a time span, such as 90s, 30m, 2h or 7d, not {value!r}")
    return seconds


def _seconds(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    text = value.replace(" ", "")
    if _SPAN.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return float(text) if re.fullmatch(_NUMBER, text) else None


def duration(seconds: float | None) -> str:
    """Return a time span for people: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    for unit, size, below, below_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // below_size
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def ago(seconds: float) -> str:
    """Return how long ago something was, for people."""
    return f"{duration(seconds)} ago"
