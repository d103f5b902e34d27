"""``launch queue create | update | apply``: what a queue is set to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launch.cli.options import DURATION_OR_NONE, NONE, as_json_option, client, read_mapping
from launch.errors import ConfigError

if TYPE_CHECKING:
    from launch.models import QueueSpec
    from launch.queue_file import Change

Function = TypeVar("Function", bound=Callable[..., Any])

_RULES = ("safe", "all", "none")


def _settings_options(function: Function) -> Function:
    """Add the options of what both ``create`` and ``update`` set."""
    options = [
        click.option(
            "-c", "--config", metavar="JSON", help="Default resource config: a JSON object, or a JSON or YAML file."
        ),
        click.option(
            "--var",
            "template_variables",
            multiple=True,
            metavar="NAME: {...}",
            help="What {{NAME}} in the config stands for, as YAML: 'cpu: {type: integer, minimum: 1, maximum: 4, "
            "default: 2}'; or a JSON or YAML file of such, or none. Repeatable; together they replace those there are.",
        ),
        click.option(
            "--resolve-images",
            type=click.Choice(["enqueue", "claim"]),
            help="When an image job's tag becomes a digest: at the enqueue, or (the default) at the claim.",
        ),
        click.option(
            "--overrides",
            metavar="RULE",
            help="Which keys of it a launch may override: safe (the default), all, none, or the keys, with commas "
            "between.",
        ),
        click.option("--max-concurrent", metavar="N", help="The most runs at once, over all agents; none: no limit."),
        click.option(
            "--retry",
            metavar="JSON",
            help="When a failed attempt is followed by another, by cause: "
            '{"preempted": 5, "oom": {"times": 1, "memory": "x1.5"}, "host_lost": 1, "error": 0}.',
        ),
        click.option(
            "--start-limit",
            type=DURATION_OR_NONE,
            help="How long a run may take from its claim until it runs: 90s, 30m, 2h, 7d or none.",
        ),
        click.option("--run-limit", type=DURATION_OR_NONE, help="How long a run may take at its target, or none."),
        click.option(
            "--orphan-timeout",
            type=DURATION_OR_NONE,
            help="How long a run may be without an agent that could follow it, until it counts as lost; none: a day.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return what options set; what was not given is not among it."""
    given = {key: value for key, value in options.items() if value not in (None, ())}
    for key in ("config", "retry"):
        if key in given:
            given[key] = read_mapping(given[key], option=f"--{key}")
    if "template_variables" in given:
        given["template_variables"] = _variables(given["template_variables"])
    if "overrides" in given and given["overrides"] not in _RULES:
        given["overrides"] = [key.strip() for key in given["overrides"].split(",")]
    if "max_concurrent" in given:
        given["max_concurrent"] = _number_or_none(given["max_concurrent"])
    return {key: None if value == NONE else value for key, value in given.items()}


def _variables(values: Sequence[str]) -> dict[str, Any]:
    """Return the definitions in repeated ``--var`` options, as they are given."""
    if list(values) == ["none"]:
        return {}
    variables: dict[str, Any] = {}
    for text in values:
        found = (read_mapping(text, option="--var") or {}) if _is_file(text) else _yaml_mapping(text)
        for name, definition in found.items():
            if name in variables:
                raise ConfigError(f"--var: {name!r} is defined twice")
            variables[name] = definition
    return variables


def _is_file(text: str) -> bool:
    return ":" not in text and Path(text).suffix in (".json", ".yaml", ".yml")


def _yaml_mapping(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"--var: is no valid YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(found, dict) or not all(isinstance(item, dict) for item in found.values()):
        raise ConfigError(f"--var: should be like 'cpu: {{type: integer, minimum: 1, maximum: 4}}', not {text!r}")
    return found


def _number_or_none(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--max-concurrent: should be a number from 1 on, or none, not {text!r}")
    return int(text)


@click.command()
@click.argument("name")
@click.option("-r", "--resource", required=True, help="The target resource: process, docker or another runner's name.")
@_settings_options
@click.option("--priorities", is_flag=True, help="Accept the priorities critical, high and low besides medium.")
@as_json_option
def create(name: str, resource: str, as_json: bool, **options: Any) -> None:
    """Make the queue NAME; making the same one again changes nothing."""
    made = client().create_queue(name, resource=resource, **_settings(options))
    if not _printed(made, as_json):
        click.echo(f"queue {made.name} (resource: {made.resource}) is ready")
        click.echo(f"To serve it: `launch agent -q {made.name}`, to use it: `launch enqueue JOB -q {made.name}`")


@click.command()
@click.argument("name")
@_settings_options
@click.option("--priorities/--no-priorities", default=None, help="Accept critical, high and low besides medium.")
@as_json_option
def update(name: str, as_json: bool, **options: Any) -> None:
    """Change settings of the queue NAME; what is not given stays.

    Runs that are queued keep the resource config they were enqueued with.
    """
    from launch.queue_file import change_of

    settings = _settings(options)
    if not settings:
        raise ConfigError("give at least one setting to change; `launch queue update --help` lists them")
    made = client()
    before = made.store.queue(name)
    after = made.update_queue(name, **settings)
    if not _printed(after, as_json):
        _print_change(change_of(after, before), done=True)


def _printed(spec: QueueSpec, as_json: bool) -> bool:
    from launch.cli.output import print_json

    if as_json:
        print_json(spec.model_dump(mode="json"))
    return as_json


@click.command()
@click.option(
    "-f", "--file", "path", required=True, type=click.Path(path_type=Path), help="A YAML file of queues, by name."
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
def apply(path: Path, dry_run: bool) -> None:
    """Make queues, and change those there are, to be as a file says.

    Queues that the file does not name stay as they are.
    """
    from launch.queue_file import change_of, read_queues
    from launch.queue_spec import queue_notes

    made = client()
    wanted = read_queues(read_mapping(str(path), option="--file"), where=path.name)
    there = {spec.name: spec for spec in made.queues()}
    changes = [change_of(spec, there.get(spec.name)) for spec in wanted]
    for change in changes:
        if not dry_run and change.before is None:
            made.store.create_queue(change.spec)
        elif not dry_run and change.differences:
            made.store.update_queue(change.spec)
        _print_change(change, done=not dry_run)
        for sentence in queue_notes(change.spec):
            made.note(sentence)


def _print_change(change: Change, *, done: bool) -> None:
    name = change.spec.name
    if change.before is None:
        click.echo(f"queue {name} (resource: {change.spec.resource}) {'is made' if done else 'would be made'}")
    elif not change.differences:
        click.echo(f"queue {name} stays as it is")
    else:
        click.echo(f"queue {name} {'is changed' if done else 'would be changed'}:")
        for key, before, after in change.differences:
            click.echo(f"  {key}: {shown(key, before)} -> {shown(key, after)}")


def shown(key: str, value: Any) -> str:
    """Return a setting's value for people."""
    from launch.cli.output import metric
    from launch.durations import duration

    if value is None:
        return "none"
    return duration(value) if key.endswith(("_limit", "_timeout")) else metric(value)
