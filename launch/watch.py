"""A run as the one who enqueued it sees it: its state, its log and metrics as they come, and a way to stop it."""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from launch.errors import NotFoundError, TemporaryError
from launch.loglines import LineFolder, LogLine, fold_lines
from launch.models import Cause, LaunchSpec, RunRecord, RunState
from launch.records import RunEvent

if TYPE_CHECKING:
    from launch.archive import ArchivedRun
    from launch.artifacts import ArtifactStore
    from launch.store import RunStore

# News wakes a waiting reader at once. This is only how long one that missed it (Redis was restarted without its last
# second) goes without looking at the record.
_LOOK_AGAIN_S = 30.0
_PATIENCE_S = 30.0
_RETRY_S = 0.5
_PAGE = 1000


@dataclass(frozen=True)
class Metrics:
    """Rows of what the script logged, as many as came together."""

    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Note:
    """The run moved on, or said what it is doing."""

    at: float
    """Unix seconds, Redis time."""
    state: RunState
    attempt: int
    text: str


News = Note | LogLine | Metrics


class Run:
    """One launch of one job. What can change is read anew at each look, until the run has ended."""

    def __init__(
        self,
        store: RunStore,
        artifacts: ArtifactStore,
        record: RunRecord,
        *,
        stop_grace_s: float = 10.0,
        archived: ArchivedRun | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._record = record
        self._stop_grace_s = stop_grace_s
        # What there is of a run that has left Redis.
        self._archived = archived

    def __repr__(self) -> str:
        return f"<Run {self.id} {self._record.state} of {self.spec.title!r} in {self.spec.queue!r}>"

    @property
    def id(self) -> str:
        """Its name everywhere."""
        return self._record.id

    @property
    def spec(self) -> LaunchSpec:
        """What was enqueued, frozen."""
        return self._record.spec

    @property
    def record(self) -> RunRecord:
        """All that is known of it, as of now."""
        return self._record if self._record.state.is_final else self.refresh()._record

    @property
    def state(self) -> RunState:
        """Where it is in its life; ``.is_final`` says whether that is the end."""
        return self.record.state

    @property
    def config(self) -> dict[str, Any]:
        """``wandb.config`` as the script has it; before ``wandb.init``, the overrides it will get."""
        record = self.record
        return record.config if record.tracked else record.spec.config

    @property
    def summary(self) -> dict[str, Any]:
        """``wandb.summary``: the last value of each metric, unless the script set another."""
        return self.record.summary

    @property
    def cause(self) -> Cause | None:
        """Why it ended; none before that."""
        return self.record.cause

    @property
    def attempt(self) -> int:
        """The try it is at; 0 before the first."""
        return self.record.attempt

    @property
    def agent(self) -> str | None:
        """Who runs it, or ran it last."""
        return self.record.agent

    def refresh(self) -> Run:
        """Read the record again, and return this run."""
        if self._archived is not None:
            return self
        self._record = self._store.record(self.id)
        return self

    def wait(self, timeout_s: float | None = None) -> Run:
        """Return this run once it has ended.

        Raises:
            TimeoutError: it has not ended within ``timeout_s``; it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        seen = "0"
        while True:
            # The events are read before the record: one that comes between the two wakes the wait below at once.
            seen = _last_id(self._store.read_events(self.id, after=seen), seen)
            if self.state.is_final:
                return self
            left = _LOOK_AGAIN_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"run {self.id} is still {self._record.state} after {timeout_s:g} s; it goes on")
            self._await_news(events=seen, timeout_s=min(left, _LOOK_AGAIN_S))

    def stop(self, grace_s: float | None = None) -> Run:
        """Ask for the run to end; returns at once, with the run as it then is.

        Args:
            grace_s: how long a running job may take to end before it is killed; none: as the settings say.
        """
        if self._archived is not None:
            return self
        grace = self._stop_grace_s if grace_s is None else grace_s
        self._record = self._store.request_stop(self.id, by=who(), grace_s=grace)
        return self

    def history(self) -> list[dict[str, Any]]:
        """Return the rows the script has logged, oldest first."""
        if self._archived is not None:
            return list(self._archived.history)
        rows: list[dict[str, Any]] = []
        seen = "0"
        while page := self._store.read_history(self.id, after=seen, limit=_PAGE):
            rows += [row for _, row in page]
            seen = page[-1][0]
        return rows

    def logs(self, follow: bool = False, *, raw: bool = False, attempt: int | None = None) -> Iterator[str]:
        """Yield the log from its first build line.

        Args:
            follow: go on until the run has ended; otherwise end with what there is now.
            raw: yield the pieces just as they were written, instead of lines with progress bars folded.
            attempt: the log of this try; none: of the last one.

        Raises:
            NotFoundError: there was no such attempt, or its log was not kept.
        """
        past = None if attempt is None else self._past_log(attempt)
        chunks = self._chunks(follow) if past is None else self._kept(past)
        return (text for _, text in chunks) if raw else (line.text for line in fold_lines(chunks))

    def _past_log(self, number: int) -> str | None:
        """Return where an earlier attempt's log is kept; none: it is the one the run is at."""
        record = self.record
        if record.attempt == number and not any(attempt.number == number for attempt in record.attempts):
            return None
        found = [attempt for attempt in record.attempts if attempt.number == number]
        if not found:
            tries = f"it has had {record.attempt}" if record.attempt else "it has not been started yet"
            raise NotFoundError(f"run {self.id} has no attempt {number}; {tries}")
        if found[0].log_archive is None:
            raise NotFoundError(
                f"the log of attempt {number} of run {self.id} was not kept; `launch show {self.id}` has its last lines"
            )
        return found[0].log_archive

    def log_lines(self, follow: bool = False) -> Iterator[LogLine]:
        """Like :meth:`logs`, each line with the stream it came from."""
        return fold_lines(self._chunks(follow))

    def news(self) -> Iterator[News]:
        """Yield what happens to the run, from its beginning to its end: notes, log lines and metrics as they come."""
        if self._archived is not None:
            yield from self._old_news(self._archived)
            return
        seen = _Seen()
        folder = LineFolder()
        while True:
            events = self._store.read_events(self.id, after=seen.events)
            seen.events = _last_id(events, seen.events)
            # Read before what follows, so that all that was written before the end is yielded before this returns.
            is_final = self.refresh()._record.state.is_final
            yield from (Note(event.at, event.state, event.attempt, event.note) for event in events if not _ends(event))
            yield from self._new_lines(seen, folder)
            yield from self._new_metrics(seen)
            yield from (Note(event.at, event.state, event.attempt, event.note) for event in events if _ends(event))
            if is_final:
                yield from folder.flush()
                return
            self._await_news(log=seen.log, history=seen.history, events=seen.events)

    def _old_news(self, archived: ArchivedRun) -> Iterator[News]:
        yield from (Note(event.at, event.state, event.attempt, event.note) for event in archived.events)
        yield from self.log_lines()
        if archived.history:
            yield Metrics(archived.history)

    def _await_news(self, *, timeout_s: float = _LOOK_AGAIN_S, **seen: str) -> None:
        _sit_out(self._store, lambda: self._store.wait_for_news(self.id, timeout_s=timeout_s, **seen), timeout_s)

    def _events(self, after: str) -> list[RunEvent]:
        return [] if self._archived is not None else self._store.read_events(self.id, after=after)

    def _new_lines(self, seen: _Seen, folder: LineFolder) -> Iterator[LogLine]:
        while entries := self._store.read_log(self.id, after=seen.log, limit=_PAGE):
            for entry in entries:
                yield from folder.feed(entry.stream, entry.text)
            seen.log = entries[-1].id

    def _new_metrics(self, seen: _Seen) -> Iterator[Metrics]:
        while page := self._store.read_history(self.id, after=seen.history, limit=_PAGE):
            yield Metrics(tuple(row for _, row in page))
            seen.history = page[-1][0]

    def _chunks(self, follow: bool) -> Iterator[tuple[str, str]]:
        archive = self.record.log_archive
        if archive is not None:
            yield from self._kept(archive)
            return
        if self._archived is not None:
            return
        seen, seen_event = self._log_start(), "0"
        while True:
            seen_event = _last_id(self._store.read_events(self.id, after=seen_event), seen_event)
            is_final = self.refresh()._record.state.is_final
            while entries := self._store.read_log(self.id, after=seen, limit=_PAGE):
                yield from ((entry.stream, entry.text) for entry in entries)
                seen = entries[-1].id
            if is_final or not follow:
                return
            self._await_news(log=seen, events=seen_event)

    def _log_start(self) -> str:
        """Return the entry after which the log of the attempt in hand begins, or of the last one there was.

        Redis holds the logs of all attempts in one stream, whose entries carry Redis' time, as events do.
        """
        for event in self._store.read_events(self.id):
            if event.attempt == self._record.attempt and event.note.startswith("claimed by "):
                return f"{int(event.id.partition('-')[0]) - 1}-0"
        return "0"

    def _kept(self, digest: str) -> Iterator[tuple[str, str]]:
        with self._artifacts.open(digest) as file:
            for line in file:
                chunk = json.loads(line)
                yield chunk["s"], chunk["t"]


def as_they_end(runs: Sequence[Run], timeout_s: float | None = None) -> Iterator[Run]:
    """Yield runs as they end, those that have ended already first.

    Raises:
        TimeoutError: some have not ended within ``timeout_s``; they go on.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    left = {run.id: run for run in runs}
    seen = dict.fromkeys(left, "0")
    while True:
        store = next(iter(left.values()))._store if left else None
        for run_id, run in list(left.items()):
            # The events are read before the record: one that comes between the two wakes the wait below at once.
            seen[run_id] = _last_id(run._events(seen[run_id]), seen[run_id])
            if run.state.is_final:
                del left[run_id], seen[run_id]
                yield run
        if not left or store is None:
            return
        pause_s = _LOOK_AGAIN_S if deadline is None else min(_LOOK_AGAIN_S, deadline - time.monotonic())
        if pause_s <= 0:
            states = ", ".join(f"{run.id} ({run._record.state})" for run in list(left.values())[:5])
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise TimeoutError(f"after {timeout_s:g} s not ended, and going on: {states}{more}")
        _sit_out(store, partial(store.wait_for_events, dict(seen), timeout_s=pause_s), pause_s)


def _sit_out(store: RunStore, wait: Callable[[], object], timeout_s: float) -> None:
    """Wait as the store does, and sit out a restart of Redis: whoever follows a run for hours will see some."""
    try:
        wait()
    except TemporaryError:
        deadline = time.monotonic() + min(timeout_s, _PATIENCE_S)
        while not _answers(store):
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_S)


@dataclass
class _Seen:
    log: str = "0"
    history: str = "0"
    events: str = "0"


def _last_id(events: list[RunEvent], before: str) -> str:
    return events[-1].id if events else before


def _answers(store: RunStore) -> bool:
    try:
        store.now()
    except TemporaryError:
        return False
    return True


def _ends(event: RunEvent) -> bool:
    return event.state.is_final


def who() -> str:
    """Return who this process acts for: user and machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()
