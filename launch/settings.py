"""Settings of this installation, read from the environment: one place, one name each. No I/O beyond reading it.

Every field is a variable of the same name with ``LAUNCH_`` before it: ``LAUNCH_HOME``, ``LAUNCH_BROKER_URL``.
Agents have a configuration file of their own besides (``config/agent.yaml``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from launch.errors import ConfigError
from launch.models import Model, parse


def default_home() -> Path:
    """Return the platform's data folder for openlaunch: ``~/.local/share/openlaunch`` or macOS's equivalent."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "openlaunch"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "openlaunch"


class Settings(Model):
    """What every process of an installation must agree on."""

    home: Path = Field(default_factory=default_home)
    """The launch home: everything openlaunch keeps on this machine is below it."""

    broker_url: str | None = None
    """Redis: ``redis://``, ``rediss://`` or ``redis+socket:///path``. None: the embedded broker of the launch home."""

    artifacts: str | None = None
    """Where snapshots and full logs are kept, as an fsspec URL. None: ``artifacts/`` in the launch home."""

    connect_timeout_s: float = 5.0
    """How long a command tries to reach Redis before it gives up."""

    heartbeat_s: float = 3.0
    """How often an agent says that it lives."""

    dead_after_s: float = 10.0
    """How long after its last heartbeat an agent's runs are adopted by others."""

    reconcile_s: float = 2.0
    """How often waiting runs and messages are compared."""

    stop_grace_s: float = 10.0
    """How long a stopped job may take to end before it is killed."""

    log_cap_chars: int = 4_000_000
    """How much of a running job's log Redis holds; all of it is in the launch home, then in the artifact store."""

    max_run_seconds: float | None = None
    """A limit on every run's time at its target; none: no limit."""

    retention_s: float = 30 * 86_400.0
    """How long an ended run stays in Redis; after that it is a document in the artifact store, found as before."""

    tracking_port: int | None = None
    """The server's port. None: chosen once, and kept in the launch home, since running jobs hold the URL."""

    @property
    def artifacts_url(self) -> str:
        """Where artifacts are, filled in."""
        return self.artifacts or f"file://{self.home / 'artifacts'}"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings that an environment holds.

    Raises:
        ConfigError: a value does not parse; the message names the variable.
    """
    names = {f"LAUNCH_{field.upper()}": field for field in Settings.model_fields}
    given = {field: environ[name] for name, field in names.items() if environ.get(name)}
    if "home" in given:
        given["home"] = str(Path(given["home"]).expanduser().absolute())
    try:
        return parse(Settings, given, where="environment")
    except ConfigError as exc:
        text = str(exc)
        for name, field in names.items():
            text = text.replace(f"environment/{field}:", f"{name}:")
        raise ConfigError(text) from exc


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return this process's settings, read once."""
    return read_settings(os.environ)


def redis_py_url(url: str) -> str:
    """Return a broker URL as redis-py reads it: kombu's ``redis+socket:///path`` is its ``unix:///path``."""
    if not url.startswith("redis+socket://"):
        return url
    return f"unix://{url.removeprefix('redis+socket://').replace('virtual_host=', 'db=')}"
