"""How data is checked on its way in, and how what is wrong with it is said. No I/O here.

Unknown keys are errors, and :func:`parse` turns a failed check into a :class:`~launch.errors.ConfigError` that names
the path, the value and, for a misspelt key, the key that was probably meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from launch.errors import ConfigError


class Model(BaseModel):
    """A frozen record; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: Any, *, where: str) -> M:
    """Return ``data`` checked as ``model``.

    Args:
        model: the pydantic model the data should be.
        data: a mapping, usually read from YAML, JSON or a call's keyword arguments.
        where: what the data is, for the message: ``"queues.yaml: queues/gpu"`` or ``"--config"``.

    Raises:
        ConfigError: one line a problem, each starting with ``where`` and the path to the value.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: should be a mapping, not {_shown(data)}")
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        lines = [_explain(model, error, where) for error in exc.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from exc


def _explain(model: type[BaseModel], error: Any, where: str) -> str:
    path = "/".join([where, *(str(part) for part in error["loc"] if not str(part).startswith("function-"))])
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f"{path}: unknown key{did_you_mean(str(error['loc'][-1]), known_keys(model))}"
    if kind == "missing":
        return f"{path}: is required"
    if kind == "string_pattern_mismatch":
        return f"{path}: should be like {error['ctx']['pattern']}, not {_shown(value)}"
    if kind in ("value_error", "assertion_error"):
        return f"{path}: {error['ctx']['error']}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{path}: {message.replace('input should', 'should')}, not {_shown(value)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def matching(pattern: str, meaning: str) -> AfterValidator:
    """Return a check that a text matches a pattern as a whole, which says what is meant by it if it does not."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(f"should be {meaning}, not {_shown(value)}")
        return value

    return AfterValidator(check)


def readable_by(read: Callable[[str], object], *, said_by_path: str = "") -> AfterValidator:
    """Return a check that a function can read a text.

    Args:
        read: raises a ConfigError for what it cannot read.
        said_by_path: what its messages begin with, and is left out since :func:`parse` says the path to the value.
    """

    def check(value: str) -> str:
        try:
            read(value)
        except ConfigError as exc:
            raise ValueError(str(exc).removeprefix(said_by_path)) from exc
        return value

    return AfterValidator(check)


def known_keys(model: type[BaseModel]) -> list[str]:
    """Return the keys a model accepts, aliases instead of field names where it has them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def closest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word nearest to a misspelt one, or none."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return ``"; did you mean 'x'?"``, or what there is, to end an error about an unknown word."""
    near = closest(word, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""


def listed(items: Sequence[str], most: int) -> str:
    """Return items for a message, with commas between them: ``a, b and 3 more``."""
    shown = ", ".join(items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown
