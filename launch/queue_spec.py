"""A queue's settings, checked before there is a queue. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from launch.checking import did_you_mean, parse
from launch.durations import parse_duration
from launch.errors import ConfigError
from launch.models import Limits, QueueSpec, RetryPolicy, RetryRule, TemplateVariable
from launch.plugins import Runner, runner_class
from launch.request import json_mapping
from launch.resolve import canonical, check_config, own_section, refuse_unknown
from launch.templates import read_variables, unused

LIMITS = {"start_limit": "start_s", "run_limit": "run_s", "orphan_timeout": "orphan_s"}
"""The limits as users name them, and as :class:`~launch.models.Limits` does."""


class QueueSettings(TypedDict, total=False):
    """What a queue is set to, by the names that Python, ``queues.yaml`` and the command line share."""

    config: Mapping[str, Any] | None
    """Its default resource config, in the target's own words; W&B's nested form is accepted."""
    template_variables: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
    """What each ``{{name}}`` in the config stands for: ``{"cpu": {"type": "integer", "minimum": 1, "maximum": 4,
    "default": 2}}``; W&B's forms are accepted."""
    resolve_images: str
    """When an image job's tag becomes a digest: ``"claim"``, or ``"enqueue"``, by whoever enqueues."""
    overrides: str | Sequence[str]
    """What a launch may override: ``"safe"``, ``"all"``, ``"none"`` or a list of keys."""
    priorities: bool
    """Whether critical, high and low are accepted besides medium."""
    max_concurrent: int | None
    """The most runs of this queue at once, over all agents; none: no limit."""
    retry: Mapping[str, Any] | RetryPolicy | None
    """When a failed attempt is followed by another: ``{"preempted": 5, "oom": {"times": 1, "memory": "x1.5"}}``."""
    start_limit: str | float | None
    """How long a run may take from its claim until it runs: ``"30m"``, or a number of seconds; none: no limit."""
    run_limit: str | float | None
    """How long it may take at its target."""
    orphan_timeout: str | float | None
    """How long it may be without an agent that could follow it, until it counts as lost; none: a day."""


def queue_spec(
    name: str,
    resource: str,
    config: Mapping[str, Any] | None = None,
    overrides: str | Sequence[str] = "safe",
    priorities: bool = False,
    max_concurrent: int | None = None,
    *,
    where: str | None = None,
    **more: Any,
) -> QueueSpec:
    """Return a queue's settings, checked; its config under canonical keys, its resource under the runner's own name.

    Args:
        name: the queue's name.
        resource: its target resource.
        config: see :class:`QueueSettings`, as for all that follows.
        overrides: likewise.
        priorities: likewise.
        max_concurrent: likewise.
        where: what the settings are, for messages; none: the queue.
        more: the other settings.

    Raises:
        ConfigError: a value is wrong; the message names it.
    """
    where = where or f"queue {name!r}"
    if not isinstance(resource, str):
        raise ConfigError(f"{where}/resource: should be a target resource's name, such as docker, not {resource!r}")
    runner = runner_class(resource)
    settings = {
        "config": config,
        "overrides": overrides,
        "priorities": priorities,
        "max_concurrent": max_concurrent,
        **more,
    }
    fields = _fields(settings, None, runner, where)
    return parse(QueueSpec, {"name": name, "resource": runner.name, **fields}, where=where)


def changed_queue(spec: QueueSpec, settings: Mapping[str, Any], *, where: str | None = None) -> QueueSpec:
    """Return a queue's settings with those given changed: each replaces the one there is, whole.

    Raises:
        ConfigError: a value is wrong, or there is no such setting; the message names it.
    """
    where = where or f"queue {spec.name!r}"
    fields = _fields(settings, spec, runner_class(spec.resource), where)
    return parse(QueueSpec, {**{key: getattr(spec, key) for key in QueueSpec.model_fields}, **fields}, where=where)


def queue_notes(spec: QueueSpec) -> list[str]:
    """Return what its author should know of a queue, a sentence each."""
    return [
        f"queue {spec.name!r}: nothing in its config uses the template variable {name!r}; write {{{{{name}}}}} where "
        "its value belongs"
        for name in unused(spec.config, spec.template_variables)
    ]


def _fields(settings: Mapping[str, Any], before: QueueSpec | None, runner: type[Runner], where: str) -> dict[str, Any]:
    """Return the fields of a QueueSpec that settings come to; ``before`` is the queue that is changed."""
    known = QueueSettings.__annotations__
    for key in settings:
        if key not in known:
            raise ConfigError(f"{where}/{key}: unknown key{did_you_mean(str(key), ['resource', *known])}")
    fields = {key: settings[key] for key in ("priorities", "max_concurrent", "resolve_images") if key in settings}
    if "config" in settings or "template_variables" in settings:
        fields |= _config(settings, before, runner, where)
    if "overrides" in settings:
        fields["overrides"] = _override_rule(settings["overrides"], runner, where)
    if "retry" in settings:
        fields["retry"] = retry_policy(settings["retry"], where=f"{where}/retry") or RetryPolicy()
    if any(key in settings for key in LIMITS):
        fields["limits"] = _limits(settings, before.limits if before else Limits(), where)
    return fields


def _config(settings: Mapping[str, Any], before: QueueSpec | None, runner: type[Runner], where: str) -> dict[str, Any]:
    """Return config and template variables, each checked with the other."""
    config: Mapping[str, Any] = before.config if before else {}
    variables: Mapping[str, TemplateVariable] = before.template_variables if before else {}
    if "config" in settings:
        given = json_mapping(settings["config"], f"{where}/config")
        config = own_section(given, (runner.name, *runner.aliases))
    if "template_variables" in settings:
        variables = read_variables(settings["template_variables"], where=f"{where}/template_variables")
    return {
        "config": check_config(runner, config, variables, where=f"{where}/config"),
        "template_variables": variables,
    }


def retry_policy(value: Any, *, where: str) -> RetryPolicy | None:
    """Return the policy that a mapping describes; none for none.

    Raises:
        ConfigError: a key or a value in it is wrong; the message is its path.
    """
    if value is None or isinstance(value, RetryPolicy):
        return value
    given = json_mapping(value, where)
    # Each rule on its own, so that a misspelt key in one is compared with a rule's keys.
    rules = {
        key: parse(RetryRule, rule, where=f"{where}/{key}")
        if isinstance(rule, Mapping) and key in RetryPolicy.model_fields
        else rule
        for key, rule in given.items()
    }
    return parse(RetryPolicy, rules, where=where)


def _limits(settings: Mapping[str, Any], before: Limits, where: str) -> Limits:
    fields = before.model_dump()
    for key, field in LIMITS.items():
        if key in settings:
            value = settings[key]
            default = Limits.model_fields[field].default
            fields[field] = default if value is None else parse_duration(value, where=f"{where}/{key}")
    return parse(Limits, fields, where=where)


def _override_rule(rule: str | Sequence[str], runner: type[Runner], where: str) -> str | tuple[str, ...]:
    if rule in ("safe", "all", "none"):
        return str(rule)
    if isinstance(rule, str) or not isinstance(rule, Sequence) or not all(isinstance(key, str) for key in rule):
        raise ConfigError(f"{where}/overrides: should be 'safe', 'all', 'none' or a list of keys, not {rule!r}")
    keys = tuple(canonical(runner, dict.fromkeys(rule), where=f"{where}/overrides"))
    refuse_unknown(runner, keys, where=f"{where}/overrides")
    return keys
