"""A stop that arrives in every state of a run, and at every step of the agent that carries it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.errors import TemporaryError
from launch.models import CauseKind, RunState
from launch.store import RunStore
from tests.agents import wait_until
from tests.integration.test_execute import STEPS, Bench
from workers.agent import Agent

pytestmark = pytest.mark.redis


@pytest.fixture
def bench(store: RunStore, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(store, tmp_path)
    yield bench
    bench.close()


class Halt:
    """Holds an agent at a step."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, at: str, _: str) -> None:
        if at == self.step:
            self.reached.set()
            assert self.go_on.wait(30)


def assert_stopped(bench: Bench, run_id: str, agent: Agent) -> None:
    run = bench.final(run_id)
    assert run.state is RunState.STOPPED
    assert run.cause is not None
    assert run.cause.kind is CauseKind.STOPPED
    assert "Stopped by ann" in run.cause.message
    assert len(bench.runner.submitted) <= 1
    wait_until(lambda: not bench.target.attempts, what="the target is as before")
    wait_until(lambda: agent.slots.free == 1, what="the slot is free")
    assert bench.store.owners("q") == {}
    assert bench.store.messages("q") == (0, 0)


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("conclude", "remove")])
def test_a_stop_at_any_step_before_the_jobs_end_stops_it(bench: Bench, step: str) -> None:
    """``building``, ``starting`` and ``running``; at most one start, and nothing left."""
    agent = bench.supervise(bench.agent(at_step=(halt := Halt(step))))
    run_id = bench.enqueue()
    bench.ring(agent)
    assert halt.reached.wait(10)
    bench.store.request_stop(run_id, by="ann", grace_s=5)
    wait_until(lambda: agent.claims[run_id].is_stop_requested, what="the agent has heard it")
    halt.go_on.set()

    assert_stopped(bench, run_id, agent)
    if step in ("fetch", "build", "submit"):
        assert bench.runner.submitted == []


@pytest.mark.parametrize(
    ("step", "then", "finally_"),
    [("conclude", RunState.RUNNING, RunState.STOPPED), ("remove", RunState.FINISHED, RunState.FINISHED)],
)
def test_a_stop_that_comes_when_the_job_has_ended_by_itself(
    bench: Bench, step: str, then: RunState, finally_: RunState
) -> None:
    """It is in time until the end is on record; how the job ended is said all the same."""
    agent = bench.supervise(bench.agent(at_step=(halt := Halt(step))))
    run_id = bench.enqueue()
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.end(run_id, 0)
    assert halt.reached.wait(10)
    assert bench.store.request_stop(run_id, by="ann", grace_s=5).state is then
    halt.go_on.set()

    run = bench.final(run_id)
    assert run.cause is not None
    assert (run.state, run.cause.exit_code) == (finally_, 0)
    wait_until(lambda: agent.slots.free == 1)
    assert bench.target.attempts == {}


@pytest.mark.parametrize("step", STEPS[:5])
def test_a_stop_while_its_agent_is_dead_is_carried_out_by_the_next(bench: Bench, step: str) -> None:
    """The first falls silent at a step, the stop comes, and only then is there another agent."""
    silent = bench.agent(at_step=(halt := Halt(step)), runner=bench.another_runner())
    run_id = bench.enqueue()
    bench.ring(silent)
    assert halt.reached.wait(10)
    bench.store.request_stop(run_id, by="ann", grace_s=5)

    heir = bench.supervise(bench.agent())
    assert_stopped(bench, run_id, heir)
    halt.go_on.set()
    wait_until(lambda: not silent.claims)
    assert len(bench.runner.submitted) <= 1
    assert bench.target.attempts == {}


def test_a_stop_in_the_pause_before_a_retry_ends_it(bench: Bench) -> None:
    run_id = bench.enqueue(retry={"error": 1, "backoff_s": 600})
    agent = bench.supervise(bench.agent())
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.end(run_id, 1)
    wait_until(lambda: bench.store.ids("q", "delayed") == [run_id], what="the pause")
    bench.store.request_stop(run_id, by="ann", grace_s=5)

    assert_stopped(bench, run_id, agent)
    assert bench.store.ids("q", "delayed") == []


@pytest.mark.parametrize("is_held", [False, True], ids=["waiting", "held"])
def test_a_stop_in_the_queue_ends_it_at_once(bench: Bench, is_held: bool) -> None:
    run_id = bench.enqueue()
    if is_held:
        bench.store.hold(run_id, by="ann")
    assert bench.store.request_stop(run_id, by="ann", grace_s=5).state is RunState.STOPPED
    assert_stopped(bench, run_id, bench.agent())


def test_a_stop_while_the_target_is_away_is_carried_out_when_it_is_back(bench: Bench) -> None:
    run_id = bench.enqueue()
    agent = bench.supervise(bench.agent())
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    wait_until(lambda: bench.store.record(run_id).state is RunState.RUNNING)
    tries = threading.Semaphore(0)

    def away(_: object) -> None:
        tries.release()
        raise TemporaryError("the engine is away")

    bench.runner.before["stop"] = away
    bench.store.request_stop(run_id, by="ann", grace_s=5)
    assert tries.acquire(timeout=10)
    assert not bench.store.record(run_id).state.is_final
    del bench.runner.before["stop"]

    assert_stopped(bench, run_id, agent)
