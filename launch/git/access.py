"""Which git remotes a process may ask, with what credentials, up to which limits: an agent config's section ``git:``.

Whoever creates a git job has the same settings in a file of their own (``LAUNCH_GIT_CONFIG``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from launch.checking import Model, parse
from launch.errors import ConfigError
from launch.git.remote import Remote, check_remote
from launch.secrets import check_references, render


class GitCredential(Model):
    """What one host asks for: a user name and password (or token) for https, or a key for ssh."""

    host: Annotated[str, Field(min_length=1)]
    """As it stands in the URL: ``git.example``, or ``git.example:8443`` with a port of its own."""
    username: str | None = None
    """For https; none: the one in the URL, else ``git``, which hosts accept with a token."""
    password: Annotated[str | None, Field(repr=False)] = None
    """For https: a password or token; better a reference, ``${secret:GIT_TOKEN}``."""
    ssh_key: Path | None = None
    """For ssh: the file of a private key without a passphrase."""

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        if not host.isprintable() or any(character in host for character in "/@ "):
            raise ValueError(f"should be a host like 'git.example' or 'git.example:8443', not {host!r}")
        return host.lower()

    @field_validator("password")
    @classmethod
    def _refers_rightly(cls, password: str | None) -> str | None:
        try:
            check_references(password, where="password")
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        return password

    @model_validator(mode="after")
    def _is_one_credential(self) -> GitCredential:
        if (self.password is None) == (self.ssh_key is None):
            raise ValueError(f"{self.host}: give either a password or an ssh_key")
        if self.ssh_key is not None and self.username is not None:
            raise ValueError(f"{self.host}: the user name of ssh stands in the URL; leave username out")
        return self


class GitAccess(Model):
    """What a process may do with git remotes."""

    allow_http: bool = False
    """Whether ``http://`` may be asked, which anybody on the way can read and change."""
    allow_file: bool = False
    """Whether ``file:///path`` may be asked: every repository on this machine that this process can read."""
    credentials: tuple[GitCredential, ...] = ()
    """What hosts ask for; the first that fits a remote counts."""
    own_login: bool = False
    """Whether the ssh keys, ssh agent and git credential helpers of this process's own user serve as well."""
    host_keys: Literal["accept-new", "strict"] = "accept-new"
    """Whether an ssh host that is not known yet is trusted the first time, or refused."""
    known_hosts: Path | None = None
    """ssh's file of known hosts; none: one in the launch home, or the user's own where ``own_login`` is set."""
    ca_file: Path | None = None
    """The certificates that https servers are checked against; none: the system's."""
    timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """How long fetching one commit may take, submodules included."""
    max_mb: Annotated[float, Field(gt=0)] = 512.0
    """The most its files may have in all, in 10^6 bytes."""
    max_fetch_mb: Annotated[float, Field(gt=0)] = 2048.0
    """The most that may be fetched of one repository, in 10^6 bytes."""
    cache_gb: Annotated[float, Field(gt=0)] = 20.0
    """How much is kept of the repositories fetched, in 10^9 bytes; those used last stay."""

    def check(self, url: str, *, where: str = "git") -> Remote:
        """Return the remote if these settings allow it.

        Raises:
            ConfigError: they do not, or it is no remote.
        """
        return check_remote(url, allow_http=self.allow_http, allow_file=self.allow_file, where=where)

    def password_for(self, remote: Remote, secret: Callable[[str], str]) -> tuple[str, str] | None:
        """Return the user name and password for a remote of https or http; none: there is none.

        Args:
            remote: the remote.
            secret: returns the secret of a name.

        Raises:
            ConfigError: there is no such secret, or it holds a line break, which git's protocol cannot carry.
        """
        if remote.transport not in ("https", "http"):
            return None
        for credential in self.credentials:
            if credential.host == remote.host and credential.password is not None:
                password, _ = render(credential.password, secret)
                user = credential.username or remote.user or "git"
                if any(ord(character) < 0x20 for character in user + password):
                    raise ConfigError(f"git/credentials: the password for {remote.host} has a line break in it")
                return user, password
        return None

    def key_for(self, remote: Remote) -> Path | None:
        """Return the private key for a remote of ssh; none: there is none.

        Raises:
            ConfigError: the file is not there.
        """
        for credential in self.credentials:
            if remote.transport == "ssh" and credential.host == remote.host and credential.ssh_key is not None:
                if not credential.ssh_key.expanduser().is_file():
                    raise ConfigError(f"git/credentials: the key for {remote.host}, {credential.ssh_key}, is not there")
                return credential.ssh_key.expanduser()
        return None


def read_git_access(file: Path | None, *, allow: Iterable[str] = ()) -> GitAccess:
    """Return the settings of whoever creates a job: those in a file, and the user's own login.

    Args:
        file: YAML with the keys of :class:`GitAccess`; none: the defaults.
        allow: ``"http"``, ``"file"``: transports that are allowed besides.

    Raises:
        ConfigError: the file cannot be read or is wrong (the message is a path into it), or a transport is unknown.
    """
    data: Any = {}
    allowed = set(allow)
    if unknown := sorted(allowed - {"http", "file"}):
        raise ConfigError(f"allow: should be http or file, not {unknown[0]!r}; https and ssh are always allowed")
    if file is not None:
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as exc:
            raise ConfigError(f"LAUNCH_GIT_CONFIG: {file} cannot be read as YAML: {exc}") from exc
    if not isinstance(data, Mapping):
        raise ConfigError(f"{file}: should be a mapping of git settings, not {type(data).__name__}")
    given = {f"allow_{name}": True for name in allowed}
    return parse(GitAccess, {"own_login": True, **data, **given}, where=str(file or "git"))
