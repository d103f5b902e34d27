"""What git's own words mean: whose fault it is, and what to do about it. Pure."""

from __future__ import annotations

import re

from launch.errors import ConfigError, LaunchError, PermanentError, TemporaryError
from launch.git.remote import Remote

_LAST_LINES = 6
_MAX_LINE = 300


class UnadvertisedError(PermanentError):
    """The server gives out only what its branches and tags point to."""


class DamagedError(PermanentError):
    """Git cannot go on with what it has on this disk."""


class RefusedError(PermanentError):
    """Git does not take what the server sent, or cannot put it together with what it has."""


class TooLargeError(PermanentError):
    """More came than the settings allow."""


class LoginError(ConfigError):
    """The remote wants another credential, or one at all."""


_MEANINGS: tuple[tuple[type[LaunchError], str, str], ...] = (
    (
        UnadvertisedError,
        r"does not allow request for unadvertised object|dumb http transport does not support shallow"
        r"|does not support shallow",
        "it gives out no commit by its id",
    ),
    (PermanentError, r"not our ref|upload-pack: not our|couldn't find remote ref [0-9a-f]{40}", ""),
    (
        LoginError,
        r"Authentication failed|could not read (Username|Password)|terminal prompts disabled"
        r"|Permission denied \(|returned error: 40[13]|Access denied|Too many authentication failures"
        r"|Load key .*: (Permission denied|error in libcrypto|invalid format)",
        "it wants a login, or another one",
    ),
    (
        ConfigError,
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|No .* host key is known",
        "its ssh host key is not the known one; check it, and put it into git/known_hosts",
    ),
    (
        ConfigError,
        r"certificate|SSL peer|gnutls_handshake|SSL_ERROR|SSL routines",
        "its certificate is not trusted; name the certificates to check it against in git/ca_file",
    ),
    (
        ConfigError,
        r"Protocol .* (not supported|disabled)|transport .* not allowed",
        "it leads on to another transport, which is not followed; name the repository as it is called there",
    ),
    (ConfigError, r"cannot run ssh", "there is no ssh on this machine (apt install openssh-client)"),
    (
        ConfigError,
        r"dubious ownership",
        "it belongs to another user of this machine, and git will not read it",
    ),
    (
        ConfigError,
        r"returned error: 404|not found|does not appear to be a git repository|No such file or directory.*repository"
        r"|Repository not found|project you were looking for could not be found",
        "there is no such repository, or this login may not see it",
    ),
    (TemporaryError, r"Disk quota exceeded", "the disk is full"),
    (
        TemporaryError,
        r"Could not resolve host|Failed to connect|Couldn't connect|Connection (refused|timed out|reset|closed)"
        r"|[Oo]peration (timed out|too slow)|Network is unreachable|No route to host|early EOF|unexpected disconnect"
        r"|hung up unexpectedly|returned error: (429|5\d\d)|RPC failed|transfer closed|Empty reply|Broken pipe"
        r"|Name or service not known|Temporary failure in name resolution|Could not read from remote repository"
        r"|HTTP/2 stream|Proxy CONNECT|unable to access",
        "it does not answer as it should",
    ),
    (
        RefusedError,
        r"fsck error|hasDot|gitmodules|object corrupt|index-pack|bad pack|invalid index-pack|pack has bad|inflate",
        "git refuses what it sent",
    ),
)
"""``(error, pattern, meaning)``, the first that matches counts: what names a cause is before what any may end in.

Source: the messages of git 2.39 and OpenSSH 9 in the C locale.
"""


def failure(remote: Remote, said: str, *, login_hint: str) -> LaunchError:
    """Return the error for a git command that asked a remote and failed.

    Args:
        remote: whom it asked.
        said: what git, ssh and the remote wrote, in the C locale.
        login_hint: what to do where a login is wanted.
    """
    lines = last_lines(said)
    for kind, pattern, meaning in _MEANINGS:
        if re.search(pattern, said):
            hint = f"; {login_hint}" if kind is LoginError else ""
            return kind(f"git: {remote.url}: {meaning or 'has no such commit'}{hint}\n{lines}")
    return DamagedError(f"git: {remote.url}: git failed:\n{lines}")


def last_lines(said: str) -> str:
    """Return the end of what git wrote, for people: progress bars and control characters left out."""
    text = re.sub(r"[^\n]*\r(?!\n)", "", said)
    lines = [re.sub(r"[\x00-\x1f\x7f-\x9f]", "", line)[:_MAX_LINE] for line in text.splitlines()]
    return "\n".join(f"  {line}" for line in [line for line in lines if line.strip()][-_LAST_LINES:])
