"""The ``process`` target: a job is a process on the agent's own machine, in a virtual environment and its own folder.

A run folder, ``<launch home>/process/<attempt name>/``, is all there is to an attempt: the files in it are described in
``_process_wrapper.py``, whose processes outlive the agent. So every agent of this machine can follow, stop and remove
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import select
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from launch import reach
from launch.checking import parse
from launch.errors import ConfigError, TemporaryError
from launch.models import CauseKind
from launch.plugins import Attempt, LogChunk, Phase, Plan, Problem, Reach, Runner, Status, TargetContext
from launch.reach import WORDS, Answer
from workers.host_env import base_env
from workers.runners import _process_folder, _process_tail, _process_wrapper
from workers.runners._process_options import ProcessOptions, ProcessSettings

MIN_FREE_BYTES = 200_000_000
REMOVE_PATIENCE_S = 5.0
_HANDLE = re.compile(r"launch-[0-9a-f]{8}-[a-z0-9-]+-\d+")
_MASKED_FROM_CHARS = 4
"""A shorter value passed through from the agent (``0``) is no secret, and masking it would garble the view."""


class ProcessRunner(Runner):
    """Runs jobs as processes of this machine, each with a wrapper that outlives the agent."""

    name: ClassVar[str] = "process"
    aliases: ClassVar[tuple[str, ...]] = ("local-process",)
    builder: ClassVar[str] = "venv"
    runs_images: ClassVar[bool] = False
    runs_bare_commands: ClassVar[bool] = True
    Options = ProcessOptions
    safe_overrides: ClassVar[frozenset[str]] = frozenset({"env", "workdir"})
    public_options: ClassVar[frozenset[str]] = frozenset({"workdir"})

    def __init__(self, context: TargetContext, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(context)
        self._folders = context.home.absolute() / "process"
        self._settings = parse(ProcessSettings, dict(context.settings), where="agent config: process")
        self._environ = dict(os.environ if environ is None else environ)
        self._boot_id = _process_wrapper.boot_id()
        self._pid_namespace = _process_wrapper.pid_namespace()

    @property
    def locality(self) -> str:
        """Agents with this launch home that see the same process numbers since the same start of the machine."""
        parts = f"{self._boot_id} {self._pid_namespace} {self._folders.resolve()}"
        return f"process:{hashlib.sha256(parts.encode()).hexdigest()[:16]}"

    def check(self) -> list[Problem]:
        """Return what is wrong with the launch home or this Python."""
        problems = []
        if not hasattr(tarfile, "data_filter"):
            version = ".".join(map(str, sys.version_info[:3]))
            problems.append(Problem(f"Python {version} cannot unpack archives safely", "use Python 3.11.4 or later"))
        try:
            self._folders.mkdir(mode=0o700, parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(self._folders).free
        except OSError as exc:
            return [*problems, Problem(f"{self._folders} cannot be made: {exc.strerror}", "let the agent write there")]
        if not os.access(self._folders, os.W_OK | os.X_OK):
            problems.append(Problem(f"{self._folders} is not writable", f"let user {os.getuid()} write there"))
        if free_bytes < MIN_FREE_BYTES:
            what = f"{self._folders} has {free_bytes // 1_000_000} MB of free disk space"
            problems.append(Problem(what, f"free some: jobs need {MIN_FREE_BYTES // 1_000_000} MB at least"))
        return problems

    def tracking_host(self, options: Any) -> str | None:  # noqa: ARG002
        """A job shares the machine's loopback."""
        return "127.0.0.1"

    def probe(self, url: str, options: Any) -> Reach:  # noqa: ARG002
        """A job's connections are this process's own."""
        answer = reach.ask(url)
        if answer is Answer.REACHED:
            return Reach(f"reached at {url}")
        return Reach("not reached", Problem(f"{url}: {WORDS[answer]}", "launch down; launch up"))

    def scratch_dir(self, attempt_name: str) -> str:
        """A folder of the run folder beside the code, so that what is written there is never taken for the job's."""
        return str(self._folders / attempt_name / "scratch")

    # --- plan and submit ----------------------------------------------------------------------------------------------

    def plan(self, attempt: Attempt, image: str | None, options: Any) -> Plan:
        """Return the command, its complete environment, and where in the code it runs.

        Args:
            attempt: what to run.
            image: the path of a virtual environment; ``None``: the machine's own programs.
            options: a :class:`ProcessOptions`.

        Raises:
            ConfigError: no command, an image reference, or a variable the agent does not pass on.
        """
        assert isinstance(options, ProcessOptions)
        if not attempt.command:
            raise ConfigError("command: the process target needs one, since there is no image whose own could run")
        if image is not None and not PurePosixPath(image).is_absolute():
            raise ConfigError(f"image: the process target runs no images such as {image!r}; use a docker queue")
        passed = self._passed(options)
        given = {name: value for name, value in options.env.items() if value is not None}
        env = {"PYTHONUNBUFFERED": "1", **base_env(self._environ), **passed, **given, **attempt.env}
        env |= attempt.secret_env
        if image is not None:
            env |= {"VIRTUAL_ENV": image, "PATH": f"{image}/bin:{env['PATH']}"}
        _refuse_nul({"command": attempt.command, "env": [*env, *env.values()]})
        hidden = {value for value in passed.values() if len(value) >= _MASKED_FROM_CHARS}
        hidden |= {value for value in (*attempt.secret_env.values(), *attempt.secrets) if value}
        request = {"command": list(attempt.command), "env": env, "workdir": options.workdir}
        return Plan(attempt.name, request, frozenset(hidden), attempt.code)

    def _passed(self, options: ProcessOptions) -> dict[str, str]:
        names = [name for name, value in options.env.items() if value is None]
        for name in names:
            if name not in self._settings.pass_env:
                raise ConfigError(
                    f"env: {name!r} without a value would be taken from the agent, whose config does not list it in "
                    f"pass_env; write {name}=value, or have it listed"
                )
        return {name: self._environ[name] for name in names if name in self._environ}

    def submit(self, plan: Plan) -> str:
        """Start the attempt, or find it started; the handle is its name.

        Raises:
            PermanentError: the code cannot be unpacked.
            TemporaryError: the disk is full, or no process can be made.
        """
        folder = self._folders / plan.name
        if not (folder / "started").exists():
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                (folder / "scratch").mkdir(exist_ok=True)
                _process_folder.put_code(plan.code, folder)
                _process_folder.start_wrapper(plan, folder)
            except BaseException as exc:
                if not (folder / "started").exists():
                    shutil.rmtree(folder, ignore_errors=True)
                if isinstance(exc, OSError):
                    raise TemporaryError(f"{plan.name} cannot be started in {folder}: {exc}") from exc
                raise
        return plan.name

    # --- follow -------------------------------------------------------------------------------------------------------

    def status(self, handles: Sequence[str]) -> dict[str, Status]:
        """Return what the run folders say."""
        return {handle: self._status(handle) for handle in handles}

    def wait(self, handle: str, timeout_s: float) -> Status:
        """Return when the wrapper has ended, which Linux tells at once."""
        deadline = time.monotonic() + timeout_s
        while True:
            status, left = self._status(handle), deadline - time.monotonic()
            if status.is_final or left <= 0:
                return status
            self._wait_for_end(handle, left)

    def logs(self, handle: str, cursor: str | None = None) -> Iterator[LogChunk]:
        """Yield both streams as they grow; the cursor is a byte offset into each, ``"1200:0"``."""
        tails = _process_tail.tails(self._folder(handle), cursor)
        quiet_since, pause_s = time.monotonic(), 0.02
        while True:
            is_over = self._status(handle).is_final
            reads = 0
            for tail in tails:
                text = tail.read(is_over)
                if text:
                    reads += 1
                    yield LogChunk(tail.stream, text, _process_tail.cursor_of(tails))
            now = time.monotonic()
            if reads:
                quiet_since, pause_s = now, 0.02
                if is_over or any(tail.has_more for tail in tails):
                    continue
            elif is_over:
                return
            elif now - quiet_since >= _process_tail.HEARTBEAT_S:
                quiet_since = now
                yield LogChunk("stdout", "", _process_tail.cursor_of(tails))
            self._wait_for_end(handle, pause_s)
            pause_s = min(pause_s * 1.5, _process_tail.MAX_PAUSE_S)

    def _folder(self, handle: str) -> Path | None:
        return self._folders / handle if _HANDLE.fullmatch(handle) else None

    def _status(self, handle: str) -> Status:
        folder = self._folder(handle)
        if folder is None or not folder.is_dir():
            return Status(Phase.GONE)
        end = _process_wrapper.read_json(f"{folder}/exit")
        if end:
            return _ended(end)
        wrapper = _process_wrapper.read_json(f"{folder}/started")
        if wrapper is None:
            return Status(Phase.STARTING)
        if self._is_alive(wrapper, folder):
            return Status(Phase.RUNNING)
        end = _process_wrapper.read_json(f"{folder}/exit")  # it may have ended between the two looks
        if end is None and not folder.is_dir():
            return Status(Phase.GONE)
        return _ended(end) if end else self._lost(wrapper)

    def _is_alive(self, wrapper: Mapping[str, Any], folder: Path) -> bool:
        if wrapper.get("boot_id") != self._boot_id:
            return False
        if self._is_ours(wrapper):
            return _is_running(wrapper)
        return _process_tail.is_locked(folder / "started")  # another container's process: only its lock tells

    def _is_ours(self, wrapper: Mapping[str, Any]) -> bool:
        """Whether the wrapper's process number means the same to us."""
        place = wrapper.get("boot_id"), wrapper.get("pid_namespace")
        return place == (self._boot_id, self._pid_namespace)

    def _lost(self, wrapper: Mapping[str, Any]) -> Status:
        why = (
            "the machine was restarted" if wrapper.get("boot_id") != self._boot_id else "its wrapper process was killed"
        )
        return Status(Phase.ENDED, cause=CauseKind.HOST_LOST, message=f"how it ended is not known: {why} while it ran")

    def _wait_for_end(self, handle: str, timeout_s: float) -> None:
        """Return after the time, or as soon as the wrapper ends; without its process, after 50 ms at most."""
        wrapper = self._wrapper(handle)
        with _pidfd(wrapper) as process:
            if process is None:
                time.sleep(min(timeout_s, 0.05))
                return
            poll = select.poll()
            poll.register(process, select.POLLIN)
            poll.poll(timeout_s * 1000)

    def _wrapper(self, handle: str) -> Mapping[str, Any] | None:
        """Return the wrapper of an attempt, if its process number means something here."""
        folder = self._folder(handle)
        wrapper = _process_wrapper.read_json(f"{folder}/started") if folder else None
        return wrapper if wrapper and self._is_ours(wrapper) else None

    # --- stop and remove ----------------------------------------------------------------------------------------------

    def stop(self, handle: str, grace_s: float) -> None:
        """Leave the wrapper a request, which it carries out whatever becomes of this agent."""
        folder = self._folder(handle)
        if folder is None:
            return
        if self._status(handle).is_final:
            self._kill_what_is_left(handle)
            return
        wanted: dict[str, object] = {"deadline": time.monotonic() + grace_s}
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            _process_wrapper.write_json(f"{folder}/stop", wanted, f"{folder}/stop.{secrets.token_hex(4)}")
        _notify(self._wrapper(handle))

    def find(self) -> dict[str, str]:
        """Return this installation's run folders by name."""
        return {folder.name: folder.name for folder in self._folders.glob(f"launch-{self.context.installation}-*")}

    def remove(self, handle: str) -> None:
        """Delete the run folder; what still runs is killed first.

        Raises:
            TemporaryError: something in it cannot be killed or deleted yet.
        """
        folder = self._folder(handle)
        if folder is None or not folder.is_dir():
            return
        self.stop(handle, 0.0)
        if (folder / "started").exists() and not self.wait(handle, REMOVE_PATIENCE_S).is_final:
            raise TemporaryError(f"{handle} has not ended {REMOVE_PATIENCE_S:g} s after it was killed")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(self._folders / f".removed-{handle}-{secrets.token_hex(4)}")
        for left in self._folders.glob(".removed-*"):  # those of a killed agent too
            _process_folder.delete_tree(left)

    def _kill_what_is_left(self, handle: str) -> None:
        """A wrapper that was killed took the job with it, but not what the job had started."""
        wrapper = self._wrapper(handle)
        if wrapper:
            _process_wrapper.kill_session(wrapper["pid"], wrapper["start_time"])


def _refuse_nul(texts: Mapping[str, Sequence[str]]) -> None:
    for what, values in texts.items():
        for value in values:
            if "\0" in value:
                raise ConfigError(f"{what}: {value!r} holds a NUL character, which no process can be given")


def _ended(end: Mapping[str, Any]) -> Status:
    cause = CauseKind(end["cause"]) if end["cause"] else None
    return Status(Phase.ENDED, end["exit_code"], end["signal"], cause, end["message"])


def _is_running(wrapper: Mapping[str, Any]) -> bool:
    started: str = wrapper["start_time"]
    return _process_wrapper.start_time(wrapper["pid"]) == started


@contextlib.contextmanager
def _pidfd(wrapper: Mapping[str, Any] | None) -> Iterator[int | None]:
    """Give a file descriptor of the wrapper's process, which no other process can take over, or ``None``."""
    process = None
    if wrapper is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):  # it has ended, or the system has none
            process = os.pidfd_open(wrapper["pid"])
    try:
        yield process if wrapper is not None and _is_running(wrapper) else None
    finally:
        if process is not None:
            os.close(process)


def _notify(wrapper: Mapping[str, Any] | None) -> None:
    """Let the wrapper see at once what it would see within a second."""
    with _pidfd(wrapper) as process, contextlib.suppress(ProcessLookupError, PermissionError):
        if process is not None:
            signal.pidfd_send_signal(process, signal.SIGUSR1)
        elif wrapper is not None and _is_running(wrapper):
            os.kill(wrapper["pid"], signal.SIGUSR1)
