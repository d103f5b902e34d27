"""A job's code on its way into a container: a tar of the container user's own files. No SDK here.

``LAUNCH_DIR`` holds everything openlaunch puts into a container: ``code``, the job's working directory, and ``home``,
for users that the image does not know. Both belong to the user the job runs as.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from launch.errors import PermanentError

LAUNCH_DIR = "/launch"
CODE_DIR = f"{LAUNCH_DIR}/code"
HOME_DIR = f"{LAUNCH_DIR}/home"

_PIECE_BYTES = 1 << 20


def code_archive(code: Path, owner: tuple[int, int]) -> Iterator[bytes]:
    """Yield a plain tar, to be unpacked at ``/``, of a gzip tar of code: read and sent piece by piece.

    Args:
        code: a gzip tar with paths relative to the job's root.
        owner: the container user's uid and gid.

    Raises:
        PermanentError: the archive is damaged, or holds something that would leave its folder.
    """
    yield _folder(LAUNCH_DIR, (0, 0))
    yield _folder(CODE_DIR, owner)
    yield _folder(HOME_DIR, owner)
    made = {PurePosixPath(".")}
    try:
        with tarfile.open(code, mode="r|gz") as archive:
            for member in archive:
                path = _inside(member.name)
                # The engine would make a folder without an entry of its own root's.
                for parent in sorted({*path.parents} - made):
                    yield _folder(f"{CODE_DIR}/{parent}", owner)
                made.update(path.parents, [path] if member.isdir() else [])
                yield from _moved(archive, member, path, owner)
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise PermanentError(f"the job's code in {code} cannot be read: {exc}") from exc
    yield bytes(2 * tarfile.BLOCKSIZE)


def _folder(path: str, owner: tuple[int, int]) -> bytes:
    info = tarfile.TarInfo(path.lstrip("/") + "/")
    info.type, info.mode, (info.uid, info.gid) = tarfile.DIRTYPE, 0o755, owner
    return info.tobuf(tarfile.PAX_FORMAT)


def _moved(
    archive: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath, owner: tuple[int, int]
) -> Iterator[bytes]:
    """Yield a member under its new name and owner, and its content."""
    if path == PurePosixPath("."):
        return
    member.name = f"{CODE_DIR}/{path}".lstrip("/")
    if member.islnk():
        member.linkname = f"{CODE_DIR}/{_inside(member.linkname)}".lstrip("/")
    member.uid, member.gid = owner
    member.uname = member.gname = ""
    member.pax_headers = {}  # they would win over the new name and owner
    yield member.tobuf(tarfile.PAX_FORMAT)
    content = archive.extractfile(member) if member.isreg() else None
    if content is not None:
        yield from _padded(content)


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise PermanentError(f"the job's code holds {name!r}, which is outside of its folder")
    return path


def _padded(content: IO[bytes]) -> Iterator[bytes]:
    size = 0
    while piece := content.read(_PIECE_BYTES):
        size += len(piece)
        yield piece
    yield bytes(-size % tarfile.BLOCKSIZE)


def read_file_of(pieces: Iterable[bytes]) -> str:
    """Return the text of the one file in a small tar; of anything but a file, nothing."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        member = archive.next()
        content = archive.extractfile(member) if member is not None and member.isreg() else None
        return content.read().decode("utf-8", "replace") if content is not None else ""


def owner_of(user: str, passwd: str, group: str) -> tuple[int, int]:
    """Return the uid and gid that a container runs with.

    Args:
        user: ``""`` (root), a name or uid, with ``:group`` or ``:gid`` after it or not.
        passwd: the text of the image's ``/etc/passwd``.
        group: the text of its ``/etc/group``.

    Raises:
        PermanentError: a name that the image does not know.
    """
    name, _, group_name = user.partition(":")
    entry = next((row for row in _rows(passwd) if len(row) > 3 and name in (row[0], row[2])), None)
    if not name:
        uid, gid = 0, 0
    elif entry is not None:
        uid, gid = int(entry[2]), int(entry[3])
    elif name.isdigit():
        uid, gid = int(name), 0
    else:
        raise PermanentError(f"user: the image has no user {name!r}")
    return uid, _gid_of(group_name, group, gid)


def _gid_of(name: str, group: str, default: int) -> int:
    if not name:
        return default
    found = next((int(row[2]) for row in _rows(group) if len(row) > 2 and row[0] == name), None)
    if found is not None:
        return found
    if name.isdigit():
        return int(name)
    raise PermanentError(f"user: the image has no group {name!r}")


def _rows(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines()]
