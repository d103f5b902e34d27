"""Gathers what :mod:`launch.explain` and :mod:`launch.waiting` need to know of runs. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launch.errors import NotFoundError
from launch.explain import Situation
from launch.forecast import Busy, Expected, JobKey, Line, Slots, expected_start, job_key
from launch.models import QueueSpec, RunRecord, RunState
from launch.records import AgentRecord
from launch.store import RunStore
from launch.waiting import QueueView, Waiting, WaitsFor, waits_for

_MOST_BEFORE = 2000
"""Before this many runs nobody can say when a run will start."""


def situation_of(store: RunStore, record: RunRecord, *, dead_after_s: float) -> Situation:
    """Return a run and what is around it."""
    now = store.now()
    if record.state.is_final:
        return Situation(now, record)
    agents = store.agents(dead_after_s=dead_after_s)
    view = _view(store, record.spec.queue, agents)
    if record.state.is_claimed:
        return _of_claimed(store, record, agents, view, now)
    position = store.position(record.id)
    return Situation(
        now,
        record,
        view,
        position=position,
        waiting=store.counts([record.spec.queue])[record.spec.queue].waiting,
        expected=None if view is None or position is None else _expected(store, record, view, position, now),
    )


def reasons(store: RunStore, records: Sequence[RunRecord], *, dead_after_s: float) -> dict[str, Waiting]:
    """Return ``{run id: what it waits for}`` of those of the runs that are queued: a few reads a queue, for a page."""
    queued = [record for record in records if record.state is RunState.QUEUED]
    if not queued:
        return {}
    now, agents = store.now(), store.agents(dead_after_s=dead_after_s)
    found: dict[str, Waiting] = {}
    for queue in {record.spec.queue for record in queued}:
        view = _view(store, queue, agents)
        if view is not None:
            mine = [record for record in queued if record.spec.queue == queue]
            places = store.places(queue, [record.id for record in mine])
            found |= {record.id: waits_for(record, view, places.get(record.id), now) for record in mine}
    return found


def _view(store: RunStore, queue: str, agents: Sequence[AgentRecord]) -> QueueView | None:
    try:
        spec = store.queue(queue)
    except NotFoundError:
        return None
    serving = tuple(agent for agent in agents if agent.is_alive and queue in agent.queues)
    return QueueView(spec, tuple(store.ids(queue, "active")), serving)


def _of_claimed(
    store: RunStore, record: RunRecord, agents: Sequence[AgentRecord], view: QueueView | None, now: float
) -> Situation:
    events = store.read_events(record.id)
    others = view.agents if view is not None else ()
    is_bound = record.state is not RunState.BUILDING and record.locality is not None
    followers = [agent.label for agent in others if not is_bound or record.locality in agent.localities]
    return Situation(
        now,
        record,
        view,
        owner=next((agent for agent in agents if agent.id == record.agent), None),
        followers=tuple(dict.fromkeys(followers)),
        last_event=events[-1] if events else None,
    )


# --- when it may start ------------------------------------------------------------------------------------------------


def _expected(store: RunStore, record: RunRecord, view: QueueView, position: int, now: float) -> Expected | None:
    kind = waits_for(record, view, position, now).kind
    if kind not in (WaitsFor.LIMIT, WaitsFor.SLOT, WaitsFor.TURN) or position > _MOST_BEFORE:
        return None
    specs = [store.queue(name) for name in {name for agent in view.takers for name in agent.queues}]
    active = {spec.name: store.ids(spec.name, "active") for spec in specs if spec.max_concurrent is not None}
    carried = {run_id for agent in view.takers for run_id in agent.runs}
    busy = _busy(store, carried.union(*active.values()), now)
    slots = [
        Slots(agent.queues, agent.max_jobs, tuple(busy[run_id] for run_id in agent.runs if run_id in busy))
        for agent in view.takers
    ]
    # What others carry counts against a queue's limit until it ends.
    slots += [Slots((), 1, (its,)) for run_id, its in busy.items() if run_id not in carried]
    lines = {spec.name: _line(store, spec, position if spec.name == view.spec.name else _MOST_BEFORE) for spec in specs}
    seconds = _seconds(store, {its.key[0] for its in busy.values()} | set(lines))
    return expected_start(record.id, job_key(record.spec), slots, lines, seconds)


def _busy(store: RunStore, run_ids: Iterable[str], now: float) -> dict[str, Busy]:
    return {
        record.id: Busy(job_key(record.spec), now - (record.claimed_at or now))
        for record in store.records(sorted(run_ids))
        if record.state.is_claimed
    }


def _line(store: RunStore, spec: QueueSpec, most: int) -> Line:
    launches = store.launches([] if spec.paused else store.ids(spec.name, "waiting", most))
    return Line(tuple((run_id, job_key(launch)) for run_id, launch in launches.items()), spec.max_concurrent)


def _seconds(store: RunStore, queues: Iterable[str]) -> dict[JobKey, list[float]]:
    seconds: dict[JobKey, list[float]] = {}
    for queue in queues:
        for launch, took_s in store.finished_seconds(queue):
            seconds.setdefault(job_key(launch), []).append(took_s)
    return seconds
