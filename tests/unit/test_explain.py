"""Why a run is where it is, and when it may start; no Redis is needed to say it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.explain import Situation, explain
from launch.forecast import Busy, Expected, Line, Slots, expected_start, job_key, quantile
from launch.models import (
    AttemptRecord,
    Cause,
    CauseKind,
    CommandSource,
    ImageSource,
    Job,
    LaunchSpec,
    Limits,
    QueueSpec,
    RunRecord,
    RunState,
    StopRequest,
)
from launch.records import AgentRecord, RunEvent
from launch.waiting import QueueView, WaitsFor, waits_for

NOW = 10_000.0


def a_spec(**fields: Any) -> LaunchSpec:
    job = Job(source=CommandSource(), entrypoint=("python", "train.py"))
    return LaunchSpec(**{"run_id": "r1", "queue": "q", "resource": "docker", "job": job, **fields})


def a_record(state: RunState = RunState.QUEUED, *, spec: LaunchSpec | None = None, **fields: Any) -> RunRecord:
    return RunRecord(spec=spec or a_spec(), state=state, seq=1, created_at=NOW - 60, **fields)


def an_agent(name: str = "box", **fields: Any) -> AgentRecord:
    said: dict[str, Any] = {
        "id": f"{name}-1",
        "name": name,
        "host": "host",
        "pid": 1,
        "version": "0.1.0",
        "queues": ("q",),
        "localities": ("here",),
        "max_jobs": 2,
        "runs": (),
        "state": "serving",
        "problems": (),
        "started_at": 0.0,
        "heartbeat_at": NOW - 1,
        "is_alive": True,
    }
    return AgentRecord(**{**said, **fields})


def a_view(*agents: AgentRecord, active: tuple[str, ...] = (), **fields: Any) -> QueueView:
    return QueueView(QueueSpec(name="q", resource="docker", **fields), active, agents)


# --- what it waits for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "view", "position", "kind", "short", "said", "command"),
    [
        (
            a_record(held_by="ada@lab"), a_view(), None,
            WaitsFor.RELEASE, "held by ada@lab", "held by ada@lab", "launch release r1",
        ),
        (
            a_record(attempt=1, due_at=NOW + 90), a_view(), None,
            WaitsFor.PAUSE, "another attempt in 1 min 30 s", "its pause before attempt 2", None,
        ),
        (
            a_record(), a_view(an_agent(), paused=True), 1,
            WaitsFor.RESUME, "queue paused", "Queue q is paused", "launch queue resume q",
        ),
        (a_record(), a_view(), 1, WaitsFor.AGENT, "no agent", "No living agent serves queue q", "launch agent -q q"),
        (
            a_record(), a_view(an_agent(state="draining")), 1,
            WaitsFor.AGENT, "agents leave", "take no more runs and end", "launch agent -q q",
        ),
        (
            a_record(), a_view(an_agent(state="blocked", problems=("docker: no engine",))), 1,
            WaitsFor.TARGET, "docker away", "box: docker: no engine", "launch doctor",
        ),
        (
            a_record(), a_view(an_agent(), active=("a", "b"), max_concurrent=2), 3,
            WaitsFor.LIMIT, "place 3, limit 2", "at most 2 at once, and these are at work: a, b",
            "launch queue update q --max-concurrent 3",
        ),
        (
            a_record(), a_view(an_agent(runs=("a", "b"))), 1,
            WaitsFor.SLOT, "agents full", "box (2 of 2: a, b)", "launch agents set box --max-jobs 3",
        ),
        (a_record(), a_view(an_agent(runs=("a",))), 1, WaitsFor.TURN, "next", "It is next", None),
        (a_record(), a_view(an_agent()), 4, WaitsFor.TURN, "place 4, its turn", "for the 3 before it", None),
    ],
)  # fmt: skip
def test_a_queued_run_says_what_it_waits_for(
    record: RunRecord, view: QueueView, position: int | None, kind: WaitsFor, short: str, said: str, command: str | None
) -> None:
    waiting = waits_for(record, view, position, NOW)
    assert (waiting.kind, waiting.short, waiting.command) == (kind, short, command)
    assert said in waiting.sentence


def test_a_target_away_for_one_agent_is_no_reason_while_another_serves() -> None:
    """Nor is another target's problem at the same agent."""
    away = an_agent("a", state="blocked", problems=("docker: no engine",))
    other = an_agent("b", state="blocked", problems=("process: disk full",), runs=("x", "y"))
    assert waits_for(a_record(), a_view(away, other), 1, NOW).kind is WaitsFor.SLOT
    assert "a (" not in waits_for(a_record(), a_view(away, other), 1, NOW).sentence


def test_of_very_many_runs_in_the_slots_some_are_named() -> None:
    runs = tuple(f"run-{n}" for n in range(50))
    sentence = waits_for(a_record(), a_view(an_agent(runs=runs, max_jobs=50)), 1, NOW).sentence
    assert "run-7 and 42 more" in sentence


# --- when it may start -----------------------------------------------------------------------------------------------

A, B = ("q", "a"), ("q", "b")


def start(
    agents: list[Slots], waiting: list[tuple[str, tuple[str, str]]], seconds: dict[Any, list[float]], **line: Any
) -> Expected:
    run_id, key = waiting[-1]
    return expected_start(run_id, key, agents, {"q": Line(tuple(waiting), **line)}, seconds)


def test_with_a_slot_free_it_starts_now() -> None:
    assert start([Slots(("q",), 1)], [("x", A)], {}).median_s == 0


def test_it_waits_for_the_run_in_the_slot_as_long_as_its_kind_still_takes() -> None:
    """Of runs that took longer than this one has by now: 90 s and 110 s; so 30 s to 50 s more."""
    found = start([Slots(("q",), 1, (Busy(A, 60.0),))], [("x", A)], {A: [10, 50, 90, 110]})
    assert found.median_s == pytest.approx(40.0)
    assert found.p90_s == pytest.approx(48.0)
    assert found.basis == 4


def test_it_waits_for_those_before_it_too_over_all_slots() -> None:
    busy = (Busy(A, 0.0),)
    waiting = [("1", A), ("2", A), ("3", A), ("x", A)]
    assert start([Slots(("q",), 1, busy), Slots(("q",), 1, busy)], waiting, {A: [10.0] * 3}).median_s == 20.0
    assert start([Slots(("q",), 2, busy * 2)], waiting, {A: [10.0] * 3}).median_s == 20.0


def test_a_queues_limit_counts_what_others_carry() -> None:
    elsewhere = Slots((), 1, (Busy(A, 0.0),))
    agents = [Slots(("q",), 5), elsewhere]
    assert start(agents, [("x", A)], {A: [7.0] * 3}, limit=1).median_s == 7.0
    assert start(agents, [("x", A)], {A: [7.0] * 3}, limit=2).median_s == 0.0


def test_without_enough_finished_runs_nobody_knows() -> None:
    found = start([Slots(("q",), 1, (Busy(B, 5.0),))], [("x", A)], {A: [1.0] * 9, B: [10.0, 10.0]})
    assert (found.median_s, found.p90_s, found.unknown, found.basis) == (None, None, ("b",), 9)


def test_a_run_that_takes_longer_than_any_before_is_unknown_too() -> None:
    assert start([Slots(("q",), 1, (Busy(A, 11.0),))], [("x", A)], {A: [10.0] * 5}).median_s is None


def test_one_unknown_run_of_two_leaves_a_latest_time() -> None:
    agents = [Slots(("q",), 2, (Busy(B, 5.0), Busy(A, 4.0)))]
    found = start(agents, [("x", A)], {A: [10.0] * 3})
    assert (found.median_s, found.unknown) == (6.0, ("b",))


def test_an_agents_queues_take_turns() -> None:
    """With another queue's runs in between, the second of this queue is the third or fourth to start."""
    other = ("o", "other")
    lines = {"q": Line((("1", A), ("x", A))), "o": Line((("o1", other), ("o2", other)))}
    agents = [Slots(("q", "o"), 1, (Busy(A, 0.0),))]
    found = expected_start("x", A, agents, lines, {A: [10.0] * 3, other: [100.0] * 3})
    assert found.median_s == 10 + 10 + 100


def test_no_agent_means_no_time() -> None:
    assert start([], [("x", A)], {A: [1.0] * 3}).median_s is None


@given(
    slots=st.integers(1, 4),
    before=st.integers(0, 12),
    seconds=st.lists(st.floats(1, 1000), min_size=3, max_size=8),
    more=st.integers(0, 3),
)
def test_more_slots_and_fewer_before_never_make_it_later(
    slots: int, before: int, seconds: list[float], more: int
) -> None:
    def median(slots: int, before: int) -> float:
        waiting = [*((str(n), A) for n in range(before)), ("x", A)]
        found = start([Slots(("q",), slots, (Busy(A, 0.0),) * slots)], waiting, {A: seconds})
        assert found.median_s is not None
        assert found.p90_s is not None
        assert found.p90_s >= found.median_s
        return found.median_s

    assert median(slots + more, before) <= median(slots, before)
    assert median(slots, before) <= median(slots, before + more)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_a_quantile_lies_between_its_neighbours(values: list[float], share: float) -> None:
    found = quantile(values, share)
    below = sorted(values)[math.floor(share * (len(values) - 1))]
    assert below - 1e-6 <= found <= max(values) + 1e-6
    assert quantile(values, 0) == min(values)
    assert quantile(values, 1) == max(values)


def test_versions_of_a_job_are_the_same_job_and_queues_are_apart() -> None:
    assert job_key(a_spec(job_ref="digits:v3")) == job_key(a_spec(job_ref="digits:v4")) == ("q", "digits")
    assert job_key(a_spec(job_ref="digits:v3", queue="other")) != job_key(a_spec(job_ref="digits:v3"))
    image = Job(source=ImageSource(image="train:1"))
    assert job_key(a_spec(job=image)) != job_key(a_spec())
    assert job_key(a_spec(args=("--lr", "1"))) == job_key(a_spec(args=("--lr", "2")))


# --- the whole answer ------------------------------------------------------------------------------------------------


def told(situation: Situation) -> str:
    found = explain(situation)
    return "\n".join([found.headline, *found.lines, *found.commands])


def test_a_waiting_run_tells_its_place_and_when_it_may_start() -> None:
    expected = Expected(720.0, 1500.0, 14)
    view = a_view(an_agent(runs=("a", "b")))
    text = told(Situation(NOW, a_record(), view, position=3, waiting=12, expected=expected))
    for part in (
        "queued in q, place 3 of 12, enqueued 1 min ago",
        "box (2 of 2: a, b)",
        "in about 12 min if the runs before it take their jobs' median time, in 25 min if they take their 90th",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (None, "unknown, as long as it waits for that"),
        (
            Expected(None, None, 2, ("digits",)),
            "unknown (fewer than 3 earlier runs, or none that took this long, of digits)",
        ),
        (Expected(None, None, 0), "unknown (no free slot)"),
        (Expected(0.0, 0.0, 0), "Expected start: now."),
        (
            Expected(6.0, None, 9, ("b",)),
            "in about 6.0 s if the runs before it take their jobs' median time, unknown if",
        ),
        (Expected(6.0, 8.0, 9, ("b",)), "Sooner, if b ends before: nobody knows."),
    ],
)
def test_an_unknown_start_is_said_to_be_unknown(expected: Expected | None, said: str) -> None:
    assert said in told(Situation(NOW, a_record(), a_view(an_agent()), position=2, waiting=2, expected=expected))


def test_a_run_that_came_back_tells_why() -> None:
    attempt = AttemptRecord(
        number=1, agent="box-1", cause=Cause(kind=CauseKind.OOM, message="Out of memory."), ended_at=NOW - 5
    )
    record = a_record(attempt=1, attempts=(attempt,), note="the engine is away")
    found = explain(Situation(NOW, record, a_view(an_agent()), position=1, waiting=1))
    assert found.attempts == (attempt,)
    assert "Its last try went back to the queue: the engine is away" in found.lines
    assert "1 attempt(s) have failed; the last: Out of memory." in found.lines


def test_a_run_whose_queue_is_gone_says_so() -> None:
    assert "Queue q is no more." in told(Situation(NOW, a_record(), None))


def test_a_claimed_run_tells_what_it_does_and_who_follows_it() -> None:
    record = a_record(
        RunState.RUNNING,
        spec=a_spec(limits=Limits(run_s=3600)),
        agent="box-1",
        attempt=2,
        note="started",
        claimed_at=NOW - 100,
        started_at=NOW - 60,
        stop=StopRequest(by="ada", at=NOW - 2, grace_s=10),
    )
    event = RunEvent("1-0", NOW - 60, RunState.RUNNING, 2, "started")
    text = told(Situation(NOW, record, a_view(an_agent()), owner=an_agent(), last_event=event))
    for part in (
        "running for 1 min: started",
        "Agent box on host follows it.",
        "Attempt 2, claimed 1 min 40 s ago.",
        "Its time limit of 1 h ends in 59 min",
        "ada asked it to stop 2.0 s ago; it has 10 s for it.",
        "launch logs -f r1",
    ):
        assert part in text


def test_a_run_that_does_not_start_tells_its_limit() -> None:
    record = a_record(RunState.BUILDING, spec=a_spec(limits=Limits(start_s=60)), agent="box-1", claimed_at=NOW - 50)
    assert "Its limit of 1 min to start ends in 10 s." in told(Situation(NOW, record, owner=an_agent()))


def test_a_run_without_a_living_agent_tells_who_takes_over() -> None:
    record = a_record(RunState.RUNNING, agent="box-1", claimed_at=NOW - 100, attempt=1)
    dead = an_agent(is_alive=False, heartbeat_at=NOW - 30)
    text = told(Situation(NOW, record, a_view(), owner=dead, followers=("other",)))
    assert "Its agent box was last heard of 30 s ago; one of these takes it over in a moment: other." in text


@pytest.mark.parametrize(
    ("fields", "owner", "said"),
    [
        (
            {"agent": None, "released_at": NOW - 3600},
            None,
            "Its agent has let go of it, and its job goes on. No living",
        ),
        ({"agent": "box-1"}, None, "Its agent box-1 is gone, and its job goes on if its machine does. No living"),
    ],
)
def test_a_run_that_nobody_can_follow_tells_when_it_counts_as_lost(
    fields: dict[str, Any], owner: AgentRecord | None, said: str
) -> None:
    spec = a_spec(limits=Limits(orphan_s=7200))
    record = a_record(RunState.RUNNING, spec=spec, attempt=1, claimed_at=NOW - 3600, **fields)
    text = told(Situation(NOW, record, a_view(), owner=owner))
    assert said in text
    assert "have waited 1 h more, it counts as lost" in text
    assert "launch agent -q q" in text


def test_an_ended_run_tells_its_cause_attempts_and_last_lines() -> None:
    cause = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 1.", log_tail=("Traceback", "boom"))
    record = a_record(RunState.FAILED, cause=cause, attempt=1, claimed_at=NOW - 90, ended_at=NOW - 30)
    found = explain(Situation(NOW, record))
    assert found.headline == "failed 30 s ago"
    assert found.lines == ("The job exited with code 1.", "Attempt 1 took 1 min.")
    assert found.log_tail == ("Traceback", "boom")
    assert found.commands == ("launch logs r1", "launch rerun r1")
    assert found.as_json()["attempts"] == []


def test_a_run_that_was_stopped_in_the_queue_never_started() -> None:
    cause = Cause(kind=CauseKind.STOPPED, message="Stopped by ada before it started.")
    found = explain(Situation(NOW, a_record(RunState.STOPPED, cause=cause, ended_at=NOW)))
    assert found.lines == ("Stopped by ada before it started.", "It never started.")
    assert found.commands == ("launch rerun r1",)
