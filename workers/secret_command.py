"""``launch secret``: which secrets the agent of this machine can fill in, and from where. It never shows a value."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from launch.errors import LaunchError, TemporaryError
from launch.secrets import check_name
from workers.config import load_config
from workers.redact import MIN_CHARS
from workers.secret_sources import MissingError, Secrets

_config = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The agent's configuration file (YAML), whose section `secrets` lists the sources.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """See which secrets an agent with this configuration, started by this user here, could fill in.

    A secret is referred to as ${secret:NAME} in a queue's config or in the agent's. No value is ever shown.
    """


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_config
@_json
def check(names: tuple[str, ...], config: Path, as_json: bool) -> None:
    """Say for each secret, NAME or NAME#key, which source has it; fails if one is missing."""
    secrets = Secrets(load_config(config).secrets)
    found = [_checked(secrets, check_name(name)) for name in names]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for item in found:
            click.echo(_line(item))
    failures = [item["exit_code"] for item in found if item["exit_code"]]
    sys.exit(max(failures, default=0))


@command.command("list")
@_config
@_json
def list_names(config: Path, as_json: bool) -> None:
    """List the names of the secrets in each source, as far as it tells them."""
    listed: list[dict[str, Any]] = []
    for source in Secrets(load_config(config).secrets).sources:
        try:
            listed.append({"source": source.label, "names": source.names(), "problem": None})
        except (MissingError, TemporaryError) as exc:
            listed.append({"source": source.label, "names": [], "problem": str(exc)})
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    for item in listed:
        told = f"does not tell: {item['problem']}" if item["problem"] else ", ".join(item["names"]) or "none"
        click.echo(f"{item['source']}: {told}")
    if not listed:
        click.echo(f"no sources; list them under secrets/sources in {config}")


def _checked(secrets: Secrets, name: str) -> dict[str, Any]:
    """Return what is known of a secret, its value left out."""
    item: dict[str, Any] = {"name": name, "source": None, "problem": None, "warnings": [], "exit_code": 0}
    item["launchable"] = secrets.settings.may_launch(name)
    try:
        value = secrets.get(name)
        source = next(source for source, why in secrets.where(name) if why is None)
    except LaunchError as exc:
        return {**item, "problem": str(exc), "exit_code": exc.exit_code}
    warning = source.warning(name.partition("#")[0])
    if warning:
        item["warnings"].append(warning)
    if len(value) < MIN_CHARS:
        item["warnings"].append(f"of fewer than {MIN_CHARS} characters, it is not masked in logs")
    return {**item, "source": source.label}


def _line(item: dict[str, Any]) -> str:
    if item["problem"]:
        return str(item["problem"])
    rule = "; a launch may name it" if item["launchable"] else ""
    return "\n".join(
        [f"secret {item['name']!r}: in {item['source']}{rule}", *map("  warning: {}".format, item["warnings"])]
    )
