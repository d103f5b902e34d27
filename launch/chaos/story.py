"""The whole story of one run, from every witness, in order of time: what a defect is found by."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from launch.chaos.ledger import Entry
from launch.chaos.world import World
from launch.errors import LaunchError
from launch.records import RunEvent

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (.*)")
_AROUND_S = 3.0
_MOST_LINES = 120


def story(world: World, run_id: str, ledger: list[Entry]) -> str:
    """Return a run's record and a timeline of its events, its ledger, what agents said of it and what was done then."""
    told = [*_load(world, run_id), *_events(world, run_id), *_ledger(run_id, ledger), *_agents(world, run_id)]
    told += [(at, text) for at, text in _faults(world) if any(abs(at - when) < _AROUND_S for when, _ in told)]
    lines = [f"{_clock(at)}  {text}" for at, text in sorted(told)]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES // 2 : -_MOST_LINES // 2] = ["..."]
    return "\n".join([f"--- run {run_id}", *_record(world, run_id), *lines])


def _record(world: World, run_id: str) -> Iterator[str]:
    with suppress(LaunchError):
        for field, value in sorted(world.store.redis.hgetall(f"launch:run:{run_id}").items()):
            if field not in ("spec",):
                yield f"{field}: {value[:300]}"


def _load(world: World, run_id: str) -> Iterator[tuple[float, str]]:
    for line in (world.folder / "load.log").read_text().splitlines():
        at, acknowledged, how, queue = line.split()
        if acknowledged == run_id:
            yield float(at), f"load    acknowledged, enqueued by {how} into {queue}"


def _events(world: World, run_id: str) -> Iterator[tuple[float, str]]:
    events: list[RunEvent] = []
    with suppress(LaunchError):
        events = list(world.store.read_events(run_id))
    for event in events:
        yield event.at, f"event   {event.state}, attempt {event.attempt}: {event.note}"


def _ledger(run_id: str, ledger: list[Entry]) -> Iterator[tuple[float, str]]:
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for entry in ledger:
        if entry.run_id == run_id:
            yield booted + entry.uptime_s, f"ledger  {entry.what}, attempt {entry.attempt}, pid {entry.pid}"


def _agents(world: World, run_id: str) -> Iterator[tuple[float, str]]:
    for agent in world.agents:
        at = 0.0
        for line in agent.log.read_text(errors="replace").splitlines():
            found = _STAMP.match(line)
            if found:
                at = datetime.fromisoformat(f"{found[1]}.{found[2]}").timestamp()
            if run_id in line:
                yield at, f"{agent.name:7} {found[3] if found else line}"


def _faults(world: World) -> Iterator[tuple[float, str]]:
    for line in (world.folder / "faults.log").read_text().splitlines():
        at, _, text = line.partition(" ")
        if not text.startswith("not now"):
            yield float(at), f"FAULT   {text}"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]
