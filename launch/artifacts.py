"""Content-addressed blobs over fsspec: code snapshots, requirements and full logs.

Below the store's URL::

    blobs/sha256/ab/abcdef…   a blob, named by the sha256 of what is in it; never changed
    incoming/<random>         one that is being written

A blob gets its name when all of it is there, so a name never stands for half of something, and a second writer of the
same content does no harm.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from launch.errors import ConfigError, PermanentError, TemporaryError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_CHUNK_BYTES = 1 << 20


class ArtifactStore:
    """Blobs below one URL. Nothing is read or made before the first call that needs it.

    Args:
        url: an fsspec URL: ``file:///path``, ``s3://bucket/prefix``, ``gs://bucket/prefix``.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def put_bytes(self, data: bytes) -> str:
        """Keep the bytes and return their digest."""
        digest = hashlib.sha256(data).hexdigest()
        return digest if self.has(digest) else self._put(io.BytesIO(data))

    def put_file(self, path: Path, *, digest: str | None = None) -> str:
        """Keep what is in a file and return its digest.

        Args:
            path: the file; one pass is made over it, so the digest is of what was kept even if it grows meanwhile.
            digest: its sha256, where the caller knows it: nothing is read if there is such a blob.
        """
        if digest is not None and self.has(digest):
            return digest
        with path.open("rb") as file:
            return self._put(file)

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        path = self._path(digest)
        with self._border("blob " + digest):
            return bool(self._fs.exists(path))

    def get_bytes(self, digest: str) -> bytes:
        """Return a blob, checked.

        Raises:
            PermanentError: it is not here, or is damaged.
        """
        with self.open(digest) as file:
            data = file.read()
        self._check(digest, hashlib.sha256(data).hexdigest())
        return data

    def fetch(self, digest: str, to: Path) -> Path:
        """Copy a blob to a file on this machine, checked, unless the file is there and right. Returns ``to``.

        Many may fetch to one file at once: it appears complete, and is replaced only when it is damaged.

        Raises:
            PermanentError: the blob is not in the store, or is damaged.
        """
        if to.is_file() and _digest_of(to) == digest:
            return to
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = to.with_name(f".{to.name[:32]}.{secrets.token_hex(8)}")
        try:
            with self.open(digest) as source, temporary.open("xb") as target:
                self._check(digest, _copy(source, target))
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
        path = self._path(digest)
        with self._border(f"blob {digest}"):
            return cast(BinaryIO, self._fs.open(path, "rb"))

    # --- below -------------------------------------------------------------------------------------------------------

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs  # takes 80 ms, and most commands need no blob

        try:
            fs, root = url_to_fs(self.url)
        except (ValueError, ImportError) as exc:
            raise ConfigError(f"LAUNCH_ARTIFACTS: {self.url!r} cannot be used as a store: {exc}") from exc
        return fs, str(root).rstrip("/")

    @property
    def _fs(self) -> Any:
        return self._place[0]

    def _path(self, digest: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConfigError(f"digest: should be 64 lower-case hexadecimal digits, not {digest!r}")
        return f"{self._place[1]}/blobs/sha256/{digest[:2]}/{digest}"

    def _put(self, source: BinaryIO) -> str:
        incoming = f"{self._place[1]}/incoming/{secrets.token_hex(16)}"
        with self._border(f"blob {incoming}"):
            try:
                with self._create(incoming) as target:
                    digest = _copy(source, target)
                    _sync(target)
                path = self._path(digest)
                self._fs.makedirs(self._fs._parent(path), exist_ok=True)
                self._fs.mv(incoming, path)
            except BaseException:
                with suppress(Exception):
                    self._fs.rm_file(incoming)
                raise
        return digest

    def _create(self, path: str) -> BinaryIO:
        self._fs.makedirs(self._fs._parent(path), exist_ok=True)
        return cast(BinaryIO, self._fs.open(path, "wb"))

    def _check(self, digest: str, found: str) -> None:
        if found != digest:
            raise PermanentError(
                f"blob {digest} in {self.url} is damaged: its content has sha256 {found}. Delete it and create the job "
                "again from its code"
            )

    @contextmanager
    def _border(self, blob: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            raise PermanentError(f"{blob} is not in {self.url}") from exc
        except OSError as exc:
            raise TemporaryError(f"the artifact store {self.url} cannot be used: {exc}") from exc


def _copy(source: BinaryIO, target: BinaryIO) -> str:
    """Copy all of it and return its sha256."""
    sha = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        sha.update(chunk)
        target.write(chunk)
    return sha.hexdigest()


def _sync(file: Any) -> None:
    # On a disk of ours the name must not outlive a power cut that the content does not.
    file.flush()
    with suppress(AttributeError, OSError):
        os.fsync(file.fileno())


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
