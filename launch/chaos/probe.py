"""Whether every agent's slots are what they were: as many runs at once as it has, not one fewer or more."""

from __future__ import annotations

import time

from launch.chaos.agents import AgentProcess
from launch.chaos.ledger import GATE_SCRIPT, read_entries
from launch.chaos.verdict import Breach
from launch.chaos.world import World, probe_queue
from launch.errors import TemporaryError

_PATIENCE_S = 45.0
_ONE_TOO_MANY_S = 3.0
"""How long a run that has no slot is watched not starting."""


def probe_slots(world: World) -> list[Breach]:
    """Give each agent one run more than it has slots, on a queue that only it serves, and see how many start."""
    gate = world.folder / "gates" / "open"
    for agent in world.agents:
        command = ["sh", "-c", GATE_SCRIPT, "sh", str(gate)]
        for number in range(agent.max_jobs + 1):
            world.client.enqueue(
                queue=probe_queue(agent.name), command=command, run_id=_run_id(agent, number), tracking="optional"
            )
    breaches = _too_few(world) or _too_many(world)
    gate.touch()
    return breaches + _unended(world)


def _run_id(agent: AgentProcess, number: int) -> str:
    return f"probe-{agent.name}-{number}"


def _too_few(world: World) -> list[Breach]:
    until = time.monotonic() + _PATIENCE_S
    while True:
        started = _started(world)
        missing = [agent for agent in world.agents if started[agent.name] < agent.max_jobs]
        if not missing:
            return []
        if time.monotonic() > until:
            return [
                Breach("slots are right", None, f"{agent.name} started {started[agent.name]} of {agent.max_jobs} runs")
                for agent in missing
            ]
        _tick(world)


def _too_many(world: World) -> list[Breach]:
    until = time.monotonic() + _ONE_TOO_MANY_S
    while time.monotonic() < until:
        started = _started(world)
        over = [agent for agent in world.agents if started[agent.name] > agent.max_jobs]
        if over:
            return [
                Breach("slots are right", None, f"{over[0].name} started more than {over[0].max_jobs} runs at once")
            ]
        _tick(world)
    return []


def _started(world: World) -> dict[str, int]:
    entries = read_entries(world.ledger.read_text().splitlines())
    ids = {entry.run_id for entry in entries if entry.what == "start"}
    return {agent.name: sum(run_id.startswith(f"probe-{agent.name}-") for run_id in ids) for agent in world.agents}


def _unended(world: World) -> list[Breach]:
    until = time.monotonic() + _PATIENCE_S
    run_ids = [_run_id(agent, number) for agent in world.agents for number in range(agent.max_jobs + 1)]
    while True:
        try:
            open_runs = [run for run in world.store.records(run_ids) if run.state != "finished"]
        except TemporaryError:
            continue
        if not open_runs:
            return []
        if time.monotonic() > until:
            return [Breach("every run ends", run.id, f"is {run.state} after its gate was opened") for run in open_runs]
        _tick(world)


def _tick(world: World) -> None:
    world.keep_alive()
    time.sleep(0.1)
