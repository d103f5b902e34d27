"""Runs git, and ends it when it takes too long or too much; what it is told stands in :mod:`launch.git.environment`."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.git.access import GitAccess
from launch.git.environment import GitEnvironment
from launch.git.errors import DamagedError, LoginError, TooLargeError, failure, last_lines
from launch.git.remote import Remote

MAX_OUTPUT_BYTES = 64 << 20
"""The most a command may write, apart from the files of a commit."""

_MAX_SAID_BYTES = 4 << 20
_POLL_S = 0.1
_MIN_FREE_BYTES = 1 << 20


@dataclass(frozen=True)
class Watch:
    """What ends git commands before they have ended themselves."""

    until: float = math.inf
    """By the monotonic clock."""
    timeout_s: float = math.inf
    """How long that was from the start, for the message."""
    cancelled: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raise what ends it now.

        Raises:
            InterruptedError: it was cancelled.
            PermanentError: it has taken too long.
        """
        if self.cancelled():
            raise InterruptedError("cancelled while git was at work")
        if time.monotonic() > self.until:
            raise PermanentError(
                f"git: took longer than the {self.timeout_s:g} s that git/timeout_s allows; raise it, or make the "
                "repository smaller"
            )


class Git:
    """The git program of this machine.

    Args:
        folder: a private folder for what is temporary and for ssh's known hosts, made when needed.
        access: the settings.
        secret: returns the secret of a name, for the passwords in the settings.
        environ: this process's environment, of which little is handed on.
        login_hint: what to do where a remote wants a login, for the message.
    """

    def __init__(
        self,
        folder: Path,
        access: GitAccess,
        *,
        secret: Callable[[str], str],
        environ: Mapping[str, str] | None = None,
        login_hint: str,
    ) -> None:
        self.folder = folder
        self.access = access
        self._login_hint = login_hint
        self._environment = GitEnvironment(folder, access, secret, environ)

    def ask(self, remote: Remote, *words: str, watch: Watch, **options: object) -> bytes:
        """Run a command that asks a remote and return what it writes.

        Args:
            remote: whom it asks; its URL stands in ``words``.
            words: the command.
            watch: what ends it.
            options: see :meth:`run`.

        Raises:
            ConfigError: the remote wants a login, is not trusted, or is not there.
            TemporaryError: it does not answer, or the disk is full.
            PermanentError: it has no such commit, sends what git refuses, or too much.
        """
        try:
            return self.run(*words, remote=remote, watch=watch, **options)  # type: ignore[arg-type]
        except LoginError:
            # Only now is the user's own helper asked: most repositories want no login.
            if not self._environment.find_own_login(remote):
                raise
            return self.run(*words, remote=remote, watch=watch, **options)  # type: ignore[arg-type]

    def run(
        self,
        *words: str,
        watch: Watch,
        remote: Remote | None = None,
        stdin: bytes = b"",
        stdout: IO[bytes] | None = None,
        max_bytes: float = MAX_OUTPUT_BYTES,
        grown: Callable[[], int] = lambda: 0,
        keep_open: Sequence[int] = (),
    ) -> bytes:
        """Run a command and return what it writes.

        Args:
            words: the command.
            watch: what ends it.
            remote: whom it asks; none: it works on this disk alone.
            stdin: what it reads.
            stdout: where it writes to; none: what it writes is returned.
            max_bytes: the most it may write there, and the most ``grown`` may return.
            grown: how many bytes it has written elsewhere.
            keep_open: file descriptors it inherits: locks it holds as long as it lives.

        Raises:
            DamagedError: without a remote: it failed.
            LaunchError: see :meth:`ask`.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as files:
            feed, spare = (files.enter_context(tempfile.TemporaryFile(dir=self.folder)) for _ in range(2))
            # Elsewhere, since git has no other way to say that the disk with the folder is full.
            said = files.enter_context(tempfile.TemporaryFile())
            feed.write(stdin)
            feed.seek(0)
            out = stdout or spare
            process = self._start(words, remote, feed, out, said, keep_open)
            try:
                sizes = {"written": lambda: _size(out), "fetched": grown}
                self._wait(process, watch, {**sizes, "said": lambda: _size(said)}, max_bytes, remote)
            finally:
                _end(process)
            said.seek(0)
            text = said.read(_MAX_SAID_BYTES).decode(errors="replace")
            if process.returncode != 0:
                raise self._failure(remote, text)
            if stdout is not None:
                return b""
            out.seek(0)
            return out.read()

    def _start(
        self,
        words: Sequence[str],
        remote: Remote | None,
        feed: IO[bytes],
        out: IO[bytes],
        said: IO[bytes],
        keep_open: Sequence[int],
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                ["git", *(word for option in self._environment.options(remote) for word in ("-c", option)), *words],
                env=self._environment.variables(remote),
                cwd=self.folder,
                stdin=feed,
                stdout=out,
                stderr=said,
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
        except FileNotFoundError as exc:
            raise ConfigError("git: is not installed on this machine; a git job needs it (apt install git)") from exc

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        watch: Watch,
        sizes: Mapping[str, Callable[[], int]],
        max_bytes: float,
        remote: Remote | None,
    ) -> None:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            for what, size in sizes.items():
                if size() > (_MAX_SAID_BYTES if what == "said" else max_bytes):
                    raise self.too_large(remote, max_bytes)
            if process.returncode is not None:
                return
            watch.check()

    @staticmethod
    def too_large(remote: Remote | None, max_bytes: float) -> TooLargeError:
        """Return the error for a repository that is too large."""
        whose = f"{remote.url}: " if remote else ""
        return TooLargeError(
            f"git: {whose}is more than the {max_bytes / 1e6:,.1f} MB that the git settings allow (max_mb, "
            "max_fetch_mb); keep data out of the repository, or raise them"
        )

    def _failure(self, remote: Remote | None, said: str) -> Exception:
        if "No space left on device" in said or shutil.disk_usage(self.folder).free < _MIN_FREE_BYTES:
            return TemporaryError(f"git: the disk with {self.folder} is full; free some space")
        if remote is not None:
            return failure(remote, said, login_hint=self._login_hint)
        return DamagedError(f"git failed:\n{last_lines(said)}")


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a command and of what it started."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
