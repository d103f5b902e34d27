"""The wrapper that stays with one job process: starts it, carries out a stop, writes down its end.

Run as ``python -I -S _process_wrapper.py FOLDER`` with ``{"command": […], "env": {…}, "workdir": "…"}`` on stdin, so
that secrets are neither in an argument list nor in a file. Standard library only, and no import of this project: it
must start in milliseconds and outlive the agent, whose code may be replaced meanwhile.

Files of the folder::

    code/        the job's code; the command runs in it, or in ``workdir`` below it
    stdout stderr
    started      {"pid", "start_time", "boot_id", "pid_namespace"} of the wrapper that runs the job. Made once, whole,
                 by link(2): of several wrappers one wins and the others leave. Locked (flock) while that one lives.
    stop         {"deadline"}: end the job, and kill it at that time of the monotonic clock. Noticed by SIGUSR1 at
                 once, and within a second without.
    exit         {"exit_code", "signal", "cause", "message"}: the end, in one piece. Its wrapper does nothing after it.
    wrapper.log  a traceback, if the wrapper itself failed
"""

# Importing pathlib takes as long as everything else here.
# ruff: noqa: PTH105, PTH108, PTH110, PTH115, PTH118, PTH123, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import sys
import time
import traceback

IS_LINUX = sys.platform == "linux"
STRAY_GRACE_S = 1.0
"""What a job leaves behind when it ends may take this long to end by itself, as a container's processes may not."""
KILL_PATIENCE_S = 10.0
"""A process that SIGKILL does not end in this time (another user's, or stuck in a system call) is given up."""
RECORD_BYTES = 4096
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AWAITED = (signal.SIGCHLD, signal.SIGUSR1)


# --- who a process is ------------------------------------------------------------------------------------------------


def boot_id() -> str:
    """Return what is new each time the machine starts."""
    if IS_LINUX:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    return _output_of("sysctl", "-n", "kern.bootsessionuuid")


def pid_namespace() -> str:
    """Return what says whose pid numbers ours are comparable with."""
    return os.readlink("/proc/self/ns/pid") if IS_LINUX else ""


def start_time(pid: int) -> str | None:
    """Return when a process started, in the system's own unit; ``None``: there is none alive of that number.

    With the number, the identity of a process: numbers are used again, but not within one tick.
    """
    if not IS_LINUX:
        state, _, started = _output_of("ps", "-o", "stat=,lstart=", "-p", str(pid)).partition(" ")
        return None if state.startswith("Z") else started.strip() or None
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None


def _stat(pid: int | str) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` after the command: state, parent, group, session, …; 19 is the start."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _output_of(*command: str) -> str:
    import subprocess  # slow to import, and Linux has /proc

    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _processes() -> dict[int, tuple[int, int, int]]:
    """Return ``{pid: (parent, session, start time)}`` of every process; the last two are 0 where there is no /proc."""
    if not IS_LINUX:
        rows = [line.split() for line in _output_of("ps", "-A", "-o", "pid=,ppid=").splitlines()]
        return {int(pid): (int(parent), 0, 0) for pid, parent in rows}
    found = {int(name): _stat(name) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: (int(stat[1]), int(stat[3]), int(stat[19])) for pid, stat in found.items() if stat}


def descendants(ancestor: int) -> list[int]:
    """Return the pids of all processes below one, parents before children."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in _processes().items():
        children.setdefault(parent, []).append(pid)
    below = list(children.get(ancestor, ()))
    for pid in below:  # grows while it is read
        below.extend(children.get(pid, ()))
    return below


def kill_session(leader: int, since: str) -> None:
    """Kill what a dead session leader left: processes of its session that started after it. Linux only.

    A session's number is not given to a new process while the session has members, so they are the leader's.
    """
    if not IS_LINUX or start_time(leader) is not None:
        return
    for pid, (_, session, started) in _processes().items():
        if session == leader and started >= int(since):
            _signal(os.kill, pid, signal.SIGKILL)


def _signal(send: object, pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, number)  # type: ignore[operator]


# --- files -----------------------------------------------------------------------------------------------------------


def read_json(path: str) -> dict[str, object] | None:
    """Return a file's JSON object; ``None``: there is no such file, ``{}``: a power cut left it empty."""
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, object] = json.load(file)
            return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}


def write_json(path: str, value: dict[str, object], temporary: str) -> None:
    """Put a JSON object at a path, whole or not at all.

    Args:
        path: where it shall be.
        value: what shall be there.
        temporary: a path beside it that no other writer uses.
    """
    _write(temporary, value)
    os.replace(temporary, path)


def _write(path: str, value: dict[str, object]) -> None:
    # Padded and never truncated: the room that is taken when a job starts takes its end, even on a full disk.
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(value).encode().ljust(RECORD_BYTES))
    finally:
        os.close(file)


# --- the wrapper -----------------------------------------------------------------------------------------------------


def main(folder: str) -> None:
    """Start the job described on stdin unless it was started, and stay until it and all it started have ended."""
    spec = json.loads(sys.stdin.buffer.read())  # cut off when the agent died while it wrote: nothing is started
    if os.fork():
        os._exit(0)
    os.setsid()
    wake = _listen()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    outputs = [os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for name in _STREAMS]
    if not _claim(folder):
        _answer("already started")
        os._exit(0)
    _answer("started")
    try:
        end = _run(spec, folder, outputs, wake)
    except BaseException:
        traceback.print_exc()
        _kill_all()
        end = _end(cause="internal", message="the process wrapper failed: " + traceback.format_exc(limit=-1)[-1000:])
    _record(folder, end)
    os._exit(0)


_STREAMS = ("stdout", "stderr")


def _listen() -> int:
    """Make signals wake a ``select``, and return what to select on. Other signals must not keep us from recording."""
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    for number in _AWAITED:
        signal.signal(number, lambda *_: None)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    return wake


def _prctl(option: int, value: int) -> None:
    if IS_LINUX:
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _claim(folder: str) -> bool:
    """Make ``started``, and say whether it was us. The lock goes with our life."""
    temporary = f"{folder}/started.{os.getpid()}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    us = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
    os.write(file, json.dumps({**us, "boot_id": boot_id(), "pid_namespace": pid_namespace()}).encode())
    _write(f"{folder}/exit.{os.getpid()}", {})
    try:
        os.link(temporary, f"{folder}/started")
    except FileExistsError:
        os.unlink(f"{folder}/exit.{os.getpid()}")
        return False
    finally:
        os.unlink(temporary)
    return True


def _answer(word: str) -> None:
    """Tell the agent, and let go of its pipe."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, word.encode())
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)


def _run(spec: dict[str, object], folder: str, outputs: list[int], wake: int) -> dict[str, object]:
    kills_before = _oom_kills()
    pid, problem = _start(spec, f"{folder}/code", outputs)
    if problem:
        os.waitpid(pid, 0)
        code, message = problem
        return _end(exit_code=code, cause="config", message=message)
    job = _Job(pid, folder)
    status = job.follow(wake)
    if os.WIFEXITED(status):
        return _end(exit_code=os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    message = f"killed by signal {number} ({_signal_name(number)})"
    if job.was_killed:
        message += ": it had not ended in its grace time after it was asked to stop"
    elif number == signal.SIGKILL and not job.is_stopping and _oom_kills() > kills_before:
        message += "; while it ran the system killed for lack of memory, so it probably needed more than there is"
    return _end(exit_code=128 + number, number=number, message=message)


def _start(spec: dict[str, object], code: str, outputs: list[int]) -> tuple[int, tuple[int, str] | None]:
    """Start the job's process and return its pid and, if it could not be, ``(exit code, why)``."""
    result, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(spec, code, outputs)
        except BaseException as exc:
            os.write(report, json.dumps(_why_not(exc, spec)).encode())
        os._exit(127)
    os.close(report)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # on both sides: a stop right now must reach the group
    with open(result, "rb") as file:
        said = file.read()  # nothing: exec closed it
    return pid, tuple(json.loads(said)) if said else None


class _NoWorkdirError(Exception):
    pass


def _become(spec: dict[str, object], code: str, outputs: list[int]) -> None:
    os.setpgid(0, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a job that nobody could follow or stop any more must not go on
    signal.set_wakeup_fd(-1)
    for number in (*_IGNORED, *_AWAITED, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(outputs[0], 1)
    os.dup2(outputs[1], 2)
    try:
        os.chdir(os.path.join(code, str(spec["workdir"])))
    except OSError as exc:
        raise _NoWorkdirError from exc
    command: list[str] = spec["command"]  # type: ignore[assignment]
    env: dict[str, str] = spec["env"]  # type: ignore[assignment]
    os.execvpe(command[0], command, env)  # noqa: S606


def _why_not(exc: BaseException, spec: dict[str, object]) -> tuple[int, str]:
    """Return the exit code a shell would give, and a sentence for the user."""
    command: list[str] = spec["command"]  # type: ignore[assignment]
    name, number = command[0], getattr(exc, "errno", None)
    if isinstance(exc, _NoWorkdirError):
        return 126, f"workdir: {spec['workdir']!r} is no folder of the job's code"
    if number == errno.ENOENT:
        return 127, f"cannot run {name!r}: {_what_is_missing(name, spec)}"
    if number == errno.EACCES:
        return 126, f"cannot run {name!r}: the file is not executable (chmod +x it, or name its interpreter)"
    if number == errno.ENOEXEC:
        return 126, f"cannot run {name!r}: it is neither a program nor a script whose first line is #!…"
    return 126, f"cannot run {name!r}: {exc}"


def _what_is_missing(name: str, spec: dict[str, object]) -> str:
    if "/" not in name:
        return f"there is no such command; looked in {spec['env']['PATH']}"  # type: ignore[index]
    if os.path.exists(name):
        return "the interpreter that its first line names does not exist"
    return "there is no such file in the job's code"


class _Job:
    """The job's process and all below it, from start to end."""

    def __init__(self, pid: int, folder: str) -> None:
        self.pid = pid
        self.status: int | None = None
        """As ``waitpid`` has it, once the process itself has ended."""
        self.is_stopping = False
        self.was_killed = False
        """Whether its own process was, because its grace time was over."""
        self._stop_file = f"{folder}/stop"
        self._deadline = float("inf")

    def follow(self, wake: int) -> int:
        """Wait until all have ended, or cannot be killed, and return the wait status of the job's own process."""
        while True:
            have_ended = self._reap() and not _has_group(self.pid)
            if self.status is not None and (have_ended or self._overdue_s() > KILL_PATIENCE_S):
                return self.status
            self._heed_stop()
            overdue_s = self._overdue_s()
            if overdue_s >= 0:
                self.was_killed = self.was_killed or self.status is None
                _kill_all(self.pid)
            _sleep(wake, 0.05 if 0 <= overdue_s < KILL_PATIENCE_S else min(1.0, abs(overdue_s)))

    def _overdue_s(self) -> float:
        return time.monotonic() - self._deadline

    def _reap(self) -> bool:
        """Collect ended children, adopted orphans too, and say whether those were all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.pid:
                self.status = status
                self._see_to_strays()

    def _see_to_strays(self) -> None:
        """The job's own process is gone: what it left has the rest of a stop's grace time, or a little of its own."""
        if self.is_stopping:
            _ask_strays(self.pid)
        else:
            self._deadline = time.monotonic() + STRAY_GRACE_S

    def _heed_stop(self) -> None:
        wanted = read_json(self._stop_file)
        if not wanted:
            return
        self._deadline = min(self._deadline, float(wanted["deadline"]))  # type: ignore[arg-type]
        if self.is_stopping or self.status is not None:
            return
        self.is_stopping = True
        _signal(os.killpg, self.pid, signal.SIGTERM)
        _signal(os.killpg, self.pid, signal.SIGCONT)  # a suspended job could not hear it


def _has_group(job: int) -> bool:
    """Whether the job's process group has members: where orphans are not ours to wait for, all we can know."""
    if IS_LINUX:
        return False
    try:
        os.killpg(job, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _ask_strays(job: int) -> None:
    """Ask what outlived a stopped job to end too, unless it was asked with the job's group already."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) != job:
                os.kill(pid, signal.SIGTERM)


def _kill_all(job: int | None = None) -> None:
    for pid in descendants(os.getpid()):
        _signal(os.kill, pid, signal.SIGKILL)
    if job is not None and not IS_LINUX:
        _signal(os.killpg, job, signal.SIGKILL)


def _sleep(wake: int, seconds: float) -> None:
    if select.select([wake], [], [], seconds)[0]:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def _oom_kills() -> int:
    """Return how often this system has killed for lack of memory since it started."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time"


def _end(
    exit_code: int | None = None, number: int | None = None, cause: str | None = None, message: str = ""
) -> dict[str, object]:
    return {"exit_code": exit_code, "signal": number, "cause": cause, "message": message}


def _record(folder: str, end: dict[str, object]) -> None:
    """Write the end in one piece, over room that was taken at the start; to the disk, for a power cut right after."""
    with contextlib.suppress(FileNotFoundError):  # the folder was removed under us
        room = f"{folder}/exit.{os.getpid()}"
        _write(room, end)
        _sync(room)
        os.replace(room, f"{folder}/exit")
        _sync(folder)


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


if __name__ == "__main__":
    main(sys.argv[1])
