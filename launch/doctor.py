"""Looks over an installation as this machine sees it, and says what is wrong and how to mend it.

Changes nothing but a few bytes in the artifact store, which the store's own clean-up removes.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from launch import __version__
from launch.artifacts import ArtifactStore
from launch.broker_health import check_broker, read_broker
from launch.durations import ago
from launch.errors import LaunchError
from launch.findings import Check, Finding
from launch.models import QueueSpec
from launch.monitoring import check_monitoring
from launch.plugins import TargetContext
from launch.reach import WORDS, Answer, ask
from launch.records import AgentRecord, QueueCounts
from launch.settings import Settings
from launch.store import RunStore
from launch.target_health import check_target, served_here

_ROOM_BYTES = 2_000_000_000
_ROOM_SHARE = 0.03


def examine(store: RunStore, settings: Settings) -> Iterator[Check]:
    """Yield what was looked at, one subject at a time.

    Raises:
        TemporaryError: Redis is away; without it there is nothing more to see.
    """
    yield check_broker(read_broker(store))
    queues, agents = store.queues(), store.agents(dead_after_s=settings.dead_after_s)
    yield check_server(store.server_urls(), agents)
    counts = store.counts([queue.name for queue in queues])
    yield check_queues(queues, counts, agents)
    yield check_agents(agents, _orphans(store, queues, agents), now=store.now())
    context = TargetContext(store.installation(), settings.home)
    for served in served_here(queues, agents):
        yield check_target(served, context, store.server_urls())
    yield check_monitoring(settings, store.server_urls())
    yield check_artifacts(ArtifactStore(settings.artifacts_url, lambda: store))
    yield check_disk(settings)
    yield check_packages()


# --- server -----------------------------------------------------------------------------------------------------------


def check_server(urls: Sequence[str], agents: Sequence[AgentRecord]) -> Check:
    """Return whether the tracking server answers wherever it says it listens."""
    if not urls:
        why = "Jobs that call wandb.init cannot start without it."
        return Check("server", "none", (Finding("No tracking server is up.", why, "launch up"),))
    hosts = {agent.host for agent in agents if agent.is_alive}
    if hosts and socket.gethostname() not in hosts:
        return Check("server", f"{', '.join(urls)} (on another machine: not asked)")
    findings = [
        Finding(
            f"The tracking server does not answer at {url}: {WORDS[answer]}.",
            "Jobs that reach it there lose what they log, or wait for it.",
            "launch down && launch up; its log is run/server.log in the launch home",
        )
        for url in urls
        if (answer := ask(url)) is not Answer.REACHED
    ]
    return Check("server", ", ".join(urls), tuple(findings))


# --- queues and agents ------------------------------------------------------------------------------------------------


def check_queues(
    queues: Sequence[QueueSpec], counts: Mapping[str, QueueCounts], agents: Sequence[AgentRecord]
) -> Check:
    """Return which queues nobody serves."""
    living = [agent for agent in agents if agent.is_alive]
    findings = []
    for queue in queues:
        if not any(queue.name in agent.queues for agent in living):
            waiting = counts[queue.name].waiting
            wait = f"{waiting} run(s) wait in it." if waiting else "What is enqueued in it waits."
            findings.append(
                Finding(f"No living agent serves queue {queue.name}.", wait, f"launch agent -q {queue.name}")
            )
    paused = [queue.name for queue in queues if queue.paused]
    said = ", ".join(queue.name for queue in queues) or "none yet"
    return Check("queues", said + (f" (paused: {', '.join(paused)})" if paused else ""), tuple(findings))


def check_agents(agents: Sequence[AgentRecord], orphans: Mapping[str, str], *, now: float) -> Check:
    """Return what keeps agents from their work.

    Args:
        agents: those that have been seen.
        orphans: ``{run id: its queue}`` of claimed runs that no living agent follows.
        now: Redis' time.
    """
    living = [agent for agent in agents if agent.is_alive]
    findings = []
    for agent in living:
        if agent.version != __version__:
            findings.append(
                Finding(
                    f"Agent {agent.label} is of version {agent.version}, this is {__version__}.",
                    "They may understand a record differently.",
                    f"on {agent.host}: pip install openlaunch=={__version__}, then start it anew (its jobs go on)",
                )
            )
        findings += [
            Finding(
                f"Agent {agent.label} on {agent.host} takes no runs: {problem}",
                "Its queues wait until that is mended; it then goes on by itself.",
                f"launch doctor, on {agent.host}",
            )
            for problem in agent.problems
        ]
    findings += [
        Finding(
            f"Run {run_id} has no living agent.",
            "Its job goes on, but nobody records its log and its end.",
            f"launch explain {run_id}; launch agent -q {queue}, on the machine it is on",
        )
        for run_id, queue in orphans.items()
    ]
    dead = [agent for agent in agents if not agent.is_alive]
    last = f"; {len(dead)} dead, last seen {ago(now - max(agent.heartbeat_at for agent in dead))}" if dead else ""
    said = ", ".join(f"{agent.label} ({agent.state})" for agent in living) or "none alive"
    return Check("agents", said + last, tuple(findings))


def _orphans(store: RunStore, queues: Iterable[QueueSpec], agents: Sequence[AgentRecord]) -> dict[str, str]:
    living = {agent.id for agent in agents if agent.is_alive}
    return {
        run_id: queue.name
        for queue in queues
        for run_id, owner in store.owners(queue.name).items()
        if owner not in living
    }


# --- the artifact store -----------------------------------------------------------------------------------------------


def check_artifacts(artifacts: ArtifactStore) -> Check:
    """Return whether this machine can put something into the artifact store and read it again."""
    try:
        # Not the same every time: what is there already would not be written.
        artifacts.get_bytes(artifacts.put_bytes(f"launch doctor, {datetime.now(UTC).isoformat()}\n".encode()))
    except LaunchError as exc:
        why = "Without it no code can be launched from here, none run, and no log is kept."
        return Check(
            "store", artifacts.url, (Finding(str(exc), why, "LAUNCH_ARTIFACTS, and what the line above names"),)
        )
    return Check("store", f"{artifacts.url} takes and gives")


# --- this machine -----------------------------------------------------------------------------------------------------


def check_disk(settings: Settings) -> Check:
    """Return whether the launch home, and the artifact store if it is on a disk here, have room."""
    folders = {"launch home": settings.home}
    if settings.artifacts_url.startswith("file://"):
        folders["artifact store"] = Path(settings.artifacts_url.removeprefix("file://"))
    said, findings = [], []
    for name, folder in folders.items():
        usage = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
        if name == "launch home":
            said.append(f"{usage.free / 1e9:.1f} GB free in {folder}")
        if usage.free < max(_ROOM_BYTES, usage.total * _ROOM_SHARE):
            findings.append(
                Finding(
                    f"Only {usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB are free in {folder} ({name}).",
                    "Full disks fail builds and keep logs from being kept.",
                    f"df -h {folder}; unused images: docker image prune",
                )
            )
    return Check("disk", ", ".join(said), tuple({finding.why: finding for finding in findings}.values()))


def check_packages() -> Check:
    """Return whether Python and the packages are what openlaunch needs."""
    python = ".".join(map(str, sys.version_info[:3]))
    names = ("celery", "kombu", "redis", "pydantic", "docker", "wandb")
    versions = [f"{name} {version}" for name in names if (version := _version(name)) is not None]
    said = f"openlaunch {__version__}, python {python}, {', '.join(versions)}"
    return Check("versions", said, tuple(_outdated()))


def _outdated() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        needed = metadata.requires("openlaunch") or []
    except metadata.PackageNotFoundError:
        return
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        there = _version(requirement.name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            right = f"{requirement.name}{requirement.specifier}"
            yield Finding(
                f"{requirement.name} is {there or 'missing'}; openlaunch needs {right}.",
                "It was neither written nor tested for that.",
                f"pip install '{right}'",
            )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
