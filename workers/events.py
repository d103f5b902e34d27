"""What an agent tells whoever listens to Celery's events, besides what the scripts tell: its heartbeat, the present.

Events are not kept anywhere. A Flower that is started late has heard nothing of the runs there are, but it calls for a
heartbeat as Celery does; then each agent tells of the runs in its slots, and one of them of those that wait.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from typing import TYPE_CHECKING

import launch
from launch.errors import LaunchError
from launch.run_events import worker_event

if TYPE_CHECKING:
    from workers.agent import Agent

log = logging.getLogger(__name__)

_MOST_WAITING = 10_000
"""Runs of one queue that are told of at once; the others appear when they move."""
_PAGE = 500
_AFTER_S = (0.5, 4.0)
"""When the present is told after it was asked for, in seconds, each after the one before: whoever asks begins to listen
only then. Twice, should that one be slow."""
_OTHERS_S = 1.0
"""How long after one agent has told of what waits the others need not."""


def heartbeat_event(agent: Agent) -> str:
    """Return what an agent's heartbeat says, as Celery's does."""
    return worker_event(
        pid=os.getpid(),
        freq=agent.settings.heartbeat_s,
        active=len(agent.claims),
        processed=agent.carried.total(),
        loadavg=[round(load, 2) for load in os.getloadavg()],
        sw_ident="openlaunch",
        sw_ver=launch.__version__,
        sw_sys=platform.system(),
    )


def tell_the_present(agent: Agent) -> None:
    """Tell, in a moment, of the runs in an agent's slots and of those that wait; returns when that is done."""
    try:
        for after_s in _AFTER_S:
            time.sleep(after_s)
            for claim in list(agent.claims.values()):
                agent.store.describe(claim.spec, claim.fence)
            with agent.store.turn("events", agent.id, for_s=_AFTER_S[-1]) as mine:
                if mine:
                    _tell_of_waiting(agent)
                    time.sleep(_OTHERS_S)
    except LaunchError as exc:
        log.warning("could not tell of the runs there are: %s", exc)


def _tell_of_waiting(agent: Agent) -> None:
    for queue in agent.store.queues():
        run_ids = agent.store.ids(queue.name, "waiting", _MOST_WAITING)
        for start in range(0, len(run_ids), _PAGE):
            records = agent.store.records(run_ids[start : start + _PAGE])
            agent.store.tell_sent([(record.spec, record.created_at) for record in records if record.state == "queued"])
