"""The files of a commit as git lists them, checked: nothing in a listing is trusted. Pure.

A stranger can write trees by hand that no ``git add`` would make: a file and a folder of one name, ``..``, ``.git``,
links that lead out through other links.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launch.checking import closest
from launch.code_archive import biggest, folders_of, leads_out
from launch.errors import ConfigError
from launch.git.errors import DamagedError

MAX_FILES = 200_000
_MAX_LINK_BYTES = 4096
_LINE = re.compile(rb"([0-7]{6}) (blob|commit) ([0-9a-f]{40}) +([0-9]+|-|BAD)\t(.+)", re.DOTALL)
_MODES = (b"100644", b"100664", b"100755", b"120000", b"160000")
_DOT_GIT = re.compile(r"\.git|git~1", re.IGNORECASE)


@dataclass(frozen=True)
class TreeEntry:
    """A file, link or submodule of a commit."""

    name: str
    """Relative to the folder that was listed."""
    mode: str
    oid: str
    size: int
    """In bytes; 0 for a submodule."""

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode == "120000"

    @property
    def is_submodule(self) -> bool:
        """Whether it is a commit of another repository."""
        return self.mode == "160000"

    @property
    def is_executable(self) -> bool:
        """Whether its owner may execute it."""
        return self.mode == "100755"


def read_listing(listing: bytes, *, where: str) -> list[TreeEntry]:
    """Return what ``git ls-tree -r -z -l`` listed.

    Args:
        listing: its output.
        where: what was listed, for messages.

    Raises:
        ConfigError: a name could be written nowhere, or there are too many.
        DamagedError: a file's content is missing on this disk.
    """
    lines = [line for line in listing.split(b"\0") if line]
    if len(lines) > MAX_FILES:
        raise ConfigError(f"{where}: has {len(lines):,} files, more than the {MAX_FILES:,} a job may have")
    entries = [_entry(line, where) for line in lines]
    check_names((entry.name for entry in entries), where=where)
    return entries


def _entry(line: bytes, where: str) -> TreeEntry:
    found = _LINE.fullmatch(line)
    if found is None:
        raise ConfigError(f"{where}: git lists what is no file: {line[:200]!r}")
    mode, kind, oid, size, name = found.groups()
    if (kind == b"commit") != (mode == b"160000") or mode not in _MODES:
        raise ConfigError(f"{where}: {os.fsdecode(name)!r} has the mode {mode.decode()}, which no file has")
    if size == b"BAD":
        raise DamagedError(f"git: the object {oid.decode()} is not there")
    entry = TreeEntry(os.fsdecode(name), mode.decode(), oid.decode(), 0 if size == b"-" else int(size))
    if entry.is_link and entry.size > _MAX_LINK_BYTES:
        raise ConfigError(f"{where}: the link {entry.name!r} is longer than the {_MAX_LINK_BYTES} bytes of any path")
    return entry


def check_names(names: Iterable[str], *, where: str) -> None:
    """Raise a ConfigError for names that cannot be files beside each other.

    Args:
        names: paths of files, links and submodules.
        where: whose they are, for the message.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part or _DOT_GIT.fullmatch(part) for part in parts):
            raise ConfigError(f"{where}: has a file named {name!r}, which is no name for one")
        if name in seen:
            raise ConfigError(f"{where}: has two files named {name!r}")
        seen.add(name)
        folders.update(folders_of(name))
    if both := seen & folders:
        raise ConfigError(f"{where}: {min(both)!r} is a file and a folder at once")


def check_size(entries: Iterable[TreeEntry], max_bytes: float, *, where: str) -> int:
    """Return the bytes of all files, or raise a ConfigError that lists the biggest if they are too many."""
    listed = list(entries)
    total = sum(entry.size for entry in listed)
    if total > max_bytes:
        raise ConfigError(
            f"{where}: its {len(listed):,} files have {total / 1e6:,.1f} MB, more than the {max_bytes / 1e6:,.1f} MB "
            f"that git/max_mb allows; the biggest: {biggest(listed)}"
        )
    return total


def check_links(links: Mapping[str, str], *, where: str) -> None:
    """Raise a ConfigError for a symbolic link that leads out of the folder, by itself or through others.

    Args:
        links: ``{name: what it says}``, of all links there are.
        where: whose they are, for the message.
    """
    for name, target in links.items():
        if leads_out(name, links):
            raise ConfigError(
                f"{where}: the link {name} leads out of the job's folder, to {target!r}; make it a relative link to "
                "something inside"
            )


def missing_folder(folder: str, folders: Iterable[str], *, where: str) -> ConfigError:
    """Return the error for a folder that is not in a commit.

    Args:
        folder: the folder.
        folders: those there are.
        where: whose they are, for the message.
    """
    near = closest(folder, sorted(folders))
    guess = f"; did you mean {near!r}?" if near else ""
    return ConfigError(f"build_context: there is no folder {folder!r} in {where}{guess}")
