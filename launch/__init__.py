"""Launch ML jobs into queues and run them on any target.

``launch.enqueue(job="digits:latest", queue="gpu-box", config={"epochs": 3}) -> Run``; the functions here use one
:class:`Client` made from the environment. Everything is loaded when it is first used: ``import launch`` is cheap, and a
module that only builds on :mod:`launch.plugins` loads no Redis client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.client import Client
    from launch.errors import (
        ConfigError,
        ConflictError,
        LaunchError,
        NotFoundError,
        PermanentError,
        RequestError,
        TemporaryError,
    )
    from launch.inputs import load_wandb_config, manage_config_file, manage_wandb_config
    from launch.models import Cause, JobVersion, LaunchSpec, Priority, QueueSpec, RunState, Tracking
    from launch.watch import Run

    _client = Client()
    enqueue = _client.enqueue
    enqueue_many = _client.enqueue_many
    create_queue = _client.create_queue
    create_job = _client.create_job
    create_git_job = _client.create_git_job
    queues = _client.queues
    runs = _client.runs
    run = _client.run
    stop = _client.stop
    agents = _client.agents

__version__ = "0.1.0"

_NAMES = {
    "Client": "client",
    "Run": "watch",
    **dict.fromkeys(
        ("ConfigError", "ConflictError", "LaunchError", "NotFoundError", "PermanentError", "RequestError",
         "TemporaryError"), "errors"
    ),
    **dict.fromkeys(
        ("Cause", "JobVersion", "LaunchSpec", "Priority", "QueueSpec", "RunState", "Tracking"), "models"
    ),
    **dict.fromkeys(("load_wandb_config", "manage_config_file", "manage_wandb_config"), "inputs"),
}  # fmt: skip
# `jobs` is not among them: launch.jobs is a module. Use Client().jobs().
_FUNCTIONS = (
    *("enqueue", "enqueue_many", "create_queue", "create_job", "create_git_job"),
    *("queues", "runs", "run", "stop", "agents"),
)

__all__ = [
    "Cause",
    "Client",
    "ConfigError",
    "ConflictError",
    "JobVersion",
    "LaunchError",
    "LaunchSpec",
    "NotFoundError",
    "PermanentError",
    "Priority",
    "QueueSpec",
    "RequestError",
    "Run",
    "RunState",
    "TemporaryError",
    "Tracking",
    "agents",
    "create_git_job",
    "create_job",
    "create_queue",
    "enqueue",
    "enqueue_many",
    "load_wandb_config",
    "manage_config_file",
    "manage_wandb_config",
    "queues",
    "run",
    "runs",
    "stop",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"launch.{_NAMES[name]}"), name)
    if name in _FUNCTIONS:
        return getattr(import_module("launch.client").default_client(), name)
    raise AttributeError(f"module 'launch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
