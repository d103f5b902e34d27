"""A job's inputs as a form: what can be set, to what, and what it is otherwise. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launch.job_inputs import inputs_in_force
from launch.job_types import leaves
from launch.models import JobVersion, Types
from launch.schemas import describe, shown


@dataclass(frozen=True)
class Field:
    """One input."""

    path: str
    """Its keys with dots between them, ``optimizer.lr``."""
    file: str | None
    """The config file it stands in; none: ``wandb.config``."""
    may_be: str
    """``a number between 0 and 1``"""
    default: str | None
    """As JSON; none: the script's own, which nobody has declared."""
    description: str | None
    declared: bool
    """Whether a schema says so; false: it is what the first run had."""

    @property
    def option(self) -> str:
        """How it is set on the command line."""
        return f"-c {self.path}=" if self.file is None else f"--set-file {self.file}:{self.path}="


def form(version: JobVersion) -> list[Field]:
    """Return what can be set of a job's version, those of ``wandb.config`` first, each in the order of its schema."""
    inputs, types = inputs_in_force(version.job.inputs, version.types), version.types
    found = dict[str | None, Types]({None: inputs.config})
    found.update(inputs.files)
    seen: dict[str | None, Types] = {}
    if types is not None:
        seen[None] = types.config if types.settable is None else types.settable
        seen.update(types.files)
    return [
        field
        for file in dict.fromkeys([*found, *seen])
        for field in (_declared(found[file], file) if found.get(file) else _seen(seen.get(file, {}), file))
    ]


def _declared(schema: Mapping[str, Any], file: str | None, above: tuple[str, ...] = ()) -> Iterator[Field]:
    for name, item in (schema.get("properties") or {}).items():
        path = (*above, name)
        if not isinstance(item, Mapping):
            continue
        if item.get("properties"):
            yield from _declared(item, file, path)
            continue
        default = shown(item["default"]) if "default" in item else None
        said = item.get("description") or item.get("title")
        yield Field(_dotted(path), file, describe(item), default, said, declared=True)


def _seen(types: Types, file: str | None) -> Iterator[Field]:
    for path, kind in leaves(types):
        yield Field(_dotted(path), file, kind, None, None, declared=False)


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)


def form_lines(fields: list[Field]) -> list[str]:
    """Return the form for people: what is given on the command line, what it may be, default and description."""
    width = max((len(field.option) for field in fields), default=0)
    lines = []
    for field in fields:
        default = f", default {field.default}" if field.default is not None else ""
        origin = "" if field.declared else " (as in the first run)"
        said = f": {' '.join(field.description.split())}" if field.description else ""
        lines.append(f"{field.option:<{width}}  {field.may_be}{default}{origin}{said}")
    return lines


def types_lines(types: Types) -> list[str]:
    """Return types for people, a line each: ``best_accuracy  number``."""
    found = [(_dotted(path), kind) for path, kind in leaves(types)]
    width = max((len(name) for name, _ in found), default=0)
    return [f"{name:<{width}}  {kind}" for name, kind in found]
