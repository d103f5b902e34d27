"""Chaos, the parts without a world: fault points, the schedule, and the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.chaos.fault_points import ENV_FAULT, STEPS, AtStep, fault_points
from launch.chaos.ledger import GATE_SCRIPT, JOB_SCRIPT, read_entries
from launch.chaos.plan import AGENT_KILLS, NEEDS_DOCKER, ChaosOptions, FaultKind, schedule
from launch.errors import ConfigError

# --- fault points ----------------------------------------------------------------------------------------------------


class Deaths:
    """Counts instead of dying."""

    def __init__(self) -> None:
        self.with_parent: list[bool] = []

    def __call__(self, with_parent: bool) -> None:
        self.with_parent.append(with_parent)


def points(text: str, deaths: Deaths) -> AtStep:
    found = fault_points({ENV_FAULT: text}, deaths)
    assert found is not None
    return found


def test_without_the_variable_there_is_nothing_to_call() -> None:
    assert fault_points({}) is None
    assert fault_points({ENV_FAULT: ""}) is None


def test_a_counted_point_dies_at_that_time_and_at_no_other() -> None:
    deaths = Deaths()
    at_step = points("submit:3", deaths)
    seen = []
    for _ in range(6):
        at_step("build", "r")
        at_step("submit", "r")
        seen.append(len(deaths.with_parent))
    assert seen == [0, 0, 1, 1, 1, 1]


def test_a_random_point_dies_as_its_seed_says() -> None:
    def times(text: str) -> list[int]:
        deaths = Deaths()
        at_step = points(text, deaths)
        found = []
        for _ in range(200):
            at_step("submit", "r")
            found.append(len(deaths.with_parent))
        return found

    assert times("submit:0.05:7") == times("submit:0.05:7")
    assert times("submit:0.05:7") != times("submit:0.05:8")
    assert 0 < times("submit:0.05:7")[-1] < 40


def test_an_armed_step_takes_one_worker_and_says_which(tmp_path: Path) -> None:
    first, second = Deaths(), Deaths()
    workers = [points(f"armed:{tmp_path}", deaths) for deaths in (first, second)]
    (tmp_path / "follow").write_text("both\n")
    for at_step in workers:
        at_step("submit", "r1")
        at_step("follow", "r1")
    assert (first.with_parent, second.with_parent) == ([True], [])
    assert [path.name for path in tmp_path.iterdir()] == [f"follow.{os.getpid()}.r1"]


def test_several_points_stand_side_by_side() -> None:
    deaths = Deaths()
    at_step = points("fetch:1,remove:1", deaths)
    at_step("remove", "r")
    at_step("fetch", "r")
    assert len(deaths.with_parent) == 2


@pytest.mark.parametrize("text", ["submit", "submit:x", "sumbit:1", "submit:0.5", "submit:0.5:1:2", "armed", "armed:"])
def test_a_fault_that_does_not_parse_names_the_value_and_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"LAUNCH_FAULT: should be like submit:3") as caught:
        fault_points({ENV_FAULT: text})
    assert repr(text) in str(caught.value)


def test_it_is_sigkill_that_a_worker_dies_of() -> None:
    script = (
        "from launch.chaos.fault_points import fault_points; fault_points({'LAUNCH_FAULT': 'build:1'})('build', 'r')"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert done.returncode == -signal.SIGKILL


# --- the schedule ----------------------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_schedule() -> None:
    assert schedule(ChaosOptions(seed=7)) == schedule(ChaosOptions(seed=7))
    assert [fault.luck for fault in schedule(ChaosOptions(seed=7))] != [
        fault.luck for fault in schedule(ChaosOptions(seed=8))
    ]


@given(
    st.builds(
        ChaosOptions,
        seed=st.integers(0, 1000),
        runs=st.integers(1, 600),
        agent_kills=st.integers(0, 300),
        redis_kills=st.integers(0, 30),
        docker_kills=st.integers(0, 15),
        minutes=st.one_of(st.none(), st.floats(0.1, 30)),
        docker=st.booleans(),
    )
)
def test_a_schedule_holds_what_was_asked_for_within_its_time(options: ChaosOptions) -> None:
    faults = schedule(options)
    counts = Counter(fault.kind for fault in faults)
    assert sum(counts[kind] for kind in AGENT_KILLS) == options.agent_kills
    assert counts[FaultKind.KILL_REDIS] == options.redis_kills
    assert counts[FaultKind.KILL_DOCKER] == (options.docker_kills if options.docker else 0)
    assert not (set(counts) & set(NEEDS_DOCKER) and not options.docker)
    assert faults == sorted(faults)
    assert all(0 < fault.at_s <= max(3.0, options.seconds) for fault in faults)
    steps = Counter(fault.step for fault in faults if fault.kind is FaultKind.KILL_AT_STEP)
    assert set(steps) <= set(STEPS)
    if options.agent_kills >= len(STEPS):
        assert set(steps) == set(STEPS)


def test_the_full_size_is_what_the_promise_says() -> None:
    options = ChaosOptions()
    assert (options.runs, options.agent_kills, options.redis_kills, options.docker_kills) == (500, 200, 20, 10)
    assert set(options.counts()) == set(FaultKind)
    assert min(options.counts().values()) > 0


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_jobs_write_their_start_and_end_with_run_and_attempt(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    env = {"PATH": os.defpath, "CHAOS_LEDGER": str(ledger), "WANDB_LAUNCH_TRACE_ID": "r00001-b-2"}
    (tmp_path / "open").touch()
    job = subprocess.run(
        ["sh", "-c", JOB_SCRIPT, "sh", "3", "0.01"], env=env, capture_output=True, text=True, timeout=30
    )
    subprocess.run(["sh", "-c", GATE_SCRIPT, "sh", str(tmp_path / "open")], env=env, check=True, timeout=30)

    entries = read_entries(ledger.read_text().splitlines())

    assert job.stdout.splitlines() == ["line 1", "line 2", "line 3"]
    assert [(entry.what, entry.run_id, entry.attempt) for entry in entries] == [
        ("start", "r00001-b", 2),
        ("end", "r00001-b", 2),
    ] * 2
    assert entries == sorted(entries, key=lambda entry: entry.uptime_s)


@pytest.mark.parametrize("line", ["start r1 1 5", "begin r1 1 5 3.5", "start r1 one 5 3.5", "start r1 1 5 3.5start"])
def test_a_torn_line_is_no_entry(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_entries([line])
