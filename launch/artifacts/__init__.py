"""Content-addressed blobs: code snapshots, requirements, full logs, documents of old runs.

Below the store's URL::

    blobs/sha256/ab/abcdef…      a blob, named by the sha256 of what is in it; never changed
    incoming/<random>            one that is being written, where a name can be given afterwards
    installations/<installation> who keeps blobs here

A blob gets its name when all of it is there, so a name never stands for half of something, and a second writer of the
same content does no harm. What nobody needs any more is removed by :mod:`launch.artifacts_gc`.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from launch.errors import ConfigError, PermanentError, TemporaryError

if TYPE_CHECKING:
    from launch.artifacts.place import Place

DIGEST_PATTERN = "[0-9a-f]{64}"


class Installation(Protocol):
    """Whose blobs they are; :class:`launch.store.RunStore` is one."""

    def installation(self) -> str:
        """Return its id."""

    def artifact_key(self) -> str:
        """Return what the launch server asks of whoever reads or writes blobs."""


class ArtifactStore:
    """Blobs below one URL. Nothing is connected, read or made before the first call that needs it.

    Args:
        url: ``file:///path``, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or another of fsspec's; ``http://host:port``
            or ``https://host`` for a launch server that keeps them.
        installation: gives the installation; without it nobody is noted as the owner, and no launch server is reached.
    """

    def __init__(self, url: str, installation: Callable[[], Installation] | None = None) -> None:
        self.url = url.rstrip("/") if url.startswith(("http://", "https://")) else url
        self._installation = installation
        self._is_marked = installation is None

    def put_bytes(self, data: bytes) -> str:
        """Keep the bytes and return their digest."""
        digest = hashlib.sha256(data).hexdigest()
        return digest if self.keep(digest, len(data)) else self.write(io.BytesIO(data), digest)

    def put_file(self, path: Path, *, digest: str | None = None) -> str:
        """Keep what is in a file and return its digest.

        Args:
            path: the file.
            digest: its sha256, where the caller knows it: nothing is read if there is such a blob.

        Raises:
            TemporaryError: the file has changed meanwhile.
        """
        from launch.artifacts.place import ChangedError

        if digest is not None and self.keep(digest, path.stat().st_size):
            return digest
        try:
            with path.open("rb") as file:
                return self.write(file, digest)
        except ChangedError as exc:
            raise TemporaryError(f"{path} changed while it was put into {self.url}: {exc}; try again") from exc

    def keep(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is here, with that length. If so, it counts as put now, and is safe for a while."""
        return self.place.keep(_checked(digest), size_bytes)

    def write(self, source: BinaryIO, digest: str | None) -> str:
        """Keep what is left in a file, all or nothing, whether it is here or not, and return its digest.

        Raises:
            ChangedError: it has another digest than the given one.
        """
        self._leave_mark()
        return self.place.write(source, digest and _checked(digest))

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return self.place.size(_checked(digest)) is not None

    def size(self, digest: str) -> int:
        """Return a blob's length in bytes.

        Raises:
            PermanentError: it is not here.
        """
        size = self.place.size(_checked(digest))
        if size is None:
            raise self._absent(digest)
        return size

    def get_bytes(self, digest: str) -> bytes:
        """Return a blob, checked.

        Raises:
            PermanentError: it is not here, or is damaged.
        """
        try:
            with self.open(digest) as file:
                data = file.read()
        except OSError as exc:
            raise TemporaryError(f"blob {digest} cannot be read from {self.url}: {exc}") from exc
        self._check(digest, hashlib.sha256(data).hexdigest())
        return data

    def fetch(self, digest: str, to: Path, *, check: Callable[[Path], None] = lambda _: None) -> Path:
        """Copy a blob to a file on this machine, checked, unless the file is there and right. Returns ``to``.

        Many may fetch to one file at once: it appears complete, and is replaced only when it is damaged.

        Args:
            digest: the blob.
            to: the file.
            check: called with the whole copy before it is there; raises to refuse it.

        Raises:
            PermanentError: the blob is not in the store, or is damaged.
        """
        if to.is_file() and _digest_of(to) == digest:
            return to
        from launch.artifacts.place import copy

        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = to.with_name(f".{to.name[:32]}.{secrets.token_hex(8)}")
        try:
            with self.open(digest) as source, temporary.open("xb") as target:
                self._check(digest, copy(source, target))
            check(temporary)
            temporary.replace(to)
        except OSError as exc:
            raise TemporaryError(f"blob {digest} cannot be copied from {self.url} to {to}: {exc}") from exc
        finally:
            temporary.unlink(missing_ok=True)
        return to

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, from any place in it; what is read is not checked. The caller closes it.

        Raises:
            PermanentError: it is not here.
        """
        try:
            return self.place.open(_checked(digest))
        except FileNotFoundError as exc:
            raise self._absent(digest) from exc

    @cached_property
    def place(self) -> Place:
        """The kind of store it is, for what only an administrator does."""
        if self.url.startswith(("http://", "https://")):
            from launch.artifacts.server import ServerPlace

            return ServerPlace(self.url, self._key)
        from launch.artifacts.folder import open_place  # fsspec takes 80 ms, and most commands need no blob

        return open_place(self.url)

    def _key(self) -> str:
        if self._installation is None:
            raise ConfigError(f"LAUNCH_ARTIFACTS: the server at {self.url} is for one installation, and none is named")
        return self._installation().artifact_key()

    def _leave_mark(self) -> None:
        if not self._is_marked:
            assert self._installation is not None
            self.place.mark(self._installation().installation())
            self._is_marked = True

    def _absent(self, digest: str) -> PermanentError:
        return PermanentError(f"blob {digest} is not in {self.url}")

    def _check(self, digest: str, found: str) -> None:
        if found != digest:
            raise PermanentError(
                f"blob {digest} in {self.url} is damaged: its content has sha256 {found}. Delete "
                f"{self.place.where(digest)} and create the job again from its code"
            )


def _checked(digest: str) -> str:
    if not re.fullmatch(DIGEST_PATTERN, digest):
        raise ConfigError(f"digest: should be 64 lower-case hexadecimal digits, not {digest!r}")
    return digest


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
