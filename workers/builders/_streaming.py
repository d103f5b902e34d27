"""Running a build step: its output as it comes, its end when it is cancelled."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence

KILL_AFTER_S = 3.0
POLL_S = 0.2


def run_streaming(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Callable[[str], None],
    cancelled: Callable[[], bool],
    *,
    keep_lines: int,
    keep_open: Sequence[int] = (),
) -> tuple[int, list[str]]:
    """Run a command to its end and return its exit code (negative: a signal) and its last lines.

    Args:
        command: what to run, in a session of its own.
        env: its whole environment.
        log: called with its output, both streams together, as it comes.
        cancelled: asked five times a second.
        keep_lines: how many lines to return.
        keep_open: file descriptors that its processes hold as long as they live.

    Raises:
        InterruptedError: it was cancelled; nothing of it runs any more.
    """
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=keep_open,
    ) as process:
        try:
            tail = _read(process, log, cancelled, keep_lines)
        except BaseException:
            _kill(process)
            raise
    return process.returncode, tail


def _read(
    process: subprocess.Popen[bytes], log: Callable[[str], None], cancelled: Callable[[], bool], keep_lines: int
) -> list[str]:
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    lines: deque[str] = deque([""], maxlen=keep_lines + 1)
    while True:
        if cancelled():
            raise InterruptedError(f"cancelled during {process.args!r}")
        if not select.select([process.stdout], [], [], POLL_S)[0]:
            continue
        data = os.read(process.stdout.fileno(), 65536)
        text = decoder.decode(data, final=not data)
        if text:
            log(text)
        first, *others = (lines.pop() + text).split("\n")
        lines.extend([first, *others])
        if not data:
            return [line for line in lines if line][-keep_lines:]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the step's whole process group: asked first, so that pip deletes its temporary files."""
    _signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_AFTER_S)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
