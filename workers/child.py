"""The process that ``launch agent`` keeps alive: one Celery worker with one agent in it, and a watch on both."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import threading
import time
import warnings
from typing import Any

from celery import signals
from celery.exceptions import CPendingDeprecationWarning

from launch.broker import celery_queue
from launch.log_lines import set_up_logging
from launch.settings import settings
from workers.agent import new_agent_id
from workers.app import CeleryDoorbells, build_app
from workers.config import ENV_BROKER, ENV_CONFIG, ENV_DRAIN, AgentConfig

log = logging.getLogger(__name__)

EXIT_STUCK = 70
"""The exit code of a worker that no longer hears its broker, or whose heart stands still."""

_LOOK_S = 5.0
_STUCK_S = 60.0


def main() -> None:
    """Run the worker until it is told to end."""
    # Celery warns of a worker run by root because of pickled messages; this one reads JSON only.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    config = AgentConfig.model_validate_json(os.environ[ENV_CONFIG])
    id = new_agent_id(config.name)
    _set_up_logging(id)
    app = build_app(os.environ[ENV_BROKER])
    worker = app.Worker(
        hostname=f"{id}@{platform.node()}",
        queues=[celery_queue(queue) for queue in config.queues],
        # The pool has nothing to do: see workers.app.
        concurrency=1,
        pool_cls="threads",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel="INFO",
    )
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_watch, args=(worker,), daemon=True).start()
    if os.environ.get(ENV_DRAIN):
        # Celery sets its own handlers while it starts.
        signals.worker_ready.connect(lambda **_: _drain_at_sigterm(worker), weak=False)
    worker.start()
    # Everything is said and written; what is left are threads that wait for jobs, and an interpreter to take apart.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(worker.exitcode or 0)


def _set_up_logging(agent: str) -> None:
    set_up_logging(settings().log_format, agent=agent)
    # Celery's and kombu's own lines are about messages, which mean nothing here.
    for name in ("celery", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _end_with_parent() -> None:
    """End as on SIGTERM when the parent is gone: its end of our standard input closes."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _watch(worker: Any) -> None:
    """End the process when its event loop or its supervisor has stopped going round while Redis answers."""
    while True:
        time.sleep(_LOOK_S)
        agent, supervisor = worker.agent, getattr(worker, "agent_supervisor", None)
        if agent is None or supervisor is None:
            continue
        doorbells: CeleryDoorbells = agent.doorbells
        since = min(supervisor.pulse, doorbells.ticked_at if agent.lease.is_valid else time.monotonic())
        if time.monotonic() - since > _STUCK_S and not agent.is_draining:
            log.error("this worker is stuck; it ends, to be started anew")
            agent.detach()
            os._exit(EXIT_STUCK)


def _drain_at_sigterm(worker: Any) -> None:
    """Let SIGTERM wait for the runs in hand; a second one lets go of them."""
    end = signal.getsignal(signal.SIGTERM)

    def drain() -> None:
        worker.agent.drain()
        os.kill(os.getpid(), signal.SIGTERM)

    def on_sigterm(*_: Any) -> None:
        signal.signal(signal.SIGTERM, end)
        threading.Thread(target=drain, daemon=True).start()

    signal.signal(signal.SIGTERM, on_sigterm)


if __name__ == "__main__":
    main()
