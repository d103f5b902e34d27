"""Reading an endless answer with pauses: nothing lost, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from workers.docker_streams import json_lines, read_with_pauses


def test_everything_arrives_in_order_before_the_end() -> None:
    """More items than the box has room for."""
    items = [item for batch in read_with_pauses(range(100_000), lambda: None, 5.0) for item in batch]
    assert items == list(range(100_000))


def test_silence_is_told() -> None:
    """An empty batch after each pause, so that the consumer can look up; then what came."""
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        go_on.wait()
        yield 2

    batches = read_with_pauses(source(), lambda: None, 0.05)
    assert [next(batches), next(batches), next(batches)] == [[1], [], []]
    go_on.set()
    assert [item for batch in batches for item in batch] == [2]


def test_an_error_comes_after_what_was_read() -> None:
    """The source's error is the consumer's."""

    def source() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    batches = read_with_pauses(source(), lambda: None, 5.0)
    assert next(batches) == [1]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_leaving_ends_the_read() -> None:
    """Also one that waits for the network, and one that waits for room."""
    closed = threading.Event()

    def quiet() -> Iterator[int]:
        yield 1
        closed.wait()

    def endless() -> Iterator[int]:
        while not closed.is_set():
            yield 1

    for source in (quiet, endless):
        closed.clear()
        batches = read_with_pauses(source(), closed.set, 5.0)
        next(batches)
        batches.close()  # type: ignore[attr-defined]  # it is a generator
        assert closed.is_set()
        assert not [thread for thread in threading.enumerate() if thread.name == "docker-stream"]


def test_json_lines_cut_anywhere() -> None:
    """The network knows no lines; the last may lack its end."""
    assert list(json_lines([b'{"a": ', b'1}\r\n{"b"', b": 2}\n\n", b'{"c": 3}'])) == [{"a": 1}, {"b": 2}, {"c": 3}]
