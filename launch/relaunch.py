"""Launches made from launches: a queued one with changes, an ended one once more. The same rules as for a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from launch.checking import parse
from launch.inputs import checked_path
from launch.intake import (
    cached_runner_class,
    check_runs_images,
    check_spec,
    own_limits,
    own_override,
    own_variables,
    priority_in,
)
from launch.job_inputs import check_given, read_files
from launch.models import JobTypes, LaunchSpec, QueueSpec
from launch.request import json_mapping
from launch.resolve import merge, resolve


class Changes(TypedDict, total=False):
    """What may be different; what is left out or none stays."""

    config: Mapping[str, Any] | None
    """Overrides of the script's ``wandb.config``, merged into those there are: ``None`` takes one away."""
    files: Mapping[str, Mapping[str, Any] | None] | None
    """Overrides of config files, merged likewise."""
    template_variables: Mapping[str, Any] | None
    """Values for the queue's template variables, beside those there are: ``None`` takes one away."""
    resource_args: Mapping[str, Any] | None
    """The override of the queue's resource config, instead of the one there is."""
    priority: str | int | None
    """``"critical"``, ``"high"``, ``"medium"`` or ``"low"``."""
    name: str | None
    """What people call the run."""
    run_limit: str | float | None
    """How long it may take at its target."""


def edited(spec: LaunchSpec, queue: QueueSpec, changes: Changes, *, types: JobTypes | None = None) -> LaunchSpec:
    """Return a queued run's launch with changes.

    Args:
        spec: the launch as it is.
        queue: its queue, with the resource config of the version the run was enqueued with, which it keeps.
        changes: what is different.
        types: what the first run of its job's version told, if there was one.

    Raises:
        ConfigError: a value is wrong, or the queue does not allow it.
    """
    fields = _changed(spec, queue, changes, types)
    if changes.get("priority") is not None:
        fields["priority"] = priority_in(changes["priority"], queue)
    if changes.get("run_limit") is not None:
        fields["limits"], fields["run_limit_s"] = own_limits(queue, changes["run_limit"])
    return _frozen({**_fields(spec), **fields})


def again(
    spec: LaunchSpec,
    queue: QueueSpec,
    changes: Changes,
    *,
    run_id: str,
    author: str | None,
    types: JobTypes | None = None,
) -> LaunchSpec:
    """Return the launch that repeats another: the same job version and settings, in a queue as that is now.

    Of its template variables those stay that the queue has now.

    Args:
        spec: the launch to repeat.
        queue: where it is to run now; need not be where it was.
        changes: what is different.
        run_id: the new run's id.
        author: who launches it.
        types: what the first run of its job's version told, if there was one.

    Raises:
        ConfigError: the launch does not fit the queue; the message names the value.
    """
    check_runs_images(spec.job, queue, cached_runner_class(queue.resource))
    priority, run_limit = changes.get("priority"), changes.get("run_limit")
    limits, run_limit_s = own_limits(queue, spec.run_limit_s if run_limit is None else run_limit)
    fields = {
        **_changed(spec, queue, changes, types),
        "run_id": run_id,
        "queue": queue.name,
        "queue_version": queue.version,
        "resource": queue.resource,
        "priority": priority_in(spec.priority if priority is None else priority, queue),
        "limits": limits,
        "run_limit_s": run_limit_s,
        "retry": spec.job.retry or queue.retry,
        "author": author,
        "rerun_of": spec.run_id,
    }
    return _frozen({**_fields(spec), **fields})


def _changed(spec: LaunchSpec, queue: QueueSpec, changes: Changes, types: JobTypes | None) -> dict[str, Any]:
    runner = cached_runner_class(queue.resource)
    given = changes.get("resource_args")
    resource_args = spec.resource_args if given is None else own_override(given, queue, runner)
    variables = _variables(spec, queue, changes)
    config = merge(spec.config, json_mapping(changes.get("config"), "config"))
    asked = json_mapping(changes.get("files"), "files")
    files = read_files(merge(spec.files, {checked_path(path, where="files:"): asked[path] for path in asked}))
    if (config, files) != (spec.config, spec.files):
        check_given(config, files, spec.job.inputs, types, job=spec.job_ref or "here")
    return {
        "config": config,
        "files": files,
        "template_variables": variables,
        "resource_args": resource_args,
        "resource_config": resolve(queue, runner, resource_args, variables),
        "name": changes.get("name") or spec.name,
    }


def _variables(spec: LaunchSpec, queue: QueueSpec, changes: Changes) -> dict[str, Any]:
    asked = json_mapping(changes.get("template_variables"), "template_variables")
    kept = {name: value for name, value in spec.template_variables.items() if name in queue.template_variables}
    gone = [name for name, value in asked.items() if value is None]
    given = {name: value for name, value in {**kept, **asked}.items() if name not in gone}
    return own_variables(given, queue)


def _fields(spec: LaunchSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in LaunchSpec.model_fields}


def _frozen(fields: Mapping[str, Any]) -> LaunchSpec:
    spec = parse(LaunchSpec, fields, where="launch")
    check_spec(spec)
    return spec
