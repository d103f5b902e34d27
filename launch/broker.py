"""Celery, as far as openlaunch uses it: the app with every option set on purpose, and the messages it carries.

This is the only place that knows Celery's options and kombu's message format, but for the envelope of events, which
``launch/scripts/run_events.lua`` publishes. A launch queue is a Celery queue ``launch.<name>``, a Redis list that kombu
pops from the right. A message on it carries a whole launch spec, yet it is only a doorbell: the agent that receives it
claims the head of the queue from the record. Messages that openlaunch wrote itself have the header ``recorded``; one
without it comes from a plain Celery client and is a request to enqueue.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.settings import sentinels_of

if TYPE_CHECKING:
    from celery import Celery

TASK_NAME = "launch.run"
RECORDED = "recorded"
QUEUE_PREFIX = "launch."
# kombu's Redis transport keeps one list per priority step; ours all go to the first, a foreign one may be in any.
_PRIORITY_SUFFIXES = ("", "\x06\x163", "\x06\x166", "\x06\x169")


def celery_queue(queue: str) -> str:
    """Return the Celery queue that stands for a launch queue."""
    return QUEUE_PREFIX + queue


def launch_queue(celery_name: str) -> str | None:
    """Return the launch queue a Celery queue stands for, or none if it is not one of ours."""
    return celery_name.removeprefix(QUEUE_PREFIX) if celery_name.startswith(QUEUE_PREFIX) else None


def message_lists(queue: str) -> list[str]:
    """Return the Redis lists that hold a queue's messages, the one openlaunch writes to first."""
    return [celery_queue(queue) + suffix for suffix in _PRIORITY_SUFFIXES]


def make_app(broker_url: str, *, visibility_s: int = 60) -> Celery:
    """Return a Celery app for the broker, connected to nothing yet.

    Args:
        broker_url: as kombu takes it: ``redis://…``, ``rediss://…``, ``redis+socket:///path``, ``sentinel://…``.
        visibility_s: when kombu gives back a message whose receiver died before it acknowledged, in seconds. That is
            done within milliseconds and no run depends on it, so it may be short: what waits for it is a request
            from outside that has no record yet.
    """
    from celery import Celery

    sentinels = sentinels_of(broker_url)
    app = Celery("launch", broker=sentinels.kombu_url if sentinels else broker_url, set_as_current=False)
    app.conf.update(
        # Records live in our own keys. A result backend would double every write and, on Redis, open a second
        # connection whose loss kills the worker.
        result_backend=None,
        task_ignore_result=True,
        # A message is a doorbell: acknowledge before the work, so that a worker's death or a run longer than the
        # visibility timeout never delivers it again. The record and its claim are what must not be lost.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # One message at a time; whether to take one at all is the slot gate's decision (workers.slots).
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        # Only JSON is ever read: a pickled message from the outside would run code on the agent.
        task_serializer="json",
        accept_content=["json"],
        task_compression=None,
        # Events are sent on behalf of runs, not of doorbells.
        worker_send_task_events=False,
        task_send_sent_event=False,
        # Queues come into being when somebody creates a launch queue; Celery's own default stays out of the way.
        task_default_queue=celery_queue("_default"),
        task_create_missing_queues=True,
        # An agent waits for Redis as long as it takes; a run at its target does not notice.
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": visibility_s,
            "queue_order_strategy": "round_robin",
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            "retry_on_timeout": True,
            "health_check_interval": 10,
            **({"master_name": sentinels.master_name} if sentinels else {}),
        },
        # Made as needed. A broadcast holds one while it waits for a second, and Flower makes up to 33 at once: with a
        # limit below 67 they could all wait for each other.
        broker_pool_limit=100,
        # The agent's own logging stays as the agent set it up.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        enable_utc=True,
    )
    return app


def encode_bell(run_id: str, queue: str, spec_json: str) -> str:
    """Return the marked message of a run, byte for byte what kombu would put on the list."""
    return _encode(run_id, celery_queue(queue), spec_json, {RECORDED: 1})


def encode_request(task_id: str | None, queue: str, spec: Any) -> str:
    """Return an unmarked message that asks for a run, as a plain Celery client sends it."""
    return _encode(task_id or "", celery_queue(queue), json.dumps(spec), {})


def _encode(task_id: str, celery_name: str, spec_json: str, mark: dict[str, int]) -> str:
    """Source: Celery message protocol 2, https://docs.celeryq.dev/en/stable/internals/protocol.html"""
    body = f'[[], {{"spec": {spec_json}}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]'
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": TASK_NAME,
                "id": task_id,
                "root_id": task_id,
                "parent_id": None,
                "group": None,
                "eta": None,
                "expires": None,
                "retries": 0,
                "timelimit": [None, None],
                # Left blank: a repr would show the spec in every log line and on every page that lists tasks.
                "argsrepr": "",
                "kwargsrepr": "",
                "ignore_result": True,
                **mark,
            },
            "properties": {
                "correlation_id": task_id,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": celery_name},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": f"{task_id}-bell",
            },
        },
        separators=(",", ":"),
    )


@dataclass(frozen=True)
class Message:
    """A ``launch.run`` message, as far as we need to know it."""

    task_id: str | None
    is_recorded: bool
    spec: Any
    """The ``spec`` keyword argument: a mapping if the sender did it right."""
    problem: str | None = None
    """Why it can be no request, whatever its ``spec`` says."""


def decode_message(raw: str) -> Message | None:
    """Return a list entry read as a Celery message, or none if it is not a ``launch.run`` task."""
    try:
        envelope = json.loads(raw)
        headers, body = envelope["headers"], envelope["body"]
        if headers.get("task") != TASK_NAME:
            return None
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        return read_message(headers, body, str(envelope.get("content-type")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_message(headers: Mapping[str, Any], body: str | bytes, content_type: str) -> Message:
    """Return what a ``launch.run`` message says; one that says nothing usable has a ``problem``."""
    task_id = None if headers.get("id") is None else str(headers["id"])
    is_recorded = bool(headers.get(RECORDED))
    try:
        if content_type != "application/json":
            raise ValueError(f"its body is {content_type}")
        _args, kwargs, _embed = json.loads(body)
        spec = kwargs.get("spec")
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        problem = f"the message: should be JSON with kwargs={{'spec': ...}} ({exc})"
        return Message(task_id, is_recorded, spec=None, problem=problem)
    return Message(task_id, is_recorded, spec, _timing_problem(headers))


def _timing_problem(headers: Mapping[str, Any]) -> str | None:
    for name in ("eta", "expires"):
        if headers.get(name) is not None:
            return (
                f"the message: {name}: a launch waits in its queue until it is claimed; leave {name} and countdown out"
            )
    return None
