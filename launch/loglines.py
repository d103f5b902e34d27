"""From chunks of a job's output to lines a person can read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_LINE_CHARS = 1 << 16


@dataclass(frozen=True)
class LogLine:
    """One line of a run's log."""

    stream: str
    """``stdout``, ``stderr`` or ``build``."""
    text: str
    """Without its line end."""


class LineFolder:
    """Joins chunks to lines, each stream apart, and folds progress bars: of what a carriage return overwrote, the last.

    Holds one unfinished line a stream, at most :data:`MAX_LINE_CHARS` of it; a longer one comes in pieces.
    """

    def __init__(self) -> None:
        self._open: dict[str, str] = {}

    def feed(self, stream: str, text: str) -> list[LogLine]:
        """Return the lines that a chunk completes."""
        *whole, rest = (self._open.get(stream, "") + text).split("\n")
        lines = [LogLine(stream, folded(line)) for line in whole]
        rest = _unfinished(rest)
        while len(rest) > MAX_LINE_CHARS:
            lines.append(LogLine(stream, rest[:MAX_LINE_CHARS]))
            rest = rest[MAX_LINE_CHARS:]
        self._open[stream] = rest
        return lines

    def flush(self) -> list[LogLine]:
        """Return the unfinished lines: call it at the end of the log."""
        lines = [LogLine(stream, folded(text)) for stream, text in self._open.items() if text]
        self._open.clear()
        return lines


def folded(line: str) -> str:
    """Return what is left to see of a line whose carriage returns went back to its start."""
    return next((part for part in reversed(line.split("\r")) if part), "")


def _unfinished(text: str) -> str:
    """Return the part of an unfinished line that can still be seen, with the carriage return that may end it."""
    body = text.rstrip("\r")
    return body[body.rfind("\r") + 1 :] + text[len(body) :][:1]


def fold_lines(chunks: Iterable[tuple[str, str]]) -> Iterator[LogLine]:
    """Yield the lines of ``(stream, text)`` chunks, the unfinished ones last."""
    folder = LineFolder()
    for stream, text in chunks:
        yield from folder.feed(stream, text)
    yield from folder.flush()
