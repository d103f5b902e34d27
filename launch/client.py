"""The SDK: queues, jobs and runs over one broker. Everything is checked before anything is written."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from launch.errors import ConfigError, TemporaryError
from launch.intake import SpecBuilder
from launch.models import Job, JobVersion, LaunchSpec, QueueSpec, RunState, Tracking
from launch.queue_spec import queue_spec
from launch.request import Launch, as_tracking, image_job
from launch.settings import Settings
from launch.settings import settings as process_settings
from launch.watch import Run

if TYPE_CHECKING:
    from launch.artifacts import ArtifactStore
    from launch.jobs import JobRegistry
    from launch.records import AgentRecord
    from launch.store import RunStore

__all__ = ["Client", "Run", "SpecBuilder", "default_client"]


class Client:
    """Talks to one installation. Connects at the first call, and may be shared by threads.

    Args:
        url: the broker, as Celery takes it; none: ``LAUNCH_BROKER_URL``, else the embedded broker of the launch home.
        settings: none: this process's own, from the environment.
        note: called with each thing the user should know of a snapshot that is taken, a sentence.
    """

    def __init__(
        self,
        url: str | None = None,
        settings: Settings | None = None,
        *,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.settings = settings or process_settings()
        self.note = note
        self._url = url or self.settings.broker_url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        store: RunStore | None = self.__dict__.pop("store", None)
        for name in ("registry", "_builder"):
            self.__dict__.pop(name, None)
        if store is not None:
            store.redis.close()

    @property
    def broker_url(self) -> str:
        """What Celery connects to.

        Raises:
            TemporaryError: none is configured, and no embedded one runs.
        """
        if self._url is not None:
            return self._url
        from launch.embedded import running

        url = running(self.settings)
        if url is None:
            raise TemporaryError(
                f"nothing runs in {self.settings.home}: start it with `launch up`, or name a Redis in LAUNCH_BROKER_URL"
            )
        return url

    @cached_property
    def store(self) -> RunStore:
        """The records in Redis, connected.

        Raises:
            TemporaryError: Redis is away; the message names its URL without the password.
        """
        from launch.store import RunStore

        return RunStore.connect(self.broker_url, timeout_s=self.settings.connect_timeout_s)

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """Where snapshots and full logs are kept."""
        from launch.artifacts import ArtifactStore
        from launch.home import make_home

        make_home(self.settings.home)
        return ArtifactStore(self.settings.artifacts_url)

    @cached_property
    def registry(self) -> JobRegistry:
        """The registered jobs."""
        from launch.jobs import JobRegistry

        return JobRegistry(self.store.redis, self.artifacts)

    @cached_property
    def _builder(self) -> SpecBuilder:
        return SpecBuilder(self.store, self.registry, self._snapshot)

    def _snapshot(self, path: Path, entrypoint: tuple[str, ...], tracking: Tracking) -> Job:
        from launch.jobs import code_job

        return code_job(self.artifacts, path, entrypoint or None, tracking=tracking, note=self.note)

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

    def run(self, run_id: str) -> Run:
        """Return a run by its id.

        Raises:
            NotFoundError: there is no such run.
        """
        return self._wrapped(self.store.record(run_id))

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

    def stop(self, run_id: str, grace_s: float | None = None) -> Run:
        """Ask for a run to end, and return it as it then is; see :meth:`Run.stop`."""
        return self.run(run_id).stop(grace_s)

    def _wrapped(self, record: Any) -> Run:
        return Run(self.store, self.artifacts, record, stop_grace_s=self.settings.stop_grace_s)

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
    ) -> QueueSpec:
        """Make a queue and return it; making the same one again changes nothing.

        Args:
            name: 1 to 64 letters, digits, ``_``, ``.`` and ``-``.
            resource: the target resource: ``"process"``, ``"docker"`` or another runner's name.
            config: its default resource config, in the target's own words; W&B's nested form is accepted.
            overrides: what a launch may override: ``"safe"``, ``"all"``, ``"none"`` or a list of keys.
            priorities: whether critical, high and low are accepted besides medium.
            max_concurrent: the most runs of this queue at once, over all agents.

        Raises:
            RequestError: a value is wrong, or there is a queue of that name with other settings.
        """
        return self.store.create_queue(queue_spec(name, resource, config, overrides, priorities, max_concurrent))

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

        Raises:
            RequestError: a value is wrong; nothing was written.
        """
        from launch.jobs import check_job_name, create_code_job

        if (path is None) == (image is None):
            raise ConfigError("job: give one of path and image")
        if image is not None:
            if python_version is not None or requirements is not None:
                raise ConfigError("job: python_version and requirements are for code; an image holds everything")
            job = image_job(image, entrypoint, tracking)
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
    signed = dict(request)
    if signed.get("author") is None:
        with suppress(KeyError, OSError):  # a container's user may have no name
            signed["author"] = getpass.getuser()
    return signed


@lru_cache(maxsize=1)
def default_client() -> Client:
    """Return the client behind :func:`launch.enqueue` and the other functions of the package."""
    return Client()
