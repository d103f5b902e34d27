"""What git knows of the work tree around a folder: its files, and which commit and changes a snapshot was taken at.

The repository may be anybody's: nothing that it is configured to run is run, and nothing in it is written.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from launch.errors import ConfigError
from launch.models import CodeOrigin

MAX_DIRTY = 100
"""Paths that an origin lists."""
MAX_DIFF_BYTES = 4 << 20
_MAX_DIFF_PATHS = 2_000
_TIMEOUT_S = 60.0

_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.quotePath": "false",
    "diff.mnemonicPrefix": "false",
    "diff.noprefix": "false",
}
_ENVIRON = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LITERAL_PATHSPECS": "1",
    # An object that a partial clone lacks is not fetched: the remote could name a program.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
}


def top_of(folder: Path) -> Path | None:
    """Return the work tree's own folder; none: the folder is in no work tree."""
    return next((at for at in (folder, *folder.parents) if (at / ".git").exists()), None)


def list_files(folder: Path) -> list[str]:
    """Return what git tracks in a folder or would let one add, relative to it.

    A submodule, or a repository inside this one, is its folder only.

    Raises:
        ConfigError: there is no git, or it does not read this work tree.
    """
    with _started(folder, ["ls-files", "--cached", "--others", "--exclude-standard", "-z"], {}) as git:
        out, err = git.communicate()
    if git.returncode != 0:
        raise ConfigError(f"path: git cannot list the files of {folder}: {os.fsdecode(err).strip()}")
    return [os.fsdecode(name) for name in out.split(b"\0") if name]


def _started(
    folder: Path, command: Sequence[str], settings: Mapping[str, str], *, stderr: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    # Git's own variables, as in a hook, would lead to another repository.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    given = {**_SETTINGS, **settings}
    environ |= {**_ENVIRON, "GIT_CONFIG_COUNT": str(len(given))}
    for number, (key, value) in enumerate(given.items()):
        environ |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    none, pipe = subprocess.DEVNULL, subprocess.PIPE
    try:
        return subprocess.Popen(["git", *command], cwd=folder, env=environ, stdin=none, stdout=pipe, stderr=stderr)
    except FileNotFoundError as exc:
        raise ConfigError(f"path: {folder} is in a git work tree, and there is no git here to ask about it") from exc


# --- the commit, and what differs from it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Where a snapshot comes from."""

    origin: CodeOrigin
    diff: bytes
    """What `git diff HEAD` says of the files in the snapshot; untracked files are not in it."""
    notes: tuple[str, ...] = ()


class OriginProbe:
    """Asks git about a folder while something else is done: made before a snapshot is taken, asked after it.

    Args:
        folder: in a work tree, or not.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._top = top_of(self._folder)
        self._remote: str | None = None
        self._filters: dict[str, str] = {}
        self._status: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._top is not None:
            self._read_config()
            self._status = _started(self._folder, _STATUS, self._filters)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            with self._status:
                self._status.kill()

    def found(self, paths: Collection[str]) -> Found | None:
        """Return where the snapshot of these files comes from; none: git does not say.

        Args:
            paths: the files in the snapshot, relative to the folder.
        """
        if self._status is None or self._top is None:
            return None
        try:
            out, _ = self._status.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        if self._status.returncode != 0:
            return None
        head, changed, untracked = _parsed(out, self._folder.relative_to(self._top).as_posix())
        kept = set(paths)
        tracked = [path for path in changed if path in kept or not os.path.lexists(self._folder / path)]
        dirty = [_shown(path) for path in sorted({*tracked, *(kept & untracked)})]
        diff, notes = self._diff(tracked) if head.get("oid") and tracked else (b"", ())
        origin = CodeOrigin(
            remote=self._remote,
            commit=head.get("oid"),
            branch=head.get("head"),
            dirty=tuple(dirty[:MAX_DIRTY]),
            more_dirty=max(0, len(dirty) - MAX_DIRTY),
        )
        return Found(origin, diff, notes)

    def _read_config(self) -> None:
        """Learn the remote, and which filters the repository itself brings: these are programs."""
        command = ["config", "--show-scope", "-z", "--get-regexp", r"^(remote\.origin\.url|filter\..*)$"]
        with _started(self._folder, command, {}) as git:
            out, _ = git.communicate()
        fields = os.fsdecode(out).split("\0")
        for scope, entry in zip(fields[::2], fields[1::2], strict=False):
            key, _, value = entry.partition("\n")
            if key == "remote.origin.url":
                self._remote = without_password(value)
            elif scope in ("local", "worktree"):
                name = key.rpartition(".")[0]
                self._filters |= {f"{name}.clean": "", f"{name}.process": "", f"{name}.required": "false"}

    def _diff(self, paths: Sequence[str]) -> tuple[bytes, tuple[str, ...]]:
        command = [*_DIFF, "--", *paths[:_MAX_DIFF_PATHS]]
        with _started(self._folder, command, self._filters, stderr=subprocess.DEVNULL) as git:
            assert git.stdout is not None
            data = git.stdout.read(MAX_DIFF_BYTES + 1)
            if len(data) > MAX_DIFF_BYTES:
                git.kill()
        if len(data) <= MAX_DIFF_BYTES and len(paths) <= _MAX_DIFF_PATHS:
            return data, () if git.returncode == 0 else ("git cannot say what changed since the last commit",)
        whole = data if len(data) <= MAX_DIFF_BYTES else data[: data.rfind(b"\ndiff --git ", 0, MAX_DIFF_BYTES) + 1]
        return whole, ("the changes since the last commit are many: not all are kept for `launch job show --diff`",)


_STATUS = ["status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames"]
_STATUS += ["--ignore-submodules=dirty", "--", "."]
_DIFF = ["diff", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-color", "--binary", "--irreversible-delete"]
_DIFF += ["--ignore-submodules=dirty", "--submodule=short", "HEAD"]
_FIELDS_BEFORE_PATH = {"1": 8, "u": 10}


def _parsed(status: bytes, inside: str) -> tuple[dict[str, str], list[str], set[str]]:
    """Return ``{"oid", "head"}`` as far as there are, tracked paths that differ, and untracked ones.

    Source: https://git-scm.com/docs/git-status#_porcelain_format_version_2
    """
    prefix = "" if inside == "." else f"{inside}/"
    head: dict[str, str] = {}
    changed: list[str] = []
    untracked: set[str] = set()
    for record in os.fsdecode(status).split("\0"):
        kind, _, rest = record.partition(" ")
        if kind == "#":
            key, _, value = rest.removeprefix("branch.").partition(" ")
            if key in ("oid", "head") and not value.startswith("("):
                head[key] = value
        elif kind == "?":
            untracked.add(rest.removeprefix(prefix))
        elif kind in _FIELDS_BEFORE_PATH:
            changed.append(record.split(" ", _FIELDS_BEFORE_PATH[kind])[-1].removeprefix(prefix))
    return head, changed, untracked


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def without_password(remote: str) -> str:
    """Return a remote's URL without what may be secret in it: user and password of a web address, and its query."""
    parts = urlsplit(remote)
    if not parts.scheme or not parts.netloc:
        return remote
    user, _, host = parts.netloc.rpartition("@")
    login = user.partition(":")[0] if parts.scheme.endswith("ssh") else ""
    return parts._replace(netloc=f"{login}@{host}" if login else host, query="", fragment="").geturl()
