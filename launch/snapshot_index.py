"""Remembers which archive a folder's files last gave, so that an unchanged folder is not packed again.

Below the launch home, in ``snapshots/``, a small file for each folder, named by its path: the fingerprint of all its
files (:class:`~launch.snapshots.CodeFiles`) and the archive's digest. It is a cache: losing or damaging it costs time
only, and of several writers the last one wins with a whole file.

As in git's index, a file that changed only just now is not trusted: it may change once more within the same tick of
its file system's clock, and look the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.snapshots import CodeFiles

_TICK_NS = 2_000_000_000
"""The coarsest clock of a file system in use."""
_MAX_FOLDERS = 500


@dataclass(frozen=True)
class Packed:
    """An archive that was made."""

    digest: str
    archive_bytes: int


class SnapshotIndex:
    """The index of one launch home.

    Args:
        home: the launch home.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "snapshots"

    def find(self, code: CodeFiles) -> Packed | None:
        """Return the archive that these very files gave, if it is known."""
        try:
            kept = json.loads(self._file(code).read_bytes())
            if kept.pop("fingerprint") != code.fingerprint:
                return None
            return Packed(str(kept["digest"]), int(kept["archive_bytes"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def keep(self, code: CodeFiles, packed: Packed) -> None:
        """Remember what these files gave, unless one of them changed so lately that it cannot be told from a next
        change. A disk that takes nothing is no error.
        """
        if code.changed_ns > code.seen_ns - _TICK_NS:
            return
        file = self._file(code)
        temporary = file.with_name(f".{secrets.token_hex(8)}")
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            try:
                temporary.write_text(json.dumps({"fingerprint": code.fingerprint, **asdict(packed)}))
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
            self._forget_oldest()

    def _file(self, code: CodeFiles) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(code.root)).hexdigest()[:32]}.json"

    def _forget_oldest(self) -> None:
        files = list(self._folder.iterdir())
        if len(files) > _MAX_FOLDERS:
            for file in sorted(files, key=lambda one: one.stat().st_mtime)[: _MAX_FOLDERS // 2]:
                file.unlink(missing_ok=True)
