"""How a folder of code becomes a job: described, packed, kept in the artifact store.

What was packed before is not packed again (:mod:`launch.snapshot_index`), and what the store has is not put again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from launch.errors import ConfigError
from launch.job_files import CodeChoices, JobFiles, describe, script_of
from launch.jobs import JobRegistry, check_alias, check_job_name
from launch.models import CodeOrigin, CodeSource, Job, JobInputs, JobVersion, RetryPolicy, Tracking
from launch.snapshot_index import Packed, SnapshotIndex
from launch.snapshots import MAX_BYTES, CodeFiles, checked_root, code_files, packed
from launch.work_tree import OriginProbe

if TYPE_CHECKING:
    from launch.artifacts import ArtifactStore


def create_code_job(
    registry: JobRegistry,
    path: Path,
    name: str,
    entrypoint: str | Sequence[str] | None = None,
    *,
    aliases: Iterable[str] = (),
    retry: RetryPolicy | None = None,
    inputs: JobInputs | None = None,
    home: Path | None = None,
    max_bytes: int = MAX_BYTES,
    **choices: Unpack[CodeChoices],
) -> tuple[JobVersion, bool, list[str]]:
    """Register a folder of code and return its version, whether that is new, and notes for the user.

    See :func:`code_job` for the arguments and :meth:`JobRegistry.create` for what a version is.

    Raises:
        RequestError: a value is wrong; no job was made.
    """
    check_job_name(name)
    taken = [check_alias(alias) for alias in aliases]
    notes: list[str] = []
    job = code_job(
        registry.artifacts,
        path,
        entrypoint,
        retry=retry,
        inputs=inputs,
        home=home,
        max_bytes=max_bytes,
        note=notes.append,
        **choices,
    )
    version, is_new = registry.create(name, job, taken)
    return version, is_new, notes


def code_job(
    artifacts: ArtifactStore,
    path: Path,
    entrypoint: str | Sequence[str] | None = None,
    *,
    retry: RetryPolicy | None = None,
    inputs: JobInputs | None = None,
    home: Path | None = None,
    max_bytes: int = MAX_BYTES,
    note: Callable[[str], None] = lambda _: None,
    **choices: Unpack[CodeChoices],
) -> Job:
    """Keep a folder's code and requirements in the artifact store and return the job that runs it.

    Args:
        artifacts: where they are kept.
        path: the folder.
        entrypoint: the command, as text or a list; none: ``python main.py``, if there is a ``main.py``.
        retry: when a failed attempt is followed by another; none: as the queue says.
        inputs: what may be set at launch; none: anything.
        home: the launch home, which remembers what was packed; none: it is packed anew.
        max_bytes: the most the code may have.
        note: called with each thing the user should know, a sentence.
        choices: see :class:`~launch.job_files.CodeChoices`.

    Raises:
        RequestError: a value is wrong; nothing was kept.
    """
    checked_root(path)
    files = describe(path, entrypoint, **choices)
    root = path / (files.root or "")
    with OriginProbe(root) as probe:
        code = code_files(root, max_bytes=max_bytes)
        _check_kept(files, code, path)
        archive = _keep_code(artifacts, code, None if home is None else SnapshotIndex(home))
        origin, notes = _origin(artifacts, probe, code)
    for text in (*files.notes, *code.notes, *notes):
        note(text)
    return Job(
        source=CodeSource(
            archive=archive.digest, archive_bytes=archive.archive_bytes, files=len(code.entries), origin=origin
        ),
        **files.job_fields(),
        requirements=artifacts.put_bytes(files.requirements.encode()) if files.requirements is not None else None,
        inputs=inputs,
        tracking=choices.get("tracking", Tracking.REQUIRED),
        retry=retry,
    )


def _check_kept(files: JobFiles, code: CodeFiles, path: Path) -> None:
    """Refuse a job whose own script or Dockerfile is not in its snapshot."""
    kept = set(code.paths)
    for what, name in (("entrypoint", script_of(files.entrypoint)), ("dockerfile", files.dockerfile)):
        if name is not None and not kept & {name, os.path.relpath((code.root / name).resolve(), code.root)}:
            raise ConfigError(
                f"{what}: {name!r} in {path / (files.root or '')} is left out of the snapshot (.gitignore, "
                ".launchignore)"
            )


def _keep_code(artifacts: ArtifactStore, code: CodeFiles, index: SnapshotIndex | None) -> Packed:
    known = index.find(code) if index is not None else None
    if known is not None and artifacts.keep(known.digest, known.archive_bytes):
        return known
    with packed(code) as snap:
        artifacts.put_file(snap.archive, digest=snap.digest)
        made = Packed(snap.digest, snap.archive_bytes)
    if index is not None:
        index.keep(code, made)
    return made


def _origin(artifacts: ArtifactStore, probe: OriginProbe, code: CodeFiles) -> tuple[CodeOrigin | None, tuple[str, ...]]:
    found = probe.found(code.paths) if code.is_listed_by_git else None
    if found is None:
        return None, ()
    diff = artifacts.put_bytes(found.diff) if found.diff else None
    return found.origin.model_copy(update={"diff": diff}), found.notes
