"""A job's code on its way to the engine as a build context: read, filtered and sent piece by piece. No SDK here."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launch.errors import BuildError, PermanentError

OWN_DOCKERFILE = ".launch.Dockerfile"
"""What the Dockerfile is called in the context that is sent: as the engine is to have it, wherever it is kept."""
_PIECE_BYTES = 1 << 20
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Code:
    """What the builder has to know of a job's code before it sends it."""

    dockerfile: str
    """The Dockerfile's text."""
    ignore: tuple[str, ...]
    """The lines of the ``.dockerignore`` that applies."""
    context: PurePosixPath
    """The folder that is sent."""
    own_ignore: str | None
    """The text of the ``.dockerignore`` in that folder."""


def read_code(archive: Path, dockerfile: str, context: str | None) -> Code:
    """Return the Dockerfile in a job's code, and what is left out of its context.

    Args:
        archive: the gzip tar.
        dockerfile: its path in the code.
        context: the context folder's path in the code; none: all of it.

    Raises:
        BuildError: one of them is not there, or leads out of the code; the message says what is there.
    """
    path, folder = _inside(dockerfile, "Dockerfile"), _inside(context or ".", "build context")
    # As with BuildKit: a Dockerfile's own ignore file goes before that of the context.
    ignore_files = (PurePosixPath(f"{path}.dockerignore"), folder / ".dockerignore")
    wanted = {path, *ignore_files}
    texts: dict[PurePosixPath, str] = {}
    names: list[PurePosixPath] = []
    with _members(archive) as members:
        for tar, member in members:
            name = PurePosixPath(member.name)
            names.append(name)
            content = tar.extractfile(member) if name in wanted and member.isreg() else None
            if content is not None:
                texts[name] = content.read(_MAX_TEXT_BYTES).decode("utf-8", "replace")
    if path not in texts:
        raise BuildError(f"Dockerfile: the job's code has no file {dockerfile!r}; {_what_is_there(names, path.name)}")
    if str(folder) != "." and not any(name == folder or folder in name.parents for name in names):
        folders = sorted({str(parent) for name in names for parent in name.parents} - {"."})
        there = f"its folders are: {', '.join(folders[:20])}" if folders else "it has no folders"
        raise BuildError(f"build context: the job's code has no folder {context!r}; {there}")
    lines = next((texts[file].splitlines() for file in ignore_files if file in texts), [])
    kept = tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))
    return Code(texts[path], kept, folder, texts.get(folder / ".dockerignore"))


def _what_is_there(names: Iterable[PurePosixPath], wanted: str) -> str:
    listed = list(names)
    alike = [str(name) for name in listed if "dockerfile" in name.name.lower() or name.name == wanted]
    if alike:
        return f"there is: {', '.join(sorted(alike)[:20])}"
    return f"at its top there are: {', '.join(sorted({name.parts[0] for name in listed if name.parts})[:20])}"


def _inside(text: str, what: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise BuildError(f"{what}: {text!r} leads out of the job's code; name a path inside it")
    return path


def context_digest(archive: Path, code: Code, ignored: Callable[[str], bool]) -> str:
    """Return a digest of what a build could see: names, kinds, modes and contents, no times and no owners."""
    seen = hashlib.sha256()
    with _members(archive) as members:
        for tar, member in members:
            name = _sent_as(member, code, ignored)
            if name is None:
                continue
            parts = (name, member.type, oct(member.mode), member.linkname, member.size)
            seen.update(repr(parts).encode())
            content = tar.extractfile(member) if member.isreg() else None
            while content is not None and (piece := content.read(_PIECE_BYTES)):
                seen.update(piece)
    return seen.hexdigest()


def context_tar(archive: Path, code: Code, ignored: Callable[[str], bool], dockerfile: str) -> Iterator[bytes]:
    """Yield a plain tar of the context, the Dockerfile as it is to be built in it.

    Raises:
        PermanentError: the archive is damaged.
    """
    # The engine takes the Dockerfile out of the context before the build where this file says so.
    yield _file(".dockerignore", f"{code.own_ignore or '.dockerignore'}\n{OWN_DOCKERFILE}\n")
    yield _file(OWN_DOCKERFILE, dockerfile)
    with _members(archive) as members:
        for tar, member in members:
            name = _sent_as(member, code, ignored)
            if name not in (None, ".dockerignore", OWN_DOCKERFILE):
                yield from _moved(tar, member, name, code)
    yield bytes(2 * tarfile.BLOCKSIZE)


def text_tar(files: Mapping[str, str]) -> bytes:
    """Return a plain tar of small files."""
    return b"".join([*(_file(name, text) for name, text in files.items()), bytes(2 * tarfile.BLOCKSIZE)])


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]]:
    def each(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        for member in tar:
            _inside_archive(member.name)
            yield tar, member

    try:
        with tarfile.open(archive, mode="r|gz") as tar:
            yield each(tar)
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise PermanentError(f"the job's code in {archive} cannot be read: {exc}") from exc


def _inside_archive(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise PermanentError(f"the job's code holds {name!r}, which is outside of its folder")


def _sent_as(member: tarfile.TarInfo, code: Code, ignored: Callable[[str], bool]) -> str | None:
    """Return a member's name in the context; none: it is not part of it."""
    path = PurePosixPath(member.name)
    if path == code.context or (str(code.context) != "." and code.context not in path.parents):
        return None
    name = str(path.relative_to(code.context))
    return None if ignored(name) else name  # the engine makes folders of what is in them


def _moved(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, code: Code) -> Iterator[bytes]:
    member.name = name
    if member.islnk():
        _inside_archive(member.linkname)
        member.linkname = _linked(member.linkname, code)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.pax_headers = {}  # they would win over the new name
    yield member.tobuf(tarfile.PAX_FORMAT)
    content = tar.extractfile(member) if member.isreg() else None
    if content is not None:
        size = 0
        while piece := content.read(_PIECE_BYTES):
            size += len(piece)
            yield piece
        yield bytes(-size % tarfile.BLOCKSIZE)


def _linked(target: str, code: Code) -> str:
    path = PurePosixPath(target)
    if not path.is_relative_to(code.context):
        raise BuildError(
            f"build context: it holds a hard link to {target!r}, which is outside of {str(code.context)!r}"
        )
    return str(path.relative_to(code.context))


def _file(name: str, text: str) -> bytes:
    data = text.encode()
    member = tarfile.TarInfo(name)  # no time, no owner: the engine's cache sees the same file again
    member.size, member.mode = len(data), 0o644
    return member.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
