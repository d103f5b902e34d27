"""The record of every queue, run and agent, in Redis: the truth that messages only point at.

Each change is one Lua script (``launch/scripts``), so that a process may die between any two lines here and leave
nothing half done. A write on a claimed run names its :class:`~launch.models.Fence`; when the claim has passed to
another agent it is refused with :class:`~launch.errors.LostClaimError`. Every call may be repeated: the answer to the
first may have been lost.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from launch.broker import encode_bell
from launch.connection import connect
from launch.errors import ConflictError, LaunchError, LostClaimError
from launch.fleet_store import FleetStore
from launch.models import (
    LEGAL_MOVES,
    SCHEMA_VERSION,
    AttemptRecord,
    Cause,
    CauseKind,
    Fence,
    LaunchSpec,
    RetryRule,
    RunRecord,
    RunState,
)
from launch.queue_store import QueueStore
from launch.records import spec_to_json
from launch.run_events import brief, sent_events
from launch.run_reader import RunReader, no_run
from launch.scripted import P

log = logging.getLogger(__name__)

_BATCH = 500


@dataclass(frozen=True)
class Claimed:
    """The agent owns the run now."""

    record: RunRecord
    fence: Fence


@dataclass(frozen=True)
class Blocked:
    """The queue gives out no run just now."""

    reason: Literal["paused", "limit", "newer"]
    """``newer``: its next run was written by a later version of openlaunch than this one."""


class RunStore(QueueStore, FleetStore, RunReader):
    """Queues, runs and agents in one Redis."""

    preludes = ("prelude", "run_events")

    @classmethod
    def connect(cls, url: str, *, timeout_s: float = 5.0) -> RunStore:
        """Return the store in the Redis at a broker URL.

        Raises:
            TemporaryError: nothing answers there.
        """
        return cls(connect(url, timeout_s=timeout_s))

    # --- producers ---------------------------------------------------------------------------------------------------

    def enqueue(self, spec: LaunchSpec) -> RunRecord:
        """Record a run, give it the last place of its class and ring for it. See :meth:`enqueue_many`."""
        return self.enqueue_many([spec])[0]

    def enqueue_many(self, specs: Sequence[LaunchSpec]) -> list[RunRecord]:
        """Record runs in order, each all or nothing. The same id and spec again returns the run there is.

        Args:
            specs: frozen launches, any queues.

        Raises:
            ConflictError: an id is taken by another launch; the others are recorded.
            NotFoundError: a queue is not there.
        """
        answers: list[str] = []
        unsaid: list[LaunchSpec] = []
        for start in range(0, len(specs), _BATCH):
            batch = specs[start : start + _BATCH]
            args: list[Any] = []
            for spec in batch:
                text = spec_to_json(spec)
                args += [spec.run_id, text, encode_bell(spec.run_id, spec.queue, text), int(spec.priority), spec.queue]
                args += [spec.queue_version, spec.schema_version]
            with self.meter.timing("enqueue"):
                *answered, heard = self._run("enqueue", len(batch), *args)
            answers += answered
            if heard == "HEARD":
                unsaid += [spec for spec, answer in zip(batch, answered, strict=True) if answer == "OK"]
        self.tell_sent([(spec, None) for spec in unsaid])
        for spec, answer in zip(specs, answers, strict=True):
            if answer == "CONFLICT":
                raise ConflictError(f"run id {spec.run_id!r} is taken by another launch; choose another id, or none")
            if answer == "NOQUEUE":
                self.queue(spec.queue)
            if answer == "STALE":
                raise ConflictError(f"queue {spec.queue!r} was changed at this moment; enqueue again")
        return self.records([spec.run_id for spec in specs])

    def request_stop(self, run_id: str, *, by: str, grace_s: float) -> RunRecord:
        """End a queued run at once, or ask for a claimed one to be stopped. Returns the run as it then is.

        Raises:
            NotFoundError: there is no such run.
            NewerVersionError: see :meth:`record`.
        """
        self.record(run_id)
        cause = Cause(kind=CauseKind.STOPPED, message=f"Stopped by {by} before it started.")
        if self._run("request_stop", run_id, by, grace_s, cause.model_dump_json(), cause.message) == "GONE":
            raise no_run(run_id)
        return self.record(run_id)

    def refuse(self, spec: LaunchSpec, cause: Cause) -> None:
        """Record a request that is no valid launch as a failed run, so that its sender can see why."""
        text = cause.model_dump_json()
        self._run("refuse", spec.run_id, spec_to_json(spec), spec.queue, text, cause.message, brief(spec))

    def forget(self, run_id: str, digest: str, needed: Sequence[str] = ()) -> None:
        """Remove an ended run from Redis, whose document is in the artifact store under a digest.

        Args:
            run_id: the run.
            digest: the document's.
            needed: the digests of the blobs that what it holds needs.
        """
        self._run("forget", run_id, digest, *needed)

    # --- what is told to whoever listens; nothing depends on it, so nothing is raised -------------------------------

    def tell_sent(self, specs: Sequence[tuple[LaunchSpec, float | None]]) -> None:
        """Tell of runs that wait: ``[(launch, when it was enqueued)]``; none: now."""
        with _best_effort():
            now = self.now() if specs else 0.0
            for start in range(0, len(specs), _BATCH):
                self._run("tell_sent", sent_events((spec, at or now) for spec, at in specs[start : start + _BATCH]))

    def describe(self, spec: LaunchSpec, fence: Fence) -> None:
        """Tell of a claimed run as it is now, and let its later events say what it is."""
        with _best_effort():
            self._run("describe", spec.run_id, fence.epoch, fence.nonce, brief(spec))

    # --- queued runs --------------------------------------------------------------------------------------------------

    def move(self, run_id: str, *, before: str | None = None) -> None:
        """Move a waiting run before another of its priority class, or to the front of the class.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: one of them does not wait, or they are of different queues or classes.
        """
        answer, _, which = self._run("move", run_id, before or "").partition(" ")
        reasons = {
            "NOTWAITING": f"run {which} does not wait in a queue",
            "OTHERQUEUE": f"runs {run_id} and {before} are not in the same queue",
            "OTHERCLASS": f"runs {run_id} and {before} are of different priority classes; change the priority first",
        }
        _check_answer(run_id, answer, reasons)

    def hold(self, run_id: str, *, by: str) -> None:
        """Take a queued run out of its queue's order. Raises ConflictError when it is not queued."""
        self.record(run_id)
        answer, _, state = self._run("hold", run_id, by).partition(" ")
        _check_answer(run_id, answer, {"NOTQUEUED": f"run {run_id} is {state}, and only a queued run can be held"})

    def let_go_on(self, run_id: str) -> None:
        """Let a held run wait in line again, at its old place. Raises ConflictError when it is not held."""
        answer = self._run("let_go_on", run_id, _bell(self.record(run_id).spec))
        _check_answer(run_id, answer, {"NOTHELD": f"run {run_id} is not held"})

    def edit(self, before: LaunchSpec, after: LaunchSpec) -> None:
        """Change a queued run's launch; a new priority keeps its place within the class.

        Raises:
            ConflictError: it is not queued any more, or somebody else changed it meanwhile.
        """
        run_id = before.run_id
        answer, _, state = self._run(
            "edit", run_id, spec_to_json(before), spec_to_json(after), int(after.priority)
        ).partition(" ")
        reasons = {
            "NOTQUEUED": f"run {run_id} is {state}, and only a queued run can be changed",
            "CHANGED": f"run {run_id} was changed by somebody else at this moment; look at it and try again",
        }
        _check_answer(run_id, answer, reasons)

    def promote(self, queue: str) -> int:
        """Let the runs whose pause before a retry has ended wait in line again; returns how many."""
        due = self.redis.zrange(f"{P}queue:{queue}:delayed", "-inf", self.now(), byscore=True, offset=0, num=_BATCH)
        for record in self.records(due):
            self._run("promote", record.id, queue, _bell(record.spec))
        return len(due)

    # --- a claimed run: every write names its fence -------------------------------------------------------------------

    def claim(self, queue: str, agent: str, *, locality: str = "") -> Claimed | Blocked | None:
        """Give the head of a queue to an agent; none when nobody waits."""
        nonce = secrets.token_hex(8)
        with self.meter.timing("claim"):
            answer = self._run("claim", queue, agent, locality, nonce, SCHEMA_VERSION)
        if answer[0] == "RUN":
            return self._claimed(answer[1], nonce, is_heard=answer[-1] == "HEARD")
        return Blocked(answer[1]) if answer[0] == "BLOCKED" else None

    def adopt(
        self, record: RunRecord, agent: str, *, locality: str, dead_after_s: float, gap_s: float = 6.0
    ) -> Claimed | None:
        """Give a run without a living owner to an agent; none when it may not have it (now).

        Args:
            record: the run as it was seen; it must not have changed hands since.
            agent: who takes it.
            locality: where its target is seen from.
            dead_after_s: the age of a heartbeat from which its agent counts as dead.
            gap_s: the age of the taker's own heartbeat up to which it may judge others.
        """
        nonce = secrets.token_hex(8)
        epoch = record.fence.epoch if record.fence else 0
        if self._run("adopt", record.id, agent, locality, nonce, epoch, dead_after_s, gap_s) != "OK":
            return None
        return self._claimed(record.id, nonce, is_heard=True)

    def _claimed(self, run_id: str, nonce: str, *, is_heard: bool) -> Claimed | None:
        record = self.record(run_id)
        if record.fence is None or record.fence.nonce != nonce:
            return None
        if is_heard:
            self.describe(record.spec, record.fence)
        return Claimed(record, record.fence)

    def advance(
        self, run_id: str, fence: Fence, to: RunState | None = None, *, note: str = "", **fields: str | None
    ) -> None:
        """Move a claimed run to a state and set fields of its record (``None`` deletes one).

        Raises:
            LostClaimError: the claim is another's.
            LaunchError: the state cannot follow the one it is in.
        """
        flat = [item for name, value in fields.items() for item in (name, value or "")]
        self._fenced("advance", run_id, fence, to or "", _comes_from(to), note, *flat)

    def finish(
        self, run_id: str, fence: Fence, state: RunState, cause: Cause, *, log_archive: str | None = None
    ) -> None:
        """End a claimed run. Raises LostClaimError when the claim is another's."""
        assert state.is_final
        self._fenced("finish", run_id, fence, state, cause.model_dump_json(), cause.message, log_archive or "")

    def unclaim(self, record: RunRecord, fence: Fence, *, note: str) -> None:
        """Put a claimed run back to its old place; the attempt does not count."""
        self._fenced("unclaim", record.id, fence, _bell(record.spec), note)

    def retry(self, record: RunRecord, fence: Fence, cause: Cause, *, log_archive: str | None, rule: RetryRule) -> None:
        """Put a claimed run back to its old place for another attempt after a pause; the failed one is kept."""
        pause_s = record.spec.retry.pause_s(len(record.attempts))
        note = f"attempt {record.attempt} failed: {cause.message} The next one follows in {pause_s:g} s."
        attempts = self._attempts_with(record, cause, log_archive)
        memory_factor = record.memory_factor * rule.memory_factor
        self._fenced("retry", record.id, fence, _bell(record.spec), note, pause_s, attempts, memory_factor)

    def next_attempt(self, record: RunRecord, fence: Fence, cause: Cause) -> None:
        """Give a claimed run its next attempt at once; the one before is kept with its cause."""
        attempts = self._attempts_with(record, cause, None)
        self._fenced("next_attempt", record.id, fence, attempts, cause.message, record.attempt)

    def _attempts_with(self, record: RunRecord, cause: Cause, log_archive: str | None) -> str:
        ended = AttemptRecord(
            number=record.attempt,
            agent=record.agent,
            cause=cause,
            log_archive=log_archive,
            started_at=record.started_at,
            ended_at=self.now(),
        )
        return json.dumps([one.model_dump(mode="json", exclude_none=True) for one in (*record.attempts, ended)])

    def release(self, run_id: str, fence: Fence) -> None:
        """Let go of a run that stays as it is, for the next agent to adopt at once."""
        self._fenced("release", run_id, fence)

    def append_log(
        self,
        run_id: str,
        fence: Fence,
        chunks: Sequence[tuple[str, str]],
        *,
        cursor: str | None,
        bytes_before: int,
        bytes_after: int,
        cap_chars: int,
    ) -> None:
        """Add ``[(stream, text)]`` to a job's log, with the target's cursor and the full log's length behind it.

        ``bytes_before`` is the length the caller last wrote: a call repeated after a lost answer adds nothing.
        """
        flat = [item for chunk in chunks for item in chunk]
        self._fenced("append_log", run_id, fence, cursor or "", bytes_before, bytes_after, cap_chars, *flat)

    def _fenced(self, script: str, run_id: str, fence: Fence, *args: Any) -> None:
        answer = self._run(script, run_id, fence.epoch, fence.nonce, *args)
        if answer in ("LOST", "ENDED"):
            raise LostClaimError(f"run {run_id}: the claim of epoch {fence.epoch} is no longer the run's")
        if answer != "OK":
            raise LaunchError(f"run {run_id}: {script} refused: {answer}")

    def owners(self, queue: str) -> dict[str, str | None]:
        """Return ``{run id: agent}`` of a queue's claimed runs, the longest claimed first; none: nobody's."""
        run_ids = self.redis.zrange(f"{P}queue:{queue}:active", 0, -1)
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(f"{P}run:{run_id}", "agent")
            return dict(zip(run_ids, pipe.execute(), strict=True))

    def images_in_use(self) -> set[str]:
        """Return what builders made for the runs that are claimed now: image references, paths of environments."""
        active = [run_id for queue in self.queues() for run_id in self.ids(queue.name, "active")]
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in active:
                pipe.hget(f"{P}run:{run_id}", "image")
            return set(pipe.execute()) - {None}

    def fences(self, run_ids: Sequence[str]) -> dict[str, Fence | None]:
        """Return ``{run id: Fence}`` of the claims that hold now; none: nobody's."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hmget(f"{P}run:{run_id}", "epoch", "nonce")
            found = pipe.execute()
        return {
            run_id: Fence(epoch=int(epoch), nonce=nonce) if epoch and nonce else None
            for run_id, (epoch, nonce) in zip(run_ids, found, strict=True)
        }

    def stops(self, run_ids: Sequence[str]) -> dict[str, float]:
        """Return ``{run id: grace in seconds}`` of those among the runs that somebody wants stopped."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(f"{P}run:{run_id}", "stop")
            found = pipe.execute()
        return {run_id: float(json.loads(stop)["grace_s"]) for run_id, stop in zip(run_ids, found, strict=True) if stop}


@contextmanager
def _best_effort() -> Iterator[None]:
    """Let what only tells of a run fail by itself: the run is on record, or claimed, and its caller must go on."""
    try:
        yield
    except LaunchError as exc:
        log.info("events could not be sent: %s", exc)
    except Exception:
        log.exception("events could not be sent")


def _bell(spec: LaunchSpec) -> str:
    return encode_bell(spec.run_id, spec.queue, spec_to_json(spec))


def _check_answer(run_id: str, answer: str, reasons: Mapping[str, str]) -> None:
    if answer == "GONE":
        raise no_run(run_id)
    if answer != "OK":
        raise ConflictError(reasons[answer])


def _comes_from(state: RunState | None) -> str:
    return " ".join(before for before, after in LEGAL_MOVES.items() if state in after)
