"""The tracking server, as an agent's jobs reach it."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.errors import TemporaryError
from launch.plugins import Problem, Runner
from launch.store import RunStore
from launch.tracking import TrackingStore, is_heard_at, job_url

_KEY_FILE = "agent.key"
_KEY_BYTES = 32


class ServerAccess:
    """Finds the server's address for a job, and makes the key with which it may write.

    A key is made from the launch home's own, so that the agent that adopts an attempt knows it too, and masks it.

    Args:
        store: where the server announces itself.
        url: where jobs reach it instead, from the agent's configuration.
        home: the launch home.
    """

    def __init__(self, store: RunStore, url: str | None, home: Path) -> None:
        self._store = store
        self._url = url
        self._keys = TrackingStore(store.redis)
        self._home_key = _home_key(home)
        self._installation = store.installation()

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
        """Return the key with which an attempt, and nobody else, may write the run's tracking, from now on."""
        return self._keys.issue_key(run_id, attempt, self.key_for(run_id, attempt))

    def key_for(self, run_id: str, attempt: int) -> str:
        """Return the key that an agent of this launch home issues to an attempt, or has issued."""
        what = f"{self._installation}:{run_id}:{attempt}".encode()
        return hmac.new(self._home_key, what, "sha256").hexdigest()[:40]

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
        if not is_heard_at(host, urls):
            raise TemporaryError(
                f"the tracking server does not listen on {host}, where jobs of {runner.name} would reach it; "
                f"start it with `launch server --host {host}`"
            )
        return job_url(host, urls)


def _home_key(home: Path) -> bytes:
    """Return the launch home's own key; of several agents that make it at once, one wins."""
    path = home / _KEY_FILE
    with suppress(FileNotFoundError):
        return path.read_bytes()
    made = home / f".{_KEY_FILE}.{secrets.token_hex(4)}"
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()
    return path.read_bytes()
