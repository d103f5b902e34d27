"""How the SDK reaches an installation: its broker, records, jobs and artifacts, each connected when first needed."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from launch.errors import NotFoundError, TemporaryError
from launch.intake import SpecBuilder
from launch.models import Job, Tracking
from launch.settings import Settings
from launch.settings import settings as process_settings
from launch.watch import Run

if TYPE_CHECKING:
    from launch.artifacts import ArtifactStore
    from launch.jobs import JobRegistry
    from launch.store import RunStore


class Connected:
    """One installation's records and artifacts. Connects at the first call, and may be shared by threads.

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

    def __enter__(self) -> Self:
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
        return ArtifactStore(self.settings.artifacts_url, lambda: self.store)

    @cached_property
    def registry(self) -> JobRegistry:
        """The registered jobs."""
        from launch.jobs import JobRegistry

        return JobRegistry(self.store.redis, self.artifacts)

    @cached_property
    def _builder(self) -> SpecBuilder:
        return SpecBuilder(self.store, self.registry, self._snapshot, self.note, self._digest_of)

    def _digest_of(self, image: str) -> str:
        from launch.registry import resolve_digest  # takes 40 ms, and few queues ask for it

        return resolve_digest(image, default_registry=self.settings.default_registry)

    def _snapshot(self, path: Path, entrypoint: tuple[str, ...], tracking: Tracking) -> Job:
        from launch.code_jobs import code_job

        return code_job(
            self.artifacts, path, entrypoint or None, tracking=tracking, home=self.settings.home, note=self.note
        )

    def run(self, run_id: str) -> Run:
        """Return a run by its id, also one that has left Redis for the artifact store.

        Raises:
            NotFoundError: there is no such run.
        """
        try:
            return self._wrapped(self.store.record(run_id))
        except NotFoundError:
            from launch.archive import read_archived

            archived = read_archived(self.store, self.artifacts, run_id)
            return Run(self.store, self.artifacts, archived.record, archived=archived)

    def _wrapped(self, record: Any) -> Run:
        return Run(self.store, self.artifacts, record, stop_grace_s=self.settings.stop_grace_s)


def author() -> str | None:
    """Return who this process's user is."""
    with suppress(KeyError, OSError):  # a container's user may have no name
        return getpass.getuser()
    return None
