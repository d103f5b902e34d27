"""What Celery's own event machinery, which Flower is made of, makes of runs in a real Redis."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.broker import make_app
from launch.client import Client
from launch.errors import LostClaimError
from launch.models import (
    Cause,
    CauseKind,
    CommandSource,
    Fence,
    Job,
    LaunchSpec,
    QueueSpec,
    RetryPolicy,
    RetryRule,
    RunState,
    new_run_id,
)
from launch.store import Claimed, RunStore
from tests.agents import QUICK, Fleet, wait_until
from tests.celery_events import Listener, listening

DONE = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 0.", exit_code=0)
BROKEN = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 3.", log_tail=("one", "Überraschung"))
STOPPED = Cause(kind=CauseKind.STOPPED, message="Stopped by ann.")
LOST = Cause(kind=CauseKind.HOST_LOST, message="It disappeared.", log_tail=("last words",))


def a_launch(**fields: object) -> LaunchSpec:
    job = Job(source=CommandSource(), entrypoint=("python", "train.py"))
    known = {"run_id": new_run_id(), "queue": "q", "resource": "process", "job": job, "job_ref": "train:v3"}
    return LaunchSpec.model_validate({**known, "project": "mnist", "author": "ann", **fields})


@pytest.fixture(autouse=True)
def queue(store: RunStore) -> str:
    return store.create_queue(QueueSpec(name="q", resource="process")).name


@pytest.fixture
def listener(store: RunStore, redis_url: str) -> Iterator[Listener]:
    with listening(redis_url) as listener:
        yield listener


def claim(store: RunStore, agent: str = "a1") -> Claimed:
    answer = store.claim("q", agent, locality="here")
    assert isinstance(answer, Claimed)
    return answer


def running(store: RunStore, run_id: str | None = None) -> Claimed:
    store.enqueue(a_launch(**({"run_id": run_id} if run_id else {})))
    mine = claim(store)
    store.advance(mine.record.id, mine.fence, RunState.STARTING)
    store.advance(mine.record.id, mine.fence, RunState.RUNNING, handle="h")
    return mine


def test_a_run_that_finishes_is_a_task_that_succeeds(store: RunStore, listener: Listener) -> None:
    store.heartbeat("a1", {"name": "a1", "nodename": "a1@box"}, gap_s=10)
    mine = running(store, "mine")
    store.redis.hset("launch:run:mine", "summary", '{"loss": 0.1}')
    store.finish("mine", mine.fence, RunState.FINISHED, DONE)

    task = listener.task("mine", "SUCCESS")
    assert (task.name, task.routing_key, task.worker.hostname) == ("mnist/train", "q", "a1@box")
    assert ast.literal_eval(task.kwargs) == {"job": "train:v3", "author": "ann", "priority": "medium"}
    assert (task.result, task.exception, task.retries) == ('{"loss": 0.1}', None, 0)
    assert task.sent <= task.received <= task.started <= task.succeeded
    assert task.runtime == pytest.approx(task.succeeded - task.started, abs=0.001)
    assert [one.removeprefix("task-") for one in dict.fromkeys(listener.types_of("mine"))] == [
        *("sent", "received", "building", "starting", "started", "running", "succeeded")
    ]


def test_the_states_of_a_live_run_are_shown_by_their_names(store: RunStore, listener: Listener) -> None:
    store.enqueue(a_launch(run_id="mine"))
    assert listener.task("mine", "PENDING").name == "mnist/train"
    mine = claim(store)
    listener.task("mine", "BUILDING")
    for state in (RunState.STARTING, RunState.RUNNING):
        store.advance("mine", mine.fence, state, note="so")
        listener.task("mine", state.upper())


def test_a_failed_run_says_its_cause_and_the_end_of_its_log(store: RunStore, listener: Listener) -> None:
    mine = running(store)
    store.finish(mine.record.id, mine.fence, RunState.FAILED, BROKEN)

    task = listener.task(mine.record.id, "FAILURE")
    assert (task.exception, task.traceback) == (BROKEN.message, "one\nÜberraschung")


def test_a_stopped_and_a_crashed_run_stay_so_whatever_comes_late(store: RunStore, listener: Listener) -> None:
    """Two custom states have the same rank, so nothing may be told of a run after its end."""
    stopped, crashed = running(store), running(store)
    store.finish(stopped.record.id, stopped.fence, RunState.STOPPED, STOPPED)
    store.finish(crashed.record.id, crashed.fence, RunState.CRASHED, LOST)
    for late in (stopped, crashed):
        store.describe(late.record.spec, late.fence)
        with pytest.raises(LostClaimError):
            store.advance(late.record.id, late.fence, RunState.RUNNING)
    last = running(store)

    listener.task(last.record.id, "RUNNING")
    assert listener.task(stopped.record.id, "STOPPED").exception == "Stopped by ann."
    assert listener.task(crashed.record.id, "CRASHED").traceback == "last words"


def test_a_retried_run_shows_why_and_then_that_it_waits_and_runs_again(store: RunStore, listener: Listener) -> None:
    retry = RetryPolicy(error=RetryRule(times=1), backoff_s=0.01)
    store.enqueue(a_launch(run_id="mine", retry=retry))
    mine = claim(store)
    store.retry(store.record("mine"), mine.fence, BROKEN, log_archive=None, rule=RetryRule(times=1))
    assert BROKEN.message in listener.task("mine", "RETRY").exception

    while store.promote("q") == 0:
        pass
    listener.task("mine", "PENDING")
    again = claim(store, "a2")

    assert listener.task("mine", "BUILDING").worker.hostname == "a2"
    store.finish("mine", again.fence, RunState.FINISHED, DONE)
    task = listener.task("mine", "SUCCESS")
    assert (task.retries, task.exception) == (1, None)


def test_a_run_put_back_because_its_target_is_away_is_to_be_tried_again(store: RunStore, listener: Listener) -> None:
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)
    store.unclaim(mine.record, mine.fence, note="the engine is down")

    assert listener.task("mine", "RETRY").exception == "the engine is down"


def test_an_adopted_run_is_the_same_task_with_another_worker(store: RunStore, listener: Listener) -> None:
    mine = running(store, "mine")
    store.release("mine", mine.fence)
    taken = store.adopt(store.record("mine"), "a2", locality="here", dead_after_s=10)
    assert taken is not None

    listener.task("mine", "RUNNING")
    store.finish("mine", taken.fence, RunState.FINISHED, DONE)
    assert listener.task("mine", "SUCCESS").worker.hostname == "a2"
    assert listener.types_of("mine").count("task-received") == 1


def test_a_run_stopped_in_its_queue_is_told_by_an_agent_that_serves_it(store: RunStore, listener: Listener) -> None:
    for run_id in ("alone", "served"):
        store.enqueue(a_launch(run_id=run_id))
    store.request_stop("alone", by="ann", grace_s=1)
    assert listener.task("alone", "STOPPED").worker.hostname == "no-agent@q"

    store.heartbeat("a1", {"name": "a1", "nodename": "a1@box", "queues": ["q", "r"]}, gap_s=10)
    store.request_stop("served", by="ann", grace_s=1)
    assert listener.task("served", "STOPPED").worker.hostname == "a1@box"


def test_a_request_that_is_no_valid_launch_is_a_failed_task(store: RunStore, listener: Listener) -> None:
    store.refuse(a_launch(run_id="mine"), Cause(kind=CauseKind.CONFIG, message="spec: is missing"))

    task = listener.task("mine", "FAILURE")
    assert (task.name, task.exception) == ("mnist/train", "spec: is missing")


def test_many_enqueued_at_once_are_all_told(store: RunStore, listener: Listener) -> None:
    runs = store.enqueue_many([a_launch() for _ in range(1200)])

    listener.task(runs[-1].id, "PENDING")
    assert {event["uuid"] for event in listener.heard} == {run.id for run in runs}
    store.enqueue_many([run.spec for run in runs])
    last = store.enqueue(a_launch())
    listener.task(last.id, "PENDING")
    assert len(listener.heard) == 1201


def test_a_long_log_and_summary_are_cut_at_whole_characters(store: RunStore, listener: Listener) -> None:
    failed, finished = running(store), running(store)
    store.redis.hset(f"launch:run:{finished.record.id}", "summary", "€" * 5000)
    store.finish(failed.record.id, failed.fence, RunState.FAILED, BROKEN.model_copy(update={"log_tail": ("€" * 5000,)}))
    store.finish(finished.record.id, finished.fence, RunState.FINISHED, DONE)

    assert set(listener.task(failed.record.id, "FAILURE").traceback) == {"€"}
    assert set(listener.task(finished.record.id, "SUCCESS").result) == {"€"}


def test_nothing_that_goes_wrong_in_telling_fails_a_write(store: RunStore, listener: Listener) -> None:
    mine = running(store, "mine")
    store.redis.hset("launch:run:mine", "attempt", "no number")
    store.finish("mine", mine.fence, RunState.FAILED, BROKEN)

    assert store.redis.hmget("launch:run:mine", "state", "attempt") == ["failed", "no number"]
    assert "task-failed" not in listener.types_of("mine")


def test_an_enqueue_and_a_claim_go_well_when_nothing_can_be_told(
    store: RunStore, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user has no right to the channels, or the telling itself is broken."""
    store.redis.acl_setuser("mute", enabled=True, nopass=True, keys=["*"], channels=["launch:*"], categories=["+@all"])
    mute = RunStore.connect(f"redis://mute:x@127.0.0.1:{store.redis.connection_pool.connection_kwargs['port']}/0")
    assert running(mute).record.state == "building"
    mute.redis.close()
    store.redis.acl_deluser("mute")

    def broken(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("launch.store.brief", broken)
    monkeypatch.setattr("launch.store.sent_events", broken)
    mine = running(store)
    assert "task-sent" not in listener.types_of(mine.record.id)
    assert listener.task(mine.record.id, "RUNNING").name is None


def test_a_lost_claim_tells_nothing(store: RunStore, listener: Listener) -> None:
    mine = running(store, "mine")
    store.describe(mine.record.spec, Fence(epoch=mine.fence.epoch, nonce="another's"))
    listener.task("mine", "RUNNING")
    before = len(listener.types_of("mine"))
    last = store.enqueue(a_launch())
    listener.task(last.id, "PENDING")

    assert len(listener.types_of("mine")) == before


def test_without_a_listener_an_enqueue_tells_nothing(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(store, "tell_sent", told.extend)
    store.enqueue(a_launch())

    assert told == []


def test_agents_come_and_go(store: RunStore, listener: Listener) -> None:
    for _ in range(2):
        store.heartbeat("a1", {"name": "a1", "nodename": "a1@box"}, gap_s=10, event='{"freq":3}')
    store.forget_agent("a1")
    last = store.enqueue(a_launch())
    listener.task(last.id, "PENDING")

    assert [event["type"] for event in listener.heard if event["hostname"] == "a1@box"] == [
        *("worker-online", "worker-heartbeat", "worker-offline")
    ]


def test_a_heartbeat_is_an_event_by_itself_as_celerys_is(store: RunStore) -> None:
    """Celery's gossip ends the worker that hears a list of them, any worker of the same Redis."""
    with store.redis.pubsub() as pubsub:
        pubsub.psubscribe("/0.celeryev/worker.*")
        wait_until(lambda: pubsub.get_message(timeout=1), what="the subscription")
        store.heartbeat("a1", {"name": "a1", "nodename": "a1@box"}, gap_s=10)
        heard = wait_until(lambda: pubsub.get_message(timeout=1), what="the heartbeat")
    message = json.loads(heard["data"])

    assert heard["channel"] == "/0.celeryev/worker.online"
    assert message["headers"] == {"hostname": "a1@box"}
    assert json.loads(message["body"])["hostname"] == "a1@box"


def test_celerys_own_worker_tells_of_runs_and_never_of_messages(
    client: Client, fleet: Fleet, listener: Listener, tmp_path: Path
) -> None:
    """Even when told to send task events, and to beat: both are the agent's to do."""
    words = ["-A", "workers.app", "worker", "-P", "threads", "-Q", "launch.r", "-E", "-n", "box@here"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "celery", *words],
            env={**os.environ, **QUICK, **fleet.environment},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        ) as worker,
    ):
        run = client.enqueue(command=["true"], queue="r", tracking="optional").wait(timeout_s=40)
        assert listener.task(run.id, "SUCCESS").worker.hostname == "box@here"
        wait_until(lambda: any(event.get("processed") == 1 for event in listener.heard), what="a heartbeat")
        worker.terminate()
    wait_until(lambda: listener.heard[-1]["type"] == "worker-offline", what="the goodbye")

    tasks = [event for event in listener.heard if event["type"].startswith("task-")]
    workers = [event for event in listener.heard if event["type"].startswith("worker-")]
    assert {event["uuid"] for event in tasks} == {run.id}
    assert {event.get("sw_ident", "openlaunch") for event in workers} == {"openlaunch"}
    assert {event["hostname"] for event in workers} == {"box@here"}


def test_remote_control_answers_for_runs(client: Client, fleet: Fleet, redis_url: str) -> None:
    """What ``celery -A workers.app inspect`` and ``control`` print; a command that is no command harms nobody."""
    fleet.start("r", max_jobs=2)
    run = client.enqueue(command=["sleep", "60"], queue="r", tracking="optional")
    wait_until(lambda: run.refresh().state is RunState.RUNNING)
    app = make_app(redis_url)

    def asked(command: str, **arguments: Any) -> Any:
        (answer,) = app.control.broadcast(command, arguments=arguments, reply=True, timeout=10, limit=1)
        return next(iter(answer.values()))

    assert asked("query_task", ids=[run.id, "no-such"])[run.id][0] == "active"
    assert asked("dump_active")[0]["id"] == run.id
    assert asked("stats")["pool"]["free"] == 1
    assert "1 to 1000" in asked("pool_grow", n=1000)["error"]
    assert "should be" in asked("pool_grow", n=-5)["error"]
    assert "invalid literal" in asked("pool_grow", n="many")["error"]
    assert asked("enable_events") == {"ok": "task events already enabled"}
    assert "always sent" in asked("disable_events")["error"]
    for broken in ({}, {"task_id": None}, {"task_id": 7}, {"task_id": [[], {}]}):
        app.control.broadcast("revoke", arguments=broken)
    app.control.broadcast("no_such_command")
    app.control.broadcast("terminate", arguments={"signal": "KILL", "task_id": [run.id]})

    assert run.wait(timeout_s=20).state is RunState.STOPPED
    assert asked("ping") == {"ok": "pong"}
