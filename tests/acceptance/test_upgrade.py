"""An agent is replaced under running, tracked jobs: none notices, and logs and metrics have no gap and no repeat."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.client import Client
from launch.models import RunState
from launch.settings import read_settings
from launch.store import RunStore
from tests.agents import QUICK, a_fleet, wait_until

pytestmark = pytest.mark.timeout(600)

SCRIPT = """\
import sys, time
import wandb

run = wandb.init(config={"steps": 40})
for step in range(run.config.steps):
    run.log({"step": step, "square": step * step})
    print("step", step, flush=True)
    print("half", step / 2, file=sys.stderr, flush=True)
    time.sleep(0.25)
"""


@pytest.fixture
def client(redis_url: str, tmp_path: Path) -> Iterator[Client]:
    """With a tracking server of its own."""
    environment = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-P", "-m", "launch", "server"]
    with (
        (tmp_path / "server.log").open("wb") as log,
        Client(settings=read_settings(environment)) as client,
        subprocess.Popen(argv, env={**os.environ, **QUICK, **environment}, stdout=log, stderr=log) as server,
    ):
        wait_until(client.store.server_urls, what="the tracking server")
        yield client
        server.terminate()
        server.wait(20)


def test_four_running_jobs_do_not_notice_that_their_agent_is_replaced(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    """Twice: once by SIGTERM, once by SIGKILL."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text(SCRIPT)
    (code / "requirements.txt").write_text("wandb\n")
    client.create_queue("q", resource="process")
    store = RunStore.connect(redis_url)
    with a_fleet(store, redis_url, tmp_path / "home", tmp_path) as fleet:
        agent = fleet.start("q", max_jobs=4, options=("--max-jobs", "4"))
        client.create_job("steps", path=code, entrypoint="python train.py")
        runs = client.enqueue_many([{"job": "steps", "queue": "q"} for _ in range(5)])
        four, fifth = runs[:4], runs[4]
        wait_until(lambda: all(len(run.history()) > 3 for run in four), timeout_s=240, what="metrics of all four")
        assert fifth.refresh().state is RunState.QUEUED

        # Elsewhere within two seconds; here five interpreters share the processor with it.
        assert agent.terminate() < 6.0
        agent = fleet.start("q", max_jobs=4, options=("--max-jobs", "4"))
        wait_until(lambda: slots_of(client) == {run.id for run in four}, what="all four in the new agent's slots")
        agent.kill()
        fleet.start("q", max_jobs=4, options=("--max-jobs", "4"))
        for run in runs:
            run.wait(timeout_s=120)
    store.redis.close()

    for run in runs:
        assert (run.state, run.attempt) == (RunState.FINISHED, 1)
        assert [row["step"] for row in run.history()] == list(range(40))
        log = list(run.logs())
        assert [line for line in log if line.startswith("step")] == [f"step {step}" for step in range(40)]
        assert [line for line in log if line.startswith("half")] == [f"half {step / 2}" for step in range(40)]
        assert run.summary["square"] == 39 * 39


def slots_of(client: Client) -> set[str]:
    return {run_id for agent in client.agents() if agent.is_alive for run_id in agent.runs}
