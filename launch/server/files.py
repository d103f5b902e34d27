"""Files that a job uploads, below its run's folder in the launch home."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool

_BUFFER_BYTES = 1 << 20
_MAX_NAME_BYTES = 1024


@dataclass(frozen=True)
class Limits:
    """How much one run may keep here."""

    file_bytes: int = 16 << 30
    run_bytes: int = 64 << 30
    body_bytes: int = 64 << 20
    """Of a request that is read into memory, unpacked."""


class BadNameError(ValueError):
    """The name leads elsewhere, or cannot be a file's; the text says why."""


def place_for(folder: Path, name: str) -> Path:
    """Return where a file of that name goes, always below the folder.

    Raises:
        BadNameError: the name is absolute, climbs out, or cannot be a file's name.
    """
    parts = name.split("/")
    if len(name.encode()) > _MAX_NAME_BYTES or any(len(part.encode()) > 255 for part in parts):
        raise BadNameError(f"file name {name[:60]!r}… is too long")
    if any(part in ("", ".", "..") for part in parts) or not name.isprintable() or "\\" in name:
        raise BadNameError(f"file name {name!r} should be relative, without '..', '\\' or control characters")
    return folder.joinpath(*parts)


async def save(chunks: AsyncIterator[bytes], place: Path, *, size_bytes: int) -> None:
    """Write a file as it comes in; it appears at its place whole, or not at all.

    Raises:
        BadNameError: a part of the path is a file, or the place is a folder.
        EOFError: the sender stopped early.
        OSError: the disk is full, or the like.
    """
    try:
        await run_in_threadpool(place.parent.mkdir, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:
        raise BadNameError(f"file name {place.name!r}: {exc.filename} is a file, not a folder") from exc
    handle, temporary = await run_in_threadpool(tempfile.mkstemp, dir=place.parent, prefix=".upload-")
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            written = await _copy(chunks, file.write)
        if written < size_bytes:
            raise EOFError(f"{place.name}: {written} of {size_bytes} bytes came")
        await run_in_threadpool(_put_at, temporary, place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


async def _copy(chunks: AsyncIterator[bytes], write: Callable[[bytes], int | None]) -> int:
    written, waiting = 0, bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= _BUFFER_BYTES:
            written += await run_in_threadpool(_write_all, write, bytes(waiting))
            waiting.clear()
    return written + await run_in_threadpool(_write_all, write, bytes(waiting))


def _write_all(write: Callable[[bytes], int | None], data: bytes) -> int:
    done = 0
    while done < len(data):
        done += write(data[done:]) or 0
    return done


def _put_at(temporary: str, place: Path) -> None:
    Path(temporary).chmod(0o644)
    try:
        Path(temporary).replace(place)
    except IsADirectoryError as exc:
        raise BadNameError(f"file name {place.name!r} is a folder already") from exc


def size_of(place: Path) -> int:
    """Return a file's length; 0 if there is none."""
    return place.stat().st_size if place.is_file() else 0
