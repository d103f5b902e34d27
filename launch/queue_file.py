"""A file of queues, and what making an installation's queues like it would change. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.checking import did_you_mean
from launch.errors import ConfigError, ConflictError, LaunchError
from launch.models import Limits, QueueSpec, RetryPolicy, TemplateVariable
from launch.queue_spec import LIMITS, QueueSettings, queue_spec
from launch.templates import allowed

_SHOWN = ("config", "resolve_images", "overrides", "priorities", "max_concurrent")


@dataclass(frozen=True)
class Change:
    """What becomes of one queue."""

    spec: QueueSpec
    """As it shall be."""
    before: QueueSpec | None
    """As it is; none: it is made."""
    differences: tuple[tuple[str, Any, Any], ...]
    """``(setting, value before, value after)``; empty: it stays as it is."""


def read_queues(data: Any, *, where: str) -> list[QueueSpec]:
    """Return the queues that a file describes, in its order.

    Args:
        data: the file's content: ``{"queues": {name: settings}}``, the settings named as in Python and on the command
            line, ``resource`` among them. A setting that is left out has its default.
        where: the file's name, for messages.

    Raises:
        ConfigError: something in it is wrong; one line a queue, each a path into the file.
    """
    queues = _mapping(_mapping(data, where).get("queues", {}), f"{where}: queues")
    unknown = [key for key in data if key != "queues"]
    if unknown or not queues:
        what = f"{unknown[0]}: unknown key{did_you_mean(str(unknown[0]), ['queues'])}" if unknown else "names no queues"
        raise ConfigError(f"{where}: {what}")
    specs, problems = [], []
    for name, settings in queues.items():
        try:
            specs.append(_read_queue(name, settings, where=f"{where}: queues/{name}"))
        except LaunchError as exc:
            problems.append(str(exc))
    if problems:
        raise ConfigError("\n".join(problems))
    return specs


def _read_queue(name: Any, settings: Any, *, where: str) -> QueueSpec:
    fields = _mapping(settings, where)
    known = ["resource", *QueueSettings.__annotations__]
    for key in fields:
        if key not in known:
            raise ConfigError(f"{where}/{key}: unknown key{did_you_mean(str(key), known)}")
    if "resource" not in fields:
        raise ConfigError(f"{where}/resource: is required, such as process or docker")
    return queue_spec(name, where=where, **fields)


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: should be a mapping, not {type(value).__name__}")
    return value


def change_of(spec: QueueSpec, before: QueueSpec | None) -> Change:
    """Return what making a queue like ``spec`` would change.

    Raises:
        ConflictError: its target resource would be another.
    """
    if before is None:
        return Change(spec, None, ())
    if spec.resource != before.resource:
        raise ConflictError(
            f"queue {spec.name!r} is of resource {before.resource!r} and stays so; give the queue of resource "
            f"{spec.resource!r} another name"
        )
    after = spec.model_copy(update={"version": before.version, "paused": before.paused})
    return Change(after, before, tuple(_differences(before, after)))


def _differences(before: QueueSpec, after: QueueSpec) -> list[tuple[str, Any, Any]]:
    old, new = shown_settings(before), shown_settings(after)
    return [(key, old[key], new[key]) for key in new if old[key] != new[key]]


def shown_settings(spec: QueueSpec) -> dict[str, Any]:
    """Return a queue's settings as users name them, limits in seconds."""
    settings = {key: getattr(spec, key) for key in _SHOWN}
    settings["template_variables"] = shown_variables(spec.template_variables)
    settings["retry"] = shown_retry(spec.retry)
    return settings | shown_limits(spec.limits)


def shown_variables(variables: Mapping[str, TemplateVariable]) -> dict[str, Any]:
    """Return template variables as users write them."""
    return {
        name: {"type": variable.type, **variable.model_dump(exclude_defaults=True)}
        for name, variable in variables.items()
    }


def variable_lines(spec: QueueSpec) -> list[str]:
    """Return a queue's template variables for people: ``cpu = an integer between 1 and 4, default 2: cores``."""
    lines = []
    for name, variable in spec.template_variables.items():
        default = "has to be given" if variable.default is None else f"default {variable.default}"
        said = f": {' '.join(variable.description.split())}" if variable.description else ""
        lines.append(f"{name} = {allowed(variable)}, {default}{said}")
    return lines


def shown_retry(policy: RetryPolicy) -> dict[str, Any]:
    """Return a retry policy as users write it: a number for a rule that is nothing more."""
    dumped = policy.model_dump(exclude_none=True)
    return {
        key: value["times"] if isinstance(value, dict) and set(value) == {"times"} else value
        for key, value in dumped.items()
    }


def shown_limits(limits: Limits) -> dict[str, float | None]:
    """Return limits as users name them, in seconds."""
    return {key: getattr(limits, field) for key, field in LIMITS.items()}
