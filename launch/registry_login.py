"""The logins that ``docker login`` has kept: in Docker's config, or with a credential helper that it names.

Source: https://docs.docker.com/reference/cli/docker/login/#credential-stores
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import ConfigError

_HELPER_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Login:
    """How to log in at a registry."""

    username: str
    password: str
    identity_token: str = ""
    """Instead of both: what a token server takes for a token."""

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        return f"Basic {base64.b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


def login_for(registry: str, environ: Mapping[str, str] | None = None) -> Login | None:
    """Return the login for a registry, ``host:5000``; none: there is none.

    Args:
        registry: its address.
        environ: where ``DOCKER_CONFIG``, ``HOME`` and ``PATH`` are read; none: this process's environment.

    Raises:
        ConfigError: Docker's config cannot be read, or its credential helper fails.
    """
    environ = os.environ if environ is None else environ
    folder = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME") or "~").expanduser() / ".docker")
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: cannot be read as JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: should be a JSON object")
    helper = _mapping(config, "credHelpers").get(registry) or config.get("credsStore")
    asked = _ask_helper(str(helper), registry, environ) if helper else None
    return asked or _kept_login(_mapping(config, "auths"), registry, path)


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _kept_login(auths: Mapping[str, Any], registry: str, path: Path) -> Login | None:
    entry = next((auths[name] for name in auths if _host_of(name) == registry), None)
    if not isinstance(entry, dict):
        return None
    if entry.get("identitytoken"):
        return Login("", "", str(entry["identitytoken"]))
    if not entry.get("auth"):
        return None
    try:
        username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except ValueError as exc:
        raise ConfigError(f"{path}: the login for {registry} is damaged: `docker login {registry}` again") from exc
    return Login(username, password.rstrip("\0"))


def _host_of(name: str) -> str:
    """Return the registry that an entry is for; old ones are URLs."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.partition("/")[0]


def _ask_helper(helper: str, registry: str, environ: Mapping[str, str]) -> Login | None:
    name = f"docker-credential-{helper}"
    program = shutil.which(name, path=environ.get("PATH"))
    if program is None or "/" in helper:
        raise ConfigError(f"the login for registry {registry}: Docker's config names {name}, which is not installed")
    try:
        done = subprocess.run(
            [program, "get"],
            check=False,
            input=registry,
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=_HELPER_TIMEOUT_S,
        )
        if done.returncode and "credentials not found" in done.stdout.lower():
            return None
        found = json.loads(done.stdout)
        username, secret = str(found["Username"]), str(found["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"the login for registry {registry}: {name} gives none; run it by hand to see why") from exc
    return Login("", "", secret) if username == "<token>" else Login(username, secret)
