"""A directory of code as one deterministic archive: the same content gives the same digest, whoever makes it and when.

A gzip tar in GNU format: entries sorted by the bytes of their paths, each file's folders before it, no times, owner 0,
modes 0644 or 0755 by the owner's executable bit alone. (Another zlib may pack the same content to another digest: that
costs a job a version, no more.) Symbolic links are kept as links; empty folders are not kept
(as in git). What is left out, besides what ``.gitignore`` and ``.launchignore`` say, is in :data:`_NEVER`, and virtual
environments by their ``pyvenv.cfg``.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from launch.errors import ConfigError, TemporaryError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MAX_BYTES = 512 << 20

_NEVER = frozenset(
    {".git", ".hg", ".svn", ".DS_Store", "__pycache__", ".venv", "node_modules", "wandb", ".ipynb_checkpoints"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox"}
)
"""Names left out at every depth; ``wandb`` is the folder that the SDK keeps its runs in, unless it is a package."""

_BIGGEST = 5


@dataclass(frozen=True)
class Snapshot:
    """An archive in a temporary file, and what it holds."""

    archive: Path
    digest: str
    """sha256 of the archive."""
    archive_bytes: int
    content_bytes: int
    paths: tuple[str, ...]
    """Its files and links, relative, in archive order."""
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""

    @property
    def files(self) -> int:
        """How many files and links it holds."""
        return len(self.paths)


@dataclass(frozen=True)
class _Entry:
    name: str
    mode: int
    size: int
    link: str | None = None


@contextmanager
def snapshot(path: Path, *, max_bytes: int = MAX_BYTES) -> Iterator[Snapshot]:
    """Yield an archive of a directory's code; its file is gone afterwards.

    Args:
        path: the directory; inside a git work tree, what git tracks or would let you add, as it is on disk.
        max_bytes: the most its files may have in all.

    Raises:
        ConfigError: not a directory, nothing in it, too large, unreadable, or a link leads out of it.
        TemporaryError: a file changed its size while it was read.
    """
    root = _checked_root(path)
    notes: list[str] = []
    entries = [_entry(root, name) for name in _wanted(root, notes)]
    kept = [entry for entry in entries if entry is not None]
    if not kept:
        raise ConfigError(f"path: there is nothing to run in {path}: it is empty, or everything in it is ignored")
    _check_size(path, kept, max_bytes)
    with tempfile.TemporaryDirectory(prefix="openlaunch-snapshot-") as folder:
        archive = Path(folder) / "code.tar.gz"
        digest = _write(root, kept, archive)
        yield Snapshot(
            archive=archive,
            digest=digest,
            archive_bytes=archive.stat().st_size,
            content_bytes=sum(entry.size for entry in kept),
            paths=tuple(entry.name for entry in kept),
            notes=tuple(notes),
        )


def _checked_root(path: Path) -> Path:
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise ConfigError(
            f"path: should be a folder, not the file {path}; give {path.parent}, and the file in the entrypoint: "
            f"'python {path.name}'"
        )
    raise ConfigError(f"path: there is no folder {path}")


# --- which files -----------------------------------------------------------------------------------------------------


def _wanted(root: Path, notes: list[str]) -> list[str]:
    """Return the relative paths of what may be in the snapshot, sorted by their bytes, which no locale changes."""
    # A folder that the work tree around it ignores is not git's: it is walked like one outside.
    names = set(_git_files(root, notes) if _is_in_git(root) else ()) or set(_walked_files(root))
    environments = {name.rpartition("/")[0] for name in names if name.endswith("/pyvenv.cfg")}
    own_packages = {name.removesuffix("/__init__.py") for name in names if name.endswith("wandb/__init__.py")}
    ignored = _ignore_spec(root / ".launchignore")

    def is_wanted(name: str) -> bool:
        for folder in _with_parents(name):
            base = folder.rpartition("/")[2]
            if folder in environments or (base in _NEVER and folder not in own_packages):
                return False
        return ignored is None or not ignored.match_file(name)

    return sorted(filter(is_wanted, names), key=os.fsencode)


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition("/")[0]


def _is_in_git(root: Path) -> bool:
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def _git_files(root: Path, notes: list[str]) -> Iterator[str]:
    for name in _git_list(root):
        path = root / name
        if not path.is_dir() or path.is_symlink():
            yield name
        elif (path / ".git").exists():  # a submodule, or a repository inside this one: git lists its folder only
            yield from (f"{name.rstrip('/')}/{inner}" for inner in _git_files(path, notes))
        else:
            notes.append(f"submodule {name} is not checked out, so its files are left out")


def _git_list(root: Path) -> list[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=root, env=environ, capture_output=True, check=False)
    except FileNotFoundError as exc:
        raise ConfigError(f"path: {root} is in a git work tree, and there is no git here to ask what to keep") from exc
    if done.returncode != 0:
        raise ConfigError(f"path: git cannot list the files of {root}: {os.fsdecode(done.stderr).strip()}")
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _walked_files(root: Path) -> Iterator[str]:
    """Yield the files outside a git work tree; each folder's .gitignore counts as it does inside one."""
    stack: list[tuple[str, tuple[tuple[str, GitIgnoreSpec], ...]]] = [("", ())]
    while stack:
        folder, above = stack.pop()
        own = _ignore_spec(root / folder / ".gitignore")
        specs = above if own is None else (*above, (folder, own))
        for name, is_folder in _listed(root, folder):
            if _is_ignored(name + "/" * is_folder, specs):
                continue
            if not is_folder:
                yield name
            elif not _is_hopeless(root / name):
                stack.append((name, specs))


def _is_hopeless(folder: Path) -> bool:
    return folder.name in _NEVER - {"wandb"} or (folder / "pyvenv.cfg").exists()


def _listed(root: Path, folder: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(root / folder) as found:
            return [(folder + "/" * bool(folder) + one.name, one.is_dir(follow_symlinks=False)) for one in found]
    except OSError as exc:
        raise ConfigError(f"path: {folder or root} cannot be read: {exc.strerror}") from exc


def _is_ignored(name: str, specs: Sequence[tuple[str, GitIgnoreSpec]]) -> bool:
    # The nearest .gitignore that says anything about a path decides.
    for folder, spec in reversed(specs):
        verdict = spec.check_file(name[len(folder) + 1 :] if folder else name).include
        if verdict is not None:
            return verdict
    return False


def _ignore_spec(file: Path) -> GitIgnoreSpec | None:
    if not file.is_file():
        return None
    from pathspec import GitIgnoreSpec  # takes 35 ms, and most directories are in git

    return GitIgnoreSpec.from_lines(file.read_text(encoding="utf-8", errors="surrogateescape").splitlines())


def _entry(root: Path, name: str) -> _Entry | None:
    """Return how a path goes into the archive; none: deleted though git tracks it, or a socket, pipe or device."""
    path = root / name
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        return _Entry(name, 0o777, 0, _checked_link(root, name))
    if not stat.S_ISREG(found.st_mode):
        return None
    return _Entry(name, 0o755 if found.st_mode & stat.S_IXUSR else 0o644, found.st_size)


def _checked_link(root: Path, name: str) -> str:
    path = root / name
    # As text, since a Path would tidy away what the link says.
    target = os.readlink(path)  # noqa: PTH115
    lexical = os.path.normpath(f"{name.rpartition('/')[0] or '.'}/{target}")
    try:
        stays = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links, which leads nowhere
        stays = True
    if target.startswith("/") or lexical.split("/")[0] == ".." or not stays:
        raise ConfigError(
            f"path: the link {name} leads out of the folder, to {target}; make it a relative link to something inside, "
            f"or name it in {root / '.launchignore'}"
        )
    return target


def _check_size(path: Path, entries: Sequence[_Entry], max_bytes: int) -> None:
    total = sum(entry.size for entry in entries)
    if total <= max_bytes:
        return
    biggest = sorted(entries, key=lambda entry: -entry.size)[:_BIGGEST]
    shown = ", ".join(f"{entry.name} ({entry.size / 1e6:,.1f} MB)" for entry in biggest)
    raise ConfigError(
        f"path: the {len(entries):,} files in {path} have {total / 1e6:,.1f} MB, more than the "
        f"{max_bytes / 1e6:,.1f} MB a snapshot may have; the biggest: {shown}. Name data and checkpoints in "
        f"{path / '.launchignore'}"
    )


# --- the archive -----------------------------------------------------------------------------------------------------


class _Hashing:
    """A file that is written once, from start to end, and knows its sha256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _write(root: Path, entries: Sequence[_Entry], archive: Path) -> str:
    with archive.open("wb") as file:
        hashing = _Hashing(file)
        # No name and no time in gzip's header; level 4 takes as long as 1 on source code, and 6 half as long again.
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=hashing, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
        ):
            made: set[str] = set()
            for entry in entries:
                _add_folders(tar, entry.name, made)
                _add(tar, root, entry)
    return hashing.sha.hexdigest()


def _add_folders(tar: tarfile.TarFile, name: str, made: set[str]) -> None:
    missing = [folder for folder in list(_with_parents(name))[1:] if folder not in made]
    for folder in reversed(missing):
        made.add(folder)
        tar.addfile(_info(folder, tarfile.DIRTYPE, 0o755))


def _add(tar: tarfile.TarFile, root: Path, entry: _Entry) -> None:
    if entry.link is not None:
        info = _info(entry.name, tarfile.SYMTYPE, entry.mode)
        info.linkname = entry.link
        tar.addfile(info)
        return
    info = _info(entry.name, tarfile.REGTYPE, entry.mode)
    info.size = entry.size
    try:
        with (root / entry.name).open("rb") as file:
            tar.addfile(info, file)
            has_grown = bool(file.read(1))
    except PermissionError as exc:
        raise ConfigError(f"path: {entry.name} cannot be read: {exc.strerror}") from exc
    except OSError as exc:  # gone or shorter, or the temporary folder is full
        raise TemporaryError(f"{root / entry.name} could not be put into the snapshot: {exc}; try again") from exc
    if has_grown:
        raise TemporaryError(f"{root / entry.name} grew while it was put into the snapshot; try again")


def _info(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    return info
