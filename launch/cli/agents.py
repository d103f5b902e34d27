"""``launch agents``, ``agents check``, ``set`` and ``drain``, and the server's process."""

from __future__ import annotations

import platform

import click

from launch.cli.options import as_json_option, client
from launch.errors import TemporaryError

_all_option = click.option("--all", "every", is_flag=True, help="All living agents of that name, if there are several.")


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
@_all_option
def set_(name: str, max_jobs: int, every: bool) -> None:
    """Let the agent NAME (or id) carry another number of runs at once, until it ends."""
    for agent in client().set_max_jobs(name, max_jobs, every=every):
        more = f"; the {len(agent.runs)} it has go on" if len(agent.runs) > max_jobs else ""
        click.echo(f"agent {agent.label} ({agent.host}:{agent.pid}) carries up to {max_jobs} from now on{more}")


@agents.command()
@click.argument("name")
@_all_option
def drain(name: str, every: bool) -> None:
    """Let the agent NAME (or id) take no more runs, and end when those in hand have."""
    for agent in client().drain(name, every=every):
        left = f"ends when its {len(agent.runs)} run(s) have: {' '.join(agent.runs)}" if agent.runs else "ends now"
        click.echo(f"agent {agent.label} ({agent.host}:{agent.pid}) takes no more runs, and {left}")


@agents.command()
def check() -> None:
    """Say whether an agent of this machine, or container, lives: for health checks.

    One that waits for its target or its queue lives too. The exit code is 3 if none does.
    """
    made = client()
    here = platform.node()
    living = [agent for agent in made.agents() if agent.is_alive and agent.host == here]
    if not living:
        raise TemporaryError(f"no agent on {here} has been heard of for {made.settings.dead_after_s:g} s")
    for agent in living:
        click.echo(f"agent {agent.label} ({agent.host}:{agent.pid}) is {agent.state}")


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
            agent.label,
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
        outdated = [f"queue {queue}: its next run needs a later openlaunch" for queue in agent.outdated]
        for problem in (*agent.problems, *outdated):
            click.echo(f"{agent.label}: {problem}", err=True)


@click.command(hidden=True)
@click.option("--host", "hosts", multiple=True, help="An address to listen on besides this machine's own; repeatable.")
def server(hosts: tuple[str, ...]) -> None:
    """Run the tracking server, in the foreground."""
    from launch.embedded import broker_url
    from launch.log_lines import set_up_logging
    from launch.server import serve
    from launch.settings import settings
    from launch.store import RunStore

    set_up_logging(settings().log_format)
    store = RunStore.connect(broker_url(settings(), start=True), timeout_s=settings().connect_timeout_s)
    try:
        serve(settings(), hosts, store=store, on_ready=lambda urls: click.echo(f"serving at {' and '.join(urls)}"))
    finally:
        store.redis.close()
