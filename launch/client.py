"""The SDK: queues, jobs and runs over one broker. Everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from launch.connected import author
from launch.errors import ConfigError
from launch.intake import SpecBuilder
from launch.job_request import AskedJob, JobChoices
from launch.models import JobVersion, LaunchSpec, QueueSpec, RetryPolicy, RunState
from launch.operations import Operations
from launch.queue_spec import QueueSettings, changed_queue, queue_notes, queue_spec
from launch.request import Launch, image_job
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
        template_variables: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        resolve_images: str = "claim",
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
            template_variables: what each ``{{name}}`` in the config stands for:
                ``{"cpu": {"type": "integer", "minimum": 1, "maximum": 4, "default": 2}}``.
            resolve_images: when an image job's tag becomes a digest: ``"claim"``, by the agent, or ``"enqueue"``, by
                whoever enqueues: then the run gets the image that the tag meant at that moment.
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
            template_variables=template_variables,
            resolve_images=resolve_images,
            retry=retry,
            start_limit=start_limit,
            run_limit=run_limit,
            orphan_timeout=orphan_timeout,
        )
        return self._noted(self.store.create_queue(spec))

    def update_queue(self, name: str, **settings: Unpack[QueueSettings]) -> QueueSpec:
        """Change settings of a queue and return it; queued runs keep the resource config they were enqueued with.

        Args:
            name: the queue.
            settings: see :class:`~launch.queue_spec.QueueSettings`; each replaces the one there is, the others stay.

        Raises:
            RequestError: no such queue, a value is wrong, or somebody else changed it at the same moment.
        """
        return self._noted(self.store.update_queue(changed_queue(self.store.queue(name), settings)))

    def _noted(self, queue: QueueSpec) -> QueueSpec:
        for sentence in queue_notes(queue):
            self.note(sentence)
        return queue

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
        self, name: str, *, path: str | Path | None = None, image: str | None = None, **choices: Unpack[JobChoices]
    ) -> JobVersion:
        """Register a job, or a new version of it, and return that; unchanged content is the version there is.

        Args:
            name: 1 to 128 letters, digits, ``_``, ``.`` and ``-``.
            path: a directory of code, snapshot now; or
            image: a container image that holds everything.
            choices: see :class:`~launch.job_request.JobChoices`; an image takes none of those that are about code.

        Raises:
            RequestError: a value is wrong; nothing was written.
        """
        from launch.code_jobs import create_code_job
        from launch.jobs import check_job_name

        if (path is None) == (image is None):
            raise ConfigError("job: give one of path and image")
        asked = AskedJob.of(choices)
        if image is not None:
            if asked.code:
                raise ConfigError(f"job: {' and '.join(asked.code)} would be for code; an image holds everything")
            job = image_job(image, asked.entrypoint, asked.tracking)
            job = job.model_copy(update={"retry": asked.retry, "inputs": asked.inputs})
            return self._registered(*self.registry.create(check_job_name(name), job, asked.aliases))
        assert path is not None
        version, is_new, notes = create_code_job(
            self.registry, Path(path), name, home=self.settings.home, **asked.for_code()
        )
        for sentence in notes:
            self.note(sentence)
        return self._registered(version, is_new)

    def create_git_job(
        self,
        url: str,
        *,
        name: str | None = None,
        ref: str | None = None,
        allow: Iterable[str] = (),
        **choices: Unpack[JobChoices],
    ) -> JobVersion:
        """Register a commit of a git repository, or a new version of that job, and return it.

        The commit is pinned now, and is what agents fetch; a branch that moves later changes nothing.

        Args:
            url: ``https://host/path``, ``ssh://user@host/path`` or ``user@host:path``.
            name: the job's name; none: ``job-`` and the repository's.
            ref: a branch, a tag or a commit's 40 digits; none: ``main``, else ``master``.
            allow: ``"http"``, ``"file"``: transports to allow here; agents must allow them too.
            choices: see :class:`~launch.job_request.JobChoices`.

        Raises:
            RequestError: a value is wrong, or the repository wants a login; nothing was written.
            TemporaryError: the repository's host does not answer.
        """
        from launch.git.jobs import create_git_job, creators_git

        git = creators_git(self.settings, allow=allow)
        asked = AskedJob.of(choices).for_code()
        return self._registered(*create_git_job(self.registry, git, url, name=name, note=self.note, ref=ref, **asked))

    def _registered(self, version: JobVersion, is_new: bool) -> JobVersion:
        if not is_new:
            self.note(f"nothing has changed: this is {version.ref}")
        return version

    def alias_job(self, ref: str, alias: str) -> JobVersion:
        """Give a version of a job a further name, taken from the one that had it, and return the version.

        Args:
            ref: ``"name"``, ``"name:v3"`` or ``"name:alias"``.
            alias: 1 to 64 letters, digits, ``_``, ``.`` and ``-``.

        Raises:
            RequestError: there is no such version, or the alias may not be one.
        """
        return self.registry.add_alias(ref, alias)

    def delete_job(self, ref: str, *, force: bool = False) -> list[str]:
        """Delete a version of a job, or all of it, and return what was deleted; what was enqueued runs all the same.

        Args:
            ref: ``"name"``, ``"name:v3"`` or ``"name:alias"``.
            force: also when a run that has not ended is of it, or another alias means the version.

        Raises:
            RequestError: there is no such job, or a run or an alias is in the way.
        """
        from launch.job_deletion import delete_job

        return delete_job(self.store, self.registry, ref, is_forced=force)

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
