"""What is kept of git repositories in the launch home, and what of it goes when it is too much."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.file_locks import locked_if_free
from launch.git.mirror import folder_bytes

ARCHIVES = "git-*.tar.gz"
_STALE_S = 86_400.0
_IN_USE_S = 86_400.0


@dataclass(frozen=True)
class _Kept:
    path: Path
    used_at: float
    size_bytes: int


def tidy(mirrors: Path, archives: Path, max_bytes: float, *, now: float | None = None) -> list[Path]:
    """Remove what was used longest ago until the rest is no more than ``max_bytes``, and return what went.

    What is being worked on, or was used within a day, stays; what nobody finished within a day goes.

    Args:
        mirrors: the folder of the mirrors, see :mod:`launch.git.mirror`.
        archives: the folder of the archives made of commits.
        max_bytes: the most both may have.
        now: Unix seconds; none: the present.
    """
    now = time.time() if now is None else now
    kept = [*_mirrors(mirrors), *_archives(archives)]
    total = sum(one.size_bytes for one in kept)
    gone = []
    for one in sorted(kept, key=lambda one: one.used_at):
        if total > max_bytes and one.used_at < now - _IN_USE_S and _remove(one.path):
            total -= one.size_bytes
            gone.append(one.path)
    left_behind = [*mirrors.glob("export-*"), *mirrors.glob(".new-*"), *archives.glob(f".{ARCHIVES}.*")]
    # Should somebody still wait for such a lock, two make one archive, which is the same twice.
    for left in (*left_behind, *mirrors.glob("archives/*.lock")):
        with suppress(OSError):
            if left.stat().st_mtime < now - _STALE_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return gone


def _mirrors(folder: Path) -> Iterable[_Kept]:
    for mirror in folder.glob("*.git"):
        with suppress(OSError):  # gone by now
            lock = mirror.with_suffix(".lock")
            used_at = (lock if lock.exists() else mirror).stat().st_mtime
            yield _Kept(mirror, used_at, folder_bytes(mirror))


def _archives(folder: Path) -> Iterable[_Kept]:
    for archive in folder.glob(ARCHIVES):
        with suppress(OSError):
            found = archive.stat()
            yield _Kept(archive, found.st_mtime, found.st_size)


def _remove(path: Path) -> bool:
    if path.is_file():
        path.unlink(missing_ok=True)
        return True
    with locked_if_free(path.with_suffix(".lock")) as is_free:
        if is_free:
            shutil.rmtree(path, ignore_errors=True)
        return is_free
