"""``launch status`` on one screen: what it shows, that it fits, and that ``--watch`` leaves the terminal as it was."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import click
import pytest
from services import RedisServer, wait_until

from launch.cli.status import look, screen
from launch.client import Client
from launch.models import Cause, CauseKind, RunState
from launch.store import RunStore

pytestmark = pytest.mark.redis

AGENT = {
    "name": "box", "host": "gpu7", "pid": 7, "version": "0.1.0", "queues": ["q"], "localities": [], "max_jobs": 4,
    "runs": [], "state": "serving", "problems": [], "started_at": 0.0,
}  # fmt: skip


def an_agent(store: RunStore, id: str, **said: Any) -> None:
    store.heartbeat(id, {**AGENT, **said}, gap_s=5.0)


def a_failure(client: Client, message: str, *, state: RunState = RunState.FAILED) -> str:
    run = client.enqueue(command=["false"], queue="r", tracking="optional")
    claimed = client.store.claim("r", "box-1")
    assert claimed is not None
    cause = Cause(kind=CauseKind.EXIT_CODE, message=message, exit_code=3)
    client.store.finish(run.id, claimed.fence, state, cause, log_archive=None)
    return run.id


def shown(client: Client, width: int = 80) -> list[str]:
    return [click.unstyle(line) for line in screen(look(client), width)]


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_each_queue_has_its_work_its_oldest_wait_its_limit_and_what_is_odd(client: Client) -> None:
    client.update_queue("q", max_concurrent=1)
    for _ in range(3):
        client.enqueue(command=["true"], queue="q")
    held = client.enqueue(command=["true"], queue="q")
    client.store.hold(held.id, by="ada")
    client.store.claim("q", "box-1")
    client.store.set_paused("r", True)
    an_agent(client.store, "box-1", problems=["the Docker engine does not answer: " + "x" * 200], state="blocked")

    queues = look(client)["queues"]
    lines = shown(client)

    assert {key: queues["q"][key] for key in ("waiting", "held", "delayed", "active", "paused", "max_concurrent")} == {
        "waiting": 2, "held": 1, "delayed": 0, "active": 1, "paused": False, "max_concurrent": 1,
    }  # fmt: skip
    assert 0 <= queues["q"]["oldest_wait_s"] < 60
    assert queues["r"]["oldest_wait_s"] is None
    assert [line for line in lines if re.fullmatch(r"q +process +2 +[\d.]+ s +1/1 +1 +at its limit", line)]
    assert [line for line in lines if re.fullmatch(r"r +process +0 +0 +paused", line)]
    assert [line for line in lines if re.fullmatch(r"box +blocked +0/4 +[\d.]+ s ago +q", line)]
    assert [line for line in lines if line.startswith("  the Docker engine does not answer: x")]
    assert max(map(len, lines)) <= 80


def test_a_queue_that_nobody_serves_is_marked(client: Client) -> None:
    an_agent(client.store, "box-1")
    assert [line for line in shown(client) if re.fullmatch(r"r +process +0 +0 +no agent", line)]


def test_the_last_failures_stand_there_with_their_causes_the_newest_first(client: Client) -> None:
    failed = [a_failure(client, f"The job exited with code {place}.") for place in range(4)]
    crashed = a_failure(client, "Its machine is gone. " * 20, state=RunState.CRASHED)
    a_failure(client, "fine", state=RunState.FINISHED)
    failed.append(a_failure(client, "The job exited with code 4."))

    found = look(client)["last_failures"]
    lines = shown(client)

    assert [one["id"] for one in found] == [failed[4], crashed, failed[3], failed[2], failed[1]]
    assert found[0]["cause"]["message"] == "The job exited with code 4."
    assert lines.index("  The job exited with code 4.") == 1 + next(
        place for place, line in enumerate(lines) if line.startswith(failed[4])
    )
    assert lines[-1] == f"more of it: launch show {failed[4]}"
    assert max(map(len, lines)) <= 80


def test_an_empty_installation_says_what_to_type(store: RunStore, redis_url: str, tmp_path: Path) -> None:
    done = status(redis_url, tmp_path)
    assert "launch queue create NAME" in done.stdout
    assert "launch agent -q QUEUE" in done.stdout
    assert json.loads(status(redis_url, tmp_path, "--json").stdout)["last_failures"] == []


# --- as a program ----------------------------------------------------------------------------------------------------


def environment(redis_url: str, home: Path) -> dict[str, str]:
    return {**os.environ, "LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(home), "LAUNCH_CONNECT_TIMEOUT_S": "1"}


def status(redis_url: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "launch", "status", *words]
    return subprocess.run(argv, env=environment(redis_url, home), capture_output=True, text=True, timeout=60)


class Watching:
    """``launch status --watch`` on a terminal of 14 lines."""

    def __init__(self, redis_url: str, home: Path) -> None:
        pid, self._terminal = pty.fork()
        if pid == 0:
            argv = [sys.executable, "-P", "-m", "launch", "status", "--watch"]
            os.execvpe(argv[0], argv, environment(redis_url, home))
        self._pid = pid
        self.written = ""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 14, 80, 0, 0))

    def frames(self) -> list[str]:
        while select.select([self._terminal], [], [], 0)[0]:
            try:
                piece = os.read(self._terminal, 65536)
            except OSError:  # the program has ended
                break
            self.written += piece.decode()
        return self.written.split("\x1b[H")[1:]

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def end(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self.last = self.frames()
        os.close(self._terminal)
        return code


def test_watching_refreshes_in_place_and_ctrl_c_gives_the_terminal_back(
    client: Client, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Also while Redis is away and comes back."""
    watching = Watching(redis_url, tmp_path)
    wait_until(lambda: len(watching.frames()) >= 1, "the first frame")
    client.create_queue("fresh", resource="process")
    wait_until(lambda: "fresh" in watching.frames()[-1], "the new queue")
    redis_server.kill()
    wait_until(lambda: "away: " in watching.frames()[-1], "the broker's absence")
    redis_server.start()
    wait_until(lambda: "fresh" in watching.frames()[-1], "the broker's return")

    watching.type(b"\x03")

    assert watching.end() == 130
    assert "Traceback" not in watching.written
    assert watching.written.startswith("\x1b[?1049h")
    assert watching.written.endswith("\x1b[?7h\x1b[?25h\x1b[?1049linterrupted\r\n")
    assert max(frame.count("\n") for frame in watching.last) <= 14


def test_watching_where_nobody_sees_it_writes_one_below_the_other(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    argv = [sys.executable, "-P", "-u", "-m", "launch", "status", "--watch"]
    with subprocess.Popen(argv, env=environment(redis_url, tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        written = ""
        while written.count("Ctrl-C ends it") < 2:
            line = process.stdout.readline()
            assert line, written
            written += line
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert "\x1b" not in written


def test_watching_is_for_people(redis_url: str, tmp_path: Path) -> None:
    done = status(redis_url, tmp_path, "--watch", "--json")
    assert done.returncode == 2
    assert "ask again" in done.stderr
