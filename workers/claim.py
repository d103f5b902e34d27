"""A run in this agent's hands: writes that outlast a Redis outage, and the question "is it still ours?"."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from launch.errors import LostClaimError, TemporaryError
from launch.models import Cause, LaunchSpec, RetryRule, RunState
from launch.records import LogEntry
from launch.store import Claimed, RunStore
from workers.redact import Redaction

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_S = 0.5


class DetachedError(Exception):
    """The agent lets go of the run; what is at the target stays."""


class Lease:
    """How long ago this agent was last known to live, by a clock that nobody sets and that a machine's sleep keeps."""

    def __init__(self, valid_s: float) -> None:
        self.valid_s = valid_s
        self._renewed = self.now()

    @staticmethod
    def now() -> float:
        """Return the seconds since some fixed moment; on Linux those of a suspend too."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def renew(self, at: float) -> None:
        """Note a heartbeat that was sent at a time and has been answered."""
        self._renewed = at

    @property
    def is_valid(self) -> bool:
        """Whether no other agent can have taken this one for dead."""
        return self.now() - self._renewed < self.valid_s


class Claim:
    """One claimed run. Every write is tried until Redis is back, the claim is lost or the agent detaches."""

    def __init__(self, claimed: Claimed, store: RunStore, lease: Lease, redaction: Redaction | None = None) -> None:
        self.record = claimed.record
        self.fence = claimed.fence
        self.store = store
        self.redaction = redaction or Redaction()
        """Every text that goes into the record from here goes through it."""
        self._lease = lease
        self._detached = threading.Event()
        self._wanted_grace_s = claimed.record.stop.grace_s if claimed.record.stop else math.inf
        self._delivered_grace_s = math.inf
        self._on_stop: Callable[[float], None] | None = None
        self._stopping = threading.Lock()

    @property
    def id(self) -> str:
        """The run's id."""
        return self.record.id

    @property
    def spec(self) -> LaunchSpec:
        """The launch."""
        return self.record.spec

    # --- what others tell it ------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Make the thread that works on the run let go at its next step."""
        self._detached.set()

    @property
    def is_detached(self) -> bool:
        """Whether the thread that works on the run should let go."""
        return self._detached.is_set()

    def request_stop(self, grace_s: float) -> None:
        """Pass on that somebody wants the run stopped, unless that has been heard with as short a grace already."""
        with self._stopping:
            self._wanted_grace_s = min(grace_s, self._wanted_grace_s)
            self._deliver_stop()

    def when_stopped(self, on_stop: Callable[[float], None]) -> None:
        """Call ``on_stop(grace_s)`` for each stop requested, the ones before included, until it does not raise."""
        with self._stopping:
            self._on_stop = on_stop
            self._deliver_stop()

    def _deliver_stop(self) -> None:
        if self._on_stop is not None and self._wanted_grace_s < self._delivered_grace_s:
            grace_s = self._wanted_grace_s
            self._on_stop(grace_s)
            self._delivered_grace_s = grace_s

    @property
    def is_stop_requested(self) -> bool:
        """Whether somebody wants the run stopped."""
        return self._wanted_grace_s < math.inf

    # --- writes -------------------------------------------------------------------------------------------------------

    def advance(self, to: RunState | None = None, *, note: str = "", **fields: str | None) -> None:
        """See :meth:`RunStore.advance`."""
        note = self.redaction.mask(note)
        self.insist(lambda: self.store.advance(self.id, self.fence, to, note=note, **fields))

    def finish(self, state: RunState, cause: Cause, *, log_archive: str | None = None) -> None:
        """See :meth:`RunStore.finish`."""
        cause = self._masked(cause)
        self.insist(lambda: self.store.finish(self.id, self.fence, state, cause, log_archive=log_archive))

    def unclaim(self, *, note: str) -> None:
        """See :meth:`RunStore.unclaim`."""
        note = self.redaction.mask(note)
        self.insist(lambda: self.store.unclaim(self.record, self.fence, note=note))

    def retry(self, cause: Cause, *, log_archive: str | None, rule: RetryRule) -> None:
        """See :meth:`RunStore.retry`."""
        cause = self._masked(cause)
        self.insist(lambda: self.store.retry(self.record, self.fence, cause, log_archive=log_archive, rule=rule))

    def next_attempt(self, cause: Cause) -> None:
        """See :meth:`RunStore.next_attempt`."""
        self.insist(lambda: self.store.next_attempt(self.record, self.fence, cause))
        self.refresh()

    def _masked(self, cause: Cause) -> Cause:
        # The last lines of the log come masked already, but a target's own words do not.
        mask = self.redaction.mask
        return cause.model_copy(
            update={"message": mask(cause.message), "log_tail": tuple(mask(line) for line in cause.log_tail)}
        )

    def append_log(self, chunks: list[tuple[str, str]], **position: Any) -> None:
        """See :meth:`RunStore.append_log`."""
        self.insist(lambda: self.store.append_log(self.id, self.fence, chunks, **position))

    def newest_log(self) -> list[LogEntry]:
        """Return the end of what Redis holds of the log."""
        return self.insist(lambda: self.store.newest_log(self.id))

    def build_log(self) -> list[LogEntry]:
        """Return what the build wrote, as far as Redis holds it."""
        return self.insist(lambda: self.store.whole_log(self.id, stream="build"))

    def refresh(self) -> None:
        """Read the record again."""
        self.record = self.insist(lambda: self.store.record(self.id))

    def guard(self, **fields: str | None) -> None:
        """Return when the run is surely still ours; called before each effect outside Redis.

        Args:
            fields: what the record shall say from now on, should the effect never be heard of again.

        Raises:
            LostClaimError: it is another's.
            DetachedError: the agent lets go.
        """
        while True:
            self.advance(None, note="", **fields)
            if self._lease.is_valid:
                return
            self.pause(_RETRY_S)

    def insist(self, ask: Callable[[], T], *, pause_s: float = _RETRY_S) -> T:
        """Ask Redis or the target until it answers, the claim is lost or the agent lets go."""
        is_known = False
        while True:
            if self.is_detached:
                raise DetachedError(self.id)
            try:
                return ask()
            except TemporaryError as exc:
                if not is_known:
                    log.warning("run %s: %s; trying again", self.id, exc)
                    is_known = True
                self.pause(pause_s)

    def seconds_since(self, at: float | None) -> float:
        """Return how long ago a time of the record was, on Redis' clock; 0 for one that has not come yet."""
        return 0.0 if at is None else max(0.0, self.insist(self.store.now) - at)

    def pause(self, seconds: float) -> None:
        """Wait a while, or raise DetachedError as soon as the agent lets go."""
        if self._detached.wait(seconds):
            raise DetachedError(self.id)

    def release(self) -> None:
        """Let go of the run for the next agent, once; Redis being away is no reason to stay."""
        self.detach()
        try:
            self.store.release(self.id, self.fence)
        except (LostClaimError, TemporaryError) as exc:
            log.warning("run %s: not released: %s", self.id, exc)
