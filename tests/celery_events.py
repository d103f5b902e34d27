"""Celery's own view of what is told of runs: a real event receiver and the state that Flower keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery.events.state import State, Task

from launch.broker import make_app
from launch.connection import connect
from tests.agents import wait_until


class Listener:
    """What a monitor of Celery knows, by listening since it was made."""

    def __init__(self) -> None:
        self.state = State()
        self.heard: list[dict[str, Any]] = []

    def on_event(self, event: dict[str, Any]) -> None:
        self.heard.append(dict(event))
        self.state.event(event)

    def types_of(self, run_id: str) -> list[str]:
        """Return the types of a run's events in the order they came."""
        return [event["type"] for event in list(self.heard) if event.get("uuid") == run_id]

    def task(self, run_id: str, state: str) -> Task:
        """Return a run as a monitor shows it, once it is in a state."""
        tasks = self.state.tasks
        wait_until(
            lambda: run_id in tasks and tasks[run_id].state == state,
            what=f"{state} of {run_id}, of which was heard {self.types_of(run_id)}",
        )
        return tasks[run_id]


@contextmanager
def listening(url: str) -> Iterator[Listener]:
    """Listen to Celery's events, as Flower does."""
    listener = Listener()
    app = make_app(url)
    redis = connect(url)
    patterns = redis.pubsub_numpat()
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": listener.on_event})
        thread = threading.Thread(target=_capture, args=(receiver,), daemon=True)
        thread.start()
        wait_until(lambda: redis.pubsub_numpat() > patterns, what="the subscription")
        try:
            yield listener
        finally:
            receiver.should_stop = True
            thread.join(10)
            redis.close()


def _capture(receiver: Any) -> None:
    consume: Callable[..., Any] = receiver.consume
    while not receiver.should_stop:
        for _ in consume(limit=None, timeout=0.2, safety_interval=0, wakeup=True):
            if receiver.should_stop:
                return
