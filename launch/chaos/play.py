"""The whole of it: a world begins, is loaded and hurt, comes to rest, and is judged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from launch.chaos.census import leftovers, leftovers_without_agents
from launch.chaos.faults import Injector
from launch.chaos.ledger import Entry, read_entries
from launch.chaos.load import Load
from launch.chaos.plan import ChaosOptions, schedule
from launch.chaos.probe import probe_slots
from launch.chaos.story import story
from launch.chaos.verdict import Breach, Evidence, judge, running_at
from launch.chaos.world import World
from launch.errors import LaunchError, TemporaryError
from launch.models import RunRecord, RunState
from launch.records import RunEvent

Say = Callable[[str], None]

_TICK_S = 0.05
_TELL_S = 10.0
_START_S = 60.0
_STILL_S = 150.0
"""How long nothing may change before what is left is taken for stuck: Celery gives back a dead worker's message within
70 s, and a worker that has died often is started again after 30 s."""
_MOST_STORIES = 5
_PACE = 0.5
"""Of the time that faults are spread over, the part in which all runs would be enqueued if Redis were never away."""


@dataclass
class Outcome:
    """What was done, what was seen, and what was broken."""

    options: ChaosOptions
    injected: dict[str, int] = field(default_factory=dict)
    killed_at_step: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    """``{state and cause: runs}``"""
    breaches: list[Breach] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)
    seconds: float = 0.0


def play(world: World, say: Say) -> Outcome:
    """Return what came of it; the world is begun already, and is ended by the caller.

    Raises:
        TemporaryError: the world itself does not work, so nothing can be said.
    """
    began = time.monotonic()
    outcome = Outcome(world.options)
    _start_agents(world, say)
    load = Load(world, _PACE * world.options.seconds / world.options.runs)
    injector = Injector(world, load, schedule(world.options))
    _hurt(world, load, injector, say)
    breaches = _settle(world, load, say)
    load.close()
    evidence = _evidence(world, load)
    breaches += judge(evidence)
    breaches += probe_slots(world)
    breaches += _end_agents(world)
    outcome.breaches = breaches
    outcome.injected = {str(kind): count for kind, count in injector.done.items()}
    outcome.killed_at_step = dict(injector.done_at_step)
    outcome.skipped = {str(kind): count for kind, count in injector.skipped.items()}
    outcome.seen = _seen(world, evidence) | {"messages of plain Celery sent again": load.known.sent_again}
    outcome.states = dict(Counter(_how_it_ended(record) for record in evidence.records.values()))
    hurt = dict.fromkeys(breach.run_id for breach in breaches if breach.run_id)
    outcome.stories = [story(world, run_id, list(evidence.ledger)) for run_id in list(hurt)[:_MOST_STORIES]]
    outcome.seconds = time.monotonic() - began
    return outcome


def _start_agents(world: World, say: Say) -> None:
    until = time.monotonic() + _START_S
    while len({agent.name for agent in world.client.agents()}) < len(world.agents):
        if time.monotonic() > until:
            logs = "\n".join(agent.log.read_text()[-800:] for agent in world.agents if agent.log.exists())
            raise TemporaryError(f"the agents do not start:\n{logs}")
        _tick(world)
    say(f"{len(world.agents)} agents serve {len(world.queues)} queues; world in {world.folder}")


def _tick(world: World) -> None:
    world.keep_alive()
    time.sleep(_TICK_S)


def _hurt(world: World, load: Load, injector: Injector, say: Say) -> None:
    """Go on until all faults are done and enough runs are enqueued, or it takes far too long."""
    options = world.options
    began = told = time.monotonic()
    until = began + options.seconds * 3 + 120
    load.start()
    try:
        while not (injector.is_done and len(load.known.acknowledged) >= options.runs):
            now = time.monotonic()
            if load.problem is not None or now > until:
                say(f"gave up after {now - began:.0f} s: {injector.left}")
                break
            injector.step()
            _tick(world)
            if now - told > _TELL_S:
                told = now
                enqueued, faults = len(load.known.acknowledged), sum(injector.done.values())
                say(f"{now - began:4.0f} s: {enqueued} runs enqueued, {faults} faults done; {injector.left}")
    finally:
        injector.close()
        load.end()


def _settle(world: World, load: Load, say: Say) -> list[Breach]:
    """Wait until nothing is left to do; what never goes away is a breach."""
    say(f"the dust settles: {len(load.known.acknowledged)} runs enqueued")
    before: list[str] = ["nothing looked at yet"]
    changed = told = time.monotonic()
    while before:
        _tick(world)
        load.send_again()
        now = time.monotonic()
        if now - changed > _STILL_S:
            return [Breach("nothing is left over", None, what) for what in before]
        try:
            found = [*leftovers(world), *load.unseen()]
        except (LaunchError, OSError):
            continue
        if found != before:
            before, changed = found, now
        if now - told > _TELL_S:
            told = now
            say(f"still left: {'; '.join(found[:4])}{f' and {len(found) - 4} more' if len(found) > 4 else ''}")
    return []


def _evidence(world: World, load: Load) -> Evidence:
    names = {name.removeprefix("launch:run:") for name in world.store.redis.scan_iter("launch:run:*", count=1000)}
    run_ids = sorted({name.partition(":")[0] for name in names})
    records: dict[str, RunRecord] = {record.id: record for record in world.store.records(run_ids)}
    events: dict[str, list[RunEvent]] = {run_id: list(world.store.read_events(run_id)) for run_id in records}
    ledger = _read_ledger(world)
    containers = {run_id for run_id, record in records.items() if record.spec.resource == "docker"}
    return Evidence(
        acknowledged={run_id: wanted.how for run_id, wanted in load.known.acknowledged.items()},
        stopped=frozenset(load.known.stopped),
        records=records,
        events=events,
        ledger=ledger,
        limits={queue.name: queue.max_concurrent for queue in world.queues if queue.max_concurrent},
        logs=_logs(world, load, records),
        unheard=running_at(ledger, world.engine_kills) & containers,
    )


def _logs(world: World, load: Load, records: Mapping[str, RunRecord]) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """Return what finished jobs wrote and what their logs hold; where the store was full, all attempts are in one."""
    found: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
    for run_id, wanted in load.known.acknowledged.items():
        record = records.get(run_id)
        if record is None or record.state is not RunState.FINISHED or (record.attempt > 1 and not record.log_archive):
            continue
        lines = [line.text for line in world.client.run(run_id).log_lines() if line.stream == "stdout"]
        found[run_id] = ([f"line {number + 1}" for number in range(wanted.lines)], lines)
    return found


def _read_ledger(world: World) -> list[Entry]:
    return read_entries(world.ledger.read_text().splitlines())


def _end_agents(world: World) -> list[Breach]:
    slow = [agent.name for agent in world.agents if agent.end() is None]
    breaches = [Breach("agents end when told", None, f"{name} did not") for name in slow]
    return breaches + [Breach("nothing is left over", None, what) for what in leftovers_without_agents(world)]


def _seen(world: World, evidence: Evidence) -> dict[str, int]:
    notes = [event.note for events in evidence.events.values() for event in events]
    logs = "\n".join(agent.log.read_text(errors="replace") for agent in world.agents)
    starts = [entry for entry in evidence.ledger if entry.what == "start"]
    return {
        "runs acknowledged": len(evidence.acknowledged),
        "runs claimed": sum(note.startswith("claimed by") for note in notes),
        "runs adopted": sum(note.startswith("adopted by") for note in notes),
        "runs released by an agent that went": sum(note.startswith("released by") for note in notes),
        "runs back at their old place": sum(
            event.state == "queued" for events in evidence.events.values() for event in events
        ),
        "jobs started": len(starts),
        "jobs ended by themselves": len(evidence.ledger) - len(starts),
        "agents started": sum(agent.starts for agent in world.agents),
        "workers revived by their parent": logs.count("starting it anew"),
        "claims found lost and let go": logs.count("now another agent's, let go"),
    }


def _how_it_ended(record: RunRecord) -> str:
    return f"{record.state} ({record.cause.kind})" if record.cause else str(record.state)
