"""``launch status``: queues, agents, the tracking server and the last failures on one screen, live with ``--watch``."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import as_json_option, client
from launch.errors import TemporaryError

if TYPE_CHECKING:
    from launch.client import Client

_FAILURES = 5
_EVERY_S = 2.0

# The terminal's second screen, no cursor, long lines cut: what stood there before comes back at the end.
# Source: https://invisible-island.net/xterm/ctlseqs/ctlseqs.html (DECSET 1049, 25, 7)
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _REST = "\x1b[H", "\x1b[K\n", "\x1b[J"


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
@as_json_option
def status(watch: bool, as_json: bool) -> None:
    """Show what is up, the work in each queue, and what failed last."""
    from launch.cli.output import print_json

    if watch and as_json:
        raise click.UsageError("--watch is for people; with --json, ask again")
    made = client()
    if watch:
        _watch(made)
    elif as_json:
        print_json(look(made))
    else:
        _print(screen(look(made), _width()))


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line)


def _width() -> int:
    return shutil.get_terminal_size().columns


# --- again and again --------------------------------------------------------------------------------------------------


def _watch(made: Client) -> None:
    """Show it every two seconds: in place on a terminal, one below the other where nobody sees it."""
    if not sys.stdout.isatty():
        while True:
            _print([*_frame(made), ""])
            time.sleep(_EVERY_S)
    with _second_screen():
        while True:
            lines = _frame(made)[: shutil.get_terminal_size().lines - 1]
            click.echo(_HOME + "".join(line + _END_OF_LINE for line in lines) + _REST, nl=False, color=True)
            time.sleep(_EVERY_S)


def _frame(made: Client) -> list[str]:
    clock = click.style(f"{time.strftime('%H:%M:%S')}  (every {_EVERY_S:g} s, Ctrl-C ends it)", dim=True)
    try:
        return [clock, *screen(look(made), _width())]
    except TemporaryError as exc:
        return [clock, click.style("away: ", fg="red", bold=True) + str(exc)]


@contextmanager
def _second_screen() -> Iterator[None]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(_ENTER, nl=False, color=True)
    try:
        yield
    finally:
        click.echo(_LEAVE, nl=False, color=True)


# --- what there is ----------------------------------------------------------------------------------------------------


def look(made: Client) -> dict[str, Any]:
    """Return what there is now, for programs; the keys are part of the command line's interface."""
    from launch.connection import masked

    store, queues = made.store, made.queues()
    names = [queue.name for queue in queues]
    counts, oldest, now = store.counts(names), store.oldest(names), store.now()
    return {
        "at": now,
        "home": str(made.settings.home),
        "broker": masked(made.broker_url),
        "server": store.server_urls(),
        "agents": [{**asdict(agent), "label": agent.label} for agent in made.agents() if agent.is_alive],
        "queues": {
            queue.name: {
                **asdict(counts[queue.name]),
                "paused": queue.paused,
                "resource": queue.resource,
                "max_concurrent": queue.max_concurrent,
                "oldest_wait_s": max(0.0, now - oldest[queue.name]) if queue.name in oldest else None,
            }
            for queue in queues
        },
        "last_failures": [
            {
                "id": record.id,
                "state": str(record.state),
                "queue": record.spec.queue,
                "title": record.spec.title,
                "cause": record.cause.model_dump(mode="json") if record.cause else None,
                "ended_at": record.ended_at,
            }
            for record in store.last_failures(names, _FAILURES)
        ],
    }


# --- as people see it -------------------------------------------------------------------------------------------------


def screen(found: dict[str, Any], width: int) -> list[str]:
    """Return the lines that show what :func:`look` has found, for a terminal of so many columns."""
    from launch.cli.output import fact_lines

    facts = {
        "home": found["home"],
        "broker": found["broker"],
        "server": ", ".join(found["server"]) or "none: `launch up` starts one",
    }
    parts = [fact_lines(facts), _queue_lines(found), _agent_lines(found, width), _failure_lines(found, width)]
    return [line for place, part in enumerate(parts) if part for line in ([""] if place else []) + part]


def _queue_lines(found: dict[str, Any]) -> list[str]:
    from launch.cli.output import table_lines
    from launch.durations import duration

    if not found["queues"]:
        return ["no queues: `launch queue create NAME --resource process`"]
    served = {name for agent in found["agents"] for name in agent["queues"]}
    rows = [
        (
            name,
            queue["resource"],
            f"{queue['waiting']:7}",
            duration(queue["oldest_wait_s"]),
            f"{_active(queue):>6}",
            f"{queue['held'] or '':>4}",
            f"{queue['delayed'] or '':>7}",
            _remark(queue, name in served),
        )
        for name, queue in found["queues"].items()
    ]
    return table_lines(("queue", "resource", "waiting", "oldest", "active", "held", "delayed", ""), rows)


def _active(queue: dict[str, Any]) -> str:
    return str(queue["active"]) + (f"/{queue['max_concurrent']}" if queue["max_concurrent"] else "")


def _remark(queue: dict[str, Any], is_served: bool) -> str:
    if queue["paused"]:
        return click.style("paused", fg="yellow")
    if not is_served:
        return click.style("no agent", fg="red" if queue["waiting"] or queue["active"] else "yellow")
    is_full = queue["waiting"] and queue["max_concurrent"] and queue["active"] >= queue["max_concurrent"]
    return click.style("at its limit", fg="yellow") if is_full else ""


def _agent_lines(found: dict[str, Any], width: int) -> list[str]:
    from launch.cli.output import one_line
    from launch.durations import ago

    agents = found["agents"]
    if not agents:
        return ["no agents: `launch agent -q QUEUE` starts one, `launch up` all that is needed"]
    rows = [
        (
            agent["label"],
            click.style(agent["state"], fg="green" if agent["state"] == "serving" else "yellow"),
            f"{len(agent['runs'])}/{agent['max_jobs']}".rjust(5),
            ago(max(0.0, found["at"] - agent["heartbeat_at"])),
            one_line(", ".join(agent["queues"]), 30),
        )
        for agent in agents
    ]
    return _noted(("agent", "state", "slots", "seen", "queues"), rows, [agent["problems"] for agent in agents], width)


def _failure_lines(found: dict[str, Any], width: int) -> list[str]:
    from launch.cli.output import styled_state
    from launch.durations import ago

    failures = found["last_failures"]
    if not failures:
        return []
    rows = [
        (
            failure["id"],
            styled_state(failure["state"]),
            failure["queue"],
            ago(max(0.0, found["at"] - failure["ended_at"])),
        )
        for failure in failures
    ]
    causes = [[failure["cause"]["message"]] if failure["cause"] else [] for failure in failures]
    hint = click.style(f"more of it: launch show {failures[0]['id']}", dim=True)
    return [*_noted(("last failures", "state", "queue", "ended"), rows, causes, width), hint]


def _noted(
    headers: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[Sequence[str]], width: int
) -> list[str]:
    """Return a table whose rows have sentences below them, each on a line."""
    from launch.cli.output import one_line, table_lines

    header, *lines = table_lines(headers, rows)
    result = [header]
    for line, its in zip(lines, notes, strict=True):
        result += [line, *(f"  {one_line(click.unstyle(note), max(width, 40) - 2)}" for note in its)]
    return result
