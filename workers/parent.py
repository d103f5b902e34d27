"""``launch agent``: checks that it can serve, then keeps one worker process alive until told to end.

Celery's worker can die with its connection to Redis; the jobs do not notice, and a new worker adopts their runs. So
this process does nothing but start it again, with a growing pause, and pass on SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from launch.broker_health import broker_warnings
from launch.embedded import broker_url
from launch.errors import ConfigError, LaunchError, TemporaryError
from launch.log_lines import set_up_logging
from launch.settings import settings
from launch.store import RunStore
from workers.agent import Agent
from workers.config import ENV_BROKER, ENV_CONFIG, ENV_DRAIN, AgentConfig, read_config

log = logging.getLogger("workers")

_SERVER_PATIENCE_S = 5.0
_QUICK_S = 60.0
_MAX_PAUSE_S = 30.0
_REDIS_PAUSE_S = 2.0
_GIVE_UP_AFTER = 10


@click.command()
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME", help="A queue to serve; may be repeated.")
@click.option("-j", "--max-jobs", type=click.IntRange(1, 1000), help="How many runs at once (default 1).")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="An agent configuration file (YAML).")
@click.option("--name", help="What to call this agent (default: this machine's name).")
@click.option("--tracking-url", help="Where jobs reach the tracking server, when it is not on this machine.")
@click.option("--drain", is_flag=True, help="On SIGTERM or Ctrl-C, wait for the runs in hand; a second one lets go.")
def command(drain: bool, config: Path | None, **options: Any) -> None:
    """Serve queues: take their runs in order, start them on the target and follow them to their end.

    SIGTERM or Ctrl-C lets go of the runs: their jobs go on, and the next agent follows them.
    """
    try:
        agent_config = read_config(config, options)
        url = broker_url(settings())
        _check(agent_config, url)
    except LaunchError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(exc.exit_code)
    click.echo(
        f"agent {agent_config.name} serves {', '.join(agent_config.queues)}, up to {agent_config.max_jobs} at once"
    )
    set_up_logging(settings().log_format, agent=agent_config.name)
    sys.exit(Parent(_environment(agent_config, url, drain)).run())


def _check(config: AgentConfig, url: str) -> None:
    """Refuse to start an agent that could not run anything."""
    store = RunStore.connect(url, timeout_s=settings().connect_timeout_s)
    for warning in broker_warnings(store):
        click.echo(f"warning: {warning}", err=True)
    if not config.tracking_url:
        # Both are often started at the same moment.
        _wait_for_server(store, _SERVER_PATIENCE_S)
    agent = Agent(config, settings(), store)
    problems = agent.check()
    if problems:
        lines = [f"  {problem.what}\n    to mend it: {problem.fix}" for problem in problems]
        raise TemporaryError(agent.redaction.mask("\n".join(["this agent cannot serve its queues yet:", *lines])))


def _wait_for_server(store: RunStore, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while not store.server_urls() and time.monotonic() < until:
        time.sleep(0.1)


def _environment(config: AgentConfig, url: str, drain: bool) -> Mapping[str, str]:
    return {
        **os.environ,
        ENV_CONFIG: config.model_dump_json(),
        ENV_BROKER: url,
        ENV_DRAIN: "1" if drain else "",
    }


class Parent:
    """Keeps the worker process alive."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def run(self) -> int:
        """Return the exit code once told to end, or when the worker cannot be kept alive."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        quick_deaths = 0
        while not self._is_ending:
            started = time.monotonic()
            code = self._run_child()
            if self._is_ending or code == 0:
                return 0
            if code == ConfigError.exit_code:
                return code
            if code == TemporaryError.exit_code:
                # Redis is away: an agent waits for it as long as it takes.
                self._sleep(_REDIS_PAUSE_S)
                continue
            quick_deaths = quick_deaths + 1 if time.monotonic() - started < _QUICK_S else 1
            if quick_deaths >= _GIVE_UP_AFTER:
                log.error("the worker died %d times in a row; giving up", quick_deaths)
                return 1
            pause_s = min(_MAX_PAUSE_S, 0.5 * 2.0 ** (quick_deaths - 1))
            log.warning("the worker ended with code %s; starting it anew in %g s", code, pause_s)
            self._sleep(pause_s)
        return 0

    def _run_child(self) -> int:
        # -P: a module of the folder we happen to be in must not stand in for one of ours. A session of its own: Ctrl-C
        # is for this process, which passes it on as SIGTERM. Its standard input closes when this process dies.
        argv = [sys.executable, "-P", "-m", "workers.child"]
        with subprocess.Popen(
            argv, env=dict(self._environment), stdin=subprocess.PIPE, start_new_session=True
        ) as child:
            self._child = child
            if self._is_ending:
                child.terminate()
            return child.wait()

    def _end(self, *_: Any) -> None:
        self._is_ending = True
        if self._child is not None:
            self._child.terminate()

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_ending and time.monotonic() < until:
            time.sleep(0.05)
