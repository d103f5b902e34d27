"""Keeps a queue's messages and its waiting runs the same in number, and takes in what plain Celery clients send.

A message may be lost with a worker, be delivered twice or come from a client that knows nothing of records; here that
is mended, by any agent that serves the queue, so that a message never decides over a run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from launch.broker import TASK_NAME, decode_message
from launch.errors import ConfigError, RequestError
from launch.intake import SpecBuilder
from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, is_run_id
from launch.store import RunStore

log = logging.getLogger(__name__)

_TURN_S = 10.0


class Intake:
    """Takes in the requests of plain Celery clients: checked like any other, each recorded once."""

    def __init__(self, store: RunStore, builder: SpecBuilder) -> None:
        self._store = store
        self._builder = builder

    def take_in(self, queue: str, spec: Any, *, task_id: str | None) -> None:
        """Record the run a message asks for, or a failed one that says what is wrong with it.

        Args:
            queue: where the message was.
            spec: its ``spec`` keyword.
            task_id: the message's id, which names the run, so that a second delivery is the same run.
        """
        run_id = _run_id(task_id)
        try:
            if isinstance(spec, Mapping):
                spec = {"queue": queue, **spec}
                if spec["queue"] != queue:
                    raise ConfigError(f"spec/queue: is {spec['queue']!r}, but the message was sent to queue {queue!r}")
            launch = self._builder.register_foreign(spec, run_id=run_id)
            self._store.enqueue(launch)
        except RequestError as exc:
            log.warning("queue %s: message %s is no valid launch: %s", queue, task_id, exc)
            self._store.refuse(_placeholder(run_id, queue, self._store), Cause(kind=CauseKind.CONFIG, message=str(exc)))


def _run_id(task_id: str | None) -> str:
    text = task_id or "unnamed"
    return text if is_run_id(text) else hashlib.sha256(text.encode()).hexdigest()[:32]


def _placeholder(run_id: str, queue: str, store: RunStore) -> LaunchSpec:
    job = Job(source=CommandSource(), entrypoint=(TASK_NAME,))
    return LaunchSpec(run_id=run_id, queue=queue, resource=store.queue(queue).resource, job=job)


def reconcile(store: RunStore, intake: Intake, queue: str, agent: str) -> bool:
    """Make a queue's messages as many as its waiting runs; false when another agent is at it."""
    with store.turn(f"reconcile:{queue}", agent, for_s=_TURN_S) as mine:
        if mine:
            messages, waiting = store.messages(queue)
            if messages < waiting:
                log.info("queue %s: %d message(s) were missing", queue, store.ring_missing(queue))
            elif messages > waiting:
                _sort_out(store, intake, queue)
        return mine


def _sort_out(store: RunStore, intake: Intake, queue: str) -> None:
    """Take in foreign messages in their order, then remove what is too many of our own."""
    ours: dict[str, list[tuple[str, str]]] = {}
    for name, raw in store.peek(queue):
        message = decode_message(raw)
        if message is None:
            log.warning("queue %s: dropped a message that is no %s task: %.200s", queue, TASK_NAME, raw)
            store.take_message(name, raw)
        elif message.is_recorded:
            ours.setdefault(message.task_id or "", []).append((name, raw))
        else:
            # Recorded first, removed then: dying in between repeats the first, which changes nothing.
            intake.take_in(queue, message.spec, task_id=message.task_id)
            store.take_message(name, raw)
    _remove_surplus(store, queue, ours)


def _remove_surplus(store: RunStore, queue: str, ours: dict[str, list[tuple[str, str]]]) -> None:
    messages, waiting = store.messages(queue)
    surplus = messages - waiting
    waiting_ids = store.waiting_among(queue, list(ours))
    idle = [entry for run_id, entries in ours.items() for entry in entries[1 if run_id in waiting_ids else 0 :]]
    for name, raw in idle[: max(0, surplus)]:
        store.take_message(name, raw)
