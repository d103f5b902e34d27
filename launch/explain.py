"""Why a run is where it is, in sentences: what it waits for, what it does, or how it ended. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from launch.durations import ago, duration
from launch.forecast import MIN_BASIS, Expected
from launch.models import AttemptRecord, RunRecord
from launch.records import AgentRecord, RunEvent
from launch.waiting import QueueView, Waiting, waits_for

_LATE_S = 3.0
"""A heartbeat that is later than this is worth a word."""


@dataclass(frozen=True)
class Situation:
    """A run and what is around it."""

    now: float
    """Unix seconds, Redis time."""
    record: RunRecord
    queue: QueueView | None = None
    """None: the queue was deleted."""
    position: int | None = None
    """Its place among the waiting, 1 for the next."""
    waiting: int = 0
    """How many wait in its queue."""
    owner: AgentRecord | None = None
    """The agent that its record names, dead or alive."""
    followers: tuple[str, ...] = ()
    """Names of the living agents that could follow it where it is."""
    last_event: RunEvent | None = None
    expected: Expected | None = None
    """For a run that waits its turn."""


@dataclass(frozen=True)
class Explanation:
    """What there is to say of a run."""

    run_id: str
    state: str
    headline: str
    lines: tuple[str, ...]
    """Sentences."""
    waiting: Waiting | None = None
    """For a queued run."""
    position: int | None = None
    expected: Expected | None = None
    commands: tuple[str, ...] = ()
    """What could be typed next."""
    attempts: tuple[AttemptRecord, ...] = ()
    """Those before the one it is at."""
    log_tail: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "id": self.run_id,
            "state": self.state,
            "summary": self.headline,
            "details": list(self.lines),
            "waits_for": str(self.waiting.kind) if self.waiting else None,
            "position": self.position,
            "expected_start": asdict(self.expected) if self.expected else None,
            "commands": list(self.commands),
            "attempts": [attempt.model_dump(mode="json") for attempt in self.attempts],
            "log_tail": list(self.log_tail),
        }


def explain(situation: Situation) -> Explanation:
    """Return what there is to say of a run."""
    record = situation.record
    if record.state.is_final:
        return _ended(record, situation.now)
    return _claimed(situation) if record.state.is_claimed else _queued(situation)


# --- queued -----------------------------------------------------------------------------------------------------------


def _queued(situation: Situation) -> Explanation:
    record = situation.record
    place = f", place {situation.position} of {situation.waiting}" if situation.position is not None else ""
    headline = f"queued in {record.spec.queue}{place}, enqueued {ago(situation.now - record.created_at)}"
    if situation.queue is None:
        return Explanation(record.id, record.state, headline, (f"Queue {record.spec.queue} is no more.",))
    waiting = waits_for(record, situation.queue, situation.position, situation.now)
    lines = [waiting.sentence]
    if record.note and record.due_at is None:
        lines.append(f"Its last try went back to the queue: {record.note}")
    if record.attempts:
        lines.append(f"{len(record.attempts)} attempt(s) have failed; the last: {record.attempts[-1].cause.message}")
    lines.append(_expectation(situation.expected))
    commands = [waiting.command] if waiting.command else []
    return Explanation(
        record.id,
        record.state,
        headline,
        tuple(lines),
        waiting=waiting,
        position=situation.position,
        expected=situation.expected,
        commands=tuple(commands),
        attempts=record.attempts,
    )


def _expectation(expected: Expected | None) -> str:
    if expected is None:
        return "Expected start: unknown, as long as it waits for that."
    if expected.median_s is None:
        jobs = ", ".join(expected.unknown)
        why = f"fewer than {MIN_BASIS} earlier runs, or none that took this long, of {jobs}" if jobs else "no free slot"
        return f"Expected start: unknown ({why})."
    if expected.median_s == 0:
        return "Expected start: now."
    late = f"in {duration(expected.p90_s)}" if expected.p90_s is not None else "unknown"
    sooner = f" Sooner, if {', '.join(expected.unknown)} ends before: nobody knows." if expected.unknown else ""
    return (
        f"Expected start: in about {duration(expected.median_s)} if the runs before it take their jobs' median time, "
        f"{late} if they take their 90th percentile.{sooner}"
    )


# --- claimed ----------------------------------------------------------------------------------------------------------


def _claimed(situation: Situation) -> Explanation:
    record, now, event = situation.record, situation.now, situation.last_event
    since = f" for {duration(now - event.at)}" if event else ""
    headline = f"{record.state}{since}{f': {record.note}' if record.note else ''}"
    lines = [_who_follows(situation)]
    if record.claimed_at is not None:
        lines.append(f"Attempt {record.attempt}, claimed {ago(now - record.claimed_at)}.")
    lines += _time_limits(record, now)
    if record.stop is not None:
        lines.append(
            f"{record.stop.by} asked it to stop {ago(now - record.stop.at)}; it has {record.stop.grace_s:g} s for it."
        )
    if record.attempts:
        lines.append(f"{len(record.attempts)} attempt(s) before have failed.")
    has_follower = bool(situation.followers) or (situation.owner is not None and situation.owner.is_alive)
    commands = [f"launch logs -f {record.id}"] if has_follower else [f"launch agent -q {record.spec.queue}"]
    return Explanation(
        record.id, record.state, headline, tuple(lines), commands=tuple(commands), attempts=record.attempts
    )


def _who_follows(situation: Situation) -> str:
    record, owner = situation.record, situation.owner
    if owner is not None and owner.is_alive:
        late = situation.now - owner.heartbeat_at
        heard = f", last heard of {ago(late)}" if late > _LATE_S else ""
        return f"Agent {owner.name} on {owner.host} follows it{heard}."
    if record.agent is None:
        gone = "Its agent has let go of it, and its job goes on"
    elif owner is None:
        gone = f"Its agent {record.agent} is gone, and its job goes on if its machine does"
    else:
        gone = f"Its agent {owner.name} was last heard of {ago(situation.now - owner.heartbeat_at)}"
    if situation.followers:
        return f"{gone}; one of these takes it over in a moment: {', '.join(situation.followers)}."
    since = record.released_at or (owner.heartbeat_at if owner else None) or record.claimed_at or record.created_at
    left = max(0.0, since + record.spec.limits.orphan_s - situation.now)
    return (
        f"{gone}. No living agent can follow it where it is: start one there that serves {record.spec.queue}. Once "
        f"other agents have waited {duration(left)} more, it counts as lost with its machine."
    )


def _time_limits(record: RunRecord, now: float) -> list[str]:
    limits, lines = record.spec.limits, []
    if limits.run_s is not None and record.started_at is not None:
        left = record.started_at + limits.run_s - now
        lines.append(f"Its time limit of {duration(limits.run_s)} ends in {duration(max(0.0, left))}.")
    if limits.start_s is not None and record.started_at is None and record.claimed_at is not None:
        left = record.claimed_at + limits.start_s - now
        lines.append(f"Its limit of {duration(limits.start_s)} to start ends in {duration(max(0.0, left))}.")
    return lines


# --- ended ------------------------------------------------------------------------------------------------------------


def _ended(record: RunRecord, now: float) -> Explanation:
    ended = f" {ago(now - record.ended_at)}" if record.ended_at is not None else ""
    lines = []
    if record.cause is not None:
        lines.append(record.cause.message)
    if record.claimed_at is None:
        lines.append("It never started.")
    elif record.ended_at is not None:
        lines.append(f"Attempt {record.attempt} took {duration(record.ended_at - record.claimed_at)}.")
    commands = [f"launch logs {record.id}"] if record.claimed_at is not None else []
    if record.state != "finished":
        commands.append(f"launch rerun {record.id}")
    return Explanation(
        record.id,
        record.state,
        f"{record.state}{ended}",
        tuple(lines),
        commands=tuple(commands),
        attempts=record.attempts,
        log_tail=record.cause.log_tail if record.cause is not None else (),
    )
