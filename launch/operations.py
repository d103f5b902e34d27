"""What can be done with runs and agents that there are: order, changes, another go, and an end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Unpack

from launch.checking import did_you_mean
from launch.connected import Connected, author
from launch.errors import ConfigError, ConflictError, NotFoundError
from launch.models import CauseKind, JobTypes, LaunchSpec, RunRecord, RunState, new_run_id
from launch.relaunch import Changes, again, edited
from launch.watch import Run, who

if TYPE_CHECKING:
    from launch.explain import Explanation
    from launch.records import AgentRecord

_MAX_JOBS = 1000
"""The most that an agent's configuration takes as well."""


class Operations(Connected):
    """Operations on runs and agents; a part of :class:`launch.client.Client`."""

    # --- the order of a queue ----------------------------------------------------------------------------------------

    def move(self, run_id: str, *, before: str | None = None) -> None:
        """Move a waiting run before another of its priority class; none: to the front of its class.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: one of them does not wait, or they are of different queues or classes.
        """
        for named in [run_id, *([before] if before is not None else [])]:
            self.store.record(named)
        self.store.move(run_id, before=before)

    def hold(self, run_id: str) -> Run:
        """Take a queued run out of its queue's order until it is released.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: it is not queued.
        """
        self.store.hold(run_id, by=who())
        return self.run(run_id)

    def release(self, run_id: str) -> Run:
        """Let a held run wait again, at its old place.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: it is not held.
        """
        self.store.let_go_on(run_id)
        return self.run(run_id)

    def edit(self, run_id: str, **changes: Unpack[Changes]) -> Run:
        """Change a queued run's launch; it keeps its place, within the class of a new priority.

        Args:
            run_id: the run.
            changes: see :class:`~launch.relaunch.Changes`.

        Raises:
            RequestError: no such run, it is not queued any more, or a value is wrong.
        """
        spec = self.store.record(run_id).spec
        queue = self.store.queue_at(spec.queue, spec.queue_version)
        after = edited(spec, queue, changes, types=self._types(spec))
        if after != spec:
            self.store.edit(spec, after)
        return self.run(run_id)

    # --- another go ---------------------------------------------------------------------------------------------------

    def rerun(self, run_id: str, queue: str | None = None, **changes: Unpack[Changes]) -> Run:
        """Enqueue a new run of the same job version with the same settings, and return it.

        Args:
            run_id: the run to repeat, in whatever state it is.
            queue: where; none: where it was.
            changes: see :class:`~launch.relaunch.Changes`.

        Raises:
            RequestError: no such run or queue, or its launch does not fit the queue as that is now.
        """
        spec = self._again(self.run(run_id).spec, queue, changes, new_run_id())
        return self._wrapped(self.store.enqueue(spec))

    def retry(self, record: RunRecord) -> Run:
        """Enqueue an ended run once more; called again for the same one, it finds the run that the first call made.

        Raises:
            RequestError: its launch does not fit its queue as that is now.
        """
        run_id = retry_id(record.id)
        if self.store.known([run_id]):
            return self.run(run_id)
        return self._wrapped(self.store.enqueue(self._again(record.spec, None, {}, run_id)))

    def ended_by(
        self, cause: CauseKind | str, *, since_s: float, queue: str | None = None
    ) -> tuple[list[RunRecord], list[RunRecord]]:
        """Return the runs that ended otherwise than well by a cause, the oldest first: those that :meth:`retry` has not
        repeated yet, and those that it has.

        Args:
            cause: why they ended.
            since_s: only those that ended within so many seconds.
            queue: only those of this queue.

        Raises:
            RequestError: no such cause or queue.
        """
        kind = _cause_kind(cause)
        queues = [self.store.queue(queue)] if queue is not None else self.store.queues()
        since = self.store.now() - since_s
        ended = [record for spec in queues for record in self.store.ended_since(spec.name, since)]
        found = [run for run in ended if run.cause and run.cause.kind is kind and run.state is not RunState.FINISHED]
        found.sort(key=lambda run: run.seq)
        repeated = self.store.known([retry_id(run.id) for run in found])
        return (
            [run for run in found if retry_id(run.id) not in repeated],
            [run for run in found if retry_id(run.id) in repeated],
        )

    def _again(self, spec: LaunchSpec, queue: str | None, changes: Changes, run_id: str) -> LaunchSpec:
        target = self.store.queue(queue if queue is not None else spec.queue)
        return again(spec, target, changes, run_id=run_id, author=author(), types=self._types(spec))

    def _types(self, spec: LaunchSpec) -> JobTypes | None:
        with suppress(NotFoundError):  # a job that has been deleted meanwhile
            return self.registry.get(spec.job_ref).types if spec.job_ref else None
        return None

    # --- an end -------------------------------------------------------------------------------------------------------

    def stop(self, run_id: str, grace_s: float | None = None) -> Run:
        """Ask for a run to end, and return it as it then is; see :meth:`Run.stop`."""
        return self.run(run_id).stop(grace_s)

    def stop_all(self, queue: str, grace_s: float | None = None) -> list[Run]:
        """Ask for every live run of a queue to end, and return them as they then are.

        Raises:
            NotFoundError: there is no such queue.
        """
        self.store.queue(queue)
        # From the back, and those at work last: what is stopped frees slots for those that wait before it.
        queued = [*self.store.ids(queue, "delayed"), *self.store.ids(queue, "held"), *self.store.ids(queue, "waiting")]
        stopped = self._all_stopped(list(reversed(queued)), grace_s)
        seen = set(queued)
        active = [run_id for run_id in self.store.ids(queue, "active") if run_id not in seen]
        return [*stopped, *self._all_stopped(active, grace_s)]

    def _all_stopped(self, run_ids: Sequence[str], grace_s: float | None) -> list[Run]:
        known = self.store.launches(run_ids)  # of those that a later version wrote there is a warning
        return [self._stopped(run_id, grace_s) for run_id in run_ids if run_id in known]

    def _stopped(self, run_id: str, grace_s: float | None) -> Run:
        grace = self.settings.stop_grace_s if grace_s is None else grace_s
        return self._wrapped(self.store.request_stop(run_id, by=who(), grace_s=grace))

    # --- looking closer -----------------------------------------------------------------------------------------------

    def explain(self, run_id: str) -> Explanation:
        """Return why a run is where it is: what it waits for, what it does, or how it ended.

        Raises:
            NotFoundError: there is no such run.
        """
        from launch.explain import explain
        from launch.situation import situation_of

        return explain(situation_of(self.store, self.run(run_id).record, dead_after_s=self.settings.dead_after_s))

    # --- agents -------------------------------------------------------------------------------------------------------

    def set_max_jobs(self, agent: str, max_jobs: int, *, every: bool = False) -> list[AgentRecord]:
        """Let an agent carry so many runs at once, until it ends; returns whom it was said to.

        Args:
            agent: its name or id.
            max_jobs: 1 to 1000.
            every: where several living agents have that name, all of them are meant.

        Raises:
            RequestError: no living agent of that name, several of them, or a number out of range.
        """
        if not 1 <= max_jobs <= _MAX_JOBS:
            raise ConfigError(f"max_jobs: should be 1 to {_MAX_JOBS}, not {max_jobs}")
        return self._wish(agent, lambda agent_id: self.store.wish(agent_id, max_jobs=max_jobs), every=every)

    def drain(self, agent: str, *, every: bool = False) -> list[AgentRecord]:
        """Let an agent take no more runs, and end when those in hand have; see :meth:`set_max_jobs`."""
        return self._wish(agent, lambda agent_id: self.store.wish(agent_id, drain=True), every=every)

    def _wish(self, name: str, wish: Callable[[str], None], *, every: bool) -> list[AgentRecord]:
        found = self._living(name)
        if len(found) > 1 and not every:
            listed = ", ".join(f"{agent.id} ({agent.host}:{agent.pid}, {', '.join(agent.queues)})" for agent in found)
            raise ConflictError(
                f"{len(found)} living agents are called {name!r}: {listed}; name one by its id, or say that all are "
                "meant (--all)"
            )
        for agent in found:
            wish(agent.id)
        return found

    def _living(self, name: str) -> list[AgentRecord]:
        agents = self.store.agents(dead_after_s=self.settings.dead_after_s)
        named = [agent for agent in agents if name in (agent.name, agent.id)]
        living = [agent for agent in named if agent.is_alive]
        if living:
            return living
        if named:
            raise ConflictError(f"agent {name!r} is not alive: nothing has been heard of it for a while")
        there = sorted({agent.name for agent in agents if agent.is_alive})
        raise NotFoundError(f"no agent {name!r}{did_you_mean(name, there) or '; none is alive: see `launch agents`'}")


def retry_id(run_id: str) -> str:
    """Return the id of the run that repeats another: always the same one, so that two retries make one run."""
    return hashlib.sha256(f"retry of {run_id}".encode()).hexdigest()[:12]


def _cause_kind(cause: CauseKind | str) -> CauseKind:
    try:
        return CauseKind(cause)
    except ValueError:
        known = [str(kind) for kind in CauseKind]
        raise ConfigError(f"cause: unknown cause {cause!r}{did_you_mean(str(cause), known)}") from None
