"""A run as the one who enqueued it sees it: its state, its log and metrics as they come, and a way to stop it."""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.errors import TemporaryError
from launch.loglines import LineFolder, LogLine, fold_lines
from launch.models import Cause, LaunchSpec, RunRecord, RunState
from launch.records import RunEvent

if TYPE_CHECKING:
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

    def __init__(self, store: RunStore, artifacts: ArtifactStore, record: RunRecord, *, stop_grace_s: float = 10.0):
        self._store = store
        self._artifacts = artifacts
        self._record = record
        self._stop_grace_s = stop_grace_s

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
        grace = self._stop_grace_s if grace_s is None else grace_s
        self._record = self._store.request_stop(self.id, by=_who(), grace_s=grace)
        return self

    def history(self) -> list[dict[str, Any]]:
        """Return the rows the script has logged, oldest first."""
        rows: list[dict[str, Any]] = []
        seen = "0"
        while page := self._store.read_history(self.id, after=seen, limit=_PAGE):
            rows += [row for _, row in page]
            seen = page[-1][0]
        return rows

    def logs(self, follow: bool = False, *, raw: bool = False) -> Iterator[str]:
        """Yield the log from its first build line.

        Args:
            follow: go on until the run has ended; otherwise end with what there is now.
            raw: yield the pieces just as they were written, instead of lines with progress bars folded.
        """
        chunks = self._chunks(follow)
        return (text for _, text in chunks) if raw else (line.text for line in fold_lines(chunks))

    def log_lines(self, follow: bool = False) -> Iterator[LogLine]:
        """Like :meth:`logs`, each line with the stream it came from."""
        return fold_lines(self._chunks(follow))

    def news(self) -> Iterator[News]:
        """Yield what happens to the run, from its beginning to its end: notes, log lines and metrics as they come."""
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

    def _await_news(self, *, timeout_s: float = _LOOK_AGAIN_S, **seen: str) -> None:
        """Wait as the store does, and sit out a restart of Redis: whoever follows a run for hours will see some."""
        try:
            self._store.wait_for_news(self.id, timeout_s=timeout_s, **seen)
        except TemporaryError:
            deadline = time.monotonic() + min(timeout_s, _PATIENCE_S)
            while not _answers(self._store):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S)

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
            yield from self._archived(archive)
            return
        seen, seen_event = "0", "0"
        while True:
            seen_event = _last_id(self._store.read_events(self.id, after=seen_event), seen_event)
            is_final = self.refresh()._record.state.is_final
            while entries := self._store.read_log(self.id, after=seen, limit=_PAGE):
                yield from ((entry.stream, entry.text) for entry in entries)
                seen = entries[-1].id
            if is_final or not follow:
                return
            self._await_news(log=seen, events=seen_event)

    def _archived(self, digest: str) -> Iterator[tuple[str, str]]:
        with self._artifacts.open(digest) as file:
            for line in file:
                chunk = json.loads(line)
                yield chunk["s"], chunk["t"]


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


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()
