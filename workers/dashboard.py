"""What makes stock Flower a dashboard of runs, as far as its own options go: ``celery -A workers.app flower``.

Flower draws the button Terminate for a task that is STARTED and Revoke for one that is RECEIVED, and knows no other
states of a task that can be ended. Its option ``format_task`` is called with each task before it is drawn: there, the
states of a live run are given as texts that read as they are and pass for those two.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery, signals

_PASSES_FOR = {"PENDING": "RECEIVED", "BUILDING": "STARTED", "STARTING": "STARTED", "RUNNING": "STARTED"}


class LiveState(str):
    """A task's state that reads as it is and equals one of Celery's as well."""

    __slots__ = ("passes_for",)
    passes_for: str

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or other == self.passes_for

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def with_buttons(task: Any) -> Any:
    """Return a task for Flower to draw: one that lives gets the button that ends it."""
    if task.state in _PASSES_FOR:
        state = LiveState(task.state)
        state.passes_for = _PASSES_FOR[task.state]
        task.state = state
    return task


def set_up_flower(app: Celery) -> None:
    """Let a Flower that shows this app draw these buttons, unless it was given a ``format_task`` of its own."""
    signals.import_modules.connect(_set_options, sender=app, weak=False)


def _set_options(**_: Any) -> None:
    # Sent by Flower once it has read its options, and by workers, where there is none.
    flower = sys.modules.get("flower.options")
    if flower is not None and flower.options.format_task is None:
        flower.options.format_task = with_buttons
