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
from launch.models import Name, QueueName

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


def read_config(path: Path | None, options: Mapping[str, Any]) -> AgentConfig:
    """Return the configuration in a file with the options given on the command line over it.

    Raises:
        ConfigError: the file cannot be read or is wrong; the message is a path into it.
    """
    data: Any = {}
    where = str(path) if path else "options"
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as exc:
            raise ConfigError(f"{path}: cannot be read as YAML: {exc}") from exc
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: should be a mapping of settings, not {type(data).__name__}")
    given = {name: value for name, value in options.items() if value not in (None, ())}
    config = parse(AgentConfig, {**data, **given}, where=where)
    if not config.queues:
        raise ConfigError(f"{where}: queues: name at least one queue, such as `launch agent -q local`")
    return config
