"""Types of a job's inputs and outputs: read off its first finished run, and off what its script declares. No I/O here.

A script declares with ``manage_wandb_config`` and ``manage_config_file``. W&B's SDK tells of it at the run's end, in
the metadata of a job artifact; ours tells of it at once. Both are kept as one *declaration*, plain JSON::

    {"config": {"include": [], "exclude": [["seed"]], "types": None, "schema": {...}}, "files": {"a.yaml": {...}}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from launch.errors import ConfigError
from launch.inputs import checked_path, selected
from launch.models import JobInputs, JobTypes, RunRecord, Types
from launch.schemas import checked_schema

MAX_KEYS = 1000
_MAX_DEPTH = 8
_WANDB_CONFIG = "@wandb.config"
# Source: wandb/sdk/data_types/_dtypes.py, core/internal/data_types
_WANDB_TYPES = {"number": "number", "string": "text", "boolean": "true or false", "none": "null", "list": "list"}

# --- of values --------------------------------------------------------------------------------------------------------


def types_of(values: Mapping[str, Any]) -> Types:
    """Return the types of a config's or summary's values; those of the SDK's own keys, ``_step``, are left out."""
    return _types(values, _MAX_DEPTH, _Budget(MAX_KEYS))


class _Budget:
    """Counts keys down, so that a script's config of a megabyte does not become types of a megabyte."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self) -> bool:
        self.left -= 1
        return self.left >= 0


def _types(values: Mapping[str, Any], depth: int, budget: _Budget) -> Types:
    return {
        str(key): _type(value, depth, budget)
        for key, value in values.items()
        if not (depth == _MAX_DEPTH and str(key).startswith("_")) and budget.spend()
    }


def _type(value: Any, depth: int, budget: _Budget) -> Any:
    if isinstance(value, Mapping):
        kind = value.get("_type")
        if isinstance(kind, str):
            return kind[:64]  # media: an image, a table, a histogram
        return _types(value, depth - 1, budget) if value and depth else "mapping"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "list"


def leaves(types: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield ``(path, type)`` of everything that is no mapping with types of its own."""
    for key, kind in types.items():
        if isinstance(kind, Mapping) and len(above) < _MAX_DEPTH:
            yield from leaves(kind, (*above, str(key)))
        else:
            yield (*above, str(key)), kind if isinstance(kind, str) else "mapping"


# --- of declarations --------------------------------------------------------------------------------------------------


def with_declaration(known: Mapping[str, Any], declaration: Any) -> dict[str, Any]:
    """Return the declarations of a run with one more, as our own ``manage_*`` functions tell of it.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(declaration, Mapping):
        raise ConfigError(f"declaration: should be a mapping, not {str(declaration)[:80]!r}")
    one = {key: declaration.get(key) for key in ("include", "exclude", "schema", "types")}
    path = declaration.get("path")
    if path is None:
        return {**known, "config": one}
    return {**known, "files": {**known.get("files", {}), checked_path(path): one}}


def with_job_metadata(known: Mapping[str, Any], metadata: str) -> dict[str, Any]:
    """Return the declarations of a run with those in the metadata of the job artifact that W&B's SDK makes of it.

    Raises:
        ConfigError: it is none of those.
    """
    try:
        said = json.loads(metadata or "{}")
        types, schemas = said.get("input_types") or {}, said.get("input_schemas") or {}
        paths = {*(types.get("files") or {}), *(schemas.get("files") or {})}
        result: dict[str, Any] = {**known, "files": dict(known.get("files", {}))}
        for path in paths:
            one = (types.get("files") or {}).get(path), (schemas.get("files") or {}).get(path)
            result["files"][checked_path(path)] = {"types": _from_wandb(one[0]), "schema": one[1]}
        if _WANDB_CONFIG in types or _WANDB_CONFIG in schemas:
            found = _from_wandb(types.get(_WANDB_CONFIG))
            result["config"] = {"types": found, "schema": schemas.get(_WANDB_CONFIG)}
    except (ValueError, AttributeError, TypeError) as exc:
        raise ConfigError(f"job artifact: its metadata cannot be read: {exc}") from exc
    return result


def _from_wandb(node: Any, depth: int = _MAX_DEPTH) -> Any:
    """Return W&B's ``{"wb_type": "typedDict", "params": {"type_map": …}}`` as our types; none for none."""
    if not isinstance(node, Mapping):
        return None
    kind, inside = node.get("wb_type"), (node.get("params") or {}).get("type_map")
    if kind != "typedDict" or not isinstance(inside, Mapping) or not depth:
        return _WANDB_TYPES.get(str(kind), "mapping" if kind == "typedDict" else str(kind)[:64])
    return {str(key): _from_wandb(value, depth - 1) for key, value in inside.items()}


def recorded(record: RunRecord, declared: Mapping[str, Any]) -> JobTypes:
    """Return what a finished run tells of its job's version.

    Args:
        record: the run, with config and summary as they were at its end.
        declared: what its script declared.
    """
    files = {path: one for path, one in (declared.get("files") or {}).items() if isinstance(one, Mapping)}
    config = declared.get("config")
    return JobTypes(
        config=types_of(record.config),
        summary=types_of(record.summary),
        settable=_settable(config, record.config) if isinstance(config, Mapping) else None,
        files={path: _plain(one.get("types")) for path, one in files.items()},
        inputs=_inputs(config if isinstance(config, Mapping) else {}, files),
    )


def _settable(declared: Mapping[str, Any], config: Mapping[str, Any]) -> Types | None:
    if isinstance(declared.get("types"), Mapping):
        return _plain(declared["types"])
    include, exclude = _paths(declared.get("include")), _paths(declared.get("exclude"))
    return types_of(selected(config, include, exclude)) if include or exclude else None


def _paths(given: Any) -> list[tuple[str, ...]]:
    found = given if isinstance(given, list) else []
    return [tuple(map(str, path)) for path in found if isinstance(path, list)]


def _plain(types: Any) -> Types:
    """Return types that came from outside, in the form that ours have."""
    flat = dict(list(leaves(types if isinstance(types, Mapping) else {}))[:MAX_KEYS])
    result: Types = {}
    for path, kind in flat.items():
        place = result
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = kind[:64]
    return result


def _inputs(config: Mapping[str, Any], files: Mapping[str, Any]) -> JobInputs | None:
    """Return the schemas that were declared; one that is none says nothing."""
    schema = _schema(config.get("schema"))
    others = {path: found for path, one in files.items() if (found := _schema(one.get("schema")))}
    return JobInputs(config=schema, files=others) if schema or others else None


def _schema(given: Any) -> dict[str, Any]:
    try:
        return checked_schema(given, where="schema") if given else {}
    except ConfigError:
        return {}
