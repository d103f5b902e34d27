"""What every kind of store can do, and what they share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A blob as it stands in a store, or what a writer that died has left."""

    name: str
    """The blob's digest; of a leftover, what its place calls it."""
    size_bytes: int
    modified_at: float
    """Unix seconds, by the store's clock: when it was last put, whoever put it."""


class ChangedError(Exception):
    """What was read has another digest than the writer said; nothing was kept."""


class Place(Protocol):
    """A kind of store. Errors are launch's own, but for a blob that is absent (``FileNotFoundError``) and a source
    that changed (:class:`ChangedError`).
    """

    def size(self, digest: str) -> int | None:
        """Return a blob's length; none: it is not here."""

    def keep(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is here and will be for a while: if so, it counts as put now.

        A blob of another length than ``size_bytes`` is damaged, and counts as absent.
        """

    def write(self, source: BinaryIO, digest: str | None) -> str:
        """Keep what is left in a file that can seek, all or nothing, and return its digest."""

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, from any place in it."""

    def where(self, digest: str) -> str:
        """Return what an administrator calls a blob: a path, a URL."""

    def mark(self, installation: str) -> None:
        """Note that an installation keeps blobs here."""

    def marks(self) -> list[str]:
        """Return the installations that keep blobs here."""

    def blobs(self) -> Iterator[Stored]:
        """Yield all blobs."""

    def leftovers(self) -> Iterator[Stored]:
        """Yield what writers that died have left."""

    def remove(self, digest: str, *, before: float) -> bool:
        """Remove a blob that was last put before a time, and return whether it was; it may be put again meanwhile."""

    def remove_leftover(self, name: str) -> None:
        """Remove what a writer has left, if it is still there."""

    def collect(self, older_than_s: float, *, is_dry_run: bool) -> dict[str, Any] | None:
        """Have the blobs removed that nothing needs, where somebody else has to do it; none: the caller has to."""


def copy(source: BinaryIO, target: Any, sha: Any = None) -> str:
    """Copy what is left in a file and return its sha256, or that of what ``sha`` has had before and this."""
    sha = sha or hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        sha.update(chunk)
        target.write(chunk)
    return str(sha.hexdigest())


def digest_of(source: BinaryIO) -> str:
    """Read what is left in a file and return its sha256."""
    sha = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        sha.update(chunk)
    return sha.hexdigest()


def check_unchanged(found: str, expected: str | None) -> str:
    """Return the digest that was found. Raises :class:`ChangedError` if another one was expected."""
    if expected not in (None, found):
        raise ChangedError(f"it should have sha256 {expected}, and has {found}")
    return found
