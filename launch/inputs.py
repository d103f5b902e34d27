"""For a job's script: what a launch may set of its config and of its config files. Stands on the standard library.

The same three functions as W&B's ``from wandb.sdk import launch``, and the same environment: a script that uses those
runs here as it is. Outside of a launch they change nothing.

A launch's values for ``wandb.config`` are in ``WANDB_CONFIG``, those for files in ``WANDB_LAUNCH_FILE_OVERRIDES``, or,
when longer than a variable may be, in pieces: ``WANDB_CONFIG_0``, ``_1`` and so on.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from launch.errors import ConfigError

CONFIG_ENV = "WANDB_CONFIG"
FILES_ENV = "WANDB_LAUNCH_FILE_OVERRIDES"
REPORT = "openlaunch-job-inputs"
"""``WANDB_JOB_NAME`` of a run that is to tell what may be set at launch: the first of its job's version."""
SUFFIXES = (".json", ".yaml", ".yml")
_REPORT_TIMEOUT_S = 5.0


def manage_config_file(
    path: str, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None, schema: Any = None
) -> None:
    r"""Declare a JSON or YAML file as input of the job, and put a launch's values for it into the file.

    Call it before the file is read. Mappings are merged, all else is replaced; the comments of a YAML file are lost.

    Args:
        path: relative to the working directory, without ``..``.
        include: what a launch may set of it, as paths with dots, ``"model.layers"``; none: everything. A dot that
            belongs to a key is written ``\.``.
        exclude: what it may not; goes before ``include``.
        schema: a JSON Schema of the file's values, or a pydantic model: they are held against it at launch.

    Raises:
        ConfigError: the path is none of a config file's, the file cannot be read or written, or an argument is
            malformed.
    """
    name = checked_path(path)
    if not Path(name).is_file():
        raise ConfigError(f"config file {path!r}: there is no such file in {Path.cwd()}")
    declaration = _declaration(name, include, exclude, schema)
    override = file_overrides().get(name)
    config = _read(name)
    if override is not None:
        merged = merged_values(config, override)
        if merged != config:
            try:
                _write(name, merged)
            except OSError as exc:
                raise ConfigError(f"config file {path!r}: cannot be written: {exc}") from exc
        config = merged
    if _is_asked_to_report():
        from launch.job_types import types_of

        # The types alone: what is in the file is nobody else's business.
        declaration["types"] = types_of(selected(config, declaration["include"], declaration["exclude"]))
        _report(declaration)


def manage_wandb_config(
    include: Sequence[str] | None = None, exclude: Sequence[str] | None = None, schema: Any = None
) -> None:
    """Declare ``wandb.config`` as input of the job; ``wandb.init`` puts a launch's values into it.

    Args:
        include: see :func:`manage_config_file`, as for the others.
        exclude: likewise.
        schema: likewise, of ``wandb.config``.

    Raises:
        ConfigError: an argument is malformed.
    """
    declaration = _declaration(None, include, exclude, schema)
    if _is_asked_to_report():
        _report(declaration)


def load_wandb_config() -> dict[str, Any]:
    """Return a launch's values for ``wandb.config``; empty outside of a launch.

    Raises:
        ConfigError: the environment holds something else.
    """
    return _from_environment(CONFIG_ENV)


# --- the environment --------------------------------------------------------------------------------------------------


def file_overrides() -> dict[str, Any]:
    """Return ``{path: values}`` that a launch sets in config files; empty outside of a launch.

    Raises:
        ConfigError: the environment holds something else.
    """
    given = _from_environment(FILES_ENV)
    for path, values in given.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{FILES_ENV}/{path}: should be a mapping, not {values!r}")
    return {str(PurePosixPath(path)): values for path, values in given.items()}


def _from_environment(name: str) -> dict[str, Any]:
    text = os.environ.get(name)
    if text is None:
        pieces: list[str] = []
        while (piece := os.environ.get(f"{name}_{len(pieces)}")) is not None:
            pieces.append(piece)
        text = "".join(pieces)
    try:
        found = json.loads(text or "{}")
    except ValueError as exc:
        raise ConfigError(f"{name}: is no valid JSON ({exc})") from exc
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: should be a JSON object, not {text[:80]!r}")
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def checked_path(path: Any, *, where: str = "config file") -> str:
    """Return the path of a config file in its one spelling, ``./a//b.yaml`` as ``a/b.yaml``.

    Raises:
        ConfigError: it is absolute, leads out of the job's folder, or names no JSON or YAML file.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{where} {path!r}: should be the path of a JSON or YAML file, such as config.yaml")
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise ConfigError(f"{where} {path!r}: should be relative to the job's folder, and stay in it, without '..'")
    if pure.suffix not in SUFFIXES:
        raise ConfigError(f"{where} {path!r}: should end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return str(pure)


def _read(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text) if path.endswith(".json") else _yaml(text)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"config file {path!r}: cannot be read: {exc}") from exc
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"config file {path!r}: should hold a mapping, not {type(found).__name__}")
    return found or {}


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ValueError(str(exc)) from exc


def merged_values(config: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with a launch's values: mappings are merged, all else is replaced, null is a value."""
    result = dict(config)
    for key, value in override.items():
        below = result.get(key)
        if isinstance(value, Mapping):
            result[key] = merged_values(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def _write(path: str, config: Mapping[str, Any]) -> None:
    """Replace a file as a whole: another process of the job that reads it meanwhile sees the old or the new one."""
    # A link's target is replaced, not the link.
    place = Path(path).resolve()
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_text(place.name, config))
        Path(temporary).chmod(stat.S_IMODE(place.stat().st_mode))
        Path(temporary).replace(place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _text(name: str, config: Mapping[str, Any]) -> str:
    if name.endswith(".json"):
        return json.dumps(config, indent=2) + "\n"
    import yaml

    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


# --- paths into a config ----------------------------------------------------------------------------------------------


def split_path(path: Any) -> tuple[str, ...]:
    r"""Return the keys of a path with dots; ``\.`` is a dot that belongs to a key, any other backslash itself.

    Raises:
        ConfigError: it has an empty key, or is no text.
    """
    if not isinstance(path, str):
        raise ConfigError(f"config path {path!r}: should be text, such as 'model.layers'")
    keys = [key.replace("\\.", ".") for key in re.split(r"(?<!\\)\.", path)]
    if not all(keys):
        raise ConfigError(f"config path {path!r}: has an empty key; write a dot that belongs to a key as '\\.'")
    return tuple(keys)


def selected(
    config: Mapping[str, Any], include: Iterable[Sequence[str]], exclude: Iterable[Sequence[str]]
) -> dict[str, Any]:
    """Return the part of a config that lies below one of the included paths (none: all) and below no excluded one.

    An empty mapping below an included path stays; one that is empty because all in it is left out does not.
    """
    return _selected(config, (), [tuple(path) for path in include], [tuple(path) for path in exclude])


def _selected(
    config: Mapping[str, Any],
    above: tuple[str, ...],
    include: Sequence[tuple[str, ...]],
    exclude: Sequence[tuple[str, ...]],
) -> dict[str, Any]:
    result = {}
    for key, value in config.items():
        path = (*above, str(key))
        if path in exclude:
            continue
        if isinstance(value, Mapping) and value:
            if below := _selected(value, path, include, exclude):
                result[key] = below
        elif not include or any(path[: len(start)] == start for start in include):
            result[key] = value
    return result


# --- telling the tracking server --------------------------------------------------------------------------------------


def _declaration(
    path: str | None, include: Sequence[str] | None, exclude: Sequence[str] | None, schema: Any
) -> dict[str, Any]:
    declaration: dict[str, Any] = {
        "path": path,
        "include": [split_path(item) for item in _paths(include, "include")],
        "exclude": [split_path(item) for item in _paths(exclude, "exclude")],
    }
    if schema is not None:
        from launch.schemas import plain_schema

        declaration["schema"] = plain_schema(schema, where="schema")
    return declaration


def _paths(given: Sequence[str] | None, what: str) -> Sequence[str]:
    if isinstance(given, str):
        raise ConfigError(f"{what}: should be a list of paths, such as ['model.layers'], not {given!r}")
    return given or ()


def _is_asked_to_report() -> bool:
    return os.environ.get("WANDB_JOB_NAME") == REPORT and {"WANDB_BASE_URL", "WANDB_API_KEY"} <= set(os.environ)


def _report(declaration: Mapping[str, Any]) -> None:
    """Tell what may be set at launch; nothing in the run depends on it."""
    body = {
        "operationName": "LaunchJobInputs",
        "query": "mutation LaunchJobInputs($declaration: JSON!) { launchJobInputs(declaration: $declaration) { ok } }",
        "variables": {"declaration": declaration},
    }
    key = base64.b64encode(f"api:{os.environ['WANDB_API_KEY']}".encode()).decode()
    headers = {"Authorization": f"Basic {key}", "Content-Type": "application/json"}
    url = f"{os.environ['WANDB_BASE_URL'].rstrip('/')}/graphql"
    # The URL is the one that wandb itself reports to.
    request = urllib.request.Request(url, data=json.dumps(body, default=str).encode(), headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_REPORT_TIMEOUT_S):  # noqa: S310
            pass
    except (OSError, HTTPException, ValueError):
        pass  # a server that is away, or does not know the operation, must not cost the job its run
