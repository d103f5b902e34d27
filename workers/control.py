"""Celery's remote control, answered for runs: ``celery -A workers.app inspect active``, Flower's buttons.

Importing this module puts these commands in the place of Celery's own of the same names, which know tasks in a pool;
here the pool is empty and a run is carried by the agent. What means nothing to runs is refused, with what to do
instead. An error is the command's answer, never the worker's end.
"""

from __future__ import annotations

import logging
import os
import signal as signals
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.worker.control import Panel
from kombu import Queue

from launch.broker import celery_queue, launch_queue
from launch.connection import masked
from launch.errors import LaunchError, NotFoundError
from launch.run_events import task_kwargs, task_name
from workers.events import tell_the_present

if TYPE_CHECKING:
    from workers.agent import Agent
    from workers.claim import Claim

log = logging.getLogger(__name__)

Answer = Any
"""``{"ok": text}``, ``{"error": text}``, or what was asked for."""

_MOST_JOBS = 1000
"""The most that an agent's configuration takes as well."""
_REFUSED = {
    "cancel_consumer": "pause the queue instead, for all agents: `launch queue pause NAME`",
    "disable_events": "events of runs are always sent; they cost nothing when nobody listens",
    "pool_restart": "there is no pool to restart: an agent carries its runs itself",
    "rate_limit": "runs have no rate; limit those at once: `launch queue update NAME --max-concurrent N`",
    "time_limit": "the limit is the queue's, for its next runs: `launch queue update NAME --run-limit 2h`",
}


def _command(ask: Callable[..., Answer]) -> Callable[..., Answer]:
    """Put ``ask(agent, **arguments)`` in the place of Celery's command of that name; our errors are its answer."""

    @wraps(ask)
    def answer(state: Any, **arguments: Any) -> Answer:
        try:
            return ask(state.consumer.controller.agent, **arguments)
        except LaunchError as exc:
            return {"error": str(exc)}

    for name in filter(None, (ask.__name__, Panel.meta[ask.__name__].alias)):
        Panel.data[name] = answer
    return answer


# --- what is there ----------------------------------------------------------------------------------------------------


@_command
def active(agent: Agent, **_: Any) -> Answer:
    """List the runs in the agent's slots."""
    return [_info(agent, claim) for claim in list(agent.claims.values())]


@_command
def reserved(_agent: Agent, **_: Any) -> Answer:
    """List nothing: a run waits in its queue until it is claimed."""
    return []


@_command
def scheduled(_agent: Agent, **_: Any) -> Answer:
    """List nothing: a run that pauses before a retry is no agent's."""
    return []


@_command
def revoked(agent: Agent, **_: Any) -> Answer:
    """List the runs in the agent's slots that somebody wants stopped."""
    return [claim.id for claim in list(agent.claims.values()) if claim.is_stop_requested]


@_command
def query_task(agent: Agent, ids: str | Sequence[str] = (), **_: Any) -> Answer:
    """Return those among the runs that are in the agent's slots: ``{id: ("active", info)}``."""
    claims = ((run_id, agent.claims.get(run_id)) for run_id in _listed(ids))
    return {run_id: ("active", _info(agent, claim)) for run_id, claim in claims if claim is not None}


@_command
def active_queues(agent: Agent, **_: Any) -> Answer:
    """List all launch queues, so that a page of queues lacks none; the alias says which of them the agent serves.

    Celery would leave out a queue that is paused or at its limit, and one that no agent serves.
    """
    shapes = {spec.name: Queue(celery_queue(spec.name), routing_key=spec.name) for spec in agent.store.queues()}
    return [{**shape.as_dict(recurse=True), "alias": _service(agent, name)} for name, shape in shapes.items()]


def _service(agent: Agent, queue: str) -> str:
    if queue not in agent.resources:
        return "not served by this agent"
    return "served, but gives out no runs now" if queue in agent.silent else "served"


def _info(agent: Agent, claim: Claim) -> dict[str, Any]:
    """Return a run in the shape of Celery's ``Request.info``."""
    record = claim.record
    return {
        "id": claim.id,
        "name": task_name(claim.spec),
        "type": task_name(claim.spec),
        "args": "()",
        "kwargs": task_kwargs(claim.spec),
        "hostname": agent.nodename,
        "time_start": record.started_at or record.claimed_at,
        "acknowledged": True,
        "delivery_info": {
            "exchange": "",
            "routing_key": celery_queue(claim.spec.queue),
            "priority": int(claim.spec.priority),
            "redelivered": record.attempt > 1,
        },
        "worker_pid": os.getpid(),
    }


_celerys_stats = Panel.data["stats"]


def stats(state: Any, **_: Any) -> Answer:
    """Return Celery's statistics of the worker, its pool being the agent's slots."""
    agent: Agent = state.consumer.controller.agent
    said = _celerys_stats(state)
    # Celery takes the password off what it says of the broker, but not off these two.
    broker = {**said.get("broker", {}), "alternates": []}
    broker["hostname"] = masked(str(broker.get("hostname")))
    return {
        **said,
        "broker": broker,
        "total": dict(agent.carried),
        "pool": {
            "implementation": "openlaunch slots",
            "max-concurrency": agent.slots.max_jobs,
            "free": max(0, agent.slots.free),
            "processes": [os.getpid()],
        },
        "agent": agent.id,
        "targets away": ", ".join(agent.targets.away) or "none",
    }


Panel.data["stats"] = stats


# --- stopping ---------------------------------------------------------------------------------------------------------


@_command
def revoke(agent: Agent, task_id: str | Sequence[str] = (), signal: Any = None, **_: Any) -> Answer:
    """Stop runs, wherever they are; the signal KILL leaves a job no time to end by itself.

    Every agent hears this, and asking twice for a stop is asking once.
    """
    run_ids = _listed(task_id)
    grace_s = 0.0 if str(signal).upper() in ("KILL", "SIGKILL", "9") else agent.settings.stop_grace_s
    # In a thread: the event loop must not wait for many answers of Redis.
    threading.Thread(target=_stop, args=(agent, run_ids, grace_s), name="revoke", daemon=True).start()
    return {"ok": f"runs {', '.join(run_ids)} are asked to stop"}


Panel.data["terminate"] = Panel.data["revoke"]


def _stop(agent: Agent, run_ids: Sequence[str], grace_s: float) -> None:
    for run_id in run_ids:
        try:
            agent.store.request_stop(run_id, by="Celery's remote control (Flower)", grace_s=grace_s)
        except NotFoundError:
            log.info("asked to stop run %s, which is not there", run_id)
        except LaunchError as exc:
            log.warning("run %s: could not be asked to stop: %s", run_id, exc)


# --- slots ------------------------------------------------------------------------------------------------------------


@_command
def pool_grow(agent: Agent, n: int = 1, **_: Any) -> Answer:
    """Let the agent carry n more runs at once."""
    return _resize(agent, _max_jobs(agent) + int(n))


@_command
def pool_shrink(agent: Agent, n: int = 1, **_: Any) -> Answer:
    """Let the agent carry n runs fewer at once; those it has go on."""
    return _resize(agent, _max_jobs(agent) - int(n))


@_command
def autoscale(agent: Agent, max: int | None = None, **_: Any) -> Answer:
    """Let the agent carry up to max runs at once; an empty slot costs nothing, so min means nothing."""
    return {"error": "autoscale: give a max"} if max is None else _resize(agent, int(max))


def _max_jobs(agent: Agent) -> int:
    wished = agent.store.wishes(agent.id).max_jobs
    return agent.slots.max_jobs if wished is None else wished


def _resize(agent: Agent, max_jobs: int) -> Answer:
    if not 1 <= max_jobs <= _MOST_JOBS:
        return {"error": f"max_jobs: should be 1 to {_MOST_JOBS}, not {max_jobs}; to take no runs, pause the queue"}
    agent.store.wish(agent.id, max_jobs=max_jobs)
    return {"ok": f"carries up to {max_jobs} runs at once from now on"}


# --- the worker -------------------------------------------------------------------------------------------------------


@_command
def heartbeat(agent: Agent, **_: Any) -> Answer:
    """Tell of the runs there are; whoever begins to listen to events asks for it. The agent's heart beats by itself."""
    threading.Thread(target=tell_the_present, args=(agent,), name="events", daemon=True).start()


@_command
def shutdown(_agent: Agent, **_: Any) -> Answer:
    """Let the agent go, as SIGTERM does: its runs' jobs go on."""
    log.warning("told to end by remote control")
    os.kill(os.getpid(), signals.SIGTERM)
    return {"ok": "lets go of its runs and ends"}


@_command
def enable_events(_agent: Agent, **_: Any) -> Answer:
    """Do nothing: events of runs are always sent."""
    return {"ok": "task events already enabled"}


@_command
def add_consumer(agent: Agent, queue: str = "", **_: Any) -> Answer:
    """Refuse, but for what is served already: an agent's queues are its operator's to say."""
    if launch_queue(queue) in agent.resources:
        return {"ok": f"{queue} is served already"}
    return {"error": "an agent's queues are given at its start: `launch agent -q NAME`, or in its file"}


def _refuse(why: str) -> Callable[..., Answer]:
    return lambda _state, **_: {"error": why}


Panel.data.update({name: _refuse(why) for name, why in _REFUSED.items()})


def _listed(ids: str | Sequence[str]) -> list[str]:
    return [ids] if isinstance(ids, str) else [str(run_id) for run_id in ids]
