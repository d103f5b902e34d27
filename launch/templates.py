r"""Template variables: the ``{{name}}`` in a queue's config that each launch fills in. Pure: no I/O.

A value that is nothing but ``{{name}}`` becomes the variable's own value, a number where it is one; in longer text it
is put in as text. ``\{{name}}`` stands for ``{{name}}`` itself, ``\\{{name}}`` for a backslash and the value. Braces
around what is no name, as in ``{{.State}}``, mean nothing and stay. What a value contains is not rendered again.

A variable needs no override permission: what it may be is for its definition to say. So a launch may not override what
a variable fills in, or it could leave the variable's bounds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.checking import did_you_mean, parse
from launch.errors import ConfigError
from launch.models import TemplateValue, TemplateVariable

MAX_VARIABLES = 100
_NAME = "[A-Za-z_][A-Za-z0-9_-]{0,63}"
_PLACEHOLDER = re.compile(r"(\\*)\{\{\s*(" + _NAME + r")\s*\}\}")
_MEANING = {"string": "text", "integer": "an integer", "number": "a number"}

# --- definitions ------------------------------------------------------------------------------------------------------


def read_variables(data: Any, *, where: str) -> dict[str, TemplateVariable]:
    """Return ``{name: definition}``, checked; empty for none.

    Args:
        data: ``{name: {"type": "integer", "minimum": 1}}``, or W&B's forms: each definition below a key ``schema``, or
            a list of ``{"name": …, "schema": …}`` whose schema may be JSON text.
        where: what it is, for messages.

    Raises:
        ConfigError: a name or a definition is wrong, or a default is not what its definition allows.
    """
    given = _as_mapping(data, where)
    if len(given) > MAX_VARIABLES:
        raise ConfigError(f"{where}: {len(given)} variables are too many; {MAX_VARIABLES} is the most")
    return {_checked_name(name, where): _variable(item, f"{where}/{name}") for name, item in given.items()}


def _as_mapping(data: Any, where: str) -> Mapping[Any, Any]:
    if data is None:
        return {}
    if isinstance(data, Mapping):
        return data
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise ConfigError(f"{where}: should be a mapping of names to definitions, not {data!r}")
    named: dict[Any, Any] = {}
    for place, item in enumerate(data):
        if not isinstance(item, Mapping) or set(item) != {"name", "schema"} or not isinstance(item["name"], str):
            raise ConfigError(f"{where}/{place}: should have a name and a schema, not {item!r}")
        if item["name"] in named:
            raise ConfigError(f"{where}/{place}: {item['name']!r} is defined twice")
        named[item["name"]] = {"schema": item["schema"]}
    return named


def _checked_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or re.fullmatch(_NAME, name) is None:
        raise ConfigError(
            f"{where}: a variable's name is 1 to 64 letters, digits, '_' and '-', starting with a letter or '_', "
            f"not {name!r}"
        )
    return name


def _variable(data: Any, where: str) -> TemplateVariable:
    if isinstance(data, TemplateVariable):
        data = data.model_dump()
    if isinstance(data, Mapping) and set(data) == {"schema"}:
        data = _schema(data["schema"], where)
    variable = parse(TemplateVariable, data, where=where)
    _check_bounds(variable, where)
    for place, value in enumerate(variable.enum or ()):
        _checked(value, variable.model_copy(update={"enum": None}), f"{where}/enum/{place}")
    if variable.default is not None:
        default = _checked(variable.default, variable, f"{where}/default")
        return variable.model_copy(update={"default": default})
    return variable


def _schema(schema: Any, where: str) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except ValueError as exc:
        raise ConfigError(f"{where}/schema: is no valid JSON ({exc}): {schema[:80]!r}") from exc


def _check_bounds(variable: TemplateVariable, where: str) -> None:
    bounds = [value for value in (variable.minimum, variable.maximum) if value is not None]
    if bounds and variable.type == "string":
        raise ConfigError(f"{where}: minimum and maximum are for numbers; give an enum of what the text may be")
    if not all(_typed(bound, variable) is not None for bound in bounds):
        raise ConfigError(f"{where}: minimum and maximum should be {_MEANING[variable.type]} each")
    if len(bounds) == 2 and bounds[0] > bounds[1]:
        raise ConfigError(f"{where}: minimum {bounds[0]} is more than maximum {bounds[1]}; nothing would do")
    if variable.enum is not None and not variable.enum:
        raise ConfigError(f"{where}/enum: is empty; nothing would do")


# --- values -----------------------------------------------------------------------------------------------------------


def template_values(
    variables: Mapping[str, TemplateVariable], given: Mapping[str, Any], *, queue: str
) -> dict[str, TemplateValue]:
    """Return ``{name: value}`` for all variables: what a launch gives, checked, and the defaults.

    Raises:
        ConfigError: a value of the wrong type, not in the enum or out of range; an unknown variable; none given for one
            without a default.
    """
    checked = given_values(variables, given, queue=queue)
    for name, variable in variables.items():
        if name not in checked and variable.default is None:
            raise ConfigError(
                f"template_variables/{name}: queue {queue!r} needs a value, {allowed(variable)}; "
                f"give it as --set-var {name}=VALUE"
            )
    return {name: checked.get(name, variable.default) for name, variable in variables.items()}  # type: ignore[misc]


def given_values(
    variables: Mapping[str, TemplateVariable], given: Mapping[str, Any], *, queue: str
) -> dict[str, TemplateValue]:
    """Return what a launch gives, checked and of its variable's type; text is read as a number where one is due.

    Raises:
        ConfigError: as :func:`template_values`, but for what is missing.
    """
    values = {}
    for name, value in given.items():
        where = f"template_variables/{name}"
        if name not in variables:
            there = did_you_mean(str(name), list(variables)) or "; it has none"
            raise ConfigError(f"{where}: queue {queue!r} has no such variable{there}")
        values[name] = _checked(value, variables[name], where)
        if variables[name].enum is None and "${" in str(value):
            raise ConfigError(f"{where}: {value!r} should not hold '${{': macros and secrets are the queue's to name")
    return values


def _checked(value: Any, variable: TemplateVariable, where: str) -> TemplateValue:
    typed = _typed(value, variable)
    if typed is None or not _in_range(typed, variable) or not (variable.enum is None or typed in variable.enum):
        raise ConfigError(f"{where}: should be {allowed(variable)}, not {json.dumps(value, default=repr)}")
    return typed


def _typed(value: Any, variable: TemplateVariable) -> TemplateValue | None:
    if variable.type == "string":
        return value if isinstance(value, str) else None
    if isinstance(value, str):
        value = _number_in(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if variable.type == "integer":
        return int(value) if value == int(value) else None
    return value


def _number_in(text: str) -> int | float | None:
    if re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*", text, re.ASCII) is None or len(text) > 64:
        return None
    return int(text) if text.strip().lstrip("+-").isdigit() else float(text)


def _in_range(value: TemplateValue, variable: TemplateVariable) -> bool:
    if isinstance(value, str):
        return True
    is_low = variable.minimum is not None and value < variable.minimum
    return not is_low and not (variable.maximum is not None and value > variable.maximum)


def allowed(variable: TemplateVariable) -> str:
    """Return what a value may be, for people: ``an integer between 1 and 4``, ``one of "a100", "h100"``."""
    if variable.enum is not None:
        return f"one of {', '.join(json.dumps(value, ensure_ascii=False) for value in variable.enum)}"
    meaning, low, high = _MEANING[variable.type], variable.minimum, variable.maximum
    if low is not None and high is not None:
        return f"{meaning} between {low} and {high}"
    if low is not None:
        return f"{meaning} of {low} or more"
    return f"{meaning} of {high} or less" if high is not None else meaning


# --- rendering --------------------------------------------------------------------------------------------------------


def render(config: Any, values: Mapping[str, TemplateValue]) -> Any:
    """Return the config with every variable filled in, however deep; one that has no value here stays as it is."""
    if isinstance(config, str):
        return _render_text(config, values)
    if isinstance(config, Mapping):
        return {key: render(value, values) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [render(item, values) for item in config]
    return config


def _render_text(text: str, values: Mapping[str, TemplateValue]) -> TemplateValue:
    whole = _PLACEHOLDER.fullmatch(text)
    if whole is not None and not whole[1] and whole[2] in values:
        return values[whole[2]]

    def filled(found: re.Match[str]) -> str:
        backslashes, name = found[1], found[2]
        kept = "\\" * (len(backslashes) // 2)
        if len(backslashes) % 2:
            return kept + found[0][len(backslashes) :]
        return kept + str(values[name]) if name in values else found[0]

    return _PLACEHOLDER.sub(filled, text)


def names_in(config: Any) -> set[str]:
    """Return the names of the variables that a config uses."""
    if isinstance(config, str):
        return {found[2] for found in _PLACEHOLDER.finditer(config) if len(found[1]) % 2 == 0}
    if isinstance(config, Mapping):
        return {name for item in config.values() for name in names_in(item)}
    return {name for item in config for name in names_in(item)} if isinstance(config, list | tuple) else set()


def refuse_filled_in(
    config: Mapping[str, Any], override: Mapping[str, Any], variables: Mapping[str, Any], where: str = "resource_args"
) -> None:
    """Raise a ConfigError if an override would replace or delete a value that one of the variables fills in."""
    for key, value in override.items():
        below = config.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            refuse_filled_in(below, value, variables, f"{where}/{key}")
        elif names := sorted(names_in(below) & set(variables)):
            options = " ".join(f"--set-var {name}=VALUE" for name in names)
            raise ConfigError(f"{where}/{key}: the queue fills this in from a template variable; use {options}")


# --- a queue's config with its variables ------------------------------------------------------------------------------


def check_use(config: Mapping[str, Any], variables: Mapping[str, TemplateVariable], *, where: str) -> None:
    """Raise a ConfigError if a config uses a variable that is not declared, or one in a key."""
    for key in _keys(config):
        if names_in(key):
            raise ConfigError(f"{where}: a template variable stands in the key {key!r}; it can only stand in a value")
    for name in sorted(names_in(config)):
        if name not in variables:
            near = did_you_mean(name, list(variables))
            raise ConfigError(
                f"{where}: uses {{{{{name}}}}}, which template_variables do not define{near}; "
                f"if you mean the text itself, write \\{{{{{name}}}}}"
            )


def _keys(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield str(key)
            yield from _keys(value)
    elif isinstance(config, list | tuple):
        for item in config:
            yield from _keys(item)


def unused(config: Mapping[str, Any], variables: Mapping[str, TemplateVariable]) -> list[str]:
    """Return the variables that no value of the config uses."""
    return sorted(set(variables) - names_in(config))


def samples(
    config: Mapping[str, Any], variables: Mapping[str, TemplateVariable]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(what was filled in, the config)`` with representative values, all of which a target must take.

    Each variable has its default, its enum and its bounds, one at a time while the others have their first. A key that
    is filled in from a variable of which nothing is known but its type is left out of them all.
    """
    used = names_in(config)
    choices = {name: _representative(variable) for name, variable in variables.items() if name in used}
    config = {key: value for key, value in config.items() if all(choices.get(name) for name in names_in(value))}
    choices = {name: values for name, values in choices.items() if values}
    first = {name: values[0] for name, values in choices.items()}
    yield "", render(config, first)
    for name, values in choices.items():
        for value in values[1:]:
            yield f" with {name}={value}", render(config, {**first, name: value})


def _representative(variable: TemplateVariable) -> list[TemplateValue]:
    # The bounds of an enum's numbers are checked with the enum: none of its values lies outside them.
    bounds = (variable.minimum, variable.maximum) if variable.enum is None else ()
    values = [variable.default, *(variable.enum or ()), *bounds]
    typed = [_typed(value, variable) for value in values if value is not None]
    return list(dict.fromkeys(value for value in typed if value is not None))
