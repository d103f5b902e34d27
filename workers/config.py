"""What an operator tells an agent: a YAML file and the command's options over it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from launch.checking import Model, parse
from launch.errors import ConfigError
from launch.git.access import GitAccess
from launch.models import Name, QueueName
from launch.secrets import check_references
from workers.secret_sources import SecretSettings

ENV_CONFIG = "LAUNCH_AGENT_CONFIG"
"""The agent's configuration as JSON, from the parent process to its Celery worker. Likewise the others."""
ENV_BROKER = "LAUNCH_BROKER_URL"
ENV_DRAIN = "LAUNCH_AGENT_DRAIN"
"""Set: SIGTERM waits for the runs in hand."""


def _host_name() -> str:
    return "".join(c if c.isalnum() or c in "_.-" else "-" for c in platform.node().split(".")[0]) or "agent"


class AgentConfig(Model):
    """An agent's configuration; ``config/agent.yaml`` is the annotated example."""

    name: Name = Field(default_factory=_host_name)
    """What people call it; several agents may share a name."""

    queues: tuple[QueueName, ...] = ()
    """The queues it serves, taking turns."""

    max_jobs: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many runs it carries at once."""

    tracking_url: str | None = None
    """Where jobs reach the tracking server. None: the server on this machine, at the address its target can reach."""

    max_run_seconds: Annotated[float, Field(gt=0)] | None = None
    """A limit on each run's time at its target; none: no limit."""

    targets: dict[str, dict[str, Any]] = {}
    """Settings of runners by name: ``docker: {host: "unix:///var/run/docker.sock", pass_env: [HF_TOKEN]}``."""

    builders: dict[str, dict[str, Any]] = {}
    """Settings of builders by name."""

    git: GitAccess = GitAccess()
    """Which git remotes it may fetch jobs from, with what credentials and up to which limits."""

    secrets: SecretSettings = SecretSettings()
    """Where ``${secret:NAME}`` comes from. It may stand in the settings of targets and builders too."""


def read_config(path: Path | None, options: Mapping[str, Any]) -> AgentConfig:
    """Return the configuration in a file with the options given on the command line over it.

    Raises:
        ConfigError: the file cannot be read or is wrong, or no queue is named; the message is a path into it.
    """
    config = load_config(path, options)
    if not config.queues:
        where = path or "options"
        raise ConfigError(f"{where}: queues: name at least one queue, such as `launch agent -q local`")
    return config


def load_config(path: Path | None, options: Mapping[str, Any] | None = None) -> AgentConfig:
    """Do as :func:`read_config`, for a caller that needs no queue."""
    data: Any = {}
    where = str(path) if path else "options"
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as exc:
            raise ConfigError(f"{path}: cannot be read as YAML: {exc}") from exc
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: should be a mapping of settings, not {type(data).__name__}")
    given = {name: value for name, value in (options or {}).items() if value not in (None, ())}
    config = parse(AgentConfig, {**data, **given}, where=where)
    for section in ("targets", "builders"):
        check_references(getattr(config, section), where=f"{where}: {section}")
    return config
