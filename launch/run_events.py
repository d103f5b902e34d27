"""What is told of runs and agents, in the shapes of Celery's events, so that Flower shows runs. Pure: no I/O here.

To Flower a run is a task: its uuid is the run's id, its name ``<project>/<job>``, its routing key the queue, its worker
the agent's Celery node, its keyword arguments the launch in short. Its states are PENDING (enqueued), RECEIVED
(claimed), BUILDING, STARTING, RUNNING, and at the end SUCCESS, FAILURE, STOPPED or CRASHED; RETRY is back in the queue.

The scripts publish the events, each with the state it records (``launch/scripts/run_events.lua``). What they cannot
know, because the launch is JSON of any size, is made here, only if anybody listens: the *brief* of a run. No secret may
be in it: values of environment variables are left out, and so is what is called like a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from launch.connection import masked
from launch.models import ImageSource, LaunchSpec

_ENVIRONMENT = re.compile(r"^-{0,2}(e|env|envs|environment|environment[_-]?variables|build[_-]?args?)$", re.IGNORECASE)
_SECRET = re.compile(r"secret|token|passw|credential|private|api_?-?key|access_?-?key|auth", re.IGNORECASE)
# json.dumps makes one for each call.
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_MOST_ITEMS = 12
_MOST_CHARS = 80
_MOST_TOLD = 600


def task_name(spec: LaunchSpec) -> str:
    """Return ``<project>/<job>``, the job without its version; for one without a name, its image or command."""
    if spec.job_ref:
        return f"{spec.project}/{spec.job_ref.partition(':')[0]}"
    if isinstance(spec.job.source, ImageSource):
        return f"{spec.project}/{masked(spec.job.source.image)}"
    # Only the program: what follows may be a password.
    return f"{spec.project}/{spec.job.entrypoint[0]}"


def task_kwargs(spec: LaunchSpec) -> str:
    """Return the launch in short, as Python would print keyword arguments; Flower finds ``kwargs:author=ann`` in it."""
    said: dict[str, Any] = {
        "job": spec.job_ref,
        "name": spec.name,
        "author": spec.author,
        "priority": spec.priority.label,
        "config": _short(spec.config),
        "resource_args": _short(spec.resource_args),
        "rerun_of": spec.rerun_of,
    }
    return repr({key: value for key, value in said.items() if value})


def brief(spec: LaunchSpec) -> str:
    """Return what every event of a run says besides its state: a JSON object."""
    return _to_json(_task(spec))


def sent_events(waiting: Iterable[tuple[LaunchSpec, float]]) -> str:
    """Return the ``task-sent`` events of ``[(launch, when it was enqueued)]``: a JSON list."""
    common = {"type": "task-sent", "hostname": "launch", "retries": 0}
    return _to_json([{**common, **_task(spec), "uuid": spec.run_id, "timestamp": at} for spec, at in waiting])


def worker_event(**fields: Any) -> str:
    """Return the event of an agent, but for its type, name and time: a JSON object."""
    return _to_json(fields)


def _task(spec: LaunchSpec) -> dict[str, Any]:
    return {"name": task_name(spec), "args": "()", "kwargs": task_kwargs(spec), "routing_key": spec.queue}


def _to_json(value: Any) -> str:
    return _ENCODER.encode(value)


def _short(value: Any) -> Any:
    """Return a value of JSON's types cut down for a line of a page, without what may be secret."""
    for depth in (3, 2):
        shown = _shown(value, depth)
        if len(repr(shown)) <= _MOST_TOLD:
            return shown
    return _shown(value, 1)


def _shown(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        text = masked(value) if "://" in value else value
        return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}…"
    if not isinstance(value, dict | list | tuple):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        return {key[:_MOST_CHARS]: _shown_at(key, item, depth - 1) for key, item in islice(value.items(), _MOST_ITEMS)}
    return [_shown(item, depth - 1) for item in value[:_MOST_ITEMS]]


def _shown_at(key: str, value: Any, depth: int) -> Any:
    kind = _kind_of(key)
    if kind == "secret":
        return "***"
    return _names(value) if kind == "environment" else _shown(value, depth)


@lru_cache(maxsize=1000)
def _kind_of(key: str) -> Literal["environment", "secret", "plain"]:
    if _ENVIRONMENT.match(key):
        return "environment"
    return "secret" if _SECRET.search(key) else "plain"


def _names(environment: Any) -> Any:
    """Return the names of environment variables, given as a mapping, ``["A=b"]`` or ``[{"name": "A", …}]``."""
    if isinstance(environment, str):
        return environment.partition("=")[0][:_MOST_CHARS]
    if not isinstance(environment, dict | list | tuple):
        return "***"
    items = (item.get("name", item.get("Name", "")) if isinstance(item, dict) else item for item in environment)
    return [str(item).partition("=")[0][:_MOST_CHARS] for item in islice(items, _MOST_ITEMS)]
