"""JSON Schemas of what may be set at launch: as users give them, checked, described, and held against values. No I/O.

What a launch gives is *part* of a config, merged into the script's own: so nothing is required of a mapping, only what
is given is checked. Two rules are stricter than JSON Schema's: a mapping whose ``properties`` are listed takes no
others, unless ``additionalProperties`` says so, and a text of ``format: secret`` cannot be given at all, since configs
are recorded and shown, and a script that is handed one records it again.

Source: JSON Schema 2020-12; the forms that W&B Launch takes, wandb/sdk/launch/inputs of github.com/wandb/wandb
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from launch.checking import did_you_mean
from launch.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

MAX_SCHEMA_BYTES = 64 << 10
_MAX_DEPTH = 50
# What a part of a mapping need not have, or cannot tell.
_OF_THE_WHOLE = frozenset(
    {"required", "minProperties", "dependentRequired", "dependentSchemas", "dependencies", "if", "then", "else"}
)
_SUBSCHEMAS = ("properties", "patternProperties")
_CHOICES = ("anyOf", "oneOf", "allOf")

# --- as users give them -----------------------------------------------------------------------------------------------


def plain_schema(schema: Any, *, where: str) -> dict[str, Any]:
    """Return a schema that stands on its own: a mapping of JSON types, each ``$ref`` replaced by what it means.

    Args:
        schema: a JSON Schema as a mapping, or a pydantic model or an instance of one.
        where: what it is, for messages.

    Raises:
        ConfigError: it is neither, or a ``$ref`` leads out of it.
    """
    make = getattr(schema, "model_json_schema", None)
    found = make() if callable(make) else schema
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: should be a JSON Schema as a mapping, or a pydantic model, not {schema!r}")
    whole = dict(found)
    plain = _inlined(
        {key: value for key, value in whole.items() if key not in ("$defs", "definitions")}, whole, (), where
    )
    assert isinstance(plain, dict)
    return plain


def _inlined(node: Any, whole: Mapping[str, Any], above: tuple[str, ...], where: str) -> Any:
    if isinstance(node, list | tuple):
        return [_inlined(item, whole, above, where) for item in node]
    if not isinstance(node, Mapping):
        return node
    if len(above) > _MAX_DEPTH:
        raise ConfigError(f"{where}: its $refs are nested deeper than {_MAX_DEPTH} levels")
    result: dict[str, Any] = {}
    ref = node.get("$ref")
    if isinstance(ref, str):
        # One that leads back to itself has no end: below it, anything goes.
        result = {} if ref in above else dict(_inlined(_target(ref, whole, where), whole, (*above, ref), where))
    for key, value in node.items():
        if key != "$ref":
            result[str(key)] = _inlined(value, whole, above, where)
    only = result.get("allOf")
    if isinstance(only, list) and len(only) == 1 and isinstance(only[0], dict):
        result = {**only[0], **{key: value for key, value in result.items() if key != "allOf"}}
    return result


def _target(ref: str, whole: Mapping[str, Any], where: str) -> Any:
    place: Any = whole
    for part in ref.removeprefix("#").strip("/").split("/") if ref != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        place = place.get(name) if isinstance(place, Mapping) and ref.startswith("#") else None
    if not isinstance(place, Mapping):
        raise ConfigError(f"{where}: $ref {ref!r} is not in the schema; only those that are, '#/$defs/...', are read")
    return place


def checked_schema(schema: Any, *, where: str) -> dict[str, Any]:
    """Return a schema as :func:`plain_schema` does, or raise a ConfigError if it is none."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    plain: dict[str, Any] = _without_flags(plain_schema(schema, where=where))
    try:
        size = len(json.dumps(plain))
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{where}: holds what is not JSON: {exc}") from exc
    if size > MAX_SCHEMA_BYTES:
        raise ConfigError(f"{where}: has {size:,} bytes as JSON, more than {MAX_SCHEMA_BYTES:,}")
    try:
        Draft202012Validator.check_schema(plain)
    except SchemaError as exc:
        path = "/".join([where, *map(str, exc.absolute_path)])
        raise ConfigError(f"{path}: is no JSON Schema: {exc.message[:200]}") from exc
    return plain


def _without_flags(node: Any) -> Any:
    """Leave out ``required: true`` at a property itself, which W&B's schemas may have."""
    if isinstance(node, list):
        return [_without_flags(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_flags(value) for key, value in node.items() if not (key == "required" and isinstance(value, bool))
    }


# --- described --------------------------------------------------------------------------------------------------------

_TYPES = {
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
_MANY = {
    "string": "texts",
    "integer": "integers",
    "number": "numbers",
    "boolean": "true or false",
    "object": "mappings",
}


def describe(schema: Mapping[str, Any]) -> str:
    """Return what a value may be, for people: ``a number between 0 and 1``, ``one of "adam", "sgd"``."""
    if "const" in schema:
        return shown(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(shown(value) for value in schema['enum'])}"
    if schema.get("format") == "secret":
        return "a secret: it comes in a variable, as ${secret:NAME} in env of resource_args, and is never set here"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(describe(item) for item in schema[key] if isinstance(item, Mapping)))
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind] if kind else []
    return " or ".join(_one_type(name, schema) for name in kinds) or "another value"


def _one_type(kind: str, schema: Mapping[str, Any]) -> str:
    words = [_TYPES.get(kind, kind)]
    if kind in ("integer", "number"):
        words += [_bounds(schema)]
    elif kind == "string":
        words += [_count(schema, "Length", "characters")]
        words += [f"matching {schema['pattern']!r}" if "pattern" in schema else ""]
    elif kind == "array":
        items = schema.get("items")
        if isinstance(items, Mapping) and "enum" in items:
            words += [f"of {', '.join(shown(value) for value in items['enum'])}"]
        elif isinstance(items, Mapping):
            words += [f"of {_MANY[kind]}" for kind in _MANY if items.get("type") == kind]
        words += [_count(schema, "Items", "items")]
        words += ["none twice" if schema.get("uniqueItems") else ""]
    return " ".join(word for word in words if word)


def _bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f"between {schema['minimum']} and {schema['maximum']}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    words["multipleOf"] = "a multiple of"
    return " and ".join(f"{word} {schema[key]}" for key, word in words.items() if key in schema)


def _count(schema: Mapping[str, Any], what: str, of: str) -> str:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if low is not None and high is not None:
        return f"of {low} to {high} {of}"
    if low is not None:
        return f"of at least {low} {of}"
    return f"of at most {high} {of}" if high is not None else ""


def shown(value: Any) -> str:
    """Return a value as JSON, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- held against values ----------------------------------------------------------------------------------------------


def problems(given: Mapping[str, Any], schema: Mapping[str, Any], *, where: str) -> list[str]:
    """Return what is wrong with part of a config, a line each that begins with the path to the value."""
    found = _validator(json.dumps(schema, sort_keys=True)).iter_errors(dict(given))
    return list(dict.fromkeys(line for error in found for line in _lines(error, where)))


@lru_cache(maxsize=64)
def _validator(schema: str) -> Validator:
    from jsonschema import Draft202012Validator, FormatChecker

    formats = FormatChecker(formats=())
    formats.checks("secret")(lambda value: not isinstance(value, str))
    return Draft202012Validator(_strict(json.loads(schema), is_part=True), format_checker=formats)


def _strict(schema: Any, *, is_part: bool, is_open: bool = False) -> Any:
    """Return the schema that what is given must fit.

    Args:
        schema: the author's.
        is_part: whether only part of the value need be given; false below a list, which replaces the one there is.
        is_open: whether others than the ``properties`` listed may stand beside them.
    """
    if not isinstance(schema, Mapping):
        return schema
    result = {key: value for key, value in schema.items() if not (is_part and key in _OF_THE_WHOLE)}
    for key in _SUBSCHEMAS:
        if isinstance(result.get(key), Mapping):
            result[key] = {name: _strict(item, is_part=is_part) for name, item in result[key].items()}
    if isinstance(result.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _strict(result["additionalProperties"], is_part=is_part)
    for key in ("items", "contains"):
        if isinstance(result.get(key), Mapping):
            result[key] = _strict(result[key], is_part=False)
    is_joined = "allOf" in result or (is_part and ("anyOf" in result or "oneOf" in result))
    for key in _CHOICES:
        if isinstance(result.get(key), list):
            below = is_open or key == "allOf" or "properties" in result
            result[key] = [_strict(item, is_part=is_part, is_open=below) for item in result[key]]
    if is_part and "oneOf" in result:
        # What tells the choices apart may be what is not given.
        result.setdefault("anyOf", result.pop("oneOf"))
    if "properties" in result and not is_joined and not is_open:
        result.setdefault("additionalProperties", False)
    return result


def _lines(error: ValidationError, where: str) -> Iterator[str]:
    path, schema, value = "/".join([where, *map(str, error.absolute_path)]), error.schema, error.instance
    if error.validator == "additionalProperties" and isinstance(schema, Mapping) and isinstance(value, Mapping):
        for key in _unlisted(value, schema):
            yield f"{path}/{key}: is not among what can be set{did_you_mean(key, list(schema.get('properties', ())))}"
    elif deeper := _of_the_branch_meant(error):
        for item in deeper:
            yield from _lines(item, where)
    elif error.validator == "format":
        yield f"{path}: is {describe(schema) if isinstance(schema, Mapping) else 'a secret'}"
    elif error.validator in ("uniqueItems", "not", "contains", "prefixItems") or not isinstance(schema, Mapping):
        yield f"{path}: {error.message[:200]}"
    else:
        yield f"{path}: should be {describe(schema)}, not {shown(value)}"


def _unlisted(instance: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterable[str]:
    patterns = schema.get("patternProperties", {})
    return [
        key
        for key in instance
        if key not in schema.get("properties", {}) and not any(re.search(pattern, key) for pattern in patterns)
    ]


def _of_the_branch_meant(error: ValidationError) -> list[ValidationError]:
    """Return the errors of the one choice that the value was meant to be: what is wrong lies inside of it."""
    inside = [item for item in error.context or () if item.relative_path or item.validator == "additionalProperties"]
    branches = {item.relative_schema_path[0] for item in inside}
    return inside if len(branches) == 1 else []
