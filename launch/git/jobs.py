"""How a commit of a git repository becomes a job: fetched here to see what is in it; agents fetch it themselves."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from launch.errors import ConfigError, TemporaryError
from launch.git.access import read_git_access
from launch.git.code import CREATOR_HINT, GitCode
from launch.git.remote import check_inner_path, default_job_name
from launch.job_files import CodeChoices, JobFiles, describe
from launch.jobs import JobRegistry, check_alias, check_job_name
from launch.models import GitSource, Job, JobInputs, JobVersion, RetryPolicy, Tracking
from launch.settings import Settings

if TYPE_CHECKING:
    from launch.artifacts import ArtifactStore

Note = Callable[[str], None]


def creators_git(settings: Settings, *, allow: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> GitCode:
    """Return what fetches for whoever creates a job: with the user's own login, and secrets from the environment.

    Args:
        settings: this process's settings.
        allow: ``"http"``, ``"file"``: transports that are allowed besides those of ``LAUNCH_GIT_CONFIG``.
        environ: this process's environment; none: the real one.

    Raises:
        ConfigError: the file is wrong, or a transport unknown.
    """
    known = os.environ if environ is None else environ

    def secret(name: str) -> str:
        if name not in known:
            raise ConfigError(f"secret {name!r}: there is no such variable in the environment")
        return known[name]

    access = read_git_access(settings.git_config, allow=allow)
    return GitCode(settings.home, access, secret=secret, environ=known, login_hint=CREATOR_HINT)


def create_git_job(
    registry: JobRegistry,
    code: GitCode,
    url: str,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    note: Note = lambda _: None,
    **choices: Any,
) -> tuple[JobVersion, bool]:
    """Register a commit of a repository and return its version, and whether that is new.

    Args:
        registry: where jobs are registered.
        code: what fetches.
        url: the remote.
        name: the job's name; none: ``job-`` and the repository's.
        aliases: further names of the version.
        note: called with what the user should know, a sentence.
        choices: see :func:`git_job`.

    Raises:
        RequestError: a value is wrong; no job was made.
        TemporaryError: the remote does not answer.
    """
    remote = code.access.check(url)
    checked = check_job_name(default_job_name(remote) if name is None else name)
    taken = [check_alias(alias) for alias in aliases]
    return registry.create(checked, git_job(registry.artifacts, code, url, note=note, **choices), taken)


def git_job(
    artifacts: ArtifactStore,
    code: GitCode,
    url: str,
    *,
    ref: str | None = None,
    entrypoint: str | Sequence[str] | None = None,
    retry: RetryPolicy | None = None,
    inputs: JobInputs | None = None,
    note: Note = lambda _: None,
    **choices: Unpack[CodeChoices],
) -> Job:
    """Return the job that runs a commit of a repository, pinned now: a branch that moves later changes nothing.

    Args:
        artifacts: where its requirements are kept.
        code: what fetches.
        url: the remote.
        ref: a branch, tag or commit; none: ``main``, else ``master``.
        entrypoint: the command, as text or a list; none: ``python main.py``, if there is a ``main.py``.
        retry: when a failed attempt is followed by another; none: as the queue says.
        inputs: what may be set at launch; none: anything.
        note: called with what the user should know, a sentence.
        choices: see :class:`~launch.job_files.CodeChoices`.

    Raises:
        RequestError: a value is wrong; nothing was kept.
        TemporaryError: the remote does not answer, or the disk is full.
        PermanentError: there is no such commit, or it is too large.
    """
    inner = check_inner_path(choices.pop("build_context", None) or "", where="build_context")
    pinned = code.pin(url, ref).model_copy(update={"subdirectory": inner})
    archive = code.archive(pinned, note=note)
    files = _described(archive, pinned, entrypoint, **choices)
    source = pinned.model_copy(update={"subdirectory": "/".join(filter(None, (inner, files.root))) or None})
    code.archive(source, note=note)  # as agents will: a link may lead out of a smaller root
    for sentence in files.notes:
        note(sentence)
    return Job(
        source=source,
        **files.job_fields(),
        requirements=None if files.requirements is None else artifacts.put_bytes(files.requirements.encode()),
        tracking=choices.get("tracking", Tracking.REQUIRED),
        retry=retry,
        inputs=inputs,
    )


def _described(
    archive: Path, source: GitSource, entrypoint: str | Sequence[str] | None, **choices: Unpack[CodeChoices]
) -> JobFiles:
    where = f"{source.remote} at {source.ref or source.commit[:12]}"
    if not hasattr(tarfile, "data_filter"):
        raise ConfigError("git: this Python unpacks no archive of others safely; use 3.11.4 or a newer one")
    with tempfile.TemporaryDirectory(prefix="openlaunch-git-") as place:
        folder = Path(place) / "code"
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as exc:
            raise TemporaryError(f"git: {where}: its files cannot be unpacked to {place}: {exc}") from exc
        try:
            return describe(folder, entrypoint, trusted=False, **choices)
        except ConfigError as exc:
            raise ConfigError(str(exc).replace(str(folder), where)) from exc
