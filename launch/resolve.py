"""From a queue's default and a launch's override to the effective resource config. Pure: no I/O, no environment.

The queue's template variables are filled in first. The merge is RFC 7396's: mappings merge, lists and scalars replace,
``null`` deletes. The queue's config is its administrator's and may say anything; a launch may override what the queue's
rule allows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from launch.checking import did_you_mean, known_keys, parse
from launch.errors import ConfigError
from launch.models import LaunchSpec, OverrideRule, QueueSpec, TemplateVariable
from launch.secrets import check_references, references
from launch.templates import check_use, refuse_filled_in, render, samples, template_values

Origin = Literal["queue", "launch"]

BUILDER = "builder"
"""The section of a resource config that is the builder's; the runner's ``Options`` do not know it."""
MAX_DEPTH = 100
MAX_INTEGER_BITS = 4096

_MACRO = re.compile(r"\$\{(\w+)\}")


class Target(Protocol):
    """What resolving needs of a runner's class; every :class:`launch.plugins.Runner` has it."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]]
    Options: ClassVar[type[BaseModel]]
    safe_overrides: ClassVar[frozenset[str]]
    public_options: ClassVar[frozenset[str]]

    @classmethod
    def canonical(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with each key under its canonical name."""
        ...


def resolve(
    queue: QueueSpec,
    runner: type[Target],
    override: Mapping[str, Any],
    variables: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the effective resource config: the queue's default, filled in, with a launch's override merged in.

    Args:
        queue: its config, its template variables and its override rule.
        runner: the class of the queue's target resource, which says what the keys mean.
        override: the launch's own section of ``resource_args``, as :func:`own_section` gives it.
        variables: what the launch gives of the queue's template variables.

    Raises:
        ConfigError: an unknown key, one the queue does not let a launch override, or a value that does not fit.
    """
    default = canonical(runner, queue.config, where=f"queue {queue.name!r}/config")
    mine = canonical(runner, override, where="resource_args")
    refuse_unknown(runner, mine, where="resource_args")
    values = template_values(queue.template_variables, variables or {}, queue=queue.name)
    refuse_filled_in(default, mine, queue.template_variables)
    check_overrides(_canonical_rule(runner, queue.overrides), mine, runner.safe_overrides, queue.name)
    effective = merge(render(default, values), mine)
    where = "resource_args" if mine else "template_variables" if variables else f"queue {queue.name!r}/config"
    _check_options(runner, effective, where=where)
    return effective


def check_config(
    runner: type[Target],
    config: Mapping[str, Any],
    variables: Mapping[str, TemplateVariable] | None = None,
    *,
    where: str,
) -> dict[str, Any]:
    """Return a queue's default config under canonical keys, its template variables not filled in.

    Raises:
        ConfigError: a key or a value is wrong, with representative values for the variables; or a variable is not
            declared.
    """
    result = canonical(runner, config, where=where)
    check_use(result, variables or {}, where=where)
    for said, sample in samples(result, variables or {}):
        try:
            _check_options(runner, sample, where=f"{where}{said}")
        except ConfigError as exc:
            _ignore_left_out(exc, is_partial=set(sample) != set(result))
    return result


def _ignore_left_out(exc: ConfigError, *, is_partial: bool) -> None:
    """Raise the error again, unless all it says is that keys are missing, from a config of which some are left out."""
    if not is_partial or not all(line.endswith(": is required") for line in str(exc).splitlines()):
        raise exc


def _check_options(runner: type[Target], config: Mapping[str, Any], *, where: str) -> None:
    _mapping(config.get(BUILDER, {}), f"{where}/{BUILDER}")
    _check_secrets(runner.public_options | {BUILDER}, config, where=where)
    parse(runner.Options, {key: value for key, value in config.items() if key != BUILDER}, where=where)


def _check_secrets(public: frozenset[str], config: Mapping[str, Any], *, where: str) -> None:
    """Refuse what is no reference to a secret though it looks like one, and one where its value could be read."""
    for key, value in config.items():
        check_references(value, where=f"{where}/{key}")
        names = references(value)
        if names and key in public:
            raise ConfigError(
                f"{where}/{key}: the secret {min(names)!r} cannot stand here, where others could read it at the "
                "target; put it into env"
            )


def canonical(runner: type[Target], config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the config with each key under its canonical name.

    Raises:
        ConfigError: one key is given twice, in two spellings.
    """
    origin: dict[str, str] = {}
    for key in config:
        for name in runner.canonical({key: config[key]}):
            if name in origin:
                raise ConfigError(f"{where}: {origin[name]!r} and {key!r} are the same key; give one of them")
            origin[name] = key
    return runner.canonical(config)


def refuse_unknown(runner: type[Target], keys: Iterable[str], *, where: str) -> None:
    """Raise a ConfigError for the first key, canonical, that the target's config does not have."""
    if runner.Options.model_config.get("extra") == "allow":
        return
    known = [*known_keys(runner.Options), BUILDER]
    for key in keys:
        if key not in known:
            raise ConfigError(f"{where}/{key}: unknown key{did_you_mean(key, known)}")


def _canonical_rule(runner: type[Target], rule: OverrideRule) -> OverrideRule:
    if isinstance(rule, str):
        return rule
    return tuple(runner.canonical(dict.fromkeys(rule)))


def check_overrides(rule: OverrideRule, keys: Iterable[str], safe: Iterable[str], queue: str) -> None:
    """Raise unless the queue lets a launch override every one of the keys.

    Args:
        rule: ``"safe"``, ``"all"``, ``"none"`` or the keys themselves, canonical.
        keys: top-level keys of the launch's override, canonical.
        safe: what ``"safe"`` stands for at this target.
        queue: its name, for the message.

    Raises:
        ConfigError: names the key, the rule and what may be overridden.
    """
    if rule == "all":
        return
    allowed = {"safe": frozenset(safe), "none": frozenset()}[rule] if isinstance(rule, str) else frozenset(rule)
    refused = sorted(set(keys) - allowed)
    if not refused:
        return
    said = rule if isinstance(rule, str) else ", ".join(rule)
    may = f"it may override: {', '.join(sorted(allowed))}" if allowed else "it may override nothing"
    what = ", ".join(repr(key) for key in refused)
    raise ConfigError(
        f"resource_args: queue {queue!r} does not let a launch override {what} (overrides: {said}); {may}"
    )


def merge(default: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``default`` patched by ``override``: mappings merge, lists and scalars replace, ``None`` deletes.

    Neither argument is changed, and the result shares no mapping with them.

    Source: RFC 7396, JSON Merge Patch
    """
    result = {key: merge(value, {}) if isinstance(value, Mapping) else value for key, value in default.items()}
    for key, value in override.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def provenance(default: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Origin]:
    """Return ``{path: "queue" | "launch"}`` for every value of the merged config, in its order.

    A path is the keys joined by ``/``; a list is one value, and so is an empty mapping.
    """
    return dict(_origins(merge(default, override), default, override, ()))


def _origins(
    merged: Mapping[str, Any], default: Any, override: Any, above: tuple[str, ...]
) -> Iterable[tuple[str, Origin]]:
    for key, value in merged.items():
        theirs = default.get(key) if isinstance(default, Mapping) else None
        has_mine = isinstance(override, Mapping) and key in override
        mine = override[key] if has_mine else None
        if isinstance(value, Mapping) and value:
            yield from _origins(value, theirs, mine, (*above, key))
        elif has_mine and not (isinstance(mine, Mapping) and value == theirs):
            yield "/".join((*above, key)), "launch"
        else:
            yield "/".join((*above, key)), "queue"


def own_section(resource_args: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the launch's override, whether it is given flat or in W&B's nested form.

    Args:
        resource_args: ``{"cpus": 2}``, ``{"local-container": {"cpus": 2}}`` or
            ``{"resource_args": {"local-container": {"cpus": 2}}}``.
        names: the names of the queue's own target resource, its preferred one first.

    Raises:
        ConfigError: a section for another target resource stands in it.
    """
    own = tuple(dict.fromkeys(names))
    if set(resource_args) == {"resource_args"}:
        nested = _mapping(resource_args["resource_args"], "resource_args")
        foreign = [key for key in nested if key not in own]
        if foreign:
            raise _other_resource(foreign[0], own)
        resource_args = nested
    given = [key for key in resource_args if key in own]
    if not given:
        _refuse_other_resources(resource_args, own)
        return dict(resource_args)
    if len(resource_args) > 1:
        rest = next(key for key in resource_args if key != given[0])
        raise ConfigError(f"resource_args: {rest!r} stands beside the section {given[0]!r}; put it inside")
    return _mapping(resource_args[given[0]], f"resource_args/{given[0]}")


_RESOURCES = frozenset(
    {"docker", "process", "local-container", "local-process", "kubernetes", "sagemaker", "vertex", "gcp-vertex"}
)


def _refuse_other_resources(resource_args: Mapping[str, Any], own: tuple[str, ...]) -> None:
    for key, value in resource_args.items():
        if key in _RESOURCES and isinstance(value, Mapping):
            raise _other_resource(key, own)


def _other_resource(key: str, own: tuple[str, ...]) -> ConfigError:
    return ConfigError(f"resource_args/{key}: the queue's resource is {own[0]!r}, not {key!r}; use {own[0]!r}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: should be a mapping, not {value!r}")
    return dict(value)


def render_macros(config: Any, values: Mapping[str, str]) -> Any:
    """Return the config with ``${name}`` replaced in every string, however deep.

    An unknown name is left as it is. Only ``values`` is read, never the environment, and what a value contains is not
    rendered again.
    """
    if isinstance(config, str):
        return _MACRO.sub(lambda found: values.get(found[1], found[0]), config)
    if isinstance(config, Mapping):
        return {key: render_macros(value, values) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [render_macros(item, values) for item in config]
    return config


def macro_values(spec: LaunchSpec, image: str | None) -> dict[str, str]:
    """Return ``{macro: value}`` for :func:`render_macros`; ``image_uri`` is left out while there is no image."""
    return {
        **({"image_uri": image} if image is not None else {}),
        "run_id": spec.run_id,
        "project_name": spec.project,
        "entity_name": spec.entity,
        "run_name": spec.name or spec.run_id,
        "author": spec.author or "",
    }


def as_json(value: Any, where: str) -> Any:
    """Return a copy of the value made of JSON's own types only.

    Raises:
        ConfigError: something in it is not JSON (a set, NaN, a key that is no text); the message is its path.
    """
    return _as_json(value, where, 0)


def _as_json(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where[:200]}...: is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {_as_key(key, where): _as_json(item, f"{where}/{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item, f"{where}/{place}", depth + 1) for place, item in enumerate(value)]
    return _as_scalar(value, where)


def _as_key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{where}: the key {key!r} should be text, as in JSON, not {type(key).__name__}")
    return str(_as_scalar(key, where))


def _as_scalar(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isascii() and value.encode("utf-8", "replace").decode() != value:
            raise ConfigError(f"{where}: holds half a character (a lone surrogate): {value!r}")
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise ConfigError(f"{where}: an integer of {value.bit_length()} bits is too large; give it as text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {value!r} is not JSON; give a finite number, null or text")
        return float(value)
    raise ConfigError(f"{where}: {value!r} is not JSON ({type(value).__name__}); give a list, mapping, text or number")
