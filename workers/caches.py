"""What an agent's machine keeps for the next run, the code of jobs and virtual environments, and what of it goes.

Code that a run may need yet is held by a lock on its file, from the fetch until the run is out of the agent's hands;
the lock ends with the agent, however that ends. A time stamp says when something was last used.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from launch.file_locks import locked_if_free
from workers.builders.venv import MARKER

_ABANDONED_S = 86_400.0
"""How old something half-made is when nobody can be making it any more."""
_SNAPSHOT = re.compile(r"[0-9a-f]{64}\.tar\.gz")


class HeldCode:
    """The files that this agent's runs need."""

    def __init__(self) -> None:
        self._files: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def hold(self, run_id: str, fetch: Callable[[], Path | None]) -> Path | None:
        """Return what a function fetches, which then stays where it is until :meth:`release`."""
        while (path := fetch()) is not None:
            with suppress(FileNotFoundError):  # removed before it was held: it is fetched again
                file = os.open(path, os.O_RDONLY)
                with self._lock:
                    self._files.setdefault(run_id, []).append(file)
                if _is_locked(file, path, fcntl.LOCK_SH):
                    os.utime(path)
                    return path
        return None

    def release(self, run_id: str) -> None:
        """Let go of what a run needed."""
        with self._lock:
            files = self._files.pop(run_id, [])
        for file in files:
            os.close(file)


def tidy_code(folder: Path, *, max_bytes: float, unused_s: float) -> list[Path]:
    """Remove snapshots that nobody has used for so long, then the longest unused until no more is left than may be.

    Returns what went; what a run needs stays, whatever it takes.
    """
    now = time.time()
    kept = sorted(_snapshots(folder), key=lambda item: item[1].st_mtime)
    total = sum(stat.st_size for _, stat in kept)
    gone = []
    for path, stat in kept:
        if (total > max_bytes or stat.st_mtime < now - unused_s) and _removed(path):
            total -= stat.st_size
            gone.append(path)
    for path in folder.glob(".*"):  # of a fetch that was killed
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < now - _ABANDONED_S:
                path.unlink()
    return gone


def _snapshots(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("*.tar.gz"):
        if _SNAPSHOT.fullmatch(path.name):
            with suppress(FileNotFoundError):
                yield path, path.stat()


def _removed(path: Path) -> bool:
    """Remove a file that nobody holds, and return whether it was."""
    with suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            if _is_locked(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink()
                return True
        finally:
            os.close(file)
    return False


def _is_locked(file: int, path: Path, how: int) -> bool:
    """Lock an open file, and return whether that was possible and it still is the one at its path."""
    try:
        fcntl.flock(file, how)
        return path.stat().st_ino == os.fstat(file).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def tidy_venvs(folder: Path, *, unused_s: float, in_use: Callable[[], set[str]]) -> list[Path]:
    """Remove virtual environments that nobody has used for so long, and return them.

    Args:
        folder: where they are.
        unused_s: how long, in seconds.
        in_use: gives the paths of those that a run is in just now; a run may take longer than that.
    """
    before = time.time() - unused_s
    old = [marker.parent for marker in folder.glob(f"[!.]*/{MARKER}") if _used_at(marker.parent) < before]
    busy = in_use() if old else set()
    gone = [venv for venv in old if str(venv) not in busy and _venv_removed(venv, before)]
    for left in folder.glob(".gone-*"):  # of a clean-up that was killed
        shutil.rmtree(left, ignore_errors=True)
    return gone


def _venv_removed(venv: Path, before: float) -> bool:
    # The lock under which it is built.
    with locked_if_free(venv.with_name(f"{venv.name}.lock")) as is_ours:
        if not is_ours:
            return False
        aside = venv.with_name(f".gone-{secrets.token_hex(4)}")
        try:
            venv.rename(aside)
        except FileNotFoundError:
            return False
        if _used_at(aside) >= before:  # taken for a run in this moment, without the lock since it was there
            aside.rename(venv)
            return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _used_at(venv: Path) -> float:
    with suppress(FileNotFoundError):
        return (venv / MARKER).stat().st_mtime
    return 0.0
