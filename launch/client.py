"""The SDK: queues, jobs and runs over one broker. Everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from launch.connected import author
from launch.errors import ConfigError
from launch.intake import SpecBuilder
from launch.models import JobVersion, LaunchSpec, QueueSpec, RetryPolicy, RunState, Tracking
from launch.operations import Operations
from launch.queue_spec import QueueSettings, changed_queue, queue_spec, retry_policy
from launch.request import Launch, as_tracking, image_job
from launch.watch import Run

if TYPE_CHECKING:
    from launch.records import AgentRecord

__all__ = ["Client", "Run", "SpecBuilder", "default_client"]


class Client(Operations):
    """Talks to one installation. Connects at the first call, and may be shared by threads.

    Args:
        url: the broker, as Celery takes it; none: ``LAUNCH_BROKER_URL``, else the embedded broker of the launch home.
        settings: none: this process's own, from the environment.
        note: called with each thing the user should know of a snapshot that is taken, a sentence.
    """

    # --- runs --------------------------------------------------------------------------------------------------------

    def enqueue(self, **launch: Unpack[Launch]) -> Run:
        """Put a launch at the end of its queue and return its run. What to run is ``job``, ``image``, ``command`` or
        ``path``: one of them, or an image with a command.

        Args:
            launch: see :class:`~launch.request.Launch` for what each keyword means.

        Raises:
            RequestError: something in it is wrong; the message names the value and the fix, and nothing was written.
            TemporaryError: Redis is away.
        """
        return self._wrapped(self.store.enqueue(self.build(**launch)))

    def build(self, **launch: Unpack[Launch]) -> LaunchSpec:
        """Return the launch that :meth:`enqueue` would enqueue, checked and frozen; writes no record."""
        return self._builder.build(_signed(launch))

    def enqueue_many(self, launches: Iterable[Launch]) -> list[Run]:
        """Enqueue many launches, in their order, and return their runs; all are checked before one is written.

        Args:
            launches: mappings of :meth:`enqueue`'s keywords.

        Raises:
            RequestError: one is wrong; the message starts with its place, ``launches/3``.
            TemporaryError: Redis is away.
        """
        specs = self._builder.build_many([_signed(item) if isinstance(item, Mapping) else item for item in launches])
        return [self._wrapped(record) for record in self.store.enqueue_many(specs)]

    def runs(
        self,
        queue: str | None = None,
        state: RunState | str | Iterable[RunState | str] | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Return the runs enqueued last, newest first.

        Args:
            queue: only those of this queue.
            state: only those in this state, or in one of these.
            limit: how many at most.

        Raises:
            RequestError: no such queue or state.
        """
        if queue is not None:
            self.store.queue(queue)
        if limit < 1:
            raise ConfigError(f"limit: should be 1 or more, not {limit}")
        records = self.store.runs(queue=queue, states=_states(state), limit=limit)
        return [self._wrapped(record) for record in records]

    # --- queues, jobs, agents ----------------------------------------------------------------------------------------

    def create_queue(
        self,
        name: str,
        *,
        resource: str,
        config: Mapping[str, Any] | None = None,
        overrides: str | Sequence[str] = "safe",
        priorities: bool = False,
        max_concurrent: int | None = None,
        retry: Mapping[str, Any] | RetryPolicy | None = None,
        start_limit: str | float | None = None,
        run_limit: str | float | None = None,
        orphan_timeout: str | float | None = None,
    ) -> QueueSpec:
        """Make a queue and return it; making the same one again changes nothing.

        Args:
            name: 1 to 64 letters, digits, ``_``, ``.`` and ``-``.
            resource: the target resource: ``"process"``, ``"docker"`` or another runner's name.
            config: its default resource config, in the target's own words; W&B's nested form is accepted.
            overrides: what a launch may override: ``"safe"``, ``"all"``, ``"none"`` or a list of keys.
            priorities: whether critical, high and low are accepted besides medium.
            max_concurrent: the most runs of this queue at once, over all agents.
            retry: when a failed attempt is followed by another, by cause:
                ``{"preempted": 5, "oom": {"times": 1, "memory": "x1.5"}}``.
            start_limit: how long a run may take from its claim until it runs, ``"30m"`` or seconds; none: no limit.
            run_limit: how long it may take at its target; none: no limit.
            orphan_timeout: how long it may be without an agent that could follow it, until it counts as lost with its
                machine; none: a day.

        Raises:
            RequestError: a value is wrong, or there is a queue of that name with other settings.
        """
        spec = queue_spec(
            name,
            resource,
            config,
            overrides,
            priorities,
            max_concurrent,
            retry=retry,
            start_limit=start_limit,
            run_limit=run_limit,
            orphan_timeout=orphan_timeout,
        )
        return self.store.create_queue(spec)

    def update_queue(self, name: str, **settings: Unpack[QueueSettings]) -> QueueSpec:
        """Change settings of a queue and return it; queued runs keep the resource config they were enqueued with.

        Args:
            name: the queue.
            settings: see :class:`~launch.queue_spec.QueueSettings`; each replaces the one there is, the others stay.

        Raises:
            RequestError: no such queue, a value is wrong, or somebody else changed it at the same moment.
        """
        return self.store.update_queue(changed_queue(self.store.queue(name), settings))

    def delete_queue(self, name: str) -> None:
        """Delete a queue that holds no runs; those that have ended stay.

        Raises:
            RequestError: no such queue, or there are runs in it.
        """
        self.store.delete_queue(name)

    def queues(self) -> list[QueueSpec]:
        """Return all queues, by name."""
        return self.store.queues()

    def create_job(
        self,
        name: str,
        *,
        path: str | Path | None = None,
        image: str | None = None,
        entrypoint: Sequence[str] | str | None = None,
        aliases: Iterable[str] = (),
        python_version: str | None = None,
        requirements: str | Path | None = None,
        tracking: Tracking | str = Tracking.REQUIRED,
        retry: Mapping[str, Any] | RetryPolicy | None = None,
    ) -> JobVersion:
        """Register a job, or a new version of it, and return that; unchanged content is the version there is.

        Args:
            name: 1 to 128 letters, digits, ``_``, ``.`` and ``-``.
            path: a directory of code, snapshot now; or
            image: a container image that holds everything.
            entrypoint: what to run, a list or text; an image has its own.
            aliases: further names of the version, taken from the one that had them.
            python_version: ``"3.11"``; none: the builder's default.
            requirements: read instead of the directory's ``requirements.txt``.
            tracking: ``"optional"``: its runs may finish without calling ``wandb.init``.
            retry: when a failed attempt is followed by another, instead of what the queue says.

        Raises:
            RequestError: a value is wrong; nothing was written.
        """
        from launch.jobs import check_job_name, create_code_job

        if (path is None) == (image is None):
            raise ConfigError("job: give one of path and image")
        policy = retry_policy(retry, where="retry")
        if image is not None:
            if python_version is not None or requirements is not None:
                raise ConfigError("job: python_version and requirements are for code; an image holds everything")
            job = image_job(image, entrypoint, tracking).model_copy(update={"retry": policy})
            version, is_new = self.registry.create(check_job_name(name), job, aliases)
        else:
            assert path is not None
            version, is_new, notes = create_code_job(
                self.registry,
                Path(path),
                name,
                entrypoint,
                aliases=aliases,
                python_version=python_version,
                requirements=None if requirements is None else Path(requirements),
                tracking=as_tracking(tracking),
                retry=policy,
            )
            for sentence in notes:
                self.note(sentence)
        if not is_new:
            self.note(f"nothing has changed: this is {version.ref}")
        return version

    def jobs(self) -> list[JobVersion]:
        """Return the newest version of every job, by name."""
        return self.registry.list()

    def agents(self) -> list[AgentRecord]:
        """Return the agents that have been seen, the living first."""
        return self.store.agents(dead_after_s=self.settings.dead_after_s)


def _states(state: RunState | str | Iterable[RunState | str] | None) -> list[RunState] | None:
    if state is None:
        return None
    try:
        return [RunState(item) for item in ([state] if isinstance(state, str) else state)]
    except ValueError:
        raise ConfigError(f"state: should be one of {', '.join(RunState)}, not {state!r}") from None


def _signed(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request with its author filled in."""
    return {**request, "author": request["author"] if request.get("author") is not None else author()}


@lru_cache(maxsize=1)
def default_client() -> Client:
    """Return the client behind :func:`launch.enqueue` and the other functions of the package."""
    return Client()
