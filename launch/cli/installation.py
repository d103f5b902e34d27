"""``launch up`` and ``down``: all that is needed on this machine."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from launch.cli.options import client, warn_of_broker
from launch.errors import ConflictError, TemporaryError

if TYPE_CHECKING:
    from launch.local import Local
    from launch.records import AgentRecord


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
    _leave(local)
    if gone is not None:
        raise TemporaryError(f"the {gone.name} ended; its log is {gone.log}")


def _leave(local: Local) -> None:
    """End everything, except what other agents need."""
    try:
        others = local.other_agents()
    except TemporaryError:
        others = []
    local.down(click.echo, only_agent=bool(others))
    if others:
        click.echo(f"left the server and the broker running for {_named(others)}; afterwards: `launch down`")


def _masked(url: str) -> str:
    from launch.connection import masked

    return masked(url)


@click.command()
@click.option("--stop", "what", flag_value="stop", help="Stop the live runs first, and wait for their end.")
@click.option(
    "--detach", "what", flag_value="detach", help="Leave the live runs' jobs running; the next agent follows."
)
@click.option("--force", is_flag=True, help="End the broker though other agents use it, or though it does not answer.")
def down(what: str | None, force: bool) -> None:
    """End the agent, the server and the embedded broker.

    Nothing that is recorded is lost; `launch up` goes on where this left off. While agents that were started otherwise
    use the broker it is refused, unless by --force: these then wait for the broker to come back.
    """
    local = _local()
    others, live = _users(local, force)
    if live and (what or _ask(live)) == "stop":
        _stop_all(live)
    ended: list[str] = []
    local.down(ended.append)
    for sentence in ended or ["nothing was running"]:
        click.echo(sentence)
    if others:
        click.echo(f"`launch up` brings the broker back, for which now wait, while their jobs go on: {_named(others)}")


def _users(local: Local, force: bool) -> tuple[list[AgentRecord], list[str]]:
    """Return the other agents and the live runs that need the broker; refuse to go on where that is not forced."""
    try:
        others, live = local.other_agents(), local.live_runs()
    except TemporaryError as exc:
        if force:
            return [], []
        raise TemporaryError(f"{exc}\nwho uses it is not known; `launch down --force` ends it all the same") from exc
    if others and not force:
        raise ConflictError(
            f"the broker and the server are used by {_named(others)}; end them first (Ctrl-C where they run, or "
            f"`launch agents drain {others[0].label}`), or let them wait for the broker to come back: "
            "`launch down --force`"
        )
    return others, live


def _named(agents: list[AgentRecord]) -> str:
    return ", ".join(f"agent {agent.label} (process {agent.pid}, {_runs(agent)})" for agent in agents)


def _runs(agent: AgentRecord) -> str:
    return f"with run {', '.join(agent.runs)}" if agent.runs else "without a run"


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
