"""``launch queue create | list | show | pause | resume``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import as_json_option, client, read_mapping

if TYPE_CHECKING:
    from launch.client import Client
    from launch.models import QueueSpec


@click.group()
def queue() -> None:
    """Make and look at queues.

    A queue is first in, first out, and belongs to one target resource, whose default config it holds.
    """


@queue.command()
@click.argument("name")
@click.option("-r", "--resource", required=True, help="The target resource: process, docker or another runner's name.")
@click.option("-c", "--config", metavar="JSON", help="Default resource config: a JSON object, or a JSON or YAML file.")
@click.option(
    "--overrides",
    default="safe",
    show_default=True,
    metavar="RULE",
    help="Which keys of it a launch may override: safe, all, none, or the keys, with commas between.",
)
@click.option("--priorities", is_flag=True, help="Accept the priorities critical, high and low besides medium.")
@click.option("--max-concurrent", type=int, metavar="N", help="The most runs at once, over all agents.")
@as_json_option
def create(
    name: str,
    resource: str,
    config: str | None,
    overrides: str,
    priorities: bool,
    max_concurrent: int | None,
    as_json: bool,
) -> None:
    """Make the queue NAME; making the same one again changes nothing."""
    from launch.cli.output import print_json

    rule = overrides if overrides in ("safe", "all", "none") else [key.strip() for key in overrides.split(",")]
    made = client().create_queue(
        name,
        resource=resource,
        config=read_mapping(config, option="--config"),
        overrides=rule,
        priorities=priorities,
        max_concurrent=max_concurrent,
    )
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    click.echo(f"queue {made.name} (resource: {made.resource}) is ready")
    click.echo(f"To serve it: `launch agent -q {made.name}`, to use it: `launch enqueue JOB -q {made.name}`")


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
    from launch.cli.output import flat, metric, print_facts, print_json

    made = client()
    (row,) = _described(made, made.store.queue(name))
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
            "overrides": overrides if isinstance(overrides, str) else ", ".join(overrides),
            "priorities": "critical, high, medium, low" if row["priorities"] else "none: first in, first out",
            "at once": row["max_concurrent"] or "no limit",
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
            "agents": [agent.name for agent in agents if queue.name in agent.queues],
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
