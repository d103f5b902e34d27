"""``launch agents``, ``agents set`` and ``drain``, and the server's process."""

from __future__ import annotations

import click

from launch.cli.options import as_json_option, client


@click.group(invoke_without_command=True)
@as_json_option
def agents(as_json: bool) -> None:
    """List the agents, the living first.

    Or change one that lives.
    """
    if click.get_current_context().invoked_subcommand is None:
        _list(as_json)


@agents.command("set")
@click.argument("name")
@click.option("-j", "--max-jobs", required=True, type=click.IntRange(1, 1000), help="How many runs at once.")
def set_(name: str, max_jobs: int) -> None:
    """Let the agent NAME (or id) carry another number of runs at once, until it ends."""
    for agent in client().set_max_jobs(name, max_jobs):
        more = f"; the {len(agent.runs)} it has go on" if len(agent.runs) > max_jobs else ""
        click.echo(f"agent {agent.name} ({agent.host}:{agent.pid}) carries up to {max_jobs} from now on{more}")


@agents.command()
@click.argument("name")
def drain(name: str) -> None:
    """Let the agent NAME (or id) take no more runs, and end when those in hand have."""
    for agent in client().drain(name):
        left = f"ends when its {len(agent.runs)} run(s) have: {' '.join(agent.runs)}" if agent.runs else "ends now"
        click.echo(f"agent {agent.name} ({agent.host}:{agent.pid}) takes no more runs, and {left}")


def _list(as_json: bool) -> None:
    from dataclasses import asdict

    from launch.cli.output import print_json, print_table
    from launch.durations import ago

    made = client()
    found = made.agents()
    if as_json:
        print_json([asdict(agent) for agent in found])
        return
    if not found:
        click.echo("no agents: `launch agent -q QUEUE` starts one, `launch up` all that is needed here")
        return
    now = made.store.now()
    rows = [
        (
            agent.name,
            click.style(agent.state if agent.is_alive else "dead", fg="green" if agent.is_alive else "red"),
            ", ".join(agent.queues),
            f"{len(agent.runs)}/{agent.max_jobs}",
            " ".join(agent.runs),
            f"{agent.host}:{agent.pid}",
            ago(now - agent.heartbeat_at),
        )
        for agent in found
    ]
    print_table(("agent", "state", "queues", "slots", "runs", "process", "seen"), rows)
    for agent in found:
        for problem in agent.problems:
            click.echo(f"{agent.name}: {problem}", err=True)


@click.command(hidden=True)
@click.option("--host", "hosts", multiple=True, help="An address to listen on besides this machine's own; repeatable.")
def server(hosts: tuple[str, ...]) -> None:
    """Run the tracking server, in the foreground."""
    from launch.embedded import broker_url
    from launch.server import serve
    from launch.settings import settings
    from launch.store import RunStore

    store = RunStore.connect(broker_url(settings(), start=True), timeout_s=settings().connect_timeout_s)
    try:
        serve(settings(), hosts, store=store, on_ready=lambda urls: click.echo(f"serving at {' and '.join(urls)}"))
    finally:
        store.redis.close()
