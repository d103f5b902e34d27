"""What must be true of every run, whatever died: compares records, events and ledger. No I/O here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from launch.chaos.ledger import Entry
from launch.models import RunRecord, RunState
from launch.records import RunEvent

_TIE_S = 0.002
"""Two events this close may have been seen in either order."""
_SLACK_S = 1.0
"""What a job writes just before or after may be on its way still."""
_PAUSE_IS_OVER = "its pause is over"
"""The note of ``launch/scripts/promote.lua``."""


@dataclass(frozen=True)
class Breach:
    """A promise that was broken."""

    promise: str
    run_id: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.run_id + ': ' if self.run_id else ''}{self.what}"


@dataclass(frozen=True)
class Evidence:
    """All that is known at the end."""

    acknowledged: Mapping[str, str]
    """``{run id: how it was enqueued}`` of those whose enqueueing was answered."""
    stopped: frozenset[str]
    """Runs somebody asked to stop."""
    records: Mapping[str, RunRecord]
    events: Mapping[str, Sequence[RunEvent]]
    """``{run id: its events, oldest first}``"""
    ledger: Sequence[Entry]
    limits: Mapping[str, int]
    """``{queue: max_concurrent}`` of those that have one."""
    logs: Mapping[str, tuple[Sequence[str], Sequence[str]]] = field(default_factory=dict)
    """``{run id: (lines its job wrote, lines of its log)}`` of finished runs."""
    unheard: frozenset[str] = frozenset()
    """Runs in containers whose engine was killed meanwhile: nobody hears what a container says without its engine."""


def running_at(ledger: Iterable[Entry], times: Iterable[float]) -> frozenset[str]:
    """Return the runs whose jobs ran, by their own word, at one of the times: seconds since the machine started."""
    times = sorted(times)
    starts: dict[tuple[str, int], float] = {}
    ends: dict[tuple[str, int], float] = {}
    for entry in ledger:
        (starts if entry.what == "start" else ends)[entry.run_id, entry.attempt] = entry.uptime_s
    return frozenset(
        run_id
        for (run_id, attempt), since in starts.items()
        if any(since - _SLACK_S <= at <= ends.get((run_id, attempt), at) + _SLACK_S for at in times)
    )


def judge(evidence: Evidence) -> list[Breach]:
    """Return every breach."""
    checks = (_every_run_is_there, _ends, _causes, _starts, _starts_of_ended, _order, _limits, _logs)
    return [breach for check in checks for breach in check(evidence)]


def _every_run_is_there(evidence: Evidence) -> Iterator[Breach]:
    for run_id, how in evidence.acknowledged.items():
        if run_id not in evidence.records:
            yield Breach("nothing is lost", run_id, f"was acknowledged (enqueued by {how}) and has no record")


def _ends(evidence: Evidence) -> Iterator[Breach]:
    for run_id, record in evidence.records.items():
        if not record.state.is_final:
            yield Breach("every run ends", run_id, f"is still {record.state}")


def _causes(evidence: Evidence) -> Iterator[Breach]:
    for run_id, record in evidence.records.items():
        if not record.state.is_final:
            continue
        if record.cause is None or not record.cause.message:
            yield Breach("every end has a cause", run_id, f"is {record.state} without a cause")
        elif record.state is RunState.STOPPED and run_id not in evidence.stopped:
            yield Breach("every end has a cause", run_id, f"is stopped, and nobody asked: {record.cause.message}")
        elif record.cause.kind == "internal":
            yield Breach("every end has a cause", run_id, f"failed in the agent: {record.cause.message}")


def _starts(evidence: Evidence) -> Iterator[Breach]:
    starts = Counter((entry.run_id, entry.attempt) for entry in evidence.ledger if entry.what == "start")
    for (run_id, attempt), count in starts.items():
        if count > 1:
            yield Breach("nothing starts twice", run_id, f"attempt {attempt} started {count} times")
        if run_id not in evidence.records:
            yield Breach("nothing starts twice", run_id, "started and has no record")
    by_run = Counter(run_id for run_id, _ in starts)
    for run_id, count in by_run.items():
        record = evidence.records.get(run_id)
        if record is not None and count > record.attempt:
            yield Breach("nothing starts twice", run_id, f"{count} attempts started, the record knows {record.attempt}")


def _starts_of_ended(evidence: Evidence) -> Iterator[Breach]:
    """A finished run has really run, from start to end, in its last attempt."""
    seen = {(entry.what, entry.run_id, entry.attempt) for entry in evidence.ledger}
    for run_id, record in evidence.records.items():
        if record.state is RunState.FINISHED:
            missing = [what for what in ("start", "end") if (what, run_id, record.attempt) not in seen]
            if missing:
                yield Breach("nothing is lost", run_id, f"is finished, but its job wrote no {' and no '.join(missing)}")


# --- order and limits -------------------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """A time in which a run was waiting or active; both ends in Redis' time."""

    run_id: str
    since: float
    until: float


def waiting_spans(record: RunRecord, events: Iterable[RunEvent]) -> list[_Span]:
    """Return when a run surely waited in its queue: from enqueueing or return to its claim or end.

    A run that pauses before a retry is not waiting in line until an event says that its pause is over.
    """
    spans: list[_Span] = []
    since: float | None = record.created_at
    attempt = 0
    for event in events:
        if event.state is not RunState.QUEUED:
            spans += [_Span(record.id, since, event.at)] if since is not None else []
            since, attempt = None, event.attempt
        elif since is None and not _pauses(event, attempt, record):
            since = event.at
    return spans if since is None else [*spans, _Span(record.id, since, float("inf"))]


def _pauses(event: RunEvent, attempt: int, record: RunRecord) -> bool:
    """Whether a run came back because its attempt failed; one whose target was away gets its attempt back."""
    return event.attempt == attempt and event.note != _PAUSE_IS_OVER and record.spec.retry.backoff_s > 0


def _claims(events: Iterable[RunEvent]) -> list[float]:
    return [event.at for event in events if event.note.startswith("claimed by")]


def _place(record: RunRecord) -> tuple[int, int]:
    return int(record.spec.priority), record.seq


def _by_queue(evidence: Evidence) -> dict[str, list[RunRecord]]:
    queues: dict[str, list[RunRecord]] = defaultdict(list)
    for record in evidence.records.values():
        queues[record.spec.queue].append(record)
    return queues


def _order(evidence: Evidence) -> Iterator[Breach]:
    """Whoever was claimed was the first of those that waited then."""
    for records in _by_queue(evidence).values():
        places = {record.id: _place(record) for record in records}
        spans = [span for record in records for span in waiting_spans(record, evidence.events.get(record.id, ()))]
        for record in records:
            for at in _claims(evidence.events.get(record.id, ())):
                overtaken = [
                    span.run_id
                    for span in spans
                    if places[span.run_id] < places[record.id] and span.since + _TIE_S < at < span.until - _TIE_S
                ]
                if overtaken:
                    first = min(overtaken, key=places.__getitem__)
                    yield Breach("runs start in order", record.id, f"was claimed while {first} waited before it")


def _active_spans(record: RunRecord, events: Iterable[RunEvent]) -> list[_Span]:
    spans, since = [], None
    for event in events:
        if event.state.is_claimed:
            since = event.at if since is None else since
        elif since is not None:
            spans.append(_Span(record.id, since, event.at))
            since = None
    return spans if since is None else [*spans, _Span(record.id, since, float("inf"))]


def _limits(evidence: Evidence) -> Iterator[Breach]:
    """Never are more runs of a queue active than it allows."""
    for queue, records in _by_queue(evidence).items():
        limit = evidence.limits.get(queue)
        if limit is None:
            continue
        spans = [span for record in records for span in _active_spans(record, evidence.events.get(record.id, ()))]
        moves = sorted((at, step, span.run_id) for span in spans for at, step in ((span.since, 1), (span.until, -1)))
        active = 0
        for _, step, run_id in moves:
            active += step
            if active > limit and step > 0:
                yield Breach("limits hold", run_id, f"was claimed as number {active} of queue {queue}, limit {limit}")


def _logs(evidence: Evidence) -> Iterator[Breach]:
    for run_id, (written, logged) in evidence.logs.items():
        is_whole = list(written) == list(logged)
        if not is_whole and not (run_id in evidence.unheard and _is_part(logged, written)):
            yield Breach("logs have no gap and no repeat", run_id, f"wrote {list(written)}, its log has {list(logged)}")


def _is_part(some: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether the lines are among the others, in their order and none twice."""
    rest = iter(whole)
    return all(line in rest for line in some)
