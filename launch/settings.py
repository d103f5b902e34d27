"""Settings of this installation, read from the environment: one place, one name each. No I/O beyond reading it.

Every field is a variable of the same name with ``LAUNCH_`` before it: ``LAUNCH_HOME``, ``LAUNCH_BROKER_URL``.
Agents have a configuration file of their own besides (``config/agent.yaml``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field

from launch.checking import Model, parse
from launch.errors import ConfigError


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
    """Redis: ``redis://user:password@host:6379/0``, ``rediss://…?ssl_ca_certs=/path``, ``redis+socket:///path`` or
    ``sentinel://host:26379;sentinel://other:26379/0?master_name=mymaster``. None: the embedded broker of the launch
    home."""

    artifacts: str | None = None
    """Where snapshots and full logs are kept: ``file:///path``, ``s3://bucket/prefix``, ``gs://bucket/prefix``, another
    URL of fsspec's, or the launch server's own, ``http://host:port``. None: ``artifacts/`` in the launch home."""

    max_blob_gb: Annotated[float, Field(gt=0)] = 16.0
    """The largest snapshot or log that the server takes from other machines, in GB."""

    cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """How much code an agent's machine keeps for the next run of it, in GB; the longest unused goes first."""

    cache_days: Annotated[float, Field(gt=0)] = 30.0
    """How long code and virtual environments that no run uses stay on an agent's machine."""

    connect_timeout_s: float = 5.0
    """How long a command tries to reach Redis before it gives up."""

    heartbeat_s: float = 3.0
    """How often an agent says that it lives."""

    dead_after_s: float = 10.0
    """How long after its last heartbeat an agent's runs are adopted by others."""

    reconcile_s: float = 2.0
    """How often waiting runs and messages are compared."""

    sweep_s: float = 30.0
    """How often an agent looks for what ended runs have left at its targets."""

    leftover_s: float = 60.0
    """How long after a run's end what is left of it is removed, should its own agent not have done so."""

    stop_grace_s: float = 10.0
    """How long a stopped job may take to end before it is killed."""

    log_cap_chars: int = 4_000_000
    """How much of a running job's log Redis holds; all of it is in the launch home, then in the artifact store."""

    max_run_seconds: float | None = None
    """A limit on every run's time at its target; none: no limit."""

    retention_s: float = 30 * 86_400.0
    """How long an ended run stays in Redis; after that it is a document in the artifact store, found as before."""

    notify: Path | None = None
    """A file of hooks that the server tells of ended runs and of queues without an agent: ``config/notify.yaml``."""

    flower_url: str | None = None
    """Where Flower is, for `launch doctor` to look at. None: it looks at Flower's own port on this machine."""

    log_format: str = "auto"
    """How agents and the server log: ``text``, ``json``, or ``auto``: text on a terminal, JSON otherwise."""

    git_config: Path | None = None
    """For whoever creates git jobs: a YAML file with the keys of the agent config's ``git`` section."""

    default_registry: str | None = None
    """The registry, ``host:5000``, of images that name none, where a queue resolves images at enqueue. None: such an
    image is refused there."""

    tracking_port: int | None = None
    """The server's port. None: chosen once, and kept in the launch home, since running jobs hold the URL."""

    @property
    def artifacts_url(self) -> str:
        """Where artifacts are, filled in."""
        return self.artifacts or f"file://{self.home / 'artifacts'}"

    @property
    def served_artifacts_url(self) -> str:
        """Where the server keeps what it is sent: not at itself, should this be set alike on all machines."""
        is_server = self.artifacts_url.startswith(("http://", "https://"))
        return f"file://{self.home / 'artifacts'}" if is_server else self.artifacts_url


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


@dataclass(frozen=True)
class Sentinels:
    """A Redis that is found by asking sentinels for the primary of a name."""

    hosts: tuple[tuple[str, int], ...]
    master_name: str
    db: int
    username: str | None
    password: str | None
    """The primary's."""
    kombu_url: str
    """The same for kombu, which takes the name as an option."""


def sentinels_of(url: str) -> Sentinels | None:
    """Return what a ``sentinel://`` URL says; none for another kind.

    Raises:
        ConfigError: it names no ``master_name``.
    """
    if not url.startswith("sentinel://"):
        return None
    parts = [urlsplit(part) for part in url.split(";")]
    options = dict(parse_qsl(parts[-1].query))
    if "master_name" not in options:
        raise ConfigError("LAUNCH_BROKER_URL: a sentinel:// URL should end with ?master_name=NAME")
    return Sentinels(
        hosts=tuple((part.hostname or "127.0.0.1", part.port or 26379) for part in parts),
        master_name=options["master_name"],
        db=int(parts[-1].path.strip("/") or 0),
        username=unquote(parts[0].username) if parts[0].username else None,
        password=unquote(parts[0].password) if parts[0].password else None,
        kombu_url=url.partition("?")[0],
    )
