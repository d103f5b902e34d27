"""``launch agents``, and the server's process."""

from __future__ import annotations

import click

from launch.cli.options import as_json_option, client


@click.command()
@as_json_option
def agents(as_json: bool) -> None:
    """List the agents that have been seen, the living first."""
    from dataclasses import asdict

    from launch.cli.output import ago, print_json, print_table

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
