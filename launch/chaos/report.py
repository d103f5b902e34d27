"""The table at the end, for people and for programs. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from launch.chaos.fault_points import STEPS
from launch.chaos.play import Outcome

PROMISES = (
    "nothing is lost",
    "nothing starts twice",
    "runs start in order",
    "limits hold",
    "every run ends",
    "every end has a cause",
    "logs have no gap and no repeat",
    "slots are right",
    "agents end when told",
    "nothing is left over",
)


def as_rows(outcome: Outcome) -> list[tuple[str, str, str]]:
    """Return ``[(part, what, count)]``."""
    rows = _part("done", outcome.injected)
    rows += _part("killed at step", {step: outcome.killed_at_step.get(step, 0) for step in STEPS})
    rows += _part("not possible here", outcome.skipped)
    rows += _part("seen", outcome.seen)
    rows += _part("runs ended", dict(sorted(outcome.states.items())))
    broken = {promise: sum(breach.promise == promise for breach in outcome.breaches) for promise in PROMISES}
    rows += [("promises", promise, f"{count} breaches" if count else "kept") for promise, count in broken.items()]
    return rows


def _part(name: str, counts: Mapping[str, int]) -> list[tuple[str, str, str]]:
    return [(name, what, str(count)) for what, count in counts.items()]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return all of it for programs."""
    return asdict(outcome)
