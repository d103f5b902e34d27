"""Runs carried by agents of this process on a fake target: deaths at each step, targets away, stops, late agents."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.broker import Message
from launch.errors import BuildError, ConfigError, PermanentError, PullError, TemporaryError
from launch.models import (
    CauseKind,
    CommandSource,
    ImageSource,
    Job,
    LaunchSpec,
    QueueSpec,
    RunRecord,
    RunState,
    Tracking,
    new_run_id,
)
from launch.plugins import Problem, TargetContext
from launch.settings import Settings
from launch.store import RunStore
from launch.testing import FakeBuilder, FakeRunner, FakeTarget
from tests.agents import wait_until
from workers.agent import Agent
from workers.config import AgentConfig
from workers.supervise import Supervisor
from workers.targets import Target

STEPS = ["fetch", "build", "submit", "record", "follow", "conclude", "remove"]


class Bench:
    """Agents of this process that share a store and a fake target, rung by hand."""

    def __init__(self, store: RunStore, home: Path) -> None:
        self.store = store
        self.target = FakeTarget()
        self.context = TargetContext(store.installation(), home)
        self.runner = self.another_runner()
        self.builder = FakeBuilder()
        self.settings = Settings(home=home, heartbeat_s=0.1, dead_after_s=0.6, reconcile_s=0.2)
        self._supervisors: list[Supervisor] = []
        store.create_queue(QueueSpec(name="q", resource="fake"))

    def agent(
        self, *, at_step: Callable[[str, str], None] = lambda *_: None, runner: FakeRunner | None = None
    ) -> Agent:
        config = AgentConfig(queues=("q",), tracking_url="http://127.0.0.1:9")
        targets = {"fake": Target(runner or self.runner, self.builder)}
        agent = Agent(config, self.settings, self.store, targets=targets, at_step=at_step)
        agent.beat()
        return agent

    def another_runner(self) -> FakeRunner:
        """Return a runner of the same target, as another agent has it."""
        return FakeRunner(self.context, self.target)

    def supervise(self, agent: Agent) -> Agent:
        """Let its heart beat, so that it hears of stops and adopts."""
        self._supervisors.append(supervisor := Supervisor(agent))
        supervisor.start()
        return agent

    def enqueue(self, **fields: object) -> str:
        job = Job(source=CommandSource(), entrypoint=("train",), tracking=Tracking.OPTIONAL)
        given = {"run_id": new_run_id(), "queue": "q", "resource": "fake", "job": job, **fields}
        return self.store.enqueue(LaunchSpec.model_validate(given)).id

    def ring(self, agent: Agent) -> None:
        """Give the agent the next message, as its Celery worker does."""
        assert self.store.redis.rpop("launch.q") is not None
        agent.slots.take()
        agent.ring("q", Message(None, is_recorded=True, spec=None))

    def final(self, run_id: str) -> RunRecord:
        return wait_until(
            lambda: run if (run := self.store.record(run_id)).state.is_final else None, what=f"the end of run {run_id}"
        )

    def close(self) -> None:
        for supervisor in self._supervisors:
            supervisor.stop()


@pytest.fixture
def bench(store: RunStore, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(store, tmp_path)
    yield bench
    bench.close()


def text_of(bench: Bench, agent: Agent, run_id: str) -> str:
    import json

    archive = bench.store.record(run_id).log_archive
    assert archive is not None
    chunks = [json.loads(line) for line in agent.tools.artifacts.get_bytes(archive).splitlines()]
    return "".join(chunk["t"] for chunk in chunks if chunk["s"] == "stdout")


def test_a_run_goes_through_its_states_and_leaves_nothing_at_the_target(bench: Bench) -> None:
    agent = bench.agent()
    run_id = bench.enqueue()
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.write(run_id, "loss 0.1\n")
    bench.runner.end(run_id)

    run = bench.final(run_id)
    assert run.state is RunState.FINISHED
    states = [event.state for event in bench.store.read_events(run_id)]
    assert states == ["building", "starting", "running", "finished"]
    assert text_of(bench, agent, run_id) == "loss 0.1\n"
    wait_until(lambda: not bench.target.attempts)
    wait_until(lambda: agent.slots.free == 1)
    assert list((agent.settings.home / "logs").iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
def test_an_agent_that_falls_silent_before_any_step_loses_and_doubles_nothing(bench: Bench, step: str) -> None:
    """Its heart stops there and the next agent carries the run to its end; when it wakes, it touches nothing."""
    asleep, awake = threading.Event(), threading.Event()

    def fall_silent(at: str, _: str) -> None:
        if at == step:
            asleep.set()
            awake.wait(60)

    is_late = STEPS.index(step) > STEPS.index("follow")
    run_id = bench.enqueue()
    silent = bench.agent(at_step=fall_silent, runner=(its_runner := bench.another_runner()))
    bench.ring(silent)
    if is_late:
        write_and_end(bench, run_id)
    assert asleep.wait(10)

    heir = bench.supervise(bench.agent())
    if not is_late:
        write_and_end(bench, run_id)
    run = bench.final(run_id)
    wait_until(lambda: heir.slots.free == 1)
    calls_before = list(its_runner.calls)
    awake.set()
    wait_until(lambda: not silent.claims)

    assert (run.state, run.attempt) == (RunState.FINISHED, 1)
    assert bench.runner.submitted == [run_id]
    assert text_of(bench, heir, run_id) == "one\n"
    assert bench.store.owners("q") == {}
    assert bench.store.record(run_id) == run
    if step != "remove":
        touched = [call for call, _ in its_runner.calls[len(calls_before) :] if call in ("submit", "stop", "remove")]
        assert touched == []


def write_and_end(bench: Bench, run_id: str) -> None:
    bench.runner.wait_until_submitted(run_id)
    bench.runner.write(run_id, "one\n")
    bench.runner.end(run_id)


def test_a_late_agent_touches_nothing_of_a_run_that_passed_to_another(bench: Bench) -> None:
    """It slept over its heartbeat at the last moment before it would write and clear up."""
    asleep, awake = threading.Event(), threading.Event()

    def sleep(step: str, _: str) -> None:
        if step == "conclude":
            asleep.set()
            awake.wait(20)

    sleeper = bench.another_runner()
    run_id = bench.enqueue()
    late = bench.agent(at_step=sleep, runner=sleeper)
    bench.ring(late)
    sleeper.wait_until_submitted(run_id)
    bench.runner.end(run_id)
    assert asleep.wait(10)

    def hold(_: object) -> None:
        awake.set()
        wait_until(lambda: not late.claims)

    bench.runner.before["remove"] = hold
    bench.supervise(bench.agent())

    assert bench.final(run_id).state is RunState.FINISHED
    wait_until(lambda: not bench.target.attempts)
    assert sleeper.removed == []
    assert bench.runner.removed != []


def test_a_target_that_is_away_costs_no_attempt_and_the_queue_waits(bench: Bench) -> None:
    def away(_: object) -> None:
        raise TemporaryError("the engine is away")

    bench.runner.before["submit"] = away
    bench.runner.problems = [Problem("the engine is away", "start it")]
    first, second = bench.enqueue(), bench.enqueue()
    agent = bench.supervise(bench.agent())
    bench.ring(agent)

    wait_until(lambda: agent.targets.away == {"fake": "the engine is away"})
    assert bench.store.position(first) == 1
    assert bench.store.record(first).attempt == 0
    bench.ring(agent)
    assert bench.store.position(second) == 2
    assert agent.slots.free == 1
    wait_until(lambda: bench.store.messages("q") == (2, 2))
    wait_until(lambda: any(found.state == "blocked" for found in bench.store.agents()))

    del bench.runner.before["submit"]
    bench.runner.problems = []
    wait_until(lambda: not agent.targets.away and not agent.silent)
    bench.ring(agent)
    bench.runner.wait_until_submitted(first)
    bench.runner.end(first)
    assert bench.final(first).attempt == 1


@pytest.mark.parametrize(
    ("step", "error", "kind"),
    [
        ("build", BuildError("pip install failed: no such package"), CauseKind.BUILD),
        ("build", PullError("pull access denied"), CauseKind.PULL),
        ("plan", ConfigError("shm-size: should be a size"), CauseKind.CONFIG),
        ("submit", PermanentError("no such network"), CauseKind.CONFIG),
        ("plan", RuntimeError("a bug"), CauseKind.INTERNAL),
    ],
)
def test_what_cannot_be_started_fails_with_its_cause(
    bench: Bench, step: str, error: Exception, kind: CauseKind
) -> None:
    def fail(_: object) -> None:
        raise error

    (bench.builder if step == "build" else bench.runner).before[step] = fail
    run_id = bench.enqueue()
    agent = bench.agent()
    bench.ring(agent)

    run = bench.final(run_id)
    assert run.state is RunState.FAILED
    assert run.cause is not None
    assert run.cause.kind is kind
    assert str(error) in run.cause.message
    wait_until(lambda: agent.slots.free == 1)


def test_a_run_stopped_while_it_is_built_never_starts(bench: Bench) -> None:
    bench.builder.may_finish.clear()
    run_id = bench.enqueue()
    agent = bench.supervise(bench.agent())
    bench.ring(agent)
    wait_until(lambda: bench.builder.requests)
    bench.store.request_stop(run_id, by="ann", grace_s=5)

    run = bench.final(run_id)
    assert run.state is RunState.STOPPED
    assert run.cause is not None
    assert run.cause.message == "Stopped by ann before it started."
    assert bench.runner.submitted == []


def test_a_running_job_is_stopped_with_the_grace_asked_for(bench: Bench) -> None:
    run_id = bench.enqueue()
    bench.ring(bench.supervise(bench.agent()))
    bench.runner.wait_until_submitted(run_id)
    wait_until(lambda: bench.store.record(run_id).state is RunState.RUNNING)
    attempt = bench.runner.attempt_of(run_id)
    bench.store.request_stop(run_id, by="ann", grace_s=7)

    run = bench.final(run_id)
    assert run.state is RunState.STOPPED
    assert run.cause is not None
    assert (run.cause.message, run.cause.signal) == ("Stopped by ann.", 15)
    assert attempt.stops == [7.0]


def test_a_job_that_vanishes_from_its_target_has_crashed(bench: Bench) -> None:
    run_id = bench.enqueue()
    bench.ring(bench.agent())
    bench.runner.wait_until_submitted(run_id)
    bench.runner.lose(run_id)

    run = bench.final(run_id)
    assert run.state is RunState.CRASHED
    assert run.cause is not None
    assert run.cause.kind is CauseKind.HOST_LOST


def test_an_adopted_run_whose_job_is_gone_from_its_target_has_crashed(bench: Bench) -> None:
    """Its container was removed while no agent followed it; the log up to then is kept."""
    run_id = bench.enqueue()
    bench.ring(first := bench.agent())
    bench.runner.wait_until_submitted(run_id)
    bench.runner.write(run_id, "one\n")
    wait_until(lambda: bench.store.record(run_id).log_cursor == "1")
    first.detach()
    bench.runner.lose(run_id)
    heir = bench.supervise(bench.agent())

    run = bench.final(run_id)
    assert run.cause is not None
    assert (run.state, run.cause.kind, run.attempt) == (RunState.CRASHED, CauseKind.HOST_LOST, 1)
    assert text_of(bench, heir, run_id) == "one\n"
    assert bench.runner.submitted == [run_id]
    wait_until(lambda: heir.slots.free == 1)


def test_a_target_that_goes_away_under_a_running_job_is_waited_for(bench: Bench) -> None:
    run_id = bench.enqueue()
    bench.ring(bench.agent())
    bench.runner.wait_until_submitted(run_id)
    failures = []

    def away_twice(_: object) -> None:
        if len(failures) < 2:
            failures.append(1)
            raise TemporaryError("the engine restarts")

    bench.runner.before["wait"] = away_twice
    bench.runner.write(run_id, "still here\n")
    wait_until(lambda: len(failures) == 2 or bench.store.record(run_id).state.is_final, timeout_s=20)
    bench.runner.end(run_id)

    assert bench.final(run_id).state is RunState.FINISHED


def test_a_run_over_its_time_is_stopped_and_failed(bench: Bench) -> None:
    config = AgentConfig(queues=("q",), tracking_url="http://127.0.0.1:9", max_run_seconds=0.2)
    targets = {"fake": Target(bench.runner, bench.builder)}
    agent = Agent(config, bench.settings, bench.store, targets=targets)
    agent.beat()
    bench.supervise(agent)
    run_id = bench.enqueue()
    bench.ring(agent)

    run = bench.final(run_id)
    assert run.state is RunState.FAILED
    assert run.cause is not None
    assert run.cause.message == "Stopped after its time limit of 0.2 s."


def test_a_launch_that_says_more_than_its_queue_allows_is_refused_at_claim(bench: Bench) -> None:
    """Whoever reaches Redis can write a spec; the agent resolves it again from the queue's own config."""
    run_id = bench.enqueue(resource_config={"privileged": True})
    bench.ring(bench.agent())

    run = bench.final(run_id)
    assert run.state is RunState.FAILED
    assert run.cause is not None
    assert run.cause.kind is CauseKind.CONFIG
    assert bench.runner.submitted == []


def test_a_full_artifact_store_costs_a_run_its_archive_not_its_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = bench.agent()

    def full(_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent.tools.artifacts, "put_file", full)
    run_id = bench.enqueue()
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.write(run_id, "kept\n")
    bench.runner.end(run_id)

    run = bench.final(run_id)
    assert (run.state, run.log_archive) == (RunState.FINISHED, None)
    assert "kept" in (agent.settings.home / "logs" / f"{run_id}.1.1.jsonl").read_text()


def test_the_tracking_key_is_in_the_plan_and_nowhere_else(bench: Bench) -> None:
    run_id = bench.enqueue()
    bench.ring(bench.agent())
    bench.runner.wait_until_submitted(run_id)
    plan = bench.runner.attempt_of(run_id).plan
    key = plan.request["env"]["WANDB_API_KEY"]
    assert len(key) == 40
    assert key not in str(plan.view())
    everything = [str(bench.store.redis.hgetall(f"launch:run:{run_id}")), *bench.store.redis.lrange("launch.q", 0, -1)]
    assert not [value for value in everything if key in value]
    bench.runner.end(run_id)
    bench.final(run_id)
    assert bench.store.redis.keys("launch:token:*") == []


def test_leftovers_of_ended_runs_are_swept_and_others_are_not(bench: Bench, store: RunStore) -> None:
    image = Job(source=ImageSource(image="busybox"), tracking=Tracking.OPTIONAL)
    old, living = bench.enqueue(job=image), bench.enqueue(job=image)

    def refuse(_: object) -> None:
        raise TemporaryError("busy")

    bench.runner.before["remove"] = refuse
    first, second = bench.agent(), bench.agent()
    bench.ring(first)
    bench.runner.wait_until_submitted(old)
    bench.runner.end(old)
    bench.final(old)
    bench.ring(second)
    bench.runner.wait_until_submitted(living)
    del bench.runner.before["remove"]
    store.redis.hset(f"launch:run:{old}", "ended_at", store.now() - 100)

    Supervisor(bench.agent()).sweep()

    assert [attempt.run_id for attempt in bench.target.attempts.values()] == [living]


# --- retries, limits, lost machines, wishes ---------------------------------------------------------------------------


def test_a_failed_attempt_is_followed_by_another_at_the_old_place_and_kept(bench: Bench) -> None:
    policy = {"error": {"times": 1, "memory": "x2"}, "backoff_s": 0}
    run_id, later = bench.enqueue(retry=policy, resource_config={}), bench.enqueue()
    agent = bench.agent()
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.write(run_id, "first try\n")
    bench.runner.end(run_id, 1)
    wait_until(lambda: bench.store.position(run_id) == 1)
    assert bench.store.position(later) == 2
    wait_until(lambda: not bench.target.attempts)

    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.end(run_id, 1)

    run = bench.final(run_id)
    assert (run.state, run.attempt) == (RunState.FAILED, 2)
    (first,) = run.attempts
    assert (first.number, first.cause.exit_code, first.cause.log_tail[-1]) == (1, 1, "first try")
    assert first.log_archive is not None
    assert [attempt.plan.name[-2:] for attempt in bench.target.started] == ["-1", "-2"]


def test_a_run_of_a_lost_machine_has_crashed_after_its_time_and_not_before(bench: Bench, store: RunStore) -> None:
    run_id = bench.enqueue(limits={"orphan_s": 3600})
    gone = bench.agent(runner=FakeRunner(bench.context, FakeTarget()))
    bench.ring(gone)
    wait_until(lambda: store.record(run_id).state is RunState.RUNNING)
    gone.detach()

    heir = bench.agent()
    assert not heir.adopt(run_id)
    store.redis.hset(f"launch:run:{run_id}", "released_at", store.now() - 3601)
    assert not heir.adopt(run_id)

    run = bench.final(run_id)
    assert run.state is RunState.CRASHED
    assert run.cause is not None
    assert run.cause.kind is CauseKind.HOST_LOST
    assert heir.slots.free == 1


def test_a_job_that_may_run_twice_is_tried_again_when_its_machine_is_lost(bench: Bench, store: RunStore) -> None:
    run_id = bench.enqueue(limits={"orphan_s": 1}, retry={"host_lost": 1, "backoff_s": 0})
    gone = bench.agent(runner=FakeRunner(bench.context, FakeTarget()))
    bench.ring(gone)
    wait_until(lambda: store.record(run_id).state is RunState.RUNNING)
    gone.detach()
    store.redis.hset(f"launch:run:{run_id}", "released_at", store.now() - 2)
    heir = bench.agent()
    heir.adopt(run_id)

    assert store.position(run_id) == 1
    bench.ring(heir)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.end(run_id)
    assert bench.final(run_id).attempt == 2


def test_a_build_over_the_start_limit_is_given_up(bench: Bench) -> None:
    bench.builder.may_finish.clear()
    run_id = bench.enqueue(limits={"start_s": 0.2})
    bench.ring(bench.agent())

    run = bench.final(run_id)
    assert run.state is RunState.FAILED
    assert run.cause is not None
    assert (run.cause.kind, run.cause.message) == (CauseKind.TIMEOUT, "It did not start within its limit of 0.2 s.")


def test_the_runs_own_time_limit_counts_too(bench: Bench) -> None:
    run_id = bench.enqueue(limits={"run_s": 0.2})
    bench.ring(bench.agent())

    run = bench.final(run_id)
    assert run.cause is not None
    assert run.cause.kind is CauseKind.TIMEOUT


def test_an_agent_takes_more_runs_as_soon_as_it_is_told(bench: Bench) -> None:
    agent = bench.supervise(bench.agent())
    bench.store.wish(agent.id, max_jobs=3)

    wait_until(lambda: agent.slots.free == 3)
    wait_until(lambda: next(found.max_jobs for found in bench.store.agents()) == 3)


def test_a_seven_days_run_is_one_attempt_with_one_start(store: RunStore, tmp_path: Path) -> None:
    """Two and a half thousand heartbeats, with every duty in between, and many messages given back by their timeout."""
    bench = Bench(store, tmp_path)
    bench.settings = bench.settings.model_copy(update={"heartbeat_s": 0.002, "dead_after_s": 5.0, "reconcile_s": 0.01})
    try:
        agent = bench.supervise(bench.agent())
        run_id = bench.enqueue()
        message = store.redis.lindex("launch.q", -1)
        bench.ring(agent)
        bench.runner.wait_until_submitted(run_id)
        beats = store.redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
        for _ in range(50):
            store.redis.rpush("launch.q", message)
            agent.slots.take()
            agent.ring("q", Message(run_id, is_recorded=True, spec=None))
            store.redis.lrem("launch.q", 0, message)
        wait_until(lambda: store.redis.info("commandstats")["cmdstat_evalsha"]["calls"] - beats > 2500, timeout_s=60)
        bench.runner.end(run_id)

        run = bench.final(run_id)
        assert (run.state, run.attempt, bench.runner.submitted) == (RunState.FINISHED, 1, [run_id])
        assert len([event for event in store.read_events(run_id) if "adopted" in event.note]) == 0
    finally:
        bench.close()


# --- what must not happen ---------------------------------------------------------------------------------------------


def test_a_redis_that_has_lost_its_records_ends_no_running_job(bench: Bench, store: RunStore) -> None:
    run_id = bench.enqueue()
    bench.ring(agent := bench.agent())
    bench.runner.wait_until_submitted(run_id)
    installation = store.installation()
    store.redis.flushall()
    store.redis.set("launch:installation", installation)
    store.create_queue(QueueSpec(name="q", resource="fake"))

    other = bench.agent()
    Supervisor(other).sweep()
    assert [attempt.run_id for attempt in bench.target.attempts.values()] == [run_id]
    bench.runner.end(run_id)
    Supervisor(other).sweep()
    assert bench.target.attempts == {}
    wait_until(lambda: agent.slots.free == 1, what="its agent lets go of what is no more")


def test_an_agent_notices_that_its_claim_has_passed_to_another_while_the_job_runs(
    bench: Bench, store: RunStore
) -> None:
    run_id = bench.enqueue()
    agent = bench.supervise(bench.agent())
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    wait_until(lambda: store.record(run_id).state is RunState.RUNNING)
    other = bench.supervise(bench.agent())
    store.redis.hdel(f"launch:run:{run_id}", "agent")
    wait_until(lambda: run_id in other.claims)

    wait_until(lambda: not agent.claims)
    wait_until(lambda: agent.slots.free == 1)
    bench.runner.end(run_id)
    assert bench.final(run_id).agent == other.id


def test_a_home_without_room_for_a_log_costs_the_file_and_not_the_run(bench: Bench) -> None:
    agent = bench.agent()
    (agent.settings.home / "logs").write_text("in the way")
    run_id = bench.enqueue()
    bench.ring(agent)
    write_and_end(bench, run_id)

    run = bench.final(run_id)
    assert (run.state, run.log_archive) == (RunState.FINISHED, None)
    assert [entry.text for entry in bench.store.read_log(run_id) if entry.stream == "stdout"] == ["one\n"]


def test_a_log_lost_with_its_machine_is_read_again_from_the_target(bench: Bench, tmp_path: Path) -> None:
    run_id = bench.enqueue()
    first = bench.agent()
    bench.ring(first)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.write(run_id, "one\n")
    wait_until(lambda: bench.store.record(run_id).log_cursor == "1")
    first.detach()
    for path in (tmp_path / "logs").iterdir():
        path.unlink()
    heir = bench.agent()
    assert heir.adopt(run_id)
    bench.runner.write(run_id, "two\n")
    bench.runner.end(run_id)
    bench.final(run_id)

    assert text_of(bench, heir, run_id) == "one\ntwo\n"


def test_a_stop_that_the_target_fails_to_hear_is_passed_on_again(bench: Bench) -> None:
    failures = []

    def fail_twice(_: object) -> None:
        if len(failures) < 2:
            failures.append(1)
            raise RuntimeError("a bug in the runner")

    bench.runner.before["stop"] = fail_twice
    run_id = bench.enqueue()
    bench.ring(bench.supervise(bench.agent()))
    bench.runner.wait_until_submitted(run_id)
    bench.store.request_stop(run_id, by="ann", grace_s=1)

    assert bench.final(run_id).state is RunState.STOPPED
    assert len(failures) == 2


def test_an_answer_lost_in_a_submit_starts_no_second_attempt_anywhere(bench: Bench) -> None:
    """The job runs, although the agent heard nothing: it asks again until it has, and nobody else gets the run."""
    lost: list[int] = []
    bench.target.on_start = lambda *_: _lose_once(lost)
    run_id = bench.enqueue()
    bench.ring(bench.supervise(bench.agent()))
    bench.runner.wait_until_submitted(run_id)
    wait_until(lambda: bench.store.record(run_id).state is RunState.RUNNING)
    bench.runner.end(run_id)

    assert bench.final(run_id).attempt == 1
    assert bench.runner.submitted == [run_id]
    assert len(lost) == 1


def test_an_attempt_that_vanished_after_its_submit_is_not_started_a_second_time(bench: Bench, store: RunStore) -> None:
    """Its agent died before it recorded the handle, and the container was removed behind our back."""
    died = threading.Event()

    def fall_silent(at: str, _: str) -> None:
        if at == "record":
            died.set()
            threading.Event().wait(60)

    run_id = bench.enqueue()
    bench.ring(bench.agent(at_step=fall_silent, runner=bench.another_runner()))
    assert died.wait(10)
    bench.runner.lose(run_id)
    bench.supervise(bench.agent())
    wait_until(lambda: bench.target.attempts)
    bench.runner.end(run_id)

    run = bench.final(run_id)
    assert (run.state, run.attempt) == (RunState.FINISHED, 2)
    assert [attempt.plan.name[-2:] for attempt in bench.target.started] == ["-1", "-2"]
    assert "its target knows nothing of it" in run.attempts[0].cause.message


def _lose_once(lost: list[int]) -> None:
    if not lost:
        lost.append(1)
        raise TemporaryError("the answer was lost")
