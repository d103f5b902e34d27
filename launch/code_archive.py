"""Code as one deterministic gzip tar: written from a folder's files, and checked before somebody else's is unpacked.

GNU format: entries in the order given, each file's folders before it, no times, owner 0. Packed in pieces of 1 MiB that
are compressed apart, as pigz does, so that all processors help; how many there are changes no byte. (Another zlib may
pack the same content to another digest: that costs a job a version, no more.)
"""

from __future__ import annotations

import gzip
import hashlib
import os
import posixpath
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, Protocol

from launch.errors import ConfigError, PermanentError, TemporaryError

MAX_UNPACKED_BYTES = 16 << 30

_PIECE_BYTES = 1 << 20
_LEVEL = 4  # takes little longer than 1 on source code, and 6 twice as long
_BLOCK = tarfile.BLOCKSIZE
FORMAT = f"1 {_LEVEL} {zlib.ZLIB_RUNTIME_VERSION}"
"""Changes whenever the same files may give another digest."""

_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, no system
_SHORT_NAME = 100
_MAX_ENTRIES = 1_000_000
_MAX_LINKS = 40  # as Linux follows
_SUM_AT = slice(148, 156)


class Entry(NamedTuple):
    """A file or link to be packed."""

    name: str
    """Relative, parts joined by ``/``."""
    mode: int
    size: int
    link: str | None = None
    """Where it leads, for a symbolic link."""


# --- writing ---------------------------------------------------------------------------------------------------------


def pack(root: Path, entries: Sequence[Entry], archive: Path) -> str:
    """Write an archive of some files of a folder, and return its sha256.

    Raises:
        ConfigError: a file may not be read.
        TemporaryError: one changed its size meanwhile or is gone, or there is no room for the archive.
    """
    return pack_from(entries, lambda entry: _content(root, entry), archive)


def pack_from(entries: Iterable[Entry], content: Callable[[Entry], Iterable[bytes]], archive: Path) -> str:
    """Write an archive of files that are anywhere, and return its sha256.

    Args:
        entries: what is to be in it.
        content: yields what is in a file, exactly as much as its entry says.
        archive: the file that is written.

    Raises:
        TemporaryError: there is no room for the archive.
        InterruptedError: ``entries`` or ``content`` raised it.
    """
    try:
        with archive.open("wb") as file, _Gzip(file) as packed:
            made: set[str] = set()
            for entry in entries:
                for folder in _missing_folders(entry.name, made):
                    packed.write(header(folder + "/", tarfile.DIRTYPE, 0o755))
                _put(entry, content, packed)
            packed.write(bytes(2 * _BLOCK))
    except InterruptedError:  # an OSError as well, and the caller's own
        raise
    except OSError as exc:
        raise TemporaryError(f"{archive} cannot be written: {exc}") from exc
    return packed.sha.hexdigest()


class _Gzip:
    """A gzip file that is written once, from start to end, and knows its sha256 when it is closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.sha = hashlib.sha256()
        self._file = file
        self._piece = bytearray()
        self._crc = 0
        self._size = 0
        self._workers = max(1, min(4, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(self._workers, "pack")
        self._packing: deque[Future[bytes]] = deque()

    def __enter__(self) -> _Gzip:
        self._out(_GZIP_HEAD)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._pack(self._piece)
                self._collect(down_to=0)
                end = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
                self._out(end + self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little"))
        finally:
            self._pool.shutdown(cancel_futures=True)

    def write(self, data: bytes) -> None:
        self._piece += data
        while len(self._piece) >= _PIECE_BYTES:  # in how many bytes it was read must not show in the digest
            self._pack(self._piece[:_PIECE_BYTES])
            del self._piece[:_PIECE_BYTES]

    def _pack(self, data: bytearray) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._packing.append(self._pool.submit(_deflated, data))
        self._collect(down_to=2 * self._workers)

    def _collect(self, *, down_to: int) -> None:
        while len(self._packing) > down_to:
            self._out(self._packing.popleft().result())

    def _out(self, data: bytes) -> None:
        self.sha.update(data)
        self._file.write(data)


def _deflated(data: bytes | bytearray) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)  # ends at a byte, and does not end the stream


def _missing_folders(name: str, made: set[str]) -> list[str]:
    missing = []
    folder = name.rpartition("/")[0]
    while folder and folder not in made:
        made.add(folder)
        missing.append(folder)
        folder = folder.rpartition("/")[0]
    return missing[::-1]


def _put(entry: Entry, content: Callable[[Entry], Iterable[bytes]], packed: _Gzip) -> None:
    if entry.link is not None:
        packed.write(header(entry.name, tarfile.SYMTYPE, entry.mode, link=entry.link))
        return
    packed.write(header(entry.name, tarfile.REGTYPE, entry.mode, entry.size))
    for data in content(entry):
        packed.write(data)
    packed.write(bytes(-entry.size % _BLOCK))


def _content(root: Path, entry: Entry) -> Iterator[bytes]:
    """Yield exactly as much as the entry's header says."""
    where, left = f"{root}/{entry.name}", entry.size
    try:
        # Not through pathlib and io: with 10,000 files they take longer than the reading. A link that has taken the
        # file's place meanwhile is not followed.
        file = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            is_at_end = False
            while not is_at_end and (data := os.read(file, asked := min(left, _PIECE_BYTES) + 1)):
                left -= len(data)
                if left < 0:
                    raise TemporaryError(f"{where} grew while it was put into the snapshot; try again")
                yield data
                is_at_end = left == 0 and len(data) < asked
        finally:
            os.close(file)
    except PermissionError as exc:
        raise ConfigError(f"path: {entry.name} cannot be read: {exc.strerror}") from exc
    except OSError as exc:
        raise TemporaryError(f"{where} could not be put into the snapshot: {exc}; try again") from exc
    if left:
        raise TemporaryError(f"{where} shrank while it was put into the snapshot; try again")


def header(name: str, kind: bytes, mode: int, size: int = 0, *, link: str = "") -> bytes:
    """Return the header of a tar entry, byte for byte what :mod:`tarfile` writes, in a tenth of its time."""
    raw = os.fsencode(name)
    if link or len(raw) > _SHORT_NAME:
        return _slow_header(name, kind, mode, size, link)
    template = _templates.get((kind, mode)) or _template(kind, mode)
    octal = b"%011o" % size
    total = template[1] + sum(raw) + sum(octal)
    block = bytearray(template[0])
    block[: len(raw)] = raw
    block[124:135] = octal
    block[_SUM_AT] = b"%06o\0 " % total
    return bytes(block)


_templates: dict[tuple[bytes, int], tuple[bytes, int]] = {}


def _template(kind: bytes, mode: int) -> tuple[bytes, int]:
    """Return a header without name, size and checksum, and the sum of its bytes so far."""
    block = bytearray(_slow_header("", kind, mode, 0, ""))
    block[:_SHORT_NAME] = bytes(_SHORT_NAME)  # a folder's has a slash
    block[124:135] = bytes(11)
    block[_SUM_AT] = b" " * 8
    made = _templates[kind, mode] = (bytes(block), sum(block))
    return made


def _slow_header(name: str, kind: bytes, mode: int, size: int, link: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, size, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


# --- checking --------------------------------------------------------------------------------------------------------


def check_archive(archive: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Raise a PermanentError unless an archive is whole and holds only what unpacks inside of its folder.

    That is files, folders, and symbolic links that stay inside, each named once: no absolute path, no ``..``, no hard
    link, no device, nothing below a link. An artifact store that others write to may hold anything under its right
    digest.

    Args:
        archive: a gzip tar.
        max_bytes: the most its files may have.
    """
    contents = _Contents(max_bytes)
    try:
        with _Stream(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or else it remembers them all
                    contents.add(member)
            # A bad header ends the archive for tarfile, and not for others that might unpack it. Reading it all also
            # comes to gzip's checksum.
            stream.seek(tar.offset)
            if not _is_end(stream):
                contents.refuse(f"what is at byte {tar.offset:,}", "is no entry")
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, RecursionError) as exc:
        raise PermanentError(f"the job's code is no whole gzip tar: {exc}") from exc
    contents.check_links()


class _Stream(gzip.GzipFile):
    """A gzip file of which no large piece is read at once, whatever length a header claims for a name."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _PIECE_BYTES:
            raise tarfile.ReadError(f"{size} bytes at once")
        return super().read(size)


class _Contents:
    """What an archive would make of an empty folder."""

    def __init__(self, max_bytes: int) -> None:
        self._bytes_left = max_bytes
        self._entries_left = _MAX_ENTRIES
        self._folders: set[str] = {"."}
        self._others: set[str] = set()
        self._links: dict[str, str] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        if member.name.startswith("/") or ".." in member.name.split("/") or "\0" in member.name:
            self.refuse(member.name, "is outside of its folder")
        if not (member.isdir() or member.issym() or (member.isreg() and not member.issparse())):
            self.refuse(member.name, "is neither a file, a folder nor a symbolic link")
        if name in self._others or (name in self._folders and not member.isdir()):
            self.refuse(member.name, "is there twice")
        above = set(folders_of(name))
        if not above.isdisjoint(self._others):
            self.refuse(member.name, "is below what is no folder")
        self._folders |= above
        self._bytes_left -= member.size
        self._entries_left -= 1
        if self._bytes_left < 0 or self._entries_left < 0:
            self.refuse(member.name, "is beyond the size that a job's code may have")
        (self._folders if member.isdir() else self._others).add(name)
        if member.issym():
            self._links[name] = member.linkname

    def check_links(self) -> None:
        for name, target in self._links.items():
            if leads_out(name, self._links):
                self.refuse(name, f"is a link out of its folder, to {target!r}")

    def refuse(self, name: str, why: str) -> NoReturn:
        raise PermanentError(f"the job's code is refused: {name!r} {why}")


def _is_end(stream: _Stream) -> bool:
    """Whether all the rest is zero, and at least a block."""
    is_empty = True
    while data := stream.read(_PIECE_BYTES):
        if data.count(0) != len(data):
            return False
        is_empty = False
    return not is_empty


# --- what is true of any archive's names and links -------------------------------------------------------------------


def folders_of(name: str) -> Iterator[str]:
    """Yield the folders above a path, the nearest first."""
    while name := posixpath.dirname(name):
        yield name


def leads_out(link: str, links: Mapping[str, str]) -> bool:
    """Whether following a symbolic link as the kernel would, through others, ever leaves the folder.

    Args:
        link: the path of the link.
        links: ``{path: what it says}``, of all links there are.
    """
    at: list[str] = []
    ahead = link.split("/")[::-1]
    followed = 0
    while ahead and followed <= _MAX_LINKS:
        part = ahead.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not at:
                return True
            at.pop()
            continue
        target = links.get("/".join([*at, part]))
        if target is None:
            at.append(part)
        elif target.startswith("/") or "\0" in target:
            return True
        else:
            followed += 1
            ahead += target.split("/")[::-1]
    return False  # a loop leads nowhere


class Sized(Protocol):
    """A file, as far as its size matters."""

    @property
    def name(self) -> str:
        """Its path."""

    @property
    def size(self) -> int:
        """In bytes."""


def biggest(files: Iterable[Sized]) -> str:
    """Return the five largest files for people: ``data.bin (2,048.0 MB), model.pt (1.5 MB)``."""
    largest = sorted(files, key=lambda file: -file.size)[:5]
    return ", ".join(f"{file.name} ({file.size / 1e6:,.1f} MB)" for file in largest)
