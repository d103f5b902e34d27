"""Blobs in folders, on a disk of this machine or one it has mounted, and whatever else fsspec has that can rename."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from launch.artifacts.place import Stored, check_unchanged, copy
from launch.errors import ConfigError, LaunchError, TemporaryError

OBJECT_STORES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""``{scheme: the package it needs}`` of the stores where a put is all or nothing, and a rename is a copy."""
_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs"}

REFRESH_S = 3600.0
"""How old a blob may be to count as put just now, where making it young costs something: far less than any grace."""


def open_place(url: str) -> FolderPlace:
    """Return the store at an fsspec URL.

    Raises:
        ConfigError: there is no such kind of store, or a package is missing.
    """
    from fsspec.core import url_to_fs

    package = OBJECT_STORES.get(url.partition("://")[0])
    try:
        # Without its own memory of listings: other processes put and remove blobs too.
        fs, root = url_to_fs(url, **({"use_listings_cache": False} if package else {}))
    except ImportError as exc:
        extra = _EXTRAS.get(package or "")
        fix = f"pip install 'openlaunch[{extra}]'" if extra else str(exc)
        raise ConfigError(f"LAUNCH_ARTIFACTS: {url!r} needs a package that is not installed: {fix}") from exc
    except ValueError as exc:
        raise ConfigError(f"LAUNCH_ARTIFACTS: {url!r} cannot be used as a store: {exc}") from exc
    if package:
        from launch.artifacts.objects import ObjectPlace

        return ObjectPlace(fs, str(root).rstrip("/"), url)
    return FolderPlace(fs, str(root).rstrip("/"), url)


class FolderPlace:
    """A :class:`~launch.artifacts.place.Place` that writes below ``incoming`` and renames.

    Args:
        fs: an fsspec file system.
        root: the path in it.
        url: both, for people.
    """

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self._fs = fs
        self._root = root
        self._url = url
        self._is_local = "file" in fs.protocol

    def size(self, digest: str) -> int | None:
        """Return a blob's length; none: it is not here."""
        info = self._info(self._path(digest))
        return None if info is None else int(info["size"])

    def keep(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is here and will be for a while."""
        info = self._info(self._path(digest))
        if info is None or int(info["size"]) != size_bytes:
            return False
        return self._refresh(self._path(digest), info)

    def _refresh(self, path: str, info: dict[str, Any]) -> bool:
        """Make a blob young; false: it should be written again."""
        if not self._is_local:
            return time.time() - modified_at(info) < REFRESH_S
        with self._border(), suppress(FileNotFoundError), self._locked(path, fcntl.LOCK_SH):
            os.utime(path)
            return True
        return False

    def write(self, source: BinaryIO, digest: str | None) -> str:
        """Keep what is left in a file, all or nothing, and return its digest."""
        incoming = f"{self._root}/incoming/{secrets.token_hex(16)}"
        with self._border():
            try:
                return self._write(source, digest, incoming)
            except FileNotFoundError as exc:
                raise TemporaryError(f"the artifact store {self._url} cannot be used: {exc}") from exc
            except BaseException:
                with suppress(Exception):
                    self._fs.rm_file(incoming)
                raise

    def _write(self, source: BinaryIO, digest: str | None, incoming: str) -> str:
        with self._create(incoming) as target:
            found = check_unchanged(copy(source, target), digest)
            sync(target)
        path = self._path(found)
        self._fs.makedirs(self._fs._parent(path), exist_ok=True)
        self._fs.mv(incoming, path)
        return found

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, from any place in it."""
        with self._border():
            return cast(BinaryIO, self._fs.open(self._path(digest), "rb"))

    def where(self, digest: str) -> str:
        """Return the blob's path or URL."""
        return str(self._path(digest) if self._is_local else self._fs.unstrip_protocol(self._path(digest)))

    # --- for who looks after it ---------------------------------------------------------------------------------------

    def mark(self, installation: str) -> None:
        """Note that an installation keeps blobs here."""
        path = f"{self._root}/installations/{installation}"
        if self._info(path) is not None:
            return
        with self._border(), self._create(path):
            pass

    def marks(self) -> list[str]:
        """Return the installations that keep blobs here."""
        return sorted(found.name for found in self._listed("installations"))

    def blobs(self) -> Iterator[Stored]:
        """Yield all blobs."""
        yield from self._listed("blobs/sha256")

    def leftovers(self) -> Iterator[Stored]:
        """Yield what is below ``incoming``."""
        yield from self._listed("incoming")

    def remove(self, digest: str, *, before: float) -> bool:
        """Remove a blob that was last put before a time, and return whether it was."""
        path = self._path(digest)
        with self._border(), suppress(FileNotFoundError), self._locked(path, fcntl.LOCK_EX):
            info = self._info(path)
            if info is not None and modified_at(info) < before:
                self._fs.rm_file(path)
                return True
        return False

    def remove_leftover(self, name: str) -> None:
        """Remove what is below ``incoming``, if it is still there."""
        with self._border(), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/incoming/{name}")

    def collect(self, older_than_s: float, *, is_dry_run: bool) -> None:
        """Nobody else does it."""

    # --- below --------------------------------------------------------------------------------------------------------

    def _path(self, digest: str) -> str:
        return f"{self._root}/blobs/sha256/{digest[:2]}/{digest}"

    def _info(self, path: str) -> dict[str, Any] | None:
        with self._border(), suppress(FileNotFoundError):
            return cast(dict[str, Any], self._fs.info(path))
        return None

    def _listed(self, folder: str) -> Iterator[Stored]:
        found: dict[str, Any] = {}
        with self._border(), suppress(FileNotFoundError):  # nothing was ever put here
            found = self._fs.find(f"{self._root}/{folder}", detail=True)
        for path, info in found.items():
            yield Stored(path.rpartition("/")[2], int(info["size"]), modified_at(info))

    def _create(self, path: str) -> BinaryIO:
        self._fs.makedirs(self._fs._parent(path), exist_ok=True)
        return cast(BinaryIO, self._fs.open(path, "wb"))

    @contextmanager
    def _locked(self, path: str, how: int) -> Iterator[None]:
        """Hold a blob of a disk between looking at its age and what follows from it: who keeps it and who removes it
        are then one after the other.
        """
        if not self._is_local:
            yield
            return
        with Path(path).open("rb") as file:
            with suppress(OSError):  # a network file system without locks: what is left is a moment
                fcntl.flock(file, how)
            if not Path(path).exists():
                raise FileNotFoundError(path)
            yield

    @contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, LaunchError):
            raise
        except OSError as exc:
            raise TemporaryError(f"the artifact store {self._url} cannot be used: {exc}") from exc


def modified_at(info: dict[str, Any]) -> float:
    """Return when something was last written, in Unix seconds; each file system has a name of its own for it."""
    found = next((info[key] for key in ("mtime", "LastModified", "updated", "created") if info.get(key)), None)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    if isinstance(found, datetime):
        return found.timestamp()
    # It does not say: then nothing in it is ever old enough to be removed.
    return float(found) if found is not None else time.time()


def sync(file: Any) -> None:
    """Have a file of this machine on its disk: its name must not outlive a power cut that the content does not."""
    file.flush()
    with suppress(AttributeError, OSError):
        os.fsync(file.fileno())
