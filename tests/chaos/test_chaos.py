"""A short `launch chaos`, as a user types it: everything is killed at least once, and every promise is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from services import need_program, unavailable

from launch.chaos.engine import why_no_private_engine
from launch.chaos.fault_points import STEPS
from launch.chaos.plan import AGENT_KILLS, NEEDS_DOCKER, FaultKind

pytestmark = pytest.mark.timeout(600)

RUNS, AGENT_KILLS_WANTED, REDIS_KILLS, DOCKER_KILLS = 60, 16, 4, 3
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


def launch_chaos(folder: Path, *words: str) -> dict[str, Any]:
    """Type the command; returns its JSON once every promise was kept."""
    need_program("redis-server", "valkey-server")
    counts = {"runs": RUNS, "agent-kills": AGENT_KILLS_WANTED, "redis-kills": REDIS_KILLS, "minutes": 0.7}
    options = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    # The Docker engine's socket needs a short path, which pytest's own folders are not.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "launch", "chaos", "--json", *options, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=540)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # it ends what it has started
            raise
    assert out, err
    outcome: dict[str, Any] = json.loads(out)
    assert process.returncode == 0, "\n".join([err, json.dumps(outcome, indent=1), *outcome["stories"]])
    return outcome


@pytest.fixture
def short_folder() -> Any:
    with tempfile.TemporaryDirectory(prefix="lc") as folder:
        yield Path(folder)


def all_done(outcome: dict[str, Any], *kinds: FaultKind) -> None:
    missing = [kind for kind in kinds if not outcome["injected"].get(kind)]
    assert missing == []
    assert sum(outcome["injected"].get(kind, 0) for kind in AGENT_KILLS) >= AGENT_KILLS_WANTED
    assert outcome["injected"][FaultKind.KILL_REDIS] >= REDIS_KILLS
    assert {step for step, count in outcome["killed_at_step"].items() if count} == set(STEPS)
    assert outcome["seen"]["runs acknowledged"] >= RUNS
    assert outcome["seen"]["runs adopted"] > 0
    assert outcome["states"]["finished (exit_code)"] > RUNS // 2
    assert outcome["breaches"] == []


def test_runs_outlive_every_death(short_folder: Path) -> None:
    """Processes and containers in one world; at a desk without Docker, processes alone."""
    reason = why_no_private_engine(beside_another=IN_CI)
    if reason is not None and IN_CI:
        unavailable(reason)
    with_docker = ["--docker-kills", str(DOCKER_KILLS), *(["--private-docker"] if IN_CI else [])]
    outcome = launch_chaos(short_folder, "--seed", "2", *(["--no-docker"] if reason else with_docker))
    possible = set(FaultKind) - (set(NEEDS_DOCKER) if reason else set())
    all_done(outcome, *(possible - set(map(FaultKind, outcome["skipped"]))))
    if reason is None:
        assert outcome["injected"][FaultKind.KILL_DOCKER] >= DOCKER_KILLS
    assert list(short_folder.iterdir()) == []
