"""The process around an agent: plain Celery's command line, a worker that dies, draining, and the way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from launch.client import Client
from launch.models import RunState
from launch.store import RunStore
from tests.agents import QUICK, Fleet, wait_until


def test_celerys_own_command_line_starts_an_agent_too(client: Client, fleet: Fleet, tmp_path: Path) -> None:
    words = ["-A", "workers.app", "worker", "-P", "threads", "-c", "2", "-Q", "launch.q", "--loglevel", "WARNING"]
    environment = {**os.environ, **QUICK, **fleet.environment}
    with (tmp_path / "celery.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "celery", *words], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        run = client.enqueue(command=["echo", "hi"], queue="q", tracking="optional").wait(timeout_s=40)
        assert run.state is RunState.FINISHED
        assert list(run.logs())[-1] == "hi"
        assert [agent.max_jobs for agent in client.agents() if agent.is_alive] == [2]
    finally:
        worker.terminate()
        worker.wait(timeout=20)


def test_celery_with_a_queue_that_is_none_of_ours_says_what_to_name(fleet: Fleet, tmp_path: Path) -> None:
    words = ["-A", "workers.app", "worker", "-P", "threads", "-Q", "mail"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "celery", *words],
        env={**os.environ, **fleet.environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=40,
    )

    assert done.returncode != 0
    assert "-Q launch.local" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_is_killed_is_started_anew_and_its_runs_go_on(client: Client, fleet: Fleet) -> None:
    agent = fleet.start("q")
    run = client.enqueue(command=["sh", "-c", "sleep 4; echo done"], queue="q", tracking="optional")
    wait_until(lambda: run.refresh().state is RunState.RUNNING)
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)

    run.wait(timeout_s=40)

    assert (run.state, run.attempt) == (RunState.FINISHED, 1)
    assert agent.process.poll() is None
    assert "starting it anew" in agent.log.read_text()


def test_a_draining_agent_takes_nothing_new_and_goes_when_its_runs_have_ended(client: Client, fleet: Fleet) -> None:
    agent = fleet.start("q", options=("--tracking-url", "http://127.0.0.1:9", "--drain"))
    first = client.enqueue(command=["sleep", "3"], queue="q", tracking="optional")
    wait_until(lambda: first.refresh().state is RunState.RUNNING)
    agent.process.terminate()
    wait_until(lambda: any(found.state == "draining" for found in client.agents()))
    second = client.enqueue(command=["true"], queue="q", tracking="optional")

    agent.process.wait(timeout=20)

    assert first.refresh().state is RunState.FINISHED
    assert second.refresh().state is RunState.QUEUED


def test_a_worker_whose_parent_is_killed_lets_go_of_its_runs_and_ends(client: Client, fleet: Fleet) -> None:
    agent = fleet.start("q")
    run = client.enqueue(command=["sh", "-c", "sleep 4; echo done"], queue="q", tracking="optional")
    wait_until(lambda: run.refresh().state is RunState.RUNNING)
    agent.process.kill()
    agent.process.wait()

    wait_until(lambda: run.refresh().agent is None, what="the release")
    fleet.start("q")
    run.wait(timeout_s=30)
    assert (run.state, run.attempt) == (RunState.FINISHED, 1)


def test_an_agent_outlives_its_redis_and_its_jobs_do_not_notice(
    client: Client, fleet: Fleet, redis_server: object, store: RunStore
) -> None:
    """Redis is killed and started again on its own files under a running job."""
    store.redis.config_set("appendfsync", "always")
    fleet.start("q")
    run = client.enqueue(
        command=["sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 1; done"], queue="q", tracking="optional"
    )
    wait_until(lambda: run.refresh().state is RunState.RUNNING)
    redis_server.kill()  # type: ignore[attr-defined]
    redis_server.start()  # type: ignore[attr-defined]

    wait_until(lambda: run.refresh().state.is_final, timeout_s=40)
    later = client.enqueue(command=["echo", "later"], queue="q", tracking="optional").wait(timeout_s=40)

    assert (run.state, run.attempt) == (RunState.FINISHED, 1)
    assert [line for line in run.logs() if line.isdigit()] == list("123456")
    assert later.state is RunState.FINISHED
