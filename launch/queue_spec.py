"""A queue's settings, checked before there is a queue. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.errors import ConfigError
from launch.models import QueueSpec, parse
from launch.plugins import Runner, runner_class
from launch.request import json_mapping
from launch.resolve import canonical, check_config, own_section, refuse_unknown


def queue_spec(
    name: str,
    resource: str,
    config: Mapping[str, Any] | None,
    overrides: str | Sequence[str],
    priorities: bool,
    max_concurrent: int | None,
) -> QueueSpec:
    """Return a queue's settings, checked; its config under canonical keys, its resource under the runner's own name.

    Raises:
        ConfigError: a value is wrong; the message names it.
    """
    runner = runner_class(resource)
    where = f"queue {name!r}"
    names = (resource, runner.name, *runner.aliases)
    given = own_section(json_mapping(config, f"{where}/config"), names)
    fields = {
        "name": name,
        "resource": runner.name,
        "config": check_config(runner, given, where=f"{where}/config"),
        "overrides": _override_rule(overrides, runner, where),
        "priorities": priorities,
        "max_concurrent": max_concurrent,
    }
    return parse(QueueSpec, fields, where=where)


def _override_rule(rule: str | Sequence[str], runner: type[Runner], where: str) -> str | tuple[str, ...]:
    if rule in ("safe", "all", "none"):
        return str(rule)
    if isinstance(rule, str) or not all(isinstance(key, str) for key in rule):
        raise ConfigError(f"{where}/overrides: should be 'safe', 'all', 'none' or a list of keys, not {rule!r}")
    keys = tuple(canonical(runner, dict.fromkeys(rule), where=f"{where}/overrides"))
    refuse_unknown(runner, keys, where=f"{where}/overrides")
    return keys
