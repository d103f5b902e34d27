"""Reading an endless answer while keeping an eye on something else. No SDK here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
PAUSE_S = 0.5
"""A reader of a stream hears of silence this often."""


def json_lines(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream that has one a line."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (json.loads(line) for line in lines if line.strip())
    if rest.strip():
        yield json.loads(rest)


def read_with_pauses(source: Iterable[T], close: Callable[[], None], pause_s: float) -> Iterator[list[T]]:
    """Yield what ``source`` gives, as much at a time as there is, and an empty list after each ``pause_s`` of silence.

    A thread does the blocking reads, so that the consumer can look up. Errors of ``source`` are raised here; leaving
    the iterator calls ``close``, which must end the read that is under way.
    """
    box: _Box[T] = _Box()
    thread = threading.Thread(target=box.fill, args=(source,), name="docker-stream", daemon=True)
    thread.start()
    try:
        while (batch := box.take(pause_s)) is not None:
            yield batch
    finally:
        box.leave()
        close()
        thread.join()


class _Box(Generic[T]):
    """What was read and not yet taken. A queue would wake its taker for every item; this hands over all there is."""

    def __init__(self, room: int = 4096) -> None:
        self._changed = threading.Condition()
        self._items: list[T] = []
        self._room = room
        self._is_over = False
        self._error: Exception | None = None

    def fill(self, source: Iterable[T]) -> None:
        """Put in all of ``source``, waiting while there is no room."""
        error = None
        try:
            for item in source:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._items) < self._room or self._is_over)
                    if self._is_over:
                        return
                    self._items.append(item)
                    self._changed.notify_all()
        except Exception as exc:  # the taker's to raise
            error = exc
        with self._changed:
            self._is_over, self._error = True, error
            self._changed.notify_all()

    def take(self, timeout_s: float) -> list[T] | None:
        """Return all items there are, none at a timeout, ``None`` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_over, timeout_s)
            batch, self._items = self._items, []
            self._changed.notify_all()
            if batch or not self._is_over:
                return batch
            if self._error is not None:
                raise self._error
            return None

    def leave(self) -> None:
        """Let the filling thread go."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
