"""Whatever lands on a queue's list: no message of any shape stops an agent, holds a slot or loses what is behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from celery import Celery

from launch.client import Client
from launch.models import RunState
from launch.store import RunStore
from tests.agents import Fleet, wait_until

SPEC = {"command": ["true"], "tracking": "optional"}


def send(app: Celery, **options: Any) -> str:
    return str(app.send_task("launch.run", **{"kwargs": {"spec": SPEC}, "queue": "launch.q", **options}).id)


def raw(store: RunStore, change: Callable[[dict[str, Any]], object]) -> None:
    """Put a plain client's message on the list, changed."""
    with Celery(broker="memory://") as app:
        made = app.amqp.as_task_v2("raw", "launch.run", kwargs={"spec": SPEC})
    envelope = {
        "body": json.dumps(made.body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": made.headers,
        "properties": {**made.properties, "delivery_info": {"exchange": "", "routing_key": "launch.q"}},
    }
    envelope["properties"] |= {"delivery_tag": "t", "delivery_mode": 2, "priority": 0}
    change(envelope)
    store.redis.lpush("launch.q", json.dumps(envelope))


def test_odd_messages_become_failed_runs_or_nothing_and_the_next_run_goes_on(
    client: Client, fleet: Fleet, store: RunStore, redis_url: str
) -> None:
    """One slot, one agent, no restart: each message is followed by a good one that must finish."""
    agent = fleet.start("q")
    with Celery(broker=redis_url) as app:
        odd = {
            "two positional arguments": lambda: send(app, args=[1, 2]),
            "no spec": lambda: send(app, kwargs={}),
            "a spec that is a list": lambda: send(app, kwargs={"spec": [1]}),
            "eta in an hour": lambda: send(app, countdown=3600),
            "expired": lambda: send(app, expires=0.001),
            "a priority": lambda: send(app, priority=9),
            "an id that is no run id": lambda: send(app, task_id="Odd Id"),
            "text": lambda: store.redis.lpush("launch.q", "hello"),
            "an empty list": lambda: store.redis.lpush("launch.q", "[]"),
            "not UTF-8": lambda: store.redis.lpush("launch.q", b"\xff\xfe"),
            "another task": lambda: app.send_task("other.task", queue="launch.q"),
            "an id that is a number": lambda: raw(store, lambda envelope: envelope["headers"].update(id=7)),
            "an id that is a list": lambda: raw(store, lambda envelope: envelope["headers"].update(id=[1])),
            "kwargs as a list": lambda: raw(store, lambda envelope: envelope.update(body="[[], [1], {}]")),
            "a body that is no JSON": lambda: raw(store, lambda envelope: envelope.update(body="{")),
            "pickle": lambda: raw(store, lambda e: e.update({"content-type": "application/x-python-serialize"})),
            "another routing key": lambda: raw(
                store, lambda envelope: envelope["properties"]["delivery_info"].update(routing_key="mail")
            ),
        }
        for what, put in odd.items():
            put()
            run = client.enqueue(command=["true"], queue="q", tracking="optional").wait(timeout_s=30)
            assert run.state is RunState.FINISHED, what

    wait_until(lambda: store.messages("q") == (0, 0), what=f"the end of {list(store.peek('q'))}")
    assert "starting it anew" not in agent.log.read_text()
    said = {run.id: run.cause.message for run in client.runs(state="failed", limit=100) if run.cause}
    assert any("eta" in message for message in said.values())
    assert any("spec: should be a mapping" in message for message in said.values())
    assert wait_until(lambda: [found.runs for found in client.agents() if found.is_alive] == [()])


def test_a_message_sent_twice_is_one_run(client: Client, fleet: Fleet, redis_url: str) -> None:
    with Celery(broker=redis_url) as app:
        for _ in range(3):
            send(app, task_id="the-same")
    fleet.start("q")

    wait_until(lambda: [run.id for run in client.runs()] == ["the-same"])
    assert client.run("the-same").wait(timeout_s=30).state is RunState.FINISHED
    assert client.run("the-same").attempt == 1
