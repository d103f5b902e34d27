"""The ``venv`` builder: one virtual environment per Python and requirements, made once, whoever asks.

An environment, ``<launch home>/venvs/<key>/``, cannot be moved, so it is built in its place: it is whole once it holds
the marker, whose time stamp is when it was last used. The build holds ``<key>.lock``, and so do pip's processes: should
the agent be killed, the next one waits for them before it starts anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from launch.errors import BuildError, ConfigError, TemporaryError
from launch.file_locks import locked
from launch.plugins import Build, Builder, BuildRequest, Problem, TargetContext
from workers.builders._interpreters import Interpreter, find_interpreter
from workers.builders._streaming import run_streaming
from workers.host_env import base_env

MARKER = ".launch-ready"
REQUIREMENTS = "launch-requirements.txt"
TAIL_LINES = 30
_PIP_NEEDS = re.compile(r"(?i)pip_.*|(https?|all|no)_proxy|xdg_(cache|config)_home")

Log = Callable[[str], None]
Cancelled = Callable[[], bool]


class VenvBuilder(Builder):
    """Makes virtual environments with this machine's Pythons and pip."""

    name: ClassVar[str] = "venv"

    def __init__(self, context: TargetContext, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(context)
        self._folder = context.home.absolute() / "venvs"
        self._environ = dict(os.environ if environ is None else environ)
        self._env = base_env(self._environ)
        # A package's own setup code runs in this environment: it gets what pip needs, and no secret of the agent's.
        self._env |= {name: value for name, value in self._environ.items() if _PIP_NEEDS.fullmatch(name)}

    def check(self) -> list[Problem]:
        """Return what Python's ``venv`` lacks, which Debian packages apart."""
        problems = []
        for module in ("venv", "ensurepip"):
            if not _has_module(module):
                fix = f"apt install python3.{sys.version_info.minor}-venv, or use a complete Python"
                problems.append(Problem(f"this Python ({sys.executable}) has no module {module!r}", fix))
        return problems

    def build(self, request: BuildRequest, log: Log, cancelled: Cancelled) -> Build:
        """Return the environment's path as the image.

        Raises:
            ConfigError: an image was asked for, or an option.
            BuildError: no such Python, or pip failed; the message ends with its last 30 lines.
            TemporaryError: the disk is full.
            InterruptedError: it was cancelled.
        """
        if request.image is not None:
            raise ConfigError(f"image: the process target runs no images such as {request.image!r}; use a docker queue")
        if request.options:
            raise ConfigError(f"builder: the venv builder has no options, such as {next(iter(request.options))!r}")
        _note_ignored(request, log)
        python = find_interpreter(request.python_version, self._env["PATH"])
        requirements = request.requirements or ""
        key = environment_key(python.version, requirements)
        venv = self._folder / key
        if _is_ready(venv):
            return _reused(venv)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._folder / f"{key}.lock", _waiting(log, cancelled)) as lock:
            if _is_ready(venv):  # another agent has made it while we waited
                return _reused(venv)
            self._make(venv, python, requirements, lock, log, cancelled)
        because = "first run with these requirements" if requirements else "first run without requirements"
        return Build(str(venv), f"built venv {key[:8]}…: {because}", reused=False)

    def _make(
        self, venv: Path, python: Interpreter, requirements: str, lock: int, log: Log, cancelled: Cancelled
    ) -> None:
        began = time.monotonic()
        shutil.rmtree(venv, ignore_errors=True)  # half-made, by an agent that was killed
        log(f"making a virtual environment with Python {python.version} ({python.path})\n")
        steps = {"python -m venv": [python.path, "-m", "venv", str(venv)]}
        if requirements.strip():
            pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
            steps["pip install -r requirements"] = [*pip, "install", "-r", str(venv / REQUIREMENTS)]
        try:
            for step, command in steps.items():
                self._run(step, command, lock, log, cancelled)
                (venv / REQUIREMENTS).write_text(requirements, encoding="utf-8")
            (venv / MARKER).write_text(f"{python.version}\n", encoding="utf-8")
        except BaseException:
            shutil.rmtree(venv, ignore_errors=True)
            raise
        log(f"made {venv} in {time.monotonic() - began:.1f} s\n")

    def _run(self, step: str, command: list[str], lock: int, log: Log, cancelled: Cancelled) -> None:
        code, tail = run_streaming(command, self._env, log, cancelled, keep_lines=TAIL_LINES, keep_open=(lock,))
        if code == 0:
            return
        text = "\n".join(tail)
        if "No space left on device" in text:
            raise TemporaryError(f"{step}: the disk with {self._folder} is full; free some space")
        raise BuildError(f"{step} failed with exit code {code}; its last lines:\n{text}")


def environment_key(python_version: str, requirements: str) -> str:
    """Return 16 hex digits that name an environment's content.

    Args:
        python_version: all of it, ``"3.11.7"``: an environment is bound to the interpreter it was made with.
        requirements: the text of the requirements file.
    """
    parts = [python_version, sys.platform, platform.machine(), requirements]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _note_ignored(request: BuildRequest, log: Log) -> None:
    """Say what of a job is for images only: its requirements may be enough here, or not."""
    wishes = {
        "Dockerfile": request.dockerfile,
        "base image": request.base_image,
        "apt packages": " ".join(request.apt),
    }
    if given := [f"{what} ({value})" for what, value in wishes.items() if value]:
        log(f"no image is built here, so only the job's requirements count; left out: {', '.join(given)}\n")


def _is_ready(venv: Path) -> bool:
    """Whether it is whole, and the Python it was made with still there."""
    return (venv / MARKER).exists() and (venv / "bin" / "python").exists()


def _reused(venv: Path) -> Build:
    with contextlib.suppress(OSError):
        os.utime(venv / MARKER)
    return Build(str(venv), f"reused venv {venv.name[:8]}…, same requirements", reused=True)


def _waiting(log: Log, cancelled: Cancelled) -> Callable[[], None]:
    """Return what is called while another build has the lock: it says so once."""
    was_told = False

    def wait() -> None:
        nonlocal was_told
        if cancelled():
            raise InterruptedError("cancelled while it waited for another build of the same environment")
        if not was_told:
            log("waiting for another build of the same environment\n")
            was_told = True

    return wait


def _has_module(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
