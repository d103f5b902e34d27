"""Reading the files of a process run folder while they grow. Offsets are bytes; text never holds half a character."""

from __future__ import annotations

import codecs
import fcntl
from pathlib import Path

from launch.errors import ConfigError
from launch.plugins import LogStream

CHUNK_BYTES = 65_536
MAX_PAUSE_S = 0.1
HEARTBEAT_S = 0.5


class Tail:
    """One growing file, read from an offset on."""

    def __init__(self, stream: LogStream, path: Path | None, offset: int) -> None:
        self.stream: LogStream = stream
        self.offset = offset
        self.has_more = False
        """Whether the last read was cut off by its size."""
        self._path = path

    def read(self, is_over: bool) -> str:
        """Return what follows, up to 64 KiB; an unfinished last character only when nothing more will come."""
        data = self._bytes()
        self.has_more = len(data) == CHUNK_BYTES
        text, used = codecs.utf_8_decode(data, "replace", is_over and not self.has_more)
        self.offset += used
        return text

    def _bytes(self) -> bytes:
        if self._path is None:
            return b""
        try:
            if self._path.stat().st_size <= self.offset:
                return b""
            with self._path.open("rb") as file:
                file.seek(self.offset)
                return file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""


def tails(folder: Path | None, cursor: str | None) -> tuple[Tail, Tail]:
    """Return stdout's and stderr's tails from a cursor, ``"bytes of stdout:bytes of stderr"``.

    Raises:
        ConfigError: the cursor is not one of ours.
    """
    try:
        out, err = (int(part) for part in (cursor or "0:0").split(":"))
    except ValueError as exc:
        raise ConfigError(f"cursor: should be like '1200:0', not {cursor!r}") from exc
    paths = [folder / name if folder else None for name in ("stdout", "stderr")]
    return Tail("stdout", paths[0], out), Tail("stderr", paths[1], err)


def cursor_of(pair: tuple[Tail, Tail]) -> str:
    """Return the cursor at which both tails are."""
    return f"{pair[0].offset}:{pair[1].offset}"


def is_locked(path: Path) -> bool:
    """Whether a living process of this machine holds the file's lock, in whatever container it is."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
