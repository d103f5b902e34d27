"""Keeps a queue's messages and its waiting runs the same in number, and takes in what plain Celery clients send.

A message may be lost with a worker, be delivered twice or come from a client that knows nothing of records; here that
is mended, by any agent that serves the queue, so that a message never decides over a run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from launch.broker import TASK_NAME, Message, decode_message
from launch.errors import ConfigError, RequestError, TemporaryError
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

    def take_in(self, queue: str, message: Message) -> None:
        """Record the run a message asks for, or a failed one that says what is wrong with it.

        The message's id names the run, so that a second delivery is the same run.
        """
        run_id = _run_id(message.task_id)
        try:
            if message.problem:
                raise ConfigError(message.problem)
            self._store.enqueue(self._builder.register_foreign(_addressed(message.spec, queue), run_id=run_id))
        except RequestError as exc:
            self._refuse(queue, run_id, str(exc))
        except TemporaryError:
            raise
        except Exception as exc:
            # Whatever a stranger sends must not keep those behind it from being taken in.
            log.exception("queue %s: message %s", queue, message.task_id)
            self._refuse(queue, run_id, f"the message: {type(exc).__name__}: {exc}")

    def _refuse(self, queue: str, run_id: str, reason: str) -> None:
        log.warning("queue %s: message %s is no valid launch: %s", queue, run_id, reason)
        job = Job(source=CommandSource(), entrypoint=(TASK_NAME,))
        spec = LaunchSpec(run_id=run_id, queue=queue, resource=self._store.queue(queue).resource, job=job)
        self._store.refuse(spec, Cause(kind=CauseKind.CONFIG, message=reason))


def _addressed(spec: Any, queue: str) -> Any:
    if not isinstance(spec, Mapping):
        return spec
    if spec.get("queue", queue) != queue:
        raise ConfigError(f"spec/queue: is {spec['queue']!r}, but the message was sent to queue {queue!r}")
    return {**spec, "queue": queue}


def _run_id(task_id: str | None) -> str:
    text = task_id or "unnamed"
    return text if is_run_id(text) else hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]


def reconcile(store: RunStore, intake: Intake, queue: str, agent: str) -> bool:
    """Make a queue's messages as many as its waiting runs; false when another agent is at it."""
    with store.turn(f"reconcile:{queue}", agent, for_s=_TURN_S) as mine:
        if mine:
            messages, waiting = store.messages(queue)
            if messages < waiting:
                added = store.ring_missing(queue)
                store.meter.count("mended", queue, "added", by=added)
                log.info("queue %s: %d message(s) were missing", queue, added)
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
            intake.take_in(queue, message)
            store.take_message(name, raw)
    _remove_surplus(store, queue, ours)


def _remove_surplus(store: RunStore, queue: str, ours: dict[str, list[tuple[str, str]]]) -> None:
    messages, waiting = store.messages(queue)
    surplus = messages - waiting
    waiting_ids = store.waiting_among(queue, list(ours))
    idle = [entry for run_id, entries in ours.items() for entry in entries[1 if run_id in waiting_ids else 0 :]]
    for name, raw in idle[: max(0, surplus)]:
        store.take_message(name, raw)
        store.meter.count("mended", queue, "removed")
