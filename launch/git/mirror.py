"""A bare copy of one remote on this disk, as shallow as its server allows, that many processes share.

Below the launch home::

    cache/git/<sha256 of the URL>.git    the mirror; refs/launch/<commit> names a commit that is here with all its files
    cache/git/<sha256 of the URL>.lock   held by whoever works on it, and by the git processes it has started: should it
                                         be killed, the next one waits until they have ended too

A mirror is only a copy: one that git cannot go on with is thrown away and made anew.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from launch import file_locks
from launch.errors import PermanentError
from launch.git.command import Git, Watch
from launch.git.errors import DamagedError, RefusedError, TooLargeError, UnadvertisedError
from launch.git.remote import Remote, is_commit
from launch.git.tree import TreeEntry, check_size, missing_folder, read_listing

_MAX_PACKS = 50
"""A mirror of so many packs is cheaper to fetch anew than to read."""
_MAX_GITMODULES_BYTES = 1 << 20

Note = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Blob:
    """Where a file's content is."""

    file: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Files:
    """The files of one commit of one repository, submodules apart."""

    entries: list[TreeEntry]
    blobs: dict[str, Blob]
    """``{oid: where its content is}``"""
    gitmodules: list[tuple[str, str]]
    """``[("submodule.<name>.path", "libs/x"), …]`` as ``.gitmodules`` says it; empty when there are no submodules."""


class Mirror:
    """The mirror of one remote.

    Args:
        git: runs git.
        remote: whose mirror it is.
        note: called with what is done, a sentence.
    """

    def __init__(self, git: Git, remote: Remote, note: Note) -> None:
        self._git = git
        self._remote = remote
        self._note = note
        self.path = mirror_path(git.folder, remote)

    def read(
        self, commit: str, *, ref: str | None, subdirectory: str | None, spool: Path, max_bytes: float, watch: Watch
    ) -> Files:
        """Return the files of a commit, fetched if it is not here yet.

        Args:
            commit: its 40 digits.
            ref: a branch or tag that may lead to it, for a server that gives out no commit by its id.
            subdirectory: the folder to read; none: all.
            spool: the file that is made to hold their content.
            max_bytes: the most they may have.
            watch: what ends it.

        Raises:
            ConfigError: the remote wants a login, or is not there; the folder is not; the files are too large, or none.
            TemporaryError: the remote does not answer, or the disk is full.
            PermanentError: there is no such commit, or what was fetched is too large.
            InterruptedError: it was cancelled.
        """
        where = f"{self._remote.url} at {commit[:12]}"

        def read(lock: int) -> Files:
            self._fetch_missing(commit, ref, watch, lock)
            entries = self._listed(commit, subdirectory, where, watch)
            check_size(entries, max_bytes, where=where)
            blobs = self._spooled(entries, spool, watch)
            has_submodules = any(entry.is_submodule for entry in entries)
            return Files(entries, blobs, self._gitmodules(commit, where, watch) if has_submodules else [])

        return self._mended(read, watch)

    def _mended(self, action: Callable[[int], T], watch: Watch) -> T:
        """Return what an action on the mirror returns; one that is damaged is made anew, once."""
        with locked(self.path.with_suffix(".lock"), watch) as lock:
            is_old = self._prepare(watch)
            try:
                return action(lock)
            except TooLargeError:
                shutil.rmtree(self.path)
                raise
            except (DamagedError, RefusedError):
                if not is_old:
                    raise
            self._note(f"git cannot go on with the copy of {self._remote.url} on this disk; fetching it again")
            shutil.rmtree(self.path)
            self._prepare(watch)
            return action(lock)

    def _prepare(self, watch: Watch) -> bool:
        """Make the mirror if there is none, or clear up after one who was killed; whether there was one."""
        packs = self.path / "objects" / "pack"
        if (self.path / "HEAD").is_file() and len(list(packs.glob("*.pack"))) <= _MAX_PACKS:
            for left in (*packs.glob("tmp_*"), *self.path.glob("*.lock"), *self.path.glob("refs/launch/*.lock")):
                left.unlink(missing_ok=True)
            return True
        shutil.rmtree(self.path, ignore_errors=True)
        made = self.path.with_name(f".new-{secrets.token_hex(8)}")
        try:
            self._git.run("init", "--quiet", "--bare", "--template=", str(made), watch=watch)
            made.rename(self.path)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return False

    # --- fetching ----------------------------------------------------------------------------------------------------

    def _fetch_missing(self, commit: str, ref: str | None, watch: Watch, lock: int) -> None:
        if self._has(f"refs/launch/{commit}", watch):
            return
        began, before = time.monotonic(), self._bytes()
        try:
            self._fetch(watch, lock, "--depth=1", f"+{commit}:refs/launch/{commit}")
        except UnadvertisedError:
            self._fetch_by_refs(commit, ref, watch, lock)
        got = max(0, self._bytes() - before) / 1e6
        self._note(f"fetched {commit[:12]} of {self._remote.url}: {got:,.1f} MB in {time.monotonic() - began:.1f} s")

    def _fetch_by_refs(self, commit: str, ref: str | None, watch: Watch, lock: int) -> None:
        """Fetch from a server that gives out no commit by its id: what the ref points to, else all history."""
        if ref is not None and not is_commit(ref):
            with suppress(PermanentError):  # the ref is gone, which is no reason to give up
                self._fetch(watch, lock, "--depth=1", f"+{ref}:refs/tip/{ref}")
        if not self._has(commit, watch):
            self._note(f"{self._remote.url} gives out no commit by its id: fetching its whole history")
            whole = ("--unshallow",) if (self.path / "shallow").is_file() else ()
            self._fetch(watch, lock, *whole, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        if not self._has(commit, watch):
            raise PermanentError(f"git: {self._remote.url} has no commit {commit}; was its history rewritten?")
        self._local("update-ref", f"refs/launch/{commit}", commit, watch=watch)

    def _fetch(self, watch: Watch, lock: int, *words: str) -> None:
        before = self._bytes()
        options = [word for word in words if word.startswith("--")]
        refs = [word for word in words if not word.startswith("--")]
        self._git.ask(
            self._remote,
            *(f"--git-dir={self.path}", "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", *options),
            *("--", self._remote.url, *refs),
            watch=watch,
            max_bytes=self._git.access.max_fetch_mb * 1e6,
            grown=lambda: self._bytes() - before,
            keep_open=(lock,),
        )

    def _bytes(self) -> int:
        return folder_bytes(self.path / "objects")

    # --- reading -----------------------------------------------------------------------------------------------------

    def _local(self, *words: str, watch: Watch, **options: object) -> bytes:
        return self._git.run(f"--git-dir={self.path}", *words, watch=watch, **options)  # type: ignore[arg-type]

    def _has(self, name: str, watch: Watch) -> bool:
        try:
            self._local("cat-file", "-e", f"{name}^{{commit}}", watch=watch)
        except DamagedError:
            return False
        return True

    def _listed(self, commit: str, subdirectory: str | None, where: str, watch: Watch) -> list[TreeEntry]:
        tree = f"{commit}:{subdirectory or ''}"
        try:
            listing = self._local("ls-tree", "-r", "-z", "-l", "--full-tree", tree, watch=watch)
        except DamagedError:
            if subdirectory is None:
                raise
            folders = self._local("ls-tree", "-r", "-d", "-z", "--name-only", "--full-tree", commit, watch=watch)
            raise missing_folder(subdirectory, os.fsdecode(folders).split("\0"), where=where) from None
        return read_listing(listing, where=where)

    def _spooled(self, entries: list[TreeEntry], spool: Path, watch: Watch) -> dict[str, Blob]:
        """Write the content of all files into one, and return where each begins."""
        sizes = {entry.oid: entry.size for entry in entries if not entry.is_submodule}
        with spool.open("w+b") as file:
            wanted = "".join(f"{oid}\n" for oid in sizes).encode()
            room = sum(sizes.values()) + 100 * len(sizes)
            self._local("cat-file", "--batch", "--buffer", watch=watch, stdin=wanted, stdout=file, max_bytes=room)
            return dict(_blobs(file, spool, sizes))

    def _gitmodules(self, commit: str, where: str, watch: Watch) -> list[tuple[str, str]]:
        listing = self._local("ls-tree", "-z", "-l", "--full-tree", commit, ".gitmodules", watch=watch)
        found = read_listing(listing, where=where)
        if not found or found[0].is_link or found[0].size > _MAX_GITMODULES_BYTES:
            return []
        words = ("config", "--no-includes", f"--blob={commit}:.gitmodules", "--null", "--list")
        try:
            lines = os.fsdecode(self._local(*words, watch=watch)).split("\0")
        except DamagedError as exc:
            raise PermanentError(f"git: {where}: its .gitmodules cannot be read: {exc}") from exc
        return [(name, value) for name, _, value in (line.partition("\n") for line in lines) if name]


def _blobs(file: BinaryIO, spool: Path, sizes: dict[str, int]) -> Iterator[tuple[str, Blob]]:
    offset = 0
    for oid, size in sizes.items():
        file.seek(offset)
        if file.readline(200) != f"{oid} blob {size}\n".encode():
            raise DamagedError(f"git: the object {oid} is not as it should be")
        yield oid, Blob(spool, file.tell(), size)
        offset = file.tell() + size + 1
    if file.seek(0, os.SEEK_END) != offset:
        raise DamagedError("git: an object is cut off")


def mirror_path(folder: Path, remote: Remote) -> Path:
    """Return where a remote's mirror is."""
    return folder / f"{hashlib.sha256(remote.url.encode()).hexdigest()}.git"


def folder_bytes(folder: Path) -> int:
    """Return how much is in a folder; what goes away meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


@contextmanager
def locked(path: Path, watch: Watch) -> Iterator[int]:
    """Hold a file's lock, and give its descriptor; its time stamp is when it was last taken.

    Raises:
        InterruptedError, PermanentError: the watch ended the wait.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file_locks.locked(path, watch.check) as file:
        os.utime(file)
        yield file
