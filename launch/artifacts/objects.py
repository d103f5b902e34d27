"""Blobs in an object store: S3 and what speaks like it, Google Cloud Storage.

A put there is all or nothing, and a rename is a copy, so a blob is uploaded to its key at once; a large one in parts,
which become an object when the last has come. What is uploaded is a private copy whose digest was checked.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from launch.artifacts.folder import REFRESH_S, FolderPlace, modified_at
from launch.artifacts.object_errors import as_ours, no_bucket
from launch.artifacts.place import Stored, check_unchanged, copy

_IN_MEMORY_BYTES = 16 << 20
_BLOCK_BYTES = 8 << 20
"""How much is read at once."""


class ObjectPlace(FolderPlace):
    """A :class:`~launch.artifacts.place.Place` that uploads."""

    def write(self, source: BinaryIO, digest: str | None) -> str:
        """Keep what is left in a file, all or nothing, and return its digest."""
        head, sha = source.read(_IN_MEMORY_BYTES), hashlib.sha256()
        if len(head) < _IN_MEMORY_BYTES:
            found = check_unchanged(hashlib.sha256(head).hexdigest(), digest)
            self._put("pipe_file", self._path(found), head)
            return found
        with self._border(), tempfile.NamedTemporaryFile(prefix="openlaunch-blob-") as private:
            copy(io.BytesIO(head), private, sha)
            found = check_unchanged(copy(source, private, sha), digest)
            private.flush()
            self._put("put_file", private.name, self._path(found))
        return found

    def _put(self, how: str, *args: Any) -> None:
        with self._border():
            try:
                getattr(self._fs, how)(*args)
            except FileNotFoundError as exc:
                raise no_bucket(self._url) from exc

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, from any place in it."""
        with self._border():
            file = self._fs.open(self._path(digest), "rb", block_size=_BLOCK_BYTES, cache_type="readahead")
        return io.BufferedReader(_Reading(file, self._url), _BLOCK_BYTES)

    def mark(self, installation: str) -> None:
        """Note that an installation keeps blobs here."""
        path = f"{self._root}/installations/{installation}"
        if self._info(path) is None:
            self._put("pipe_file", path, b"")

    def leftovers(self) -> Iterator[Stored]:
        """Yield the uploads in parts that were begun and not finished; where they end by themselves, none."""
        if not hasattr(self._fs, "list_multipart_uploads"):
            return
        bucket, _, prefix = self._root.partition("/")
        with self._border():
            found = self._fs.list_multipart_uploads(bucket)
        for upload in found:
            if str(upload["Key"]).startswith(f"{prefix}/blobs/".lstrip("/")):
                yield Stored(f"{upload['Key']} {upload['UploadId']}", 0, upload["Initiated"].timestamp())

    def remove_leftover(self, name: str) -> None:
        """Abort an upload, if it is still there."""
        key, _, upload = name.rpartition(" ")
        with self._border(), suppress(FileNotFoundError):
            self._fs.abort_mpu(self._root.partition("/")[0], key, upload)

    def _refresh(self, path: str, info: dict[str, Any]) -> bool:
        if time.time() - modified_at(info) < REFRESH_S:
            return True
        # S3 copies an object to itself only when something of it changes.
        changed = {"MetadataDirective": "REPLACE"} if "s3" in self._fs.protocol else {}
        with self._border(), suppress(FileNotFoundError):
            self._fs.cp_file(path, path, **changed)
            return True
        return False

    @contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            ours = as_ours(exc, self._url)
            if ours is exc:
                raise
            raise ours from exc


class _Reading(io.RawIOBase):
    """An object that is read, whose errors are ours."""

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as exc:
            raise as_ours(exc, self._url) from exc
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
