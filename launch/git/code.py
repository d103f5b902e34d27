"""The code of a git job: which commit a branch or tag means, and that commit's files as an archive on this machine."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.git.access import GitAccess
from launch.git.cache import tidy
from launch.git.command import Git, Watch
from launch.git.export import Export
from launch.git.mirror import Note, locked
from launch.git.refs import no_default, no_ref, read_refs
from launch.git.remote import Remote, check_inner_path, check_ref, is_commit
from launch.models import GitSource

_DEFAULT_BRANCHES = ("main", "master")

AGENT_HINT = "add a credential for its host to git/credentials in the agent's config, one that may only read"
CREATOR_HINT = (
    "let your own git know one (a credential helper, or ssh-add), or name a file with git/credentials in "
    "LAUNCH_GIT_CONFIG"
)


def no_secret(name: str) -> str:
    """Refuse a secret: what a process uses that has no source of them."""
    raise ConfigError(f"secret {name!r}: no secrets can be looked up here")


class GitCode:
    """Fetches commits, each once.

    Args:
        home: the launch home.
        access: which remotes may be asked, and how.
        secret: returns the secret of a name, for the passwords in ``access``.
        environ: this process's environment; none: the real one.
        login_hint: what to do where a remote wants a login.
    """

    def __init__(
        self,
        home: Path,
        access: GitAccess,
        *,
        secret: Callable[[str], str] = no_secret,
        environ: Mapping[str, str] | None = None,
        login_hint: str = AGENT_HINT,
    ) -> None:
        self.access = access
        self._archives = home / "cache" / "code"
        self._git = Git(home / "cache" / "git", access, secret=secret, environ=environ, login_hint=login_hint)

    def pin(self, url: str, ref: str | None = None) -> GitSource:
        """Return the commit that a branch, tag or commit id means now.

        Args:
            url: the remote.
            ref: looked for among the branches, then the tags, then taken for a commit's 40 digits; none: ``main``, else
                ``master``.

        Raises:
            ConfigError: the remote may not be asked or wants a login, or there is no such ref.
            TemporaryError: the remote does not answer.
        """
        remote = self.access.check(url)
        if ref is not None:
            check_ref(ref)
        words = ("ls-remote", "--heads", "--tags", "--", remote.url)
        with self._border():
            listed = self._git.ask(remote, *words, watch=self._watch(lambda: False))
        heads, tags = read_refs(listed.decode(errors="replace"))
        if ref is None:
            ref = next((name for name in _DEFAULT_BRANCHES if name in heads), None)
        if ref is None:
            raise no_default(url, heads, tags)
        commit = heads.get(ref) or tags.get(ref)
        if commit is not None:
            return GitSource(remote=url, commit=_checked_commit(commit, url), ref=ref)
        if is_commit(ref):
            return GitSource(remote=url, commit=ref)
        raise no_ref(url, ref, heads, tags)

    def archive(
        self, source: GitSource, *, cancelled: Callable[[], bool] = lambda: False, note: Note = lambda _: None
    ) -> Path:
        """Return a gzip tar of a commit's files on this machine, fetched and packed unless it is there.

        Args:
            source: the commit, and the folder in it.
            cancelled: asked at least once a second; true means give up.
            note: called with what is done, a sentence each.

        Raises:
            ConfigError: the remote may not be asked, wants a login or is not there; the files are no job's.
            TemporaryError: the remote does not answer, or the disk is full.
            PermanentError: there is no such commit, or it is too large.
            InterruptedError: it was cancelled.
        """
        remote, subdirectory = self._checked(source)
        key = hashlib.sha256(f"{source.remote}\n{subdirectory or ''}".encode()).hexdigest()[:16]
        made = self._archives / f"git-{source.commit}-{key}.tar.gz"
        watch = self._watch(cancelled)
        with self._border():
            if _is_there(made):
                return made
            with locked(self._git.folder / "archives" / f"{made.name}.lock", watch):
                if not _is_there(made):  # another has made it while we waited
                    self._make(made, remote, source, subdirectory, watch, note)
        return made

    @contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except InterruptedError:  # an OSError as well
            raise
        except OSError as exc:
            raise TemporaryError(f"git: the folder {self._git.folder} cannot be used: {exc}") from exc

    def _checked(self, source: GitSource) -> tuple[Remote, str | None]:
        remote = self.access.check(source.remote)
        if source.ref is not None:
            check_ref(source.ref)
        _checked_commit(source.commit, source.remote)
        return remote, check_inner_path(source.subdirectory or "", where="subdirectory")

    def _watch(self, cancelled: Callable[[], bool]) -> Watch:
        timeout_s = self.access.timeout_s
        return Watch(until=time.monotonic() + timeout_s, timeout_s=timeout_s, cancelled=cancelled)

    def _make(
        self, made: Path, remote: Remote, source: GitSource, subdirectory: str | None, watch: Watch, note: Note
    ) -> None:
        temporary = made.with_name(f".{made.name}.{secrets.token_hex(8)}")
        try:
            self._archives.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="export-", dir=self._git.folder) as folder:
                export = Export(self._git, Path(folder), watch, note)
                export.add(remote, source.commit, ref=source.ref, subdirectory=subdirectory)
                export.write(temporary, where=f"{remote.url} at {source.commit[:12]}")
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(made)
            tidy(self._git.folder, self._archives, self.access.cache_gb * 1e9)
        finally:
            temporary.unlink(missing_ok=True)


def _is_there(archive: Path) -> bool:
    try:
        os.utime(archive)  # when it was last used
    except FileNotFoundError:
        return False
    return True


def _checked_commit(commit: str, url: str) -> str:
    if not is_commit(commit):
        raise PermanentError(
            f"git: {url}: {commit!r} is no commit of 40 digits; SHA-256 repositories are not supported"
        )
    return commit
