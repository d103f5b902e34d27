"""What differs between two versions of a job: its settings, its requirements, and the files of its code."""

from __future__ import annotations

import difflib
import hashlib
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.errors import PermanentError
from launch.models import CodeSource, Job, JobVersion

if TYPE_CHECKING:
    from launch.artifacts import ArtifactStore

MAX_TEXT_BYTES = 256 << 10
"""The most a file may have whose lines are compared."""
MAX_COMPARED = 500
"""How many files' lines are."""

_SHOWN_APART = {"archive", "archive_bytes", "files", "origin", "requirements"}


@dataclass(frozen=True)
class JobDiff:
    """What differs; all empty: nothing."""

    fields: Mapping[str, tuple[Any, Any]]
    """``{name: (before, after)}`` of settings, as JSON; none: not set."""
    requirements: tuple[str, ...] = ()
    """A unified diff's lines."""
    added: tuple[str, ...] = ()
    """Files."""
    removed: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """``{file: a unified diff's lines}``; none: not text, too large, or only its mode changed."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.fields or self.requirements or self.added or self.removed or self.changed)


def job_diff(artifacts: ArtifactStore, before: JobVersion, after: JobVersion) -> JobDiff:
    """Return what differs between two versions.

    Raises:
        PermanentError: the code or requirements of one of them are no longer in the store.
        TemporaryError: the store is away.
    """
    settings = (_settings(before.job), _settings(after.job))
    changed = {
        name: (settings[0].get(name), settings[1].get(name))
        for name in dict.fromkeys([*settings[0], *settings[1]])
        if settings[0].get(name) != settings[1].get(name)
    }
    texts = [_requirements(artifacts, version.job) for version in (before, after)]
    requirements = _unified(texts[0], texts[1], "requirements", before.ref, after.ref)
    sources = (before.job.source, after.job.source)
    if not all(isinstance(source, CodeSource) for source in sources) or sources[0].archive == sources[1].archive:  # type: ignore[union-attr]
        return JobDiff(changed, requirements)
    return _with_files(artifacts, before, after, JobDiff(changed, requirements))


def _settings(job: Job) -> dict[str, Any]:
    """Return what a job says besides its code and requirements, defaults left out."""
    data = job.model_dump(mode="json", exclude_defaults=True)
    source = {"source": job.source.kind, **data.pop("source")}
    origin = source.get("origin") or {}
    if origin.get("commit"):
        source["base commit"] = origin["commit"]
    return {name: value for name, value in {**source, **data}.items() if name not in _SHOWN_APART}


def _requirements(artifacts: ArtifactStore, job: Job) -> str:
    return artifacts.get_bytes(job.requirements).decode("utf-8", "replace") if job.requirements else ""


def _unified(before: str, after: str, name: str, old: str, new: str) -> tuple[str, ...]:
    pieces = (before.splitlines(), after.splitlines())
    return tuple(difflib.unified_diff(*pieces, f"{old}/{name}", f"{new}/{name}", lineterm=""))


# --- the files of two archives ---------------------------------------------------------------------------------------


class _File(NamedTuple):
    """What tells one file of an archive from another."""

    mode: int
    link: str
    digest: str


def _with_files(artifacts: ArtifactStore, before: JobVersion, after: JobVersion, found: JobDiff) -> JobDiff:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openlaunch-diff-")))
        archives = [_fetched(artifacts, version, folder) for version in (before, after)]
        old, new = (_files(archive) for archive in archives)
        changed = sorted(name for name in {*old} & {*new} if old[name] != new[name])
        texts = [_texts(archive, set(changed[:MAX_COMPARED])) for archive in archives]
    return JobDiff(
        fields=found.fields,
        requirements=found.requirements,
        added=tuple(sorted({*new} - {*old})),
        removed=tuple(sorted({*old} - {*new})),
        changed={
            name: _unified(texts[0][name], texts[1][name], name, before.ref, after.ref)
            if name in texts[0] and name in texts[1]
            else ()
            for name in changed
        },
    )


def _fetched(artifacts: ArtifactStore, version: JobVersion, folder: Path) -> Path:
    assert isinstance(version.job.source, CodeSource)
    return artifacts.fetch(version.job.source.archive, folder / version.job.source.archive)


def _files(archive: Path) -> dict[str, _File]:
    found = {}
    for tar, member in _members(archive):
        content = tar.extractfile(member) if member.isreg() else None
        digest = hashlib.file_digest(content, "sha256").hexdigest() if content is not None else ""  # type: ignore[arg-type]
        found[member.name] = _File(member.mode, member.linkname, digest)
    return found


def _texts(archive: Path, wanted: set[str]) -> dict[str, str]:
    found = {}
    for tar, member in _members(archive):
        if member.name not in wanted or member.size > MAX_TEXT_BYTES:
            continue
        content = tar.extractfile(member) if member.isreg() else None
        data = content.read() if content is not None else f"link to {member.linkname}\n".encode()
        if b"\0" not in data:
            found[member.name] = data.decode("utf-8", "replace")
    return found


def _members(archive: Path) -> Iterable[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    try:
        with tarfile.open(archive, "r|gz", encoding="utf-8", errors="backslashreplace") as tar:
            yield from ((tar, member) for member in tar if not member.isdir())
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise PermanentError(f"the job's code ({archive.name}) cannot be read: {exc}") from exc
