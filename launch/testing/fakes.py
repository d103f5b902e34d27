"""A target in memory, with its runner and builder: attempts run until the test ends them. No processes, no files.

::

    runner = FakeRunner()
    ...                                   # the code under test submits an attempt of run "r1"
    runner.wait_until_submitted("r1")
    runner.write("r1", "loss 0.1\\n")
    runner.end("r1", exit_code=0)
    assert runner.submitted == ["r1"]

``runner.before["submit"] = fail`` calls ``fail(subject)`` at the start of each ``submit``: what it raises, the runner
raises. Steps are the names of the contract's methods; the subject is a plan, a handle, or a list of handles.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from launch.checking import Model
from launch.errors import ConfigError
from launch.models import CauseKind
from launch.plugins import (
    Attempt,
    Build,
    Builder,
    BuildRequest,
    LogChunk,
    LogStream,
    Phase,
    Plan,
    Problem,
    Runner,
    Status,
    TargetContext,
)

Hook = Callable[[Any], object]


class FakeOptions(Model):
    """A small resource config with one safe and one unsafe key."""

    env: dict[str, str] = Field(default_factory=dict)
    """Safe to override."""
    cpus: float | None = None
    """Safe to override."""
    privileged: bool = False
    """Not safe to override."""


@dataclass
class FakeAttempt:
    """What the target knows of one attempt."""

    plan: Plan
    installation: str
    run_id: str
    status: Status = field(default_factory=lambda: Status(Phase.RUNNING))
    log: list[tuple[LogStream, str]] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    """Grace times of the stops asked for, in seconds."""


class FakeTarget:
    """The target itself: runners that share one see each other's attempts, as agents on one engine do."""

    def __init__(self, on_start: Callable[[FakeRunner, str], object] | None = None) -> None:
        self.attempts: dict[str, FakeAttempt] = {}
        """By handle, in the order of their start; a removed or lost one is not there any more."""
        self.started: list[FakeAttempt] = []
        """Every attempt that was ever started, in order."""
        self.changed = threading.Condition()
        self.on_start = on_start
        """Called with the runner and the handle once an attempt was started, for jobs that need no hand."""


class FakeRunner(Runner):
    """A runner whose attempts the test ends by hand."""

    name: ClassVar[str] = "fake"
    builder: ClassVar[str] = "fake"
    Options = FakeOptions
    safe_overrides: ClassVar[frozenset[str]] = frozenset({"env", "cpus"})

    def __init__(self, context: TargetContext | None = None, target: FakeTarget | None = None) -> None:
        super().__init__(context or TargetContext("0fa4e0fa", Path(tempfile.gettempdir()) / "fake-launch-home"))
        self.target = target or FakeTarget()
        self.before: dict[str, Hook] = {}
        """``{step: hook}``: called at the start of each such call; what it raises, the call raises."""
        self.calls: list[tuple[str, Any]] = []
        """``(step, subject)`` of every call that reached this runner, oldest first."""
        self.problems: list[Problem] = []
        """What ``check`` reports."""
        self.ends_when_stopped = True
        """Whether attempts end on ``stop``, by signal 15, or wait for the test."""
        self.host: str | None = "127.0.0.1"

    # --- what tests use -----------------------------------------------------------------------------------------------

    @property
    def submitted(self) -> list[str]:
        """Run ids of all attempts that were started at the target, in order; an id twice means two attempts."""
        with self.target.changed:
            return [attempt.run_id for attempt in self.target.started]

    @property
    def removed(self) -> list[str]:
        """Handles given to ``remove``, in order."""
        return [handle for step, handle in self.calls if step == "remove"]

    def attempt_of(self, which: str) -> FakeAttempt:
        """Return the newest attempt with that handle or run id."""
        with self.target.changed:
            return self._attempt_of(which)

    def write(self, which: str, text: str, stream: LogStream = "stdout") -> None:
        """Let the job write something; ``which`` is a handle or a run id."""
        with self.target.changed:
            self._attempt_of(which).log.append((stream, text))
            self.target.changed.notify_all()

    def end(
        self,
        which: str,
        exit_code: int | None = 0,
        *,
        signal: int | None = None,
        cause: CauseKind | None = None,
        message: str = "",
    ) -> None:
        """Let the job end; an ended one stays as it is."""
        with self.target.changed:
            self._end(self._attempt_of(which), Status(Phase.ENDED, exit_code, signal, cause, message))

    def lose(self, which: str) -> None:
        """Let the target forget the attempt: it is ``gone``."""
        with self.target.changed:
            self.target.attempts.pop(self._attempt_of(which).plan.name)
            self.target.changed.notify_all()

    def wait_until_submitted(self, which: str, timeout_s: float = 10.0) -> str:
        """Return the handle of the run's newest attempt as soon as there is one."""
        with self.target.changed:
            there = self.target.changed.wait_for(lambda: self._find(which) is not None, timeout_s)
            assert there, f"{which} was not submitted in {timeout_s} s; there are: {list(self.target.attempts)}"
            return self._attempt_of(which).plan.name

    # --- the contract -------------------------------------------------------------------------------------------------

    @property
    def locality(self) -> str:
        """Runners of one target follow each other's attempts."""
        return f"fake:{id(self.target):x}"

    def check(self) -> list[Problem]:
        """Return ``problems``."""
        self._enter("check", None)
        return list(self.problems)

    def tracking_host(self, options: Any) -> str | None:  # noqa: ARG002
        """Return ``host``."""
        return self.host

    def plan(self, attempt: Attempt, image: str | None, options: Any) -> Plan:
        """Return everything that was asked for."""
        self._enter("plan", attempt)
        if not isinstance(options, FakeOptions):
            raise ConfigError(f"options: should be FakeOptions, not {options!r}")
        request = {
            "command": list(attempt.command),
            "env": {**options.env, **attempt.env, **attempt.secret_env},
            "image": image,
            "installation": attempt.installation,
            "run_id": attempt.run_id,
            "labels": dict(attempt.labels),
        }
        secrets = frozenset(value for value in (*attempt.secret_env.values(), *attempt.secrets) if value)
        return Plan(attempt.name, request, secrets, attempt.code)

    def submit(self, plan: Plan) -> str:
        """Start it once; its handle is its name."""
        self._enter("submit", plan)
        with self.target.changed:
            is_new = plan.name not in self.target.attempts
            if is_new:
                run = FakeAttempt(plan, plan.request["installation"], plan.request["run_id"])
                self.target.attempts[plan.name] = run
                self.target.started.append(run)
                self.target.changed.notify_all()
        if is_new and self.target.on_start:
            self.target.on_start(self, plan.name)
        return plan.name

    def status(self, handles: Sequence[str]) -> dict[str, Status]:
        """Return what the test made of them."""
        self._enter("status", list(handles))
        with self.target.changed:
            return {handle: self._status(handle) for handle in handles}

    def wait(self, handle: str, timeout_s: float) -> Status:
        """Return at once when the test ends it."""
        self._enter("wait", handle)
        with self.target.changed:
            self.target.changed.wait_for(lambda: self._status(handle).is_final, timeout_s)
            return self._status(handle)

    def logs(self, handle: str, cursor: str | None = None) -> Iterator[LogChunk]:
        """Yield what the test wrote, one chunk a write; the cursor counts them."""
        self._enter("logs", handle)
        return self._logs(handle, int(cursor or 0))

    def stop(self, handle: str, grace_s: float) -> None:
        """Note it, and end the attempt by signal 15 unless the test wants to do that itself."""
        self._enter("stop", handle)
        with self.target.changed:
            attempt = self.target.attempts.get(handle)
            if attempt is None or attempt.status.is_final:
                return
            attempt.stops.append(grace_s)
            if self.ends_when_stopped:
                self._end(attempt, Status(Phase.ENDED, 143, 15))

    def find(self) -> dict[str, str]:
        """Return this installation's attempts; a handle is the attempt's name."""
        self._enter("find", None)
        with self.target.changed:
            attempts = self.target.attempts.items()
            return {name: name for name, run in attempts if run.installation == self.context.installation}

    def remove(self, handle: str) -> None:
        """Forget it."""
        self._enter("remove", handle)
        with self.target.changed:
            self.target.attempts.pop(handle, None)
            self.target.changed.notify_all()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _enter(self, step: str, subject: Any) -> None:
        self.calls.append((step, subject))
        if step in self.before:
            self.before[step](subject)

    def _find(self, which: str) -> FakeAttempt | None:
        found = [run for name, run in self.target.attempts.items() if which in (name, run.run_id)]
        return found[-1] if found else None

    def _attempt_of(self, which: str) -> FakeAttempt:
        attempt = self._find(which)
        assert attempt is not None, f"no attempt {which!r}; there are: {list(self.target.attempts)}"
        return attempt

    def _status(self, handle: str) -> Status:
        attempt = self.target.attempts.get(handle)
        return attempt.status if attempt else Status(Phase.GONE)

    def _end(self, attempt: FakeAttempt, status: Status) -> None:
        if not attempt.status.is_final:
            attempt.status = status
        self.target.changed.notify_all()

    def _logs(self, handle: str, position: int) -> Iterator[LogChunk]:
        while True:
            with self.target.changed:
                attempt = self.target.attempts.get(handle)
                news = attempt.log[position:] if attempt else []
                is_final = self._status(handle).is_final
                if not news and not is_final:
                    self.target.changed.wait(0.1)
            for stream, text in news:
                position += 1
                yield LogChunk(stream, text, str(position))
            if not news:
                if is_final:
                    return
                yield LogChunk("stdout", "", str(position))


class FakeBuilder(Builder):
    """A builder that makes nothing: the image is named for what it would hold."""

    name: ClassVar[str] = "fake"

    def __init__(self, context: TargetContext | None = None) -> None:
        super().__init__(context or TargetContext("0fa4e0fa", Path(tempfile.gettempdir()) / "fake-launch-home"))
        self.before: dict[str, Hook] = {}
        """``{"build": hook}``: called with the request before it is built; what it raises, ``build`` raises."""
        self.problems: list[Problem] = []
        self.requests: list[BuildRequest] = []
        """Every request, in order."""
        self.built: list[str] = []
        """The images made, in order; a reused one is there once."""
        self.may_finish = threading.Event()
        """Clear it to hold every build until it is set, or cancelled."""
        self.may_finish.set()
        self._lock = threading.Lock()

    def check(self) -> list[Problem]:
        """Return ``problems``."""
        return list(self.problems)

    def build(self, request: BuildRequest, log: Callable[[str], None], cancelled: Callable[[], bool]) -> Build:
        """Name an image for the request; the same request again reuses it."""
        self.requests.append(request)
        if "build" in self.before:
            self.before["build"](request)
        log("building the fake image\n")
        self._wait(cancelled)
        image = request.image or f"fake:{_digest(request)}"
        with self._lock:
            reused = image in self.built
            if not reused:
                self.built.append(image)
        because = "reused, same requirements" if reused else "built: first run with these requirements"
        return Build(image, because, reused)

    def _wait(self, cancelled: Callable[[], bool]) -> None:
        while not self.may_finish.wait(0.05):
            if cancelled():
                raise InterruptedError("the build was cancelled")


def _digest(request: BuildRequest) -> str:
    return hashlib.sha256(f"{request.python_version}\n{request.requirements}".encode()).hexdigest()[:12]


def wait_until(condition: Callable[[], object], *, timeout_s: float = 10.0, what: str = "") -> None:
    """Return as soon as the condition holds, asked every 10 ms.

    Raises:
        AssertionError: it did not within ``timeout_s``; the message ends with ``what``.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(0.01)
