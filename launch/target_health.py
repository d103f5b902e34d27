"""Whether a target works from this machine, and whether its jobs reach the tracking server. Asks, changes nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from launch.checking import parse
from launch.errors import LaunchError
from launch.findings import Check, Finding
from launch.models import QueueSpec
from launch.plugins import Runner, TargetContext, runner_class
from launch.records import AgentRecord
from launch.tracking import is_heard_at, job_url


@dataclass(frozen=True)
class Served:
    """A target resource, as this machine's agents serve it."""

    resource: str
    queues: tuple[QueueSpec, ...]
    tracking_url: str | None = None
    """Where jobs reach the tracking server, if an agent here was told; none: wherever the server says it listens."""


def served_here(queues: Sequence[QueueSpec], agents: Sequence[AgentRecord]) -> Iterator[Served]:
    """Yield the targets that are this machine's to look at: an agent here serves it, or no agent anywhere does."""
    living, here = [agent for agent in agents if agent.is_alive], socket.gethostname()
    for resource in sorted({queue.resource for queue in queues}):
        its = tuple(queue for queue in queues if queue.resource == resource)
        serving = [agent for agent in living if {queue.name for queue in its} & set(agent.queues)]
        if not serving or here in {agent.host for agent in serving}:
            told = (agent.tracking_url for agent in serving if agent.host == here and agent.tracking_url)
            yield Served(resource, its, next(told, None))


def check_target(served: Served, context: TargetContext, server_urls: Sequence[str]) -> Check:
    """Return what keeps this machine from running jobs at a target, and its jobs from reaching the tracking server."""
    why = "Queues of this resource cannot be served from this machine."
    try:
        runner = runner_class(served.resource)(context)
        problems = runner.check()
    except LaunchError as exc:
        return Check(served.resource, "does not load", (Finding(str(exc), why, "pip install 'openlaunch[all]'"),))
    if problems:
        findings = tuple(Finding(f"{problem.what}.", why, problem.fix) for problem in problems)
        return Check(served.resource, "does not work", findings)
    found = list(check_reach(runner, served, server_urls))
    said = ["works here", *(item for item in dict.fromkeys(found) if isinstance(item, str))]
    return Check(served.resource, "; ".join(said), tuple(item for item in found if isinstance(item, Finding)))


# --- from a job -------------------------------------------------------------------------------------------------------


def check_reach(runner: Runner, served: Served, server_urls: Sequence[str]) -> Iterator[str | Finding]:
    """Ask the tracking server from where jobs run, once for each way of connecting them; yield what came of it.

    Nothing for queues whose jobs have no network; nothing at all when no server is up, which is another finding.
    """
    if not server_urls and served.tracking_url is None:
        return
    for config, queues in _connections(runner, served.queues):
        try:
            options = parse(runner.Options, config, where=f"queue {queues[0]}")
            host = runner.tracking_host(options)
            whose = f"Jobs of {runner.name} (queue {', '.join(queues)})"
            if host is not None and served.tracking_url is None and not is_heard_at(host, server_urls):
                yield _not_listening(whose, host, server_urls)
            elif host is not None:
                yield _asked(runner, options, whose, served.tracking_url or job_url(host, server_urls))
        except LaunchError as exc:
            yield f"tracking server not tested: {exc}"


def _connections(runner: Runner, queues: Sequence[QueueSpec]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield ``(what a queue's config says of its jobs' connection, the queues that say the same)``."""
    found: dict[str, list[str]] = {}
    for queue in queues:
        heeded = {key: value for key, value in runner.canonical(queue.config).items() if key in runner.probe_options}
        found.setdefault(json.dumps(heeded, sort_keys=True), []).append(queue.name)
    for text, names in found.items():
        yield json.loads(text), names


def _not_listening(whose: str, host: str, server_urls: Sequence[str]) -> Finding:
    return Finding(
        f"{whose} look for the tracking server at {host}, but it listens at {', '.join(server_urls)} only.",
        "Those that need it wait in their queue until it does.",
        f"launch down --detach; launch server --host {host} & launch up",
    )


def _asked(runner: Runner, options: Any, whose: str, url: str) -> str | Finding:
    reach = runner.probe(url, options)
    if reach.problem is None:
        return f"tracking server {reach.said}"
    return Finding(
        f"{whose} cannot reach the tracking server: {reach.problem.what}.",
        "They start, and what they log is lost: wandb.init waits for the server in vain.",
        reach.problem.fix,
    )
