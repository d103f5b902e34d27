"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from launch.durations import parse_duration
from launch.errors import ConfigError

if TYPE_CHECKING:
    from launch.client import Client
    from launch.store import RunStore

    _ParamType = click.ParamType[float]
else:
    _ParamType = click.ParamType  # generic in newer versions of click only

Function = TypeVar("Function", bound=Callable[..., Any])

PRIORITIES = ("critical", "high", "medium", "low")
TRACKINGS = ("required", "optional")


def as_json_option(function: Function) -> Function:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


class DurationType(_ParamType):
    """A time span: ``90s``, ``30m``, ``2h``, ``7d``; the value is seconds. Where it may be ``none``, that is -1."""

    name = "time span"

    def __init__(self, *, or_none: bool = False) -> None:
        self._or_none = or_none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ARG002
        """Return the value in seconds."""
        if self._or_none and value in ("none", NONE):
            return NONE
        return parse_duration(value, where=param.opts[-1] if param is not None else "time span")


NONE = -1.0
"""What an option has been given when it says ``none``."""
DURATION = DurationType()
DURATION_OR_NONE = DurationType(or_none=True)


def warn_of_broker(store: RunStore) -> None:
    """Say on stderr what makes this Redis break a promise, for whoever begins to rely on it."""
    from launch.broker_health import broker_warnings

    for text in broker_warnings(store):
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {text}", err=True)


def client() -> Client:
    """Return the client of this command, closed when the command ends."""
    from launch.client import Client

    made = Client(note=lambda sentence: click.echo(f"note: {sentence}", err=True))
    click.get_current_context().call_on_close(made.close)
    return made


def read_config(values: Sequence[str], *, option: str = "-c") -> dict[str, Any]:
    """Return the mapping that repeated ``-c`` options describe; later ones win.

    Args:
        values: each ``key=value`` (the value read as JSON if it is JSON, dots in the key nest), a JSON object, or the
            path of a JSON or YAML file.
        option: its name, for messages.

    Raises:
        ConfigError: a value is none of these.
    """
    config: dict[str, Any] = {}
    for text in values:
        if text.lstrip().startswith("{"):
            _merge_in(config, _json_object(text, option))
        elif "=" in text:
            _set(config, text, option)
        else:
            _merge_in(config, _file(text, option))
    return config


def read_mapping(text: str | None, *, option: str) -> dict[str, Any] | None:
    """Return the mapping in a JSON text or in a JSON or YAML file; none for none.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    return _json_object(text, option) if text.lstrip().startswith("{") else _file(text, option)


def read_variables(values: Sequence[str], *, option: str = "--set-var") -> dict[str, str]:
    """Return what repeated ``--set-var`` options give, ``{name: text}``; what type it is, the queue knows.

    Raises:
        ConfigError: one is not ``name=value``, or a name is given twice.
    """
    given: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{option}: should be NAME=VALUE, such as cpu=2, not {text!r}")
        if name.strip() in given:
            raise ConfigError(f"{option}: {name.strip()!r} is given twice")
        given[name.strip()] = value
    return given


def read_file_values(values: Sequence[str], *, option: str = "--set-file") -> dict[str, dict[str, Any]]:
    """Return what repeated ``--set-file`` options give, ``{path: values}``; later ones win.

    Args:
        values: each the path of a config file, a colon, and then what :func:`read_config` takes.
        option: its name, for messages.

    Raises:
        ConfigError: one is not.
    """
    files: dict[str, dict[str, Any]] = {}
    for text in values:
        path, colon, rest = text.partition(":")
        if not colon or not path or not rest:
            raise ConfigError(f"{option}: should be FILE:KEY=VALUE, such as config.yaml:model.layers=50, not {text!r}")
        _merge_in(files.setdefault(path, {}), read_config([rest], option=option))
    return files


SET_VAR = click.option(
    "-v",
    "--set-var",
    "template_variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="Value of a template variable of the queue; `launch queue show` lists them.",
)
SET_FILE = click.option(
    "--set-file",
    "files",
    multiple=True,
    metavar="FILE:KEY=VALUE",
    help="Override in a config file that the script manages: config.yaml:model.layers=50, or FILE:JSON.",
)


SCHEMA = click.option(
    "--schema",
    metavar="JSON",
    help="What may be set at launch: a JSON Schema of wandb.config, or of it and of config files as "
    '{"@wandb.config": SCHEMA, "files": {PATH: SCHEMA}}; JSON, or a JSON or YAML file.',
)


def _merge_in(config: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        below = config.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            _merge_in(below, value)
        else:
            config[key] = value


def _set(config: dict[str, Any], text: str, option: str) -> None:
    key, _, value = text.partition("=")
    *above, last = key.split(".")
    if not all((*above, last)):
        raise ConfigError(f"{option}: {text!r} has an empty key; write key=value, or outer.inner=value")
    place = config
    for part in above:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{option}: {key!r} goes below {part!r}, which has a value of its own already")
    place[last] = _value(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json_object(text: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"{option}: is no valid JSON ({exc}): {text[:80]!r}") from exc
    assert isinstance(found, dict)  # it begins with a brace
    return found


def _file(text: str, option: str) -> dict[str, Any]:
    path = Path(text)
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        _no_file(text, option, exc)
    try:
        found = json.loads(content) if path.suffix == ".json" else _yaml(content)
    except ValueError as exc:
        raise ConfigError(f"{option}: {text} cannot be read: {exc}") from exc
    if not isinstance(found, dict):
        raise ConfigError(f"{option}: {text} should hold a mapping, not {type(found).__name__}")
    return found


def _no_file(text: str, option: str, exc: Exception) -> NoReturn:
    why = getattr(exc, "strerror", None) or "not text"
    hint = "key=value, a JSON object or a file" if option in ("-c", "--set-file") else "a JSON object or a file"
    raise ConfigError(f"{option}: should be {hint}, and {text!r} is no readable file ({why.lower()})") from exc


def _yaml(content: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as exc:
        raise ValueError(str(exc)) from exc
