"""What git is told: its options and its environment, made from nothing, and the login of each remote.

What is shut, and how:

- hooks, filters, aliases, included files, credential helpers, URL rewriting: no configuration is read but the options
  given here, and the environment is made from nothing; nothing is ever checked out, so no filter and no attribute of a
  repository is asked either;
- other transports than the remote's own, also after a redirect: ``GIT_ALLOW_PROTOCOL``;
- questions to a terminal, ``~/.ssh`` and ``~/.netrc``: off, unless the settings say ``own_login``;
- passwords: in the environment of the one process that needs them, for the one host they are for; never in an argument,
  a URL, a file or a log.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from launch.git.access import GitAccess
from launch.git.remote import Remote

_HELPER_S = 60.0
_CONNECT_S = 30
_INHERITED = re.compile(r"PATH|TMPDIR|(?i:https?_proxy|all_proxy|no_proxy)")

_HARMLESS = (
    *("zeroPaddedFilemode", "badTimezone", "badDate", "badDateOverflow", "zeroPaddedDate", "missingSpaceBeforeDate"),
    *("missingEmail", "missingNameBeforeEmail", "missingSpaceBeforeEmail", "badName", "badEmail", "missingTaggerEntry"),
)
_ALWAYS: tuple[str, ...] = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.askPass=", "core.attributesFile=/dev/null"),
    *("credential.helper=", "http.followRedirects=initial", "http.sslVerify=true"),
    # A server that stands still is given up after a minute, also when nobody watches any more.
    *("http.lowSpeedLimit=1000", "http.lowSpeedTime=60"),
    *("protocol.version=2", "protocol.allow=never", "submodule.recurse=false", "fetch.recurseSubmodules=false"),
    # Every object is checked as it comes in, old mistakes that harm nobody apart.
    "transfer.fsckObjects=true",
    *(f"fetch.fsck.{mistake}=ignore" for mistake in _HARMLESS),
    # Packs stay packs; blobs from 32 MiB on are never held in memory.
    *("fetch.unpackLimit=1", "core.bigFileThreshold=32m", "gc.auto=0", "maintenance.auto=false", "pack.threads=2"),
)
_HELPER = (
    '!f() { test "$1" = get && '
    'printf \'username=%s\\npassword=%s\\n\' "$LAUNCH_GIT_USERNAME" "$LAUNCH_GIT_PASSWORD"; }; f'
)


class GitEnvironment:
    """What one process tells git.

    Args:
        folder: a private folder, for ssh's known hosts.
        access: the settings.
        secret: returns the secret of a name, for the passwords in the settings.
        environ: this process's environment, of which little is handed on.
    """

    def __init__(
        self, folder: Path, access: GitAccess, secret: Callable[[str], str], environ: Mapping[str, str] | None
    ) -> None:
        self._folder = folder
        self._access = access
        self._secret = secret
        self._environ = dict(os.environ if environ is None else environ)
        self._own_logins: dict[str, tuple[str, str]] = {}

    def options(self, remote: Remote | None) -> list[str]:
        """Return ``name=value`` of each option for a command that asks a remote, or none."""
        options = list(_ALWAYS)
        if remote is None:
            return options
        options.append(f"protocol.{remote.transport}.allow=always")
        if self._access.ca_file is not None:
            options.append(f"http.sslCAInfo={self._access.ca_file.expanduser()}")
        if self._login(remote) is not None:
            options.append(f"credential.{remote.transport}://{remote.host}.helper={_HELPER}")
        return options

    def variables(self, remote: Remote | None) -> dict[str, str]:
        """Return the environment for a command that asks a remote, or none."""
        env = {name: value for name, value in self._environ.items() if _INHERITED.fullmatch(name)}
        env |= {
            "HOME": self._environ.get("HOME", "/") if self._access.own_login else str(self._folder / "no-home"),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "GIT_PROTOCOL_FROM_USER": "0",
            "GIT_ALLOW_PROTOCOL": remote.transport if remote else "none",
        }
        if remote is None:
            return env
        if remote.transport == "ssh":
            env["GIT_SSH_COMMAND"], env["GIT_SSH_VARIANT"] = shlex.join(self._ssh(remote)), "ssh"
            if self._access.own_login and "SSH_AUTH_SOCK" in self._environ:
                env["SSH_AUTH_SOCK"] = self._environ["SSH_AUTH_SOCK"]
        if (login := self._login(remote)) is not None:
            env["LAUNCH_GIT_USERNAME"], env["LAUNCH_GIT_PASSWORD"] = login
        return env

    def _ssh(self, remote: Remote) -> list[str]:
        """Return the ssh command: no question, no forwarding, no configuration but the user's own if asked for."""
        own, key = self._access.own_login, self._access.key_for(remote)
        policy = "yes" if self._access.host_keys == "strict" else "accept-new"
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": policy,
            "ConnectTimeout": str(_CONNECT_S),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "PermitLocalCommand": "no",
            "ControlMaster": "no",
            "ControlPath": "none",
        }
        known_hosts = self._access.known_hosts or (None if own else self._folder / "known_hosts")
        if known_hosts is not None:
            options["UserKnownHostsFile"] = _ssh_path(known_hosts)
        if key is not None:
            options |= {"IdentitiesOnly": "yes", "IdentityFile": _ssh_path(key), "IdentityAgent": "none"}
        elif not own:
            options |= {"IdentityFile": "none", "IdentityAgent": "none"}
        config = [] if own else ["-F", "none"]
        return ["ssh", *config, *(word for item in options.items() for word in ("-o", "=".join(item)))]

    def _login(self, remote: Remote) -> tuple[str, str] | None:
        return self._access.password_for(remote, self._secret) or self._own_logins.get(remote.url)

    def find_own_login(self, remote: Remote) -> bool:
        """Ask the user's own git for its login, if the settings say so; whether there is one that was not tried yet."""
        if not self._access.own_login or remote.transport != "https" or remote.url in self._own_logins:
            return False
        env = {name: value for name, value in self._environ.items() if not name.startswith("GIT_")}
        env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "SSH_ASKPASS": "", "LC_ALL": "C"}
        question = f"url={remote.url}\n\n".encode()
        try:
            # Outside of any repository, whose configuration is not the user's.
            done = subprocess.run(
                ["git", "credential", "fill"],
                input=question,
                env=env,
                cwd="/",
                capture_output=True,
                timeout=_HELPER_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        lines = (line.partition("=") for line in done.stdout.decode(errors="replace").splitlines())
        answer = {name: value for name, _, value in lines}
        if done.returncode != 0 or not answer.get("password"):
            return False
        self._own_logins[remote.url] = (answer.get("username", ""), answer["password"])
        return True


def _ssh_path(path: Path) -> str:
    """Return a path as ssh's options take it: in quotes, its percent signs doubled."""
    text = str(path.expanduser().absolute()).replace("%", "%%")
    return f'"{text}"'
