"""Finding the Python interpreter that a job asks for."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from launch.errors import BuildError, ConfigError


@dataclass(frozen=True)
class Interpreter:
    """A Python on this machine."""

    path: str
    version: str
    """All of it: ``"3.11.7"``."""


def find_interpreter(wanted: str | None, search_path: str) -> Interpreter:
    """Return a Python of that version: the agent's own if it fits, or ``pythonX.Y`` of the path.

    Args:
        wanted: ``"3.11"`` or ``"3.11.7"``; ``None``: the agent's own.
        search_path: folders, as in ``PATH``.

    Raises:
        ConfigError: ``wanted`` is no version.
        BuildError: there is none; the message lists those there are.
    """
    own = Interpreter(sys.executable, platform.python_version())
    if wanted is None or _fits(own.version, wanted):
        return own
    if not re.fullmatch(r"3(\.\d+){0,2}", wanted):
        raise ConfigError(f"python_version: should be like '3.11', not {wanted!r}")
    found = _installed(search_path)
    for interpreter in found:
        if _fits(interpreter.version, wanted):
            return interpreter
    known = ", ".join(f"{python.version} ({python.path})" for python in [own, *found])
    raise BuildError(f"there is no Python {wanted} on this machine: install it, or ask for one that is there: {known}")


def _fits(version: str, wanted: str) -> bool:
    return version == wanted or version.startswith(f"{wanted}.")


def _installed(search_path: str) -> list[Interpreter]:
    """Return every ``python3.N`` of the path that runs, newest first."""
    folders = [Path(folder) for folder in search_path.split(os.pathsep) if folder]
    names = {file.name for folder in folders if folder.is_dir() for file in folder.glob("python3.*")}
    names = {name for name in names if re.fullmatch(r"python3\.\d+", name)}
    paths = [shutil.which(name, path=search_path) for name in sorted(names, key=_minor, reverse=True)]
    versions = {path: _version_of(path, Path(path).stat().st_mtime) for path in paths if path}
    return [Interpreter(path, version) for path, version in versions.items() if version]


def _minor(name: str) -> int:
    return int(name.rpartition(".")[2])


@lru_cache(maxsize=64)
def _version_of(path: str, mtime: float) -> str | None:  # noqa: ARG001  (an upgraded interpreter is asked again)
    command = [path, "-I", "-S", "-c", "import platform; print(platform.python_version())"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
