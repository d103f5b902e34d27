"""A run's log on its way: from the target to a file on this machine and to Redis, with one cursor for both.

The file is a line of JSON a chunk, ``{"s": stream, "t": text}``, and goes to the artifact store at the end. Redis holds
the newest part for those who watch. Both are written before the cursor is, and a writer that goes on after another one
takes over its file up to the length recorded with the cursor: so an adopted run's log has no gap and no repeat.

Secrets are masked on the way in (``workers.redact``): neither file nor Redis ever holds one. What is held back since it
may be the beginning of one is in neither, and the recorded cursor is then the one before it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from launch.errors import LostClaimError, TemporaryError
from launch.loglines import fold_lines
from launch.plugins import LogStream, Runner
from workers.claim import Claim, DetachedError
from workers.redact import Piece, Redactor, StreamRedactor

log = logging.getLogger(__name__)

_FLUSH_S = 0.1
_FLUSH_CHARS = 64_000
_MAX_CHUNK_CHARS = 64_000
_END_S = 2.0
_TAIL_LINES = 30
_TAIL_LINE_CHARS = 2000
_TAIL_BYTES = 256_000
_RETRY_S = 1.0


def encode_chunk(stream: str, text: str) -> bytes:
    """Return a chunk as the file holds it."""
    return json.dumps({"s": stream, "t": text}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class LogWriter:
    """Writes one attempt's log. Used by one thread at a time: the build's, then the pump's.

    The file is this claim's own: an agent that has lost its claim without knowing writes into another one. A disk that
    is full costs the file, never the run: Redis goes on getting the log, and the whole of it is read again from the
    target at the end.
    """

    def __init__(self, claim: Claim, home: Path, *, cap_chars: int) -> None:
        self.path = log_path(home, claim)
        self.cursor = claim.record.log_cursor
        """Where in the target's log what was taken ends; the recorded one may be behind it."""
        self._recorded = self.cursor
        self._claim = claim
        self._masked: StreamRedactor[str | None] = StreamRedactor()
        self._cap_chars = cap_chars
        self._written = claim.record.log_bytes
        self._pending: list[tuple[str, str]] = []
        self._pending_chars = 0
        self._flushed_at = 0.0
        self.is_whole = self._take_over(home)
        """False when the file lacks something, which the target has still."""
        self._is_continued = self._written > 0

    def _take_over(self, home: Path) -> bool:
        """Begin with what the claims before this one have written, as far as the record says it was."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            if self._written == 0:
                return True
            for former in sorted(_files_of(home, self._claim), key=_epoch_of, reverse=True):
                if former != self.path and former.stat().st_size >= self._written:
                    shutil.copyfile(former, self.path)
                    os.truncate(self.path, self._written)
                    return True
        except OSError as exc:
            log.warning("run %s: no log file: %s", self._claim.id, exc)
        return False

    def write(self, stream: LogStream, text: str, cursor: str | None = None) -> None:
        """Take a chunk; it is flushed at once after a pause, else with the next ones."""
        self._masked.redactor = self._claim.redaction.redactor
        if self._is_continued:
            self._go_on()
        if cursor is not None:
            self.cursor = cursor
        self._take(self._masked.feed(Piece(stream, text, cursor)))
        if time.monotonic() - self._flushed_at >= _FLUSH_S or self._pending_chars >= _FLUSH_CHARS:
            self._write_out()

    def flush(self) -> None:
        """Write out what is pending, and what was held back.

        Raises:
            LostClaimError: the run is another agent's.
        """
        self._take(self._masked.flush())
        self._write_out()

    def _go_on(self) -> None:
        """Know what the claim before this one has written last: a secret may have begun there."""
        self._is_continued = False
        if self.is_whole:
            with suppress(OSError):
                for stream, text in _last_chunks(self.path):
                    self._masked.go_on_after(stream, text)

    def _take(self, pieces: Iterable[Piece[str | None]]) -> None:
        for stream, text, cursor in ((piece.stream, piece.text, piece.place) for piece in pieces):
            for start in range(0, len(text), _MAX_CHUNK_CHARS):
                self._pending.append((stream, text[start : start + _MAX_CHUNK_CHARS]))
            self._pending_chars += len(text)
            self._recorded = cursor if cursor is not None else self._recorded

    def _write_out(self) -> None:
        if not self._pending:
            return
        chunks = _merged(self._pending)
        data = b"".join(encode_chunk(stream, text) for stream, text in chunks)
        if self.is_whole:
            self.is_whole = self._append(data)
        before, self._written = self._written, self._written + len(data)
        self._claim.append_log(
            chunks, cursor=self._recorded, bytes_before=before, bytes_after=self._written, cap_chars=self._cap_chars
        )
        self._pending, self._pending_chars = [], 0
        self._flushed_at = time.monotonic()

    def _append(self, data: bytes) -> bool:
        try:
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as exc:
            log.warning("run %s: its log file is given up: %s", self._claim.id, exc)
            with suppress(OSError):
                self.path.unlink()
            return False
        return True

    def tail(self) -> tuple[str, ...]:
        """Return the last lines of the log, oldest first, progress bars folded."""
        self.flush()
        chunks: list[tuple[str, str]] = []
        if self.is_whole:
            with suppress(OSError):
                chunks = _last_chunks(self.path)
        else:
            chunks = [(entry.stream, entry.text) for entry in self._claim.newest_log()]
        lines = [line.text[:_TAIL_LINE_CHARS] for line in fold_lines(chunks)]
        return tuple(lines[-_TAIL_LINES:])

    def rewrite(self, chunks: Iterable[tuple[str, str]]) -> None:
        """Make the file anew from a source that has all of it. Raises OSError when there is no room."""
        with self.path.open("wb") as file:
            for piece in _masked(chunks, self._claim.redaction.redactor):
                file.write(encode_chunk(piece.stream, piece.text))
        self.is_whole = True

    def discard(self) -> None:
        """Delete the file, and those of the claims before."""
        for path in _files_of(self.path.parent.parent, self._claim):
            with suppress(OSError):
                path.unlink()


def log_path(home: Path, claim: Claim) -> Path:
    """Return the file that holds an attempt's whole log while a claim on it holds."""
    return home / "logs" / f"{claim.id}.{claim.record.attempt}.{claim.fence.epoch}.jsonl"


def run_of_log(path: Path) -> str:
    """Return the id of the run whose log a file is."""
    return path.name.partition(".")[0]


def _files_of(home: Path, claim: Claim) -> list[Path]:
    return list((home / "logs").glob(f"{claim.id}.{claim.record.attempt}.*.jsonl"))


def _epoch_of(path: Path) -> int:
    return int(path.name.split(".")[2])


def _last_chunks(path: Path) -> list[tuple[str, str]]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        if file.tell() > 0:
            file.readline()  # the rest of a line whose beginning is further up
        return [(chunk["s"], chunk["t"]) for chunk in map(json.loads, file)]


def _masked(chunks: Iterable[tuple[str, str]], redactor: Redactor) -> Iterator[Piece[None]]:
    masked: StreamRedactor[None] = StreamRedactor(redactor)
    for stream, text in chunks:
        yield from masked.feed(Piece(stream, text, None))
    yield from masked.flush()


def _merged(chunks: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join neighbours of one stream, up to the longest a chunk may be."""
    merged: list[tuple[str, str]] = []
    for stream, text in chunks:
        if merged and merged[-1][0] == stream and len(merged[-1][1]) + len(text) <= _MAX_CHUNK_CHARS:
            merged[-1] = (stream, merged[-1][1] + text)
        else:
            merged.append((stream, text))
    return merged


class LogPump:
    """Follows an attempt's log in a thread of its own, from the recorded cursor to the end.

    Args:
        prepare: called first, in that thread: makes the claim know what is to be masked.
    """

    def __init__(
        self, runner: Runner, handle: str, writer: LogWriter, claim: Claim, prepare: Callable[[], None]
    ) -> None:
        self._runner = runner
        self._handle = handle
        self._writer = writer
        self._claim = claim
        self._prepare = prepare
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._pump, name=f"log-{claim.id}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, patience_s: float) -> None:
        """Wait for the end of the log, as long as it gets on; one that stands still for so long is given up."""
        cursor, since = self._writer.cursor, time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < patience_s:
            self._thread.join(0.5)
            if self._writer.cursor != cursor:
                cursor, since = self._writer.cursor, time.monotonic()
        if self._thread.is_alive():
            log.warning("run %s: its log stands still for %g s and is given up", self._claim.id, patience_s)
            self._writer.is_whole = False
            self._ended.set()
            self._thread.join(_END_S)

    def _pump(self) -> None:
        while not self._claim.is_detached and not self._ended.is_set():
            try:
                self._prepare()
                for chunk in self._runner.logs(self._handle, self._writer.cursor):
                    if self._claim.is_detached or self._ended.is_set():
                        return
                    self._writer.write(chunk.stream, chunk.text, chunk.cursor)
                self._writer.flush()
                return
            except TemporaryError as exc:
                log.info("run %s: log interrupted, going on: %s", self._claim.id, exc)
                self._ended.wait(_RETRY_S)
            except (LostClaimError, DetachedError):
                return
            except Exception:
                log.exception("run %s: its log cannot be followed", self._claim.id)
                self._writer.is_whole = False
                return
