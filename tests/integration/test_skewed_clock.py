"""Agents whose wall clock is an hour off: Redis' clock is the only one that decides anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from services import need_program

from launch.client import Client
from launch.models import CauseKind, RunState
from launch.watch import Run
from tests.agents import QUICK, AgentProcess, Fleet, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(300)]

HOUR_S = 3600.0
# libfaketime 0.9.10 breaks clock_nanosleep(2), which time.sleep uses; this waits as long by another call.
MENDED_SLEEP = """
import select, time
def sleep(seconds):
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)
time.sleep = sleep
"""


def skewed(hours: str, folder: Path) -> dict[str, str]:
    """Return an environment in which a process' wall clock is off: ``"+1"``, ``"-1"``."""
    shown = subprocess.run([need_program("faketime"), "-m", "-f", "+0h", "env"], capture_output=True, text=True)
    (library,) = [line for line in shown.stdout.splitlines() if line.startswith("LD_PRELOAD=")]
    (folder / "sitecustomize.py").write_text(MENDED_SLEEP)
    return {
        "LD_PRELOAD": library.removeprefix("LD_PRELOAD="),
        "FAKETIME": f"{hours}h",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(folder),
    }


@pytest.fixture(params=["+1", "-1"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Makes a process' wall clock an hour fast or slow."""
    environment = skewed(request.param, tmp_path)
    script = [sys.executable, "-c", "import time; print(time.time())"]
    shown = subprocess.run(script, env={**os.environ, **environment}, capture_output=True)
    ahead_s = float(shown.stdout) - time.time()
    assert abs(ahead_s - float(request.param) * HOUR_S) < 60, shown.stderr
    return environment


@pytest.fixture
def wrong(fleet: Fleet, environment: dict[str, str]) -> Callable[..., AgentProcess]:
    """Starts an agent with such a clock; the other agents' is right."""
    return lambda *queues, **options: fleet.start(*queues, name="wrong", environment=environment, **options)


def typed(fleet: Fleet, environment: dict[str, str], *words: str) -> str:
    """Type a command where the clock is off, and return what it prints."""
    command = [sys.executable, "-P", "-m", "launch", *words]
    done = subprocess.run(
        command, env={**os.environ, **fleet.environment, **environment}, capture_output=True, text=True
    )
    return done.stdout


def gated(client: Client, folder: Path, name: str, queue: str = "q") -> Run:
    """Enqueue a run that notes its start, and ends when its gate opens."""
    script = f"echo {name} >> {folder}/ledger; until test -e {folder}/gate-{name}; do sleep 0.05; done"
    return client.enqueue(queue=queue, command=["sh", "-c", script], tracking="optional", run_id=name)


def ledger(folder: Path) -> list[str]:
    return sorted((folder / "ledger").read_text().split())


def owner(client: Client, run: Run) -> str:
    return client.store.record(run.id).agent or ""


def adoptions(client: Client, run: Run) -> list[str]:
    return [event.note for event in client.store.read_events(run.id) if event.note.startswith("adopted")]


def test_both_run_their_share_once_and_every_time_on_record_is_of_redis(
    client: Client,
    fleet: Fleet,
    wrong: Callable[..., AgentProcess],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    began = client.store.now()
    fleet.start("q", name="right")
    wrong("q")
    script = f"echo $0 >> {tmp_path}/ledger; sleep 0.3"
    launches = [{"command": ["sh", "-c", script, str(n)], "queue": "q", "tracking": "optional"} for n in range(12)]
    runs = client.enqueue_many(launches)
    for run in runs:
        assert run.wait(timeout_s=60).state is RunState.FINISHED
    ended = client.store.now()

    assert ledger(tmp_path) == sorted(str(n) for n in range(12))
    records = [client.store.record(run.id) for run in runs]
    assert {str(record.agent).partition("-")[0] for record in records} == {"right", "wrong"}
    for record in records:
        assert record.attempt == 1
        times = [began, record.created_at, record.claimed_at, record.started_at, record.ended_at, ended]
        assert all(before <= after for before, after in pairwise(times)), times
        assert all(began <= event.at <= ended for event in client.store.read_events(record.id))
        assert 0.3 <= record.ended_at - record.started_at < 30
    by_wrong = next(record.id for record in records if str(record.agent).startswith("wrong"))
    for clock in ({}, environment):
        shown = typed(fleet, clock, "show", by_wrong)
        assert re.search(r"^took +[\d.]+ s$", shown, re.MULTILINE), shown
        assert re.search(r"^enqueued +[\d.]+ s ago by", shown, re.MULTILINE), shown
        assert re.search(rf"{by_wrong} .*[\d.]+ s ago", typed(fleet, clock, "runs")), "and so in the list"
    assert {agent.is_alive for agent in client.agents()} == {True}


def test_nobody_takes_the_other_for_dead_and_a_dead_ones_run_goes_over_in_either_direction(
    client: Client, fleet: Fleet, wrong: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    right_one, wrong_one = fleet.start("q", name="right"), wrong("q")
    runs = [gated(client, tmp_path, name) for name in ("a", "b")]
    wait_until(lambda: all(run.refresh().state is RunState.RUNNING for run in runs), what="both run")
    by_name = {owner(client, run).partition("-")[0]: run for run in runs}
    assert set(by_name) == {"right", "wrong"}

    since, dead_after_s = client.store.now(), float(QUICK["LAUNCH_DEAD_AFTER_S"])
    wait_until(lambda: client.store.now() - since > 2 * dead_after_s, what="twice the time after which one is dead")
    assert [adoptions(client, run) for run in runs] == [[], []]

    for dying, name, heir in ((wrong_one, "wrong", "right"), (right_one, "right", "wrong")):
        died_at = client.store.now()
        dying.kill()
        wait_until(lambda run=by_name[name], heir=heir: owner(client, run).startswith(heir), what="its adoption")
        assert client.store.now() - died_at > dead_after_s - 1, "not before its heart has been still for so long"
        if name == "wrong":
            assert adoptions(client, by_name["right"]) == []
            # An agent with that clock again, to take over what the other one carries when that dies.
            wrong("q")
    for run in runs:
        (tmp_path / f"gate-{run.id}").touch()
        assert (run.wait(timeout_s=30).state, run.attempt) == (RunState.FINISHED, 1)
    assert ledger(tmp_path) == ["a", "b"]


def test_pauses_and_limits_take_as_long_as_they_say(
    client: Client, wrong: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    wrong("q", max_jobs=2)
    client.update_queue("q", retry={"error": 1, "backoff_s": 2}, run_limit="1.5s")
    failing = client.enqueue(queue="q", command=["sh", "-c", "exit 3"], tracking="optional")
    endless = client.enqueue(queue="q", command=["sleep", "600"], tracking="optional")
    for run in (failing, endless):
        run.wait(timeout_s=60)

    record = client.store.record(failing.id)
    (first,) = record.attempts
    assert (record.state, record.attempt) == (RunState.FAILED, 2)
    assert 2 <= record.claimed_at - first.ended_at < 30
    record = client.store.record(endless.id)
    assert record.cause is not None
    assert record.cause.kind is CauseKind.TIMEOUT
    assert 1.5 <= record.ended_at - record.started_at < 30


def test_the_doctor_says_that_a_clock_is_off(client: Client, fleet: Fleet, tmp_path: Path) -> None:
    said = typed(fleet, skewed("+1", tmp_path), "doctor")
    assert re.search(r"Redis' clock is (59 min \d+ s|1 h.*) behind this machine's\.", said), said
    assert "timedatectl set-ntp true" in said
