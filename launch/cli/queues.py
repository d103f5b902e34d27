"""``launch queue list | show | pause | resume | delete | move``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import as_json_option, client
from launch.cli.queue_settings import apply, create, shown, update
from launch.errors import ConfigError

if TYPE_CHECKING:
    from launch.client import Client
    from launch.models import QueueSpec


@click.group()
def queue() -> None:
    """Make and look at queues.

    A queue is first in, first out, and belongs to one target resource, whose default config it holds.
    """


for command in (create, update, apply):
    queue.add_command(command)


@queue.command("list")
@as_json_option
def list_queues(as_json: bool) -> None:
    """List the queues, with what waits and works in each."""
    from launch.cli.output import print_json, print_table

    rows = _described(client())
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no queues yet: `launch queue create NAME --resource process` makes one")
        return
    print_table(
        ("queue", "resource", "waiting", "active", "agents", "state"),
        [
            (row["name"], row["resource"], row["waiting"], row["active"], len(row["agents"]), _state(row))
            for row in rows
        ],
    )


@queue.command()
@click.argument("name")
@as_json_option
def show(name: str, as_json: bool) -> None:
    """Show the settings of the queue NAME, and what waits and works in it."""
    from launch.cli.output import flat, metric, print_facts, print_json, retry_lines
    from launch.queue_file import shown_limits, variable_lines

    made = client()
    spec = made.store.queue(name)
    (row,) = _described(made, spec)
    if as_json:
        print_json(row)
        return
    overrides = row["overrides"]
    print_facts(
        {
            "queue": row["name"],
            "state": _state(row),
            "resource": row["resource"],
            "config": "\n".join(f"{key} = {metric(value)}" for key, value in flat(row["config"]).items()) or "empty",
            "variables": "\n".join(variable_lines(spec)),
            "overrides": overrides if isinstance(overrides, str) else ", ".join(overrides),
            "images": "resolved at enqueue" if row["resolve_images"] == "enqueue" else None,
            "priorities": "critical, high, medium, low" if row["priorities"] else "none: first in, first out",
            "at once": row["max_concurrent"] or "no limit",
            "retry": "\n".join(retry_lines(spec.retry)) or "never",
            **{key.replace("_", " "): shown(key, value) for key, value in shown_limits(spec.limits).items()},
            "waiting": f"{row['waiting']}",
            "held": row["held"] or None,
            "delayed": row["delayed"] or None,
            "active": f"{row['active']}",
            "agents": ", ".join(row["agents"]) or f"none: `launch agent -q {name}` starts one",
        }
    )


def _described(made: Client, *only: QueueSpec) -> list[dict[str, Any]]:
    queues = list(only) or made.queues()
    counts = made.store.counts([queue.name for queue in queues])
    agents = [agent for agent in made.agents() if agent.is_alive]
    return [
        {
            **queue.model_dump(mode="json"),
            "waiting": counts[queue.name].waiting,
            "held": counts[queue.name].held,
            "delayed": counts[queue.name].delayed,
            "active": counts[queue.name].active,
            "agents": [agent.label for agent in agents if queue.name in agent.queues],
        }
        for queue in queues
    ]


def _state(row: dict[str, Any]) -> str:
    if row["paused"]:
        return click.style("paused", fg="yellow")
    return click.style("served", fg="green") if row["agents"] else click.style("no agent", fg="red")


@queue.command()
@click.argument("name")
def pause(name: str) -> None:
    """Let the queue NAME give out no more runs; what runs goes on."""
    client().store.set_paused(name, True)
    click.echo(f"queue {name} is paused; `launch queue resume {name}` lets it go on")


@queue.command()
@click.argument("name")
def resume(name: str) -> None:
    """Let the paused queue NAME give out runs again."""
    client().store.set_paused(name, False)
    click.echo(f"queue {name} goes on")


@queue.command()
@click.argument("name")
def delete(name: str) -> None:
    """Delete the queue NAME, which must hold no runs; those that have ended stay."""
    client().delete_queue(name)
    click.echo(f"queue {name} is deleted")


@queue.command()
@click.argument("run")
@click.option("--first", is_flag=True, help="To the front.")
@click.option("--before", metavar="RUN", help="Before this one.")
def move(run: str, first: bool, before: str | None) -> None:
    """Move the waiting RUN to another place among those of its priority."""
    if first == (before is not None):
        raise ConfigError("give one of --first and --before RUN")
    made = client()
    made.move(run, before=before)
    position = made.store.position(run)
    click.echo(f"run {run} has place {position}" if position is not None else f"run {run} has begun meanwhile")
