"""What is left in a world when every run has ended: keys, messages, processes, containers, folders, locks."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from launch.broker import message_lists
from launch.chaos.faults import wrappers
from launch.chaos.world import World

_ALLOWED_KEYS = re.compile(
    r"launch:(installation|seq|queues|server|stats|agents|agent:[^:]+|queue:[^:]+|queue:[^:]+:finished|run:[^:]+(:.*)?)"
    r"|_kombu\.binding.*|unacked_mutex"
)
"""Settings, records, counts, and what Celery keeps for itself; what messages, claims and duties leave must be gone."""
_GOES_BY_ITSELF_S = 120
"""A key that Redis itself deletes this soon is on its way, not left."""


def leftovers(world: World) -> list[str]:
    """Return a sentence for each thing that no ended run may leave, while the agents go on."""
    return sorted([*_in_redis(world), *_at_targets(world), *_held_runs(world)])


def leftovers_without_agents(world: World) -> list[str]:
    """Return the same when the agents have gone of their own will: then no process and no lock may be left either."""
    return [*_in_redis(world), *_at_targets(world), *_processes(world.folder), *_locks(world.folder / "home")]


def _in_redis(world: World) -> Iterator[str]:
    redis = world.store.redis
    for queue in redis.smembers("launch:queues"):
        for kind in ("waiting", "held", "delayed", "active"):
            members = redis.zrange(f"launch:queue:{queue}:{kind}", 0, 4)
            if members:
                yield f"queue {queue}: {kind}: {' '.join(members)}"
        for name in message_lists(queue):
            if length := redis.llen(name):
                yield f"queue {queue}: {length} messages are left"
    lists = {name for queue in redis.smembers("launch:queues") for name in message_lists(queue)}
    for key in sorted(redis.scan_iter(count=1000)):
        is_set = re.fullmatch(r"launch:queue:[^:]+:(waiting|held|delayed|active)", key)
        if key in lists or is_set or _ALLOWED_KEYS.fullmatch(key):
            continue
        ttl = redis.ttl(key)
        # -1: it stays for ever; -2: it has just gone.
        if ttl == -1 or ttl > _GOES_BY_ITSELF_S:
            yield f"key {key} is left"


def _at_targets(world: World) -> Iterator[str]:
    for folder in sorted((world.folder / "home" / "process").glob("*")):
        yield f"run folder {folder.name} is left"
    for name, pid in wrappers(world.folder / "home"):
        yield f"wrapper {pid} of {name} still runs"
    if world.engine is not None:
        for container, state in world.engine.containers(world.store.installation()).items():
            yield f"container {container[:12]} is left, {state}"


def _held_runs(world: World) -> Iterator[str]:
    for agent in world.client.agents():
        if agent.is_alive and agent.runs:
            yield f"agent {agent.id} still has {' '.join(agent.runs)} in its slots"


def _processes(folder: Path) -> Iterator[str]:
    """Jobs, wrappers, workers: whoever names the world's folder, or lives in it."""
    mark = str(folder / "home").encode()
    for place in Path("/proc").glob("[0-9]*"):
        if int(place.name) == os.getpid():
            continue
        with suppress(OSError):
            words = (place / "cmdline").read_bytes()
            said = [words, bytes((place / "cwd").readlink()), (place / "environ").read_bytes()]
            if words and any(mark in text for text in said):
                yield f"process {place.name} is left: {words.replace(bytes(1), b' ').decode(errors='replace')[:150]}"


def _locks(home: Path) -> Iterator[str]:
    for path in home.rglob("*.lock"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield f"{path} is still locked"
