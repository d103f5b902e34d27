"""Real agents on a real Redis with real processes as jobs: order, turns, foreign clients, agents that come and go."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.client import Client
from launch.models import RunState
from launch.store import RunStore
from tests.agents import Fleet, wait_until


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A file outside Redis to which each job appends when it really starts."""
    return tmp_path / "ledger"


def noting(ledger: Path, word: str, then: str = "true") -> dict[str, object]:
    return {"command": ["sh", "-c", f"echo {word} >> {ledger}; {then}"], "tracking": "optional"}


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().split() if ledger.exists() else []


def test_fifty_runs_on_one_slot_start_in_order(client: Client, fleet: Fleet, ledger: Path) -> None:
    runs = client.enqueue_many([{**noting(ledger, str(i)), "queue": "q"} for i in range(50)])
    fleet.start("q")

    for run in runs:
        run.wait(timeout_s=90)

    assert lines(ledger) == [str(i) for i in range(50)]
    assert {run.state for run in runs} == {RunState.FINISHED}


def test_two_queues_on_one_slot_take_turns(client: Client, fleet: Fleet, ledger: Path) -> None:
    runs = [
        run
        for queue in ("q", "r")
        for run in client.enqueue_many([{**noting(ledger, queue), "queue": queue} for _ in range(8)])
    ]
    fleet.start("q", "r")

    for run in runs:
        run.wait(timeout_s=60)

    order = lines(ledger)
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert sorted(order) == ["q"] * 8 + ["r"] * 8
    assert changes >= 13, order


def test_better_classes_go_first_in_a_queue_with_priorities(client: Client, fleet: Fleet, ledger: Path) -> None:
    client.create_queue("p", resource="process", priorities=True)
    order = ["low", "medium", "high", "critical", "medium", "critical"]
    runs = [client.enqueue(**noting(ledger, word), queue="p", priority=word) for word in order]
    fleet.start("p")

    for run in runs:
        run.wait(timeout_s=60)

    assert lines(ledger) == ["critical", "critical", "high", "medium", "medium", "low"]


def test_several_agents_on_one_queue_start_each_run_once(client: Client, fleet: Fleet, ledger: Path) -> None:
    for name in ("one", "two", "three"):
        fleet.start("q", max_jobs=2, name=name)
    runs = client.enqueue_many([{**noting(ledger, str(i), "sleep 0.1"), "queue": "q"} for i in range(40)])

    for run in runs:
        run.wait(timeout_s=90)

    assert sorted(lines(ledger), key=int) == [str(i) for i in range(40)]
    assert len({run.agent for run in runs}) > 1


def test_a_plain_celery_client_can_enqueue_and_a_wrong_request_becomes_a_failed_run(
    client: Client, fleet: Fleet, ledger: Path, redis_url: str, tmp_path: Path
) -> None:
    """From a process without our package: validated like any other, in list order, run once."""
    agent = fleet.start("q")
    script = f"""
import sys
sys.modules["launch"] = None
from celery import Celery
app = Celery(broker={redis_url!r})
for word in ("one", "two", "three"):
    spec = {{"command": ["sh", "-c", "echo %s >> {ledger}" % word], "tracking": "optional", "project": "foreign"}}
    print(app.send_task("launch.run", kwargs={{"spec": spec}}, queue="launch.q").id)
print(app.send_task("launch.run", kwargs={{"spec": {{"comand": ["true"]}}}}, queue="launch.q").id)
"""
    sent = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *good, bad = sent.stdout.split()

    wait_until(lambda: {run.id for run in client.runs()} == {*good, bad})
    for run_id in good:
        assert client.run(run_id).wait(timeout_s=30).state is RunState.FINISHED
    assert lines(ledger) == ["one", "two", "three"]
    failed = client.run(bad)
    assert failed.state is RunState.FAILED
    assert failed.cause is not None
    assert "comand: unknown key; did you mean 'command'?" in failed.cause.message
    agent.terminate()


def test_foreign_messages_that_wait_behind_a_paused_queue_are_taken_in_in_order(
    client: Client, fleet: Fleet, ledger: Path, redis_url: str, store: RunStore
) -> None:
    from launch.broker import make_app

    store.set_paused("q", True)
    fleet.start("q")
    with make_app(redis_url) as app:
        for i in range(5):
            spec = {**noting(ledger, str(i)), "run_id": f"foreign-{i}"}
            app.send_task("launch.run", kwargs={"spec": spec}, queue="launch.q")

    wait_until(lambda: len(client.runs()) == 5)
    assert [store.position(f"foreign-{i}") for i in range(5)] == [1, 2, 3, 4, 5]
    wait_until(lambda: store.messages("q") == (5, 5))
    store.set_paused("q", False)
    for i in range(5):
        client.run(f"foreign-{i}").wait(timeout_s=30)
    assert lines(ledger) == [str(i) for i in range(5)]


COUNT = "for i in $(seq 60); do echo line $i; echo oops $i >&2; sleep 0.1; done"


@pytest.mark.parametrize("way", ["SIGTERM", "SIGKILL"])
def test_an_agent_goes_and_the_next_one_follows_its_jobs_to_their_end(
    client: Client, fleet: Fleet, ledger: Path, way: str
) -> None:
    """The jobs start once, and their logs have no gap and no repeat."""
    agent = fleet.start("q", max_jobs=2)
    runs = client.enqueue_many([{**noting(ledger, str(i), COUNT), "queue": "q"} for i in range(2)])
    wait_until(lambda: all(len(list(run.logs())) > 5 for run in runs))
    if way == "SIGTERM":
        assert agent.terminate() < 2.0
    else:
        agent.kill()

    fleet.start("q", max_jobs=2)
    for run in runs:
        run.wait(timeout_s=60)

    assert sorted(lines(ledger)) == ["0", "1"]
    for run in runs:
        assert (run.state, run.attempt) == (RunState.FINISHED, 1)
        log = list(run.logs())
        assert [line for line in log if line.startswith("line")] == [f"line {i}" for i in range(1, 61)]
        assert [line for line in log if line.startswith("oops")] == [f"oops {i}" for i in range(1, 61)]


def test_runs_that_nobody_claimed_yet_survive_their_messages(client: Client, fleet: Fleet, store: RunStore) -> None:
    """Every message of the queue is lost; the reconciler rings again."""
    runs = client.enqueue_many([{"command": ["true"], "tracking": "optional", "queue": "q"} for _ in range(3)])
    store.redis.delete("launch.q")
    fleet.start("q")

    assert [run.wait(timeout_s=30).state for run in runs] == [RunState.FINISHED] * 3


def test_stop_ends_a_silent_job_that_ignores_sigterm_with_its_children(client: Client, fleet: Fleet) -> None:
    fleet.start("q")
    command = ["sh", "-c", "trap '' TERM; sleep 301.125 & setsid sleep 302.125"]
    run = client.enqueue(command=command, queue="q", tracking="optional")
    wait_until(lambda: len(processes_with(".125")) == 3)

    started = time.monotonic()
    run.stop(grace_s=1)
    run.wait(timeout_s=20)

    assert time.monotonic() - started < 3.0
    assert run.state is RunState.STOPPED
    assert run.cause is not None
    assert run.cause.message.startswith("Stopped by ")
    assert processes_with(".125") == []


def processes_with(word: str) -> list[str]:
    """Command lines that contain a word, the tests' own apart."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if word in line and line.startswith(("sleep", "sh -c trap"))]


def test_a_jobs_exit_code_output_and_cause_are_recorded(client: Client, fleet: Fleet) -> None:
    fleet.start("q")
    run = client.enqueue(command=["sh", "-c", "echo before; echo broken >&2; exit 3"], queue="q", tracking="optional")
    run.wait(timeout_s=30)

    assert run.state is RunState.FAILED
    assert run.cause is not None
    assert run.cause.exit_code == 3
    assert run.cause.message == "The job exited with code 3."
    assert set(run.cause.log_tail) >= {"before", "broken"}


def test_a_script_that_never_calls_wandb_init_has_failed_and_is_told_why(client: Client, fleet: Fleet) -> None:
    fleet.start("q")
    run = client.enqueue(command=["true"], queue="q")
    run.wait(timeout_s=30)

    assert run.state is RunState.FAILED
    assert run.cause is not None
    assert run.cause.kind == "untracked"
    assert "--tracking optional" in run.cause.message


def test_a_job_sees_nothing_of_redis_or_the_agents_own_settings(client: Client, fleet: Fleet) -> None:
    fleet.start("q")
    run = client.enqueue(command=["sh", "-c", "env"], queue="q", tracking="optional")
    run.wait(timeout_s=30)

    names = {line.partition("=")[0] for line in run.logs() if "=" in line}
    assert not {name for name in names if name.startswith("LAUNCH_")}
    assert "PATH" in names


def test_two_slots_are_filled_and_not_a_third(client: Client, fleet: Fleet, store: RunStore, ledger: Path) -> None:
    fleet.start("q", max_jobs=2)
    runs = client.enqueue_many([{**noting(ledger, str(i), "sleep 2"), "queue": "q"} for i in range(3)])

    wait_until(lambda: len(lines(ledger)) == 2)
    agent = wait_until(lambda: next((a for a in store.agents() if len(a.runs) == 2), None))
    assert agent.max_jobs == 2
    assert runs[2].refresh().state is RunState.QUEUED
    for run in runs:
        run.wait(timeout_s=30)
    assert len(lines(ledger)) == 3


def test_an_agent_that_cannot_serve_says_what_to_mend(
    store: RunStore, redis_url: str, home: Path, client: Client
) -> None:
    def start(*options: str) -> subprocess.CompletedProcess[str]:
        environment = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(home), "PATH": "/usr/bin:/bin"}
        argv = [sys.executable, "-P", "-m", "launch", "agent", *options]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)

    unknown = start("-q", "nope")
    assert (unknown.returncode, "no queue 'nope'" in unknown.stderr) == (2, True)
    assert start().returncode == 2
    no_server = start("-q", "q")
    assert no_server.returncode == 3
    assert "no tracking server" in no_server.stderr
    assert "launch up" in no_server.stderr
    assert "Traceback" not in unknown.stderr + no_server.stderr


def test_the_finished_log_is_one_file_of_json_lines(client: Client, fleet: Fleet) -> None:
    fleet.start("q")
    run = client.enqueue(command=["sh", "-c", "echo out; echo err >&2"], queue="q", tracking="optional")
    run.wait(timeout_s=30)

    record = client.store.record(run.id)
    assert record.log_archive is not None
    chunks = [json.loads(line) for line in client.artifacts.get_bytes(record.log_archive).splitlines()]
    assert {chunk["s"] for chunk in chunks} >= {"stdout", "stderr"}


def test_a_paused_queue_gives_out_runs_again_at_once(client: Client, fleet: Fleet, store: RunStore) -> None:
    """The agent is told; its next round would come half a minute later."""
    store.set_paused("q", True)
    fleet.environment["LAUNCH_HEARTBEAT_S"] = "30"
    fleet.environment["LAUNCH_DEAD_AFTER_S"] = "90"
    fleet.start("q")
    run = client.enqueue(command=["true"], queue="q", tracking="optional")
    agent_log = fleet.agents[0].log
    wait_until(lambda: "gives out no run now (paused)" in agent_log.read_text(), what="the agent's silence")
    resumed = store.now()
    store.set_paused("q", False)
    run.wait(timeout_s=20)

    claimed_at = store.record(run.id).claimed_at
    assert claimed_at is not None
    assert claimed_at - resumed < 2.0
