"""The tracking server, as an agent's jobs reach it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launch.errors import TemporaryError
from launch.plugins import Problem, Runner
from launch.store import RunStore
from launch.tracking import TrackingStore


class ServerAccess:
    """Finds the server's address for a job, and makes the key with which it may write.

    Args:
        store: where the server announces itself.
        url: where jobs reach it instead, from the agent's configuration.
    """

    def __init__(self, store: RunStore, url: str | None) -> None:
        self._store = store
        self._url = url
        self._keys = TrackingStore(store.redis)

    def problems(self, runners: Iterable[Runner]) -> list[Problem]:
        """Return why tracked jobs of these targets could not start now."""
        if self._url:
            return []
        if not self._store.server_urls():
            return [Problem("no tracking server is up, so tracked jobs cannot start", "launch server, or launch up")]
        problems = []
        for runner in runners:
            try:
                self.url_for(runner, runner.Options())
            except TemporaryError as exc:
                problems.append(Problem(f"jobs of {runner.name} cannot reach the tracking server", str(exc)))
        return problems

    def issue_key(self, run_id: str, attempt: int) -> str:
        """Return a new key with which an attempt, and nobody else, may write the run's tracking."""
        return self._keys.issue_key(run_id, attempt)

    def url_for(self, runner: Runner, options: Any) -> str | None:
        """Return where a job at a target reaches the server, none if it cannot ever.

        Raises:
            TemporaryError: it could, but the server is not up or does not listen there.
        """
        host = runner.tracking_host(options)
        if host is None or self._url:
            return self._url if host is not None else None
        urls = self._store.server_urls()
        if not urls:
            raise TemporaryError("no tracking server is up; start one with `launch server` or `launch up`")
        port = urls[0].rpartition(":")[2].strip("/")
        url = f"http://{host}:{port}"
        if url not in urls and not host.endswith(".internal"):
            raise TemporaryError(
                f"the tracking server does not listen on {host}, where jobs of {runner.name} would reach it; "
                f"start it with `launch server --host {host}`"
            )
        return url
