"""The files of a commit and of its submodules, collected and written into one archive.

Nothing is checked out: what is in the archive is what the commits hold, byte for byte, and no filter, line ending or
Git LFS file is put in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launch.code_archive import Entry, pack_from
from launch.errors import ConfigError
from launch.git.command import Git, Watch
from launch.git.mirror import Blob, Files, Mirror, Note
from launch.git.remote import Remote, submodule_url
from launch.git.tree import MAX_FILES, TreeEntry, check_links, check_names

MAX_SUBMODULES = 100
_MAX_DEPTH = 8
_CHUNK_BYTES = 1 << 20
_LFS = b"version https://git-lfs.github.com/spec/v1"


@dataclass
class Export:
    """Collects the files of a commit and its submodules, and writes them into one archive."""

    git: Git
    folder: Path
    watch: Watch
    note: Note
    files: dict[str, tuple[TreeEntry, Blob]] = field(default_factory=dict)
    repositories: int = 0

    def add(
        self, remote: Remote, commit: str, *, ref: str | None, subdirectory: str | None, at: str = "", depth: int = 0
    ) -> None:
        """Add a commit's files below the folder ``at`` (empty, or with a slash behind it)."""
        self.repositories += 1
        if self.repositories > MAX_SUBMODULES or depth > _MAX_DEPTH:
            raise ConfigError(
                f"{remote.url}: is a submodule too many: there may be {MAX_SUBMODULES}, {_MAX_DEPTH} within each other"
            )
        used = sum(blob.size for _, blob in self.files.values())
        found = Mirror(self.git, remote, self.note).read(
            commit,
            ref=ref,
            subdirectory=subdirectory,
            spool=self.folder / str(self.repositories),
            max_bytes=self.git.access.max_mb * 1e6 - used,
            watch=self.watch,
        )
        submodules = [entry for entry in found.entries if entry.is_submodule]
        for entry in found.entries:
            if not entry.is_submodule:
                self.files[at + entry.name] = (entry, found.blobs[entry.oid])
        for entry in submodules:
            inside = f"{subdirectory}/{entry.name}" if subdirectory else entry.name
            url = _submodule(found, inside, remote, commit)
            if url is not None:
                inner = self.git.access.check(url, where=f"{remote.url}: submodule {inside}")
                place = f"{at}{entry.name}/"
                self.add(inner, entry.oid, ref=None, subdirectory=None, at=place, depth=depth + 1)

    def write(self, archive: Path, *, where: str) -> None:
        """Write the archive."""
        if not self.files:
            raise ConfigError(f"{where}: there is nothing to run: it has no files")
        if len(self.files) > MAX_FILES:
            raise ConfigError(f"{where}: has {len(self.files):,} files, more than the {MAX_FILES:,} a job may have")
        check_names(self.files, where=where)
        links = {
            name: os.fsdecode(b"".join(_content(blob))) for name, (entry, blob) in self.files.items() if entry.is_link
        }
        check_links(links, where=where)
        self._tell_of_lfs()
        names = sorted(self.files, key=os.fsencode)
        entries = [_archive_entry(name, self.files[name][0], links.get(name)) for name in names]
        pack_from(self._watched(entries), lambda entry: _content(self.files[entry.name][1]), archive)

    def _watched(self, entries: list[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self.watch.check()
            yield entry

    def _tell_of_lfs(self) -> None:
        pointers = [name for name, (_, blob) in self.files.items() if blob.size < 1024 and _is_lfs_pointer(blob)]
        if pointers:
            self.note(
                f"{len(pointers):,} files are pointers of Git LFS, and stay pointers: {', '.join(pointers[:3])}"
                f"{'…' if len(pointers) > 3 else ''}; let the job fetch what they point to"
            )


def _submodule(found: Files, path: str, parent: Remote, commit: str) -> str | None:
    """Return the URL of the submodule at a path; none: the repository says it is not to be checked out."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in found.gitmodules:
        section, _, name = key.rpartition(".")
        if section.startswith("submodule."):
            sections.setdefault(section, {})[name] = value
    for fields in sections.values():
        if fields.get("path", "").rstrip("/") == path:
            return None if fields.get("update") == "none" else submodule_url(parent, fields.get("url", ""))
    raise ConfigError(f"{parent.url} at {commit[:12]}: .gitmodules has no URL for the submodule {path}")


def _archive_entry(name: str, entry: TreeEntry, link: str | None) -> Entry:
    if link is not None:
        return Entry(name, 0o777, 0, link)
    return Entry(name, 0o755 if entry.is_executable else 0o644, entry.size)


def _content(blob: Blob) -> Iterator[bytes]:
    left = blob.size
    with blob.file.open("rb") as file:
        file.seek(blob.offset)
        while left and (data := file.read(min(left, _CHUNK_BYTES))):
            left -= len(data)
            yield data


def _is_lfs_pointer(blob: Blob) -> bool:
    return b"".join(_content(blob)).startswith(_LFS)
