"""A directory of code as one deterministic archive: the same content gives the same digest, whoever makes it and when.

Entries are sorted by the bytes of their paths, modes are 0644 or 0755 by the owner's executable bit alone
(:mod:`launch.code_archive`). Symbolic links are kept as links; empty folders are not kept (as in git). What is left
out, besides what ``.gitignore`` and ``.launchignore`` say, is in :data:`NEVER`, and virtual environments by their
``pyvenv.cfg``.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from launch import work_tree
from launch.code_archive import FORMAT, Entry, biggest, pack
from launch.errors import ConfigError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MAX_BYTES = 512 << 20

NEVER = frozenset(
    {".git", ".hg", ".svn", ".DS_Store", "__pycache__", ".venv", "node_modules", "wandb", ".ipynb_checkpoints"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox"}
)
"""Names left out at every depth; ``wandb`` is the folder that the SDK keeps its runs in, unless it is a package."""

_Stats = dict[str, os.stat_result]
"""``{relative path: what it is}``, links not followed."""


@dataclass(frozen=True)
class CodeFiles:
    """What of a directory goes into its snapshot."""

    root: Path
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""
    is_listed_by_git: bool
    fingerprint: str
    """sha256 of every entry's path, size, mode, inode and times: while it stays, so does the archive's digest."""
    changed_ns: int
    """When the last of them changed, by the clock of their file system."""
    seen_ns: int
    """When the first of them was looked at."""

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Its files and links, relative, in archive order."""
        return tuple(entry.name for entry in self.entries)

    @property
    def content_bytes(self) -> int:
        """The size of all its files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class Snapshot:
    """An archive in a temporary file, and what it holds."""

    archive: Path
    digest: str
    """sha256 of the archive."""
    archive_bytes: int
    code: CodeFiles

    @property
    def content_bytes(self) -> int:
        """The size of all its files."""
        return self.code.content_bytes

    @property
    def paths(self) -> tuple[str, ...]:
        """Its files and links, relative, in archive order."""
        return self.code.paths

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        return self.code.notes

    @property
    def files(self) -> int:
        """How many files and links it holds."""
        return len(self.code.entries)


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
    with packed(code_files(path, max_bytes=max_bytes)) as snap:
        yield snap


@contextmanager
def packed(code: CodeFiles) -> Iterator[Snapshot]:
    """Yield an archive of files that were found; its file is gone afterwards.

    Raises:
        ConfigError: one may not be read.
        TemporaryError: one changed its size since.
    """
    with tempfile.TemporaryDirectory(prefix="openlaunch-snapshot-") as folder:
        archive = Path(folder) / "code.tar.gz"
        digest = pack(code.root, code.entries, archive)
        yield Snapshot(archive, digest, archive.stat().st_size, code)


def code_files(path: Path, *, max_bytes: int = MAX_BYTES) -> CodeFiles:
    """Return what of a directory goes into its snapshot; reads no file's content.

    Raises:
        ConfigError: not a directory, nothing in it, too large, unreadable, or a link leads out of it.
    """
    root, seen_ns = checked_root(path), time.time_ns()
    notes: list[str] = []
    # A folder that the work tree around it ignores is not git's: it is walked like one outside.
    tracked = dict(_git_files(root, "", notes)) if work_tree.top_of(root) is not None else {}
    stats = tracked or dict(_walked_files(root))
    kept = [(name, stats[name]) for name in _wanted(root, stats)]
    entries = [_entry(root, name, found) for name, found in kept]
    if not entries:
        raise ConfigError(f"path: there is nothing to run in {path}: it is empty, or everything in it is ignored")
    _check_size(path, entries, max_bytes)
    return CodeFiles(
        root=root,
        entries=tuple(entries),
        notes=tuple(notes),
        is_listed_by_git=bool(tracked),
        fingerprint=_fingerprint(entries, [found for _, found in kept]),
        changed_ns=max(found.st_ctime_ns for _, found in kept),
        seen_ns=seen_ns,
    )


def checked_root(path: Path) -> Path:
    """Return a directory's real path.

    Raises:
        ConfigError: it is none.
    """
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise ConfigError(
            f"path: should be a folder, not the file {path}; give {path.parent}, and the file in the entrypoint: "
            f"'python {path.name}'"
        )
    raise ConfigError(f"path: there is no folder {path}")


def _fingerprint(entries: Sequence[Entry], stats: Sequence[os.stat_result]) -> str:
    lines = [FORMAT]
    for entry, found in zip(entries, stats, strict=True):
        lines.append(f"{entry} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


# --- which files -----------------------------------------------------------------------------------------------------


def _wanted(root: Path, stats: _Stats) -> list[str]:
    """Return the paths of what may be in the snapshot, sorted by their bytes, which no locale changes."""
    environments = {name.rpartition("/")[0] for name in stats if name.endswith("/pyvenv.cfg")}
    own_packages = {name.removesuffix("/__init__.py") for name in stats if name.endswith("wandb/__init__.py")}
    ignored = _ignore_spec(root / ".launchignore")
    folders: dict[str, bool] = {"": True}

    def is_code(name: str) -> bool:
        is_never = name.rpartition("/")[2] in NEVER and name not in own_packages
        return not is_never and name not in environments

    def is_in_code(folder: str) -> bool:
        if folder not in folders:
            unknown = list(itertools.takewhile(lambda one: one not in folders, _with_parents(folder)))
            for one in reversed(unknown):
                folders[one] = folders[one.rpartition("/")[0]] and is_code(one)
        return folders[folder]

    names = [
        name
        for name, found in stats.items()
        if stat.S_IFMT(found.st_mode) in (_REGULAR, _LINK) and is_in_code(name.rpartition("/")[0]) and is_code(name)
    ]
    if ignored is not None:
        names = [name for name in names if not ignored.match_file(name)]
    return sorted(names, key=os.fsencode)


_REGULAR, _LINK = stat.S_IFREG, stat.S_IFLNK


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition("/")[0]


def _git_files(root: Path, inner: str, notes: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    for listed in work_tree.list_files(root / inner):
        name = inner + listed
        found = _lstat(root, name)
        if found is None:  # deleted, though git tracks it
            continue
        if not stat.S_ISDIR(found.st_mode):
            yield name, found
        elif (root / name / ".git").exists():  # a submodule, or a repository inside this one
            yield from _git_files(root, name.rstrip("/") + "/", notes)
        else:
            notes.append(f"submodule {name} is not checked out, so its files are left out")


def _lstat(root: Path, name: str) -> os.stat_result | None:
    try:
        return os.lstat(f"{root}/{name}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise ConfigError(f"path: {name} cannot be read: {exc.strerror}") from exc


def _walked_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files outside a git work tree; each folder's .gitignore counts as it does inside one."""
    stack: list[tuple[str, tuple[tuple[str, GitIgnoreSpec], ...]]] = [("", ())]
    while stack:
        folder, above = stack.pop()
        listed = _listed(root, folder)
        own = _ignore_spec(root / folder / ".gitignore")
        specs = above if own is None else (*above, (folder, own))
        for name, is_folder in listed:
            if specs and _is_ignored(name + "/" * is_folder, specs):
                continue
            if is_folder and not _is_hopeless(root / name):
                stack.append((name, specs))
            elif not is_folder and (found := _lstat(root, name)) is not None:
                yield name, found


def _is_hopeless(folder: Path) -> bool:
    return folder.name in NEVER - {"wandb"} or os.path.lexists(folder / "pyvenv.cfg")


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
    try:
        if not file.is_file():
            return None
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as exc:
        raise ConfigError(f"path: {file} cannot be read: {exc.strerror}") from exc
    from pathspec import GitIgnoreSpec  # takes 35 ms, and most directories are in git

    return GitIgnoreSpec.from_lines(lines)


def _entry(root: Path, name: str, found: os.stat_result) -> Entry:
    if stat.S_ISLNK(found.st_mode):
        return Entry(name, 0o777, 0, _checked_link(root, name))
    return Entry(name, 0o755 if found.st_mode & stat.S_IXUSR else 0o644, found.st_size)


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


def _check_size(path: Path, entries: Sequence[Entry], max_bytes: int) -> None:
    total = sum(entry.size for entry in entries)
    if total <= max_bytes:
        return
    raise ConfigError(
        f"path: the {len(entries):,} files in {path} have {total / 1e6:,.1f} MB, more than the "
        f"{max_bytes / 1e6:,.1f} MB a snapshot may have; the biggest: {biggest(entries)}. Name data and checkpoints in "
        f"{path / '.launchignore'}"
    )
