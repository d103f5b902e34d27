"""A run's log on its way: from the target to a file on this machine and to Redis, with one cursor for both.

The file is a line of JSON a chunk, ``{"s": stream, "t": text}``, and goes to the artifact store at the end. Redis holds
the newest part for those who watch. Both are written before the cursor is, and a writer that goes on after another one
cuts the file back to the length recorded with the cursor: so an adopted run's log has no gap and no repeat.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from launch.errors import LostClaimError, TemporaryError
from launch.loglines import fold_lines
from launch.plugins import LogStream, Runner
from workers.claim import Claim, DetachedError

log = logging.getLogger(__name__)

_FLUSH_S = 0.1
_FLUSH_CHARS = 64_000
_TAIL_LINES = 30
_TAIL_LINE_CHARS = 2000
_TAIL_BYTES = 256_000
_RETRY_S = 1.0


def encode_chunk(stream: str, text: str) -> bytes:
    """Return a chunk as the file holds it."""
    return json.dumps({"s": stream, "t": text}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class LogWriter:
    """Writes one attempt's log. Used by one thread at a time: the build's, then the pump's."""

    def __init__(self, claim: Claim, path: Path, *, cap_chars: int) -> None:
        self.path = path
        self.cursor = claim.record.log_cursor
        self._claim = claim
        self._cap_chars = cap_chars
        self._written = claim.record.log_bytes
        self._pending: list[tuple[str, str]] = []
        self._pending_chars = 0
        self._flushed_at = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.is_whole = _cut(path, self._written)
        """False when the file's beginning is on a machine that is gone; the target has it still."""

    def write(self, stream: LogStream, text: str, cursor: str | None = None) -> None:
        """Take a chunk; it is flushed at once after a pause, else with the next ones."""
        if text:
            self._pending.append((stream, text))
            self._pending_chars += len(text)
        if cursor is not None:
            self.cursor = cursor
        if time.monotonic() - self._flushed_at >= _FLUSH_S or self._pending_chars >= _FLUSH_CHARS:
            self.flush()

    def flush(self) -> None:
        """Write out what is pending.

        Raises:
            LostClaimError: the run is another agent's.
        """
        if not self._pending:
            return
        chunks = _merged(self._pending)
        data = b"".join(encode_chunk(stream, text) for stream, text in chunks)
        with self.path.open("ab") as file:
            file.write(data)
        before, self._written = self._written, self._written + len(data)
        self._claim.append_log(
            chunks, cursor=self.cursor, bytes_before=before, bytes_after=self._written, cap_chars=self._cap_chars
        )
        self._pending, self._pending_chars = [], 0
        self._flushed_at = time.monotonic()

    def tail(self) -> tuple[str, ...]:
        """Return the last lines of the log, oldest first, progress bars folded."""
        self.flush()
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - _TAIL_BYTES))
            chunks = [json.loads(line) for line in file if line.startswith(b"{") and line.endswith(b"}\n")]
        lines = [line.text[:_TAIL_LINE_CHARS] for line in fold_lines((chunk["s"], chunk["t"]) for chunk in chunks)]
        return tuple(lines[-_TAIL_LINES:])

    def rewrite(self, chunks: Iterable[tuple[str, str]]) -> None:
        """Make the file anew from a source that has all of it."""
        with self.path.open("wb") as file:
            for stream, text in chunks:
                file.write(encode_chunk(stream, text))
            self.is_whole = True


def _merged(chunks: list[tuple[str, str]]) -> list[tuple[str, str]]:
    merged: list[tuple[str, str]] = []
    for stream, text in chunks:
        if merged and merged[-1][0] == stream:
            merged[-1] = (stream, merged[-1][1] + text)
        else:
            merged.append((stream, text))
    return merged


def _cut(path: Path, length: int) -> bool:
    """Cut a file back to a length, and return whether it was at least that long."""
    size = path.stat().st_size if path.exists() else 0
    with path.open("ab") as file:
        file.truncate(length if size >= length else 0)
    return size >= length


class LogPump:
    """Follows an attempt's log in a thread of its own, from the recorded cursor to the end."""

    def __init__(self, runner: Runner, handle: str, writer: LogWriter, claim: Claim) -> None:
        self._runner = runner
        self._handle = handle
        self._writer = writer
        self._claim = claim
        self._thread = threading.Thread(target=self._pump, name=f"log-{claim.id}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the log; returns whether it was reached."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _pump(self) -> None:
        while not self._claim.is_detached:
            try:
                for chunk in self._runner.logs(self._handle, self._writer.cursor):
                    if self._claim.is_detached:
                        return
                    self._writer.write(chunk.stream, chunk.text, chunk.cursor)
                self._writer.flush()
                return
            except TemporaryError as exc:
                log.info("run %s: log interrupted, going on: %s", self._claim.id, exc)
                time.sleep(_RETRY_S)
            except (LostClaimError, DetachedError):
                return
            except Exception:
                log.exception("run %s: its log cannot be followed", self._claim.id)
                return
