"""What a job lets a launch set, and whether a launch keeps to it. Pure: no I/O.

A job's inputs are declared by its author when it is registered, or by its script when its first run tells of it; the
author's word goes first. A job that declares nothing takes anything; then the types of its first run only lead to
notes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from launch.checking import closest, did_you_mean
from launch.errors import ConfigError
from launch.inputs import checked_path
from launch.job_types import leaves, types_of
from launch.models import JobInputs, JobTypes, Types
from launch.resolve import as_json
from launch.schemas import checked_schema, problems

_PARTS = {"@wandb.config": "config", "config": "config", "files": "files"}

# --- as an author declares them ---------------------------------------------------------------------------------------


def read_inputs(schema: Any, *, where: str = "schema") -> JobInputs | None:
    """Return a job's inputs; none for none.

    Args:
        schema: a JSON Schema of ``wandb.config``, a pydantic model of it, or ``{"@wandb.config": schema, "files":
            {path: schema}}``.
        where: what it is, for messages.

    Raises:
        ConfigError: one of the schemas is none, or a path is no config file's.
    """
    if schema is None or isinstance(schema, JobInputs):
        return schema
    if not isinstance(schema, Mapping) or not schema or not set(schema) <= set(_PARTS):
        return JobInputs(config=checked_schema(schema, where=where))
    parts = {_PARTS[key]: value for key, value in schema.items() if value}
    if len(parts) < len([value for value in schema.values() if value]):
        raise ConfigError(f"{where}: '@wandb.config' and 'config' are the same; give one of them")
    files = parts.get("files", {})
    if not isinstance(files, Mapping):
        raise ConfigError(f"{where}/files: should be a mapping of paths to schemas, not {files!r}")
    return JobInputs(
        config=checked_schema(parts["config"], where=f"{where}/@wandb.config") if "config" in parts else {},
        files={
            checked_path(path, where=f"{where}/files:"): checked_schema(item or {}, where=f"{where}/files/{path}")
            for path, item in files.items()
        },
    )


def inputs_in_force(declared: JobInputs | None, types: JobTypes | None) -> JobInputs:
    """Return the author's inputs, filled up with what the script declared."""
    found = types.inputs if types is not None and types.inputs is not None else JobInputs()
    own = declared or JobInputs()
    return JobInputs(config=own.config or found.config, files={**found.files, **own.files})


# --- what a launch sets -----------------------------------------------------------------------------------------------


def read_files(given: Any, *, where: str = "files") -> dict[str, dict[str, Any]]:
    """Return ``{path: values}`` with each path in its one spelling; empty for none.

    Raises:
        ConfigError: a path is no config file's, two are the same, or a value is not JSON.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: should be a mapping of paths to values, not {str(given)[:80]!r}")
    files: dict[str, dict[str, Any]] = {}
    for path, values in given.items():
        name = checked_path(path, where=f"{where}:")
        if name in files:
            raise ConfigError(f"{where}: {path!r} is given twice, in two spellings")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}/{name}: should be a mapping of the values to set, not {str(values)[:80]!r}")
        files[name] = as_json(values, f"{where}/{name}")
    return {name: values for name, values in files.items() if values}


def check_given(
    config: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    declared: JobInputs | None,
    types: JobTypes | None,
    *,
    job: str,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Hold what a launch sets against what its job lets it set.

    Args:
        config: its values for ``wandb.config``.
        files: its values for config files.
        declared: the job's inputs, as its author declared them.
        types: what the job's first run told.
        job: the job's name, for messages.
        note: called with what looks wrong and may be meant, a sentence each.

    Raises:
        ConfigError: one line for each value that is not as declared.
    """
    inputs = inputs_in_force(declared, types)
    lines = problems(config, inputs.config, where="config") if config and inputs.config else []
    if types is not None:
        lines += _not_settable(config, types, job)
        if not inputs.config:
            _note_types(config, types.config, "config", job, note)
    for path, values in files.items():
        lines += _file_problems(path, values, inputs, types, job, note)
    if lines:
        raise ConfigError("\n".join(dict.fromkeys(lines)))


def _not_settable(config: Mapping[str, Any], types: JobTypes, job: str) -> list[str]:
    if types.settable is None:
        return []
    settable = [path for path, _ in leaves(types.settable)]
    closed = [path for path, kind in leaves(types.config) if kind != "mapping" and not _meets(path, settable)]
    given = [path for path, _ in leaves(types_of(config))]
    may = _named(settable)
    return [
        f"{'/'.join(('config', *path))}: job {job} does not let a launch set it{may}"
        for path in given
        if _meets(path, closed)
    ]


def _meets(path: tuple[str, ...], others: list[tuple[str, ...]]) -> bool:
    """Whether the path leads to, into or over one of the others."""
    return any(path[: len(other)] == other[: len(path)] for other in others)


def _named(paths: list[tuple[str, ...]]) -> str:
    return f"; it may set: {', '.join('.'.join(path) for path in paths[:20])}" if paths else "; it may set nothing"


def _file_problems(
    path: str,
    values: Mapping[str, Any],
    inputs: JobInputs,
    types: JobTypes | None,
    job: str,
    note: Callable[[str], None],
) -> list[str]:
    managed = types.files if types is not None else {}
    known = [*inputs.files, *managed]
    if path not in known:
        if inputs.files:
            return [f"files/{path}: is no input of job {job}{did_you_mean(path, known)}"]
        if types is not None:
            near = _near(path, known)
            note(f"files/{path}: the script of job {job} manages no such file, so it may change nothing{near}")
        return []
    if inputs.files.get(path):
        return problems(values, inputs.files[path], where=f"files/{path}")
    if not managed.get(path):
        return []
    settable = [leaf for leaf, _ in leaves(managed[path])]
    _note_types(values, managed[path], f"files/{path}", job, note)
    return [
        f"{'/'.join(('files', path, *leaf))}: job {job} does not let a launch set it{_named(settable)}"
        for leaf, _ in leaves(types_of(values))
        if not any(leaf[: len(other)] == other for other in settable)
    ]


def _note_types(given: Mapping[str, Any], known: Types, where: str, job: str, note: Callable[[str], None]) -> None:
    """Say what is of another type than in the job's first run, or was not there."""
    if not known:
        return
    there = dict(leaves(known))
    for path, kind in leaves(types_of(given)):
        before, name = there.get(path), "/".join((where, *path))
        if before is None and not _meets(path, list(there)):
            near = _near(".".join(path), [".".join(other) for other in there])
            note(f"{name}: the first run of job {job} had no such value{near}")
        elif before is not None and before != kind and "null" not in (before, kind):
            note(f"{name}: is {kind}; in the first run of job {job} it was {before}")


def _near(word: str, known: list[str]) -> str:
    near = closest(word, known)
    return f"; did you mean {near!r}?" if near else ""
