"""Where an agent gets a job's code: the artifact store, or the commit of a git repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launch.artifacts import ArtifactStore
from launch.code_archive import check_archive
from launch.git.access import GitAccess
from launch.git.code import GitCode
from launch.models import CodeSource, GitSource, Source
from workers.config import AgentConfig
from workers.secret_sources import Secrets


def agents_git(home: Path, config: AgentConfig, secrets: Secrets) -> GitCode:
    """Return what fetches commits for an agent: as its config's section ``git`` allows it."""
    return GitCode(home, config.git, secret=secrets.get)


def fetch(
    source: Source,
    *,
    home: Path,
    artifacts: ArtifactStore,
    git: GitCode | None,
    cancelled: Callable[[], bool],
    note: Callable[[str], None],
) -> Path | None:
    """Return a gzip tar of a job's code on this machine; none: it has none.

    Args:
        source: where it is.
        home: the launch home, where it is kept for the next run.
        artifacts: holds the snapshots.
        git: fetches commits; none: one without any settings.
        cancelled: asked at least once a second while git is at work; true means give up.
        note: called with what is done, a sentence each.

    Raises:
        RequestError, PermanentError: it cannot be had, and why.
        TemporaryError: the store or the repository's host is away.
        InterruptedError: it was cancelled.
    """
    if isinstance(source, CodeSource):
        return artifacts.fetch(
            source.archive, home / "cache" / "code" / f"{source.archive}.tar.gz", check=check_archive
        )
    if isinstance(source, GitSource):
        return (git or GitCode(home, GitAccess())).archive(source, cancelled=cancelled, note=note)
    return None
