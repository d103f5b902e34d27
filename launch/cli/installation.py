"""``launch up``, ``down`` and ``status``: all that is needed on this machine."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import as_json_option, client, warn_of_broker
from launch.errors import ConflictError, TemporaryError

if TYPE_CHECKING:
    from launch.local import Local


_ANSWERS = ("stop", "detach", "cancel")


def _local() -> Local:
    from launch.local import Local
    from launch.settings import settings

    return Local(settings())


@click.command()
@click.option("-q", "--queue", multiple=True, help="A queue for the agent to serve; repeatable. Default: local.")
@click.option("-j", "--max-jobs", type=click.IntRange(min=1), help="How many runs the agent takes at once.")
@click.option("--foreground", is_flag=True, help="Stay, and end everything with Ctrl-C; jobs go on.")
def up(queue: tuple[str, ...], max_jobs: int | None, foreground: bool) -> None:
    """Start what is missing here: broker, server, agent."""
    local = _local()
    url = local.up(click.echo, queues=queue or ("local",), max_jobs=max_jobs)
    warn_of_broker(client().store)
    click.echo(f"{click.style('ready', fg='green', bold=True)}: {local.settings.home} (broker: {_masked(url)})")
    if foreground:
        _stay(local)
        return
    click.echo("To run something: `launch run PATH`, to see what is up: `launch status`, to end it: `launch down`")


def _stay(local: Local) -> None:
    """Wait for a signal, or for one of the processes to end, and then end them all."""
    click.echo("Ctrl-C ends it all; jobs go on, and the next agent follows them.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gone = None
    try:
        while gone is None:
            time.sleep(0.5)
            gone = next((process for process in (local.agent, local.server) if process.pid() is None), None)
    except KeyboardInterrupt:
        click.echo()
    local.down(click.echo)
    if gone is not None:
        raise TemporaryError(f"the {gone.name} ended; its log is {gone.log}")


def _masked(url: str) -> str:
    from launch.connection import masked

    return masked(url)


@click.command()
@click.option("--stop", "what", flag_value="stop", help="Stop the live runs first, and wait for their end.")
@click.option(
    "--detach", "what", flag_value="detach", help="Leave the live runs' jobs running; the next agent follows."
)
def down(what: str | None) -> None:
    """End the agent, the server and the embedded broker.

    Nothing that is recorded is lost; `launch up` goes on where this left off.
    """
    local = _local()
    live = local.live_runs()
    if live and (what or _ask(live)) == "stop":
        _stop_all(live)
    ended: list[str] = []
    local.down(ended.append)
    for sentence in ended or ["nothing was running"]:
        click.echo(sentence)


def _ask(live: list[str]) -> str:
    names = ", ".join([*live[:5], *(["..."] if live[5:] else [])])
    runs = f"{len(live)} run{'s are' if len(live) > 1 else ' is'} live ({names})"
    if not sys.stdin.isatty():
        raise ConflictError(
            f"{runs}: `launch down --stop` stops them first, `launch down --detach` lets their jobs go on"
        )
    click.echo(f"{runs}.")
    answer: str = click.prompt("Stop them, detach (their jobs go on), or cancel?", type=click.Choice(_ANSWERS))
    if answer == "cancel":
        raise click.exceptions.Exit(0)
    return answer


def _stop_all(live: list[str]) -> None:
    made = client()
    runs = [made.stop(run_id) for run_id in live]
    deadline = time.monotonic() + made.settings.stop_grace_s + 30
    for run in runs:
        try:
            run.wait(timeout_s=max(0.0, deadline - time.monotonic()))
        except TimeoutError as exc:
            raise TemporaryError(f"{exc}; `launch down --detach` ends the agent without it") from exc
        click.echo(f"run {run.id} is {run.state}")


@click.command()
@as_json_option
def status(as_json: bool) -> None:
    """Show what is up, and the work in each queue."""
    from launch.cli.output import print_facts, print_json

    found = _status()
    if as_json:
        print_json(found)
        return
    print_facts(
        {
            "home": found["home"],
            "broker": found["broker"],
            "server": ", ".join(found["server"]) or "none: `launch up` starts one",
            "agents": "\n".join(_agent_line(agent) for agent in found["agents"]) or "none: `launch agent -q QUEUE`",
            "queues": "\n".join(
                f"{name}: {counts['waiting']} waiting, {counts['active']} active"
                + (", paused" if counts["paused"] else "")
                for name, counts in found["queues"].items()
            )
            or "none: `launch queue create NAME --resource process`",
        }
    )


def _status() -> dict[str, Any]:
    from dataclasses import asdict

    made = client()
    store = made.store
    queues = made.queues()
    counts = store.counts([queue.name for queue in queues])
    return {
        "home": str(made.settings.home),
        "broker": _masked(made.broker_url),
        "server": store.server_urls(),
        "agents": [asdict(agent) for agent in made.agents() if agent.is_alive],
        "queues": {queue.name: {**asdict(counts[queue.name]), "paused": queue.paused} for queue in queues},
    }


def _agent_line(agent: dict[str, Any]) -> str:
    slots = f"{len(agent['runs'])}/{agent['max_jobs']} slots"
    line = f"{agent['name']} ({agent['state']}): {slots}, {', '.join(agent['queues'])}"
    return "\n".join([line, *(f"  {problem}" for problem in agent["problems"])])
