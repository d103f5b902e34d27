"""The record in a real Redis: order, claims, fences, stops, and what a repeated or late write does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from launch.broker import decode_message, message_lists
from launch.errors import ConflictError, LaunchError, LostClaimError, NotFoundError
from launch.models import (
    SCHEMA_VERSION,
    Cause,
    CauseKind,
    CommandSource,
    Fence,
    Job,
    LaunchSpec,
    Priority,
    QueueSpec,
    RetryPolicy,
    RetryRule,
    RunState,
    Tracking,
    new_run_id,
)
from launch.store import Blocked, Claimed, RunStore

DONE = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 0.", exit_code=0)


def a_launch(queue: str = "q", run_id: str | None = None, priority: Priority = Priority.MEDIUM) -> LaunchSpec:
    job = Job(source=CommandSource(), entrypoint=("true",), tracking=Tracking.OPTIONAL)
    return LaunchSpec(run_id=run_id or new_run_id(), queue=queue, resource="process", job=job, priority=priority)


@pytest.fixture
def queue(store: RunStore) -> str:
    return store.create_queue(QueueSpec(name="q", resource="process")).name


def claim(store: RunStore, queue: str = "q", agent: str = "a1") -> Claimed:
    answer = store.claim(queue, agent, locality="here")
    assert isinstance(answer, Claimed)
    return answer


def test_runs_are_claimed_in_the_order_they_were_enqueued(store: RunStore, queue: str) -> None:
    ids = [store.enqueue(a_launch()).id for _ in range(20)]

    assert [claim(store).record.id for _ in ids] == ids
    assert store.claim(queue, "a1") is None


def test_a_better_class_goes_first_and_order_holds_within_it(store: RunStore) -> None:
    store.create_queue(QueueSpec(name="p", resource="process", priorities=True))
    order = [Priority.LOW, Priority.MEDIUM, Priority.CRITICAL, Priority.HIGH, Priority.CRITICAL, Priority.LOW]
    runs = store.enqueue_many([a_launch("p", priority=priority) for priority in order])

    claimed = [claim(store, "p").record.id for _ in runs]

    assert claimed == [run.id for run in sorted(runs, key=lambda run: (run.spec.priority, run.seq))]


def test_the_same_launch_again_is_the_run_there_is(store: RunStore, queue: str) -> None:
    spec = a_launch(run_id="mine")
    first, second = store.enqueue(spec), store.enqueue(spec)

    assert first == second
    assert store.messages(queue) == (1, 1)


def test_an_id_taken_by_another_launch_is_refused_and_the_rest_of_the_batch_recorded(
    store: RunStore, queue: str
) -> None:
    store.enqueue(a_launch(run_id="mine"))
    other = a_launch(run_id="mine").model_copy(update={"args": ("--other",)})

    with pytest.raises(ConflictError, match="'mine' is taken"):
        store.enqueue_many([a_launch(run_id="before"), other, a_launch(run_id="after")])

    assert {run.id for run in store.runs()} == {"mine", "before", "after"}
    assert store.record("mine").spec.args == ()


def test_the_message_on_the_list_is_one_that_celery_reads_and_carries_the_whole_launch(
    store: RunStore, queue: str, redis_url: str
) -> None:
    from kombu import Queue

    from launch.broker import make_app

    spec = a_launch(run_id="mine")
    store.enqueue(spec)

    with make_app(redis_url).connection() as connection:
        message = Queue("launch.q", channel=connection.default_channel).get()
        assert message is not None
        message.ack()

    assert LaunchSpec.model_validate(message.payload[1]["spec"]) == spec
    assert message.headers["task"] == "launch.run"
    assert message.headers["recorded"] == 1


def test_an_unknown_queue_is_named_with_those_there_are(store: RunStore, queue: str) -> None:
    with pytest.raises(NotFoundError, match="no queue 'quue'"):
        store.enqueue(a_launch("quue"))
    assert store.runs() == []


def test_a_launch_frozen_against_an_older_queue_config_is_refused(store: RunStore, queue: str) -> None:
    with pytest.raises(ConflictError, match="was changed"):
        store.enqueue(a_launch().model_copy(update={"queue_version": 7}))


def test_a_queue_made_again_is_the_same_and_a_different_one_is_refused(store: RunStore, queue: str) -> None:
    assert store.create_queue(QueueSpec(name="q", resource="process")).name == "q"
    with pytest.raises(ConflictError, match="exists with other settings"):
        store.create_queue(QueueSpec(name="q", resource="docker"))


def test_a_paused_queue_and_one_at_its_limit_give_out_nothing(store: RunStore) -> None:
    store.create_queue(QueueSpec(name="one", resource="process", max_concurrent=1))
    store.enqueue_many([a_launch("one"), a_launch("one")])

    store.set_paused("one", True)
    assert store.claim("one", "a1") == Blocked("paused")
    store.set_paused("one", False)
    first = claim(store, "one")
    assert store.claim("one", "a1") == Blocked("limit")
    store.finish(first.record.id, first.fence, RunState.FINISHED, DONE)
    assert isinstance(store.claim("one", "a1"), Claimed)


def test_many_agents_claiming_at_once_never_get_the_same_run(store: RunStore, queue: str) -> None:
    ids = {run.id for run in store.enqueue_many([a_launch() for _ in range(200)])}
    got: list[str] = []
    lock = threading.Lock()

    def take_all(agent: str) -> None:
        while (answer := store.claim(queue, agent)) is not None:
            assert isinstance(answer, Claimed)
            with lock:
                got.append(answer.record.id)

    threads = [threading.Thread(target=take_all, args=(f"a{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(got) == 200
    assert set(got) == ids


# --- fences -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda store, run, fence: store.advance(run.id, fence, RunState.STARTING),
        lambda store, run, fence: store.finish(run.id, fence, RunState.FINISHED, DONE),
        lambda store, run, fence: store.unclaim(run, fence, note=""),
        lambda store, run, fence: store.retry(run, fence, DONE, log_archive=None, rule=RetryRule(times=1)),
        lambda store, run, fence: store.release(run.id, fence),
        lambda store, run, fence: store.append_log(
            run.id, fence, [("stdout", "x")], cursor="1", bytes_before=0, bytes_after=1, cap_chars=9
        ),
    ],
    ids=["advance", "finish", "unclaim", "retry", "release", "append_log"],
)
def test_a_write_of_an_agent_that_lost_its_claim_is_refused_and_changes_nothing(
    store: RunStore, queue: str, write: Callable[..., None]
) -> None:
    store.enqueue(a_launch(run_id="mine"))
    late = claim(store)
    store.redis.hdel("launch:run:mine", "agent")
    assert store.adopt(store.record("mine"), "a2", locality="here", dead_after_s=10) is not None
    before = store.record("mine")

    with pytest.raises(LostClaimError):
        write(store, late.record, late.fence)

    assert store.record("mine") == before
    assert store.read_log("mine") == []


def test_an_epoch_alone_does_not_open_the_fence(store: RunStore, queue: str) -> None:
    """A restored Redis may count the same epoch again; the nonce still tells the claims apart."""
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)

    with pytest.raises(LostClaimError):
        store.advance("mine", Fence(epoch=mine.fence.epoch, nonce="0" * 16), RunState.STARTING)


def test_states_move_only_as_the_table_says(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)
    with pytest.raises(LaunchError, match="ILLEGAL building"):
        store.advance("mine", mine.fence, RunState.RUNNING)
    store.advance("mine", mine.fence, RunState.STARTING)
    store.advance("mine", mine.fence, RunState.RUNNING, handle="h")
    with pytest.raises(LaunchError, match="ILLEGAL running"):
        store.advance("mine", mine.fence, RunState.BUILDING)

    run = store.record("mine")
    assert (run.state, run.handle) == (RunState.RUNNING, "h")
    assert run.started_at is not None
    assert [event.state for event in store.read_events("mine")] == ["building", "starting", "running"]


def test_finishing_twice_with_the_same_claim_keeps_the_first_result(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)
    store.finish("mine", mine.fence, RunState.FINISHED, DONE)
    ended = store.record("mine")
    store.finish("mine", mine.fence, RunState.FAILED, Cause(kind=CauseKind.OOM, message="late"))

    assert store.record("mine") == ended
    assert [run.id for run in store.runs(states=[RunState.FINISHED])] == ["mine"]


# --- back to the queue, adoption --------------------------------------------------------------------------------------


def test_an_unclaimed_run_is_next_again_with_its_attempt_unspent_and_a_message(store: RunStore, queue: str) -> None:
    first, second = store.enqueue_many([a_launch(), a_launch()])
    mine = claim(store)
    store.unclaim(mine.record, mine.fence, note="engine away")

    assert store.position(first.id) == 1
    assert store.record(first.id).attempt == 0
    assert store.record(first.id).note == "engine away"
    again = claim(store)
    assert (again.record.id, again.record.attempt, again.fence.epoch) == (first.id, 1, 2)
    assert claim(store).record.id == second.id
    assert store.messages(queue) == (3, 0), "a message for each claim to come, and the reconciler for the rest"


def test_a_retry_waits_out_its_pause_and_comes_back_at_its_old_place_with_its_past(store: RunStore, queue: str) -> None:
    policy = RetryPolicy(error=RetryRule(times=2), backoff_s=30, max_backoff_s=100)
    first = store.enqueue(a_launch().model_copy(update={"retry": policy}))
    second = store.enqueue(a_launch())
    failed = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 1.", exit_code=1)
    mine = claim(store)
    store.retry(mine.record, mine.fence, failed, log_archive="a" * 64, rule=RetryRule(times=2, memory="x1.5"))

    run = store.record(first.id)
    assert (run.state, run.attempt, run.memory_factor) == (RunState.QUEUED, 1, 1.5)
    assert [(attempt.number, attempt.cause, attempt.log_archive) for attempt in run.attempts] == [(1, failed, "a" * 64)]
    assert run.due_at is not None
    assert 29 < run.due_at - store.now() <= 30
    assert store.position(first.id) is None
    assert store.promote(queue) == 0

    store.redis.zadd(f"launch:queue:{queue}:delayed", {first.id: 1})
    assert store.promote(queue) == 1
    assert [store.position(first.id), store.position(second.id)] == [1, 2]
    assert claim(store).record.attempt == 2


def test_moving_to_the_front_again_and_again_never_runs_out_of_room(store: RunStore, queue: str) -> None:
    ids = [run.id for run in store.enqueue_many([a_launch() for _ in range(5)])]
    order = list(ids)
    for number in range(120):
        moved = order[-1 - number % 2]
        store.move(moved)
        order.remove(moved)
        order.insert(0, moved)
        assert store.redis.zrange("launch:queue:q:waiting", 0, -1) == order
    last = store.enqueue(a_launch()).id
    store.move(order[0], before=order[3])
    order.insert(2, order.pop(0))

    assert store.redis.zrange("launch:queue:q:waiting", 0, -1) == [*order, last]


def test_a_held_run_lets_others_pass_and_comes_back_where_it_was(store: RunStore, queue: str) -> None:
    first, second, third = store.enqueue_many([a_launch() for _ in range(3)])
    store.hold(first.id, by="ann")
    assert store.messages(queue) == (2, 2)
    assert store.record(first.id).held_by == "ann"
    assert claim(store).record.id == second.id
    store.let_go_on(first.id)

    assert [claim(store).record.id, claim(store).record.id] == [first.id, third.id]


def test_a_queues_new_config_is_a_new_version_and_queued_runs_keep_theirs(store: RunStore, queue: str) -> None:
    old = store.queue(queue)
    new = store.update_queue(old.model_copy(update={"config": {"env": ["A=1"]}, "max_concurrent": 1}))

    assert new.version == 2
    assert (store.queue_config(queue, 1), store.queue_config(queue, 2)) == ({}, {"env": ["A=1"]})
    with pytest.raises(ConflictError, match="changed by somebody else"):
        store.update_queue(old.model_copy(update={"config": {"env": ["A=2"]}}))
    store.enqueue_many([a_launch().model_copy(update={"queue_version": 2}) for _ in range(2)])
    claim(store)
    assert store.claim(queue, "a1") == Blocked("limit")
    store.update_queue(new.model_copy(update={"max_concurrent": None}))
    claim(store)


def test_a_queue_with_runs_in_it_is_not_deleted(store: RunStore, queue: str) -> None:
    run = store.enqueue(a_launch())
    with pytest.raises(ConflictError, match="holds 1 run"):
        store.delete_queue(queue)
    store.request_stop(run.id, by="ann", grace_s=0)
    store.delete_queue(queue)
    assert store.queues() == []
    assert store.record(run.id).state is RunState.STOPPED


def test_a_living_agents_run_is_not_adopted_and_a_dead_ones_is_after_its_time(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    store.heartbeat("a1", {"name": "a1"}, gap_s=100)
    store.heartbeat("a2", {"name": "a2"}, gap_s=100)
    claim(store, agent="a1")
    assert store.adopt(store.record("mine"), "a2", locality="here", dead_after_s=10) is None

    store.redis.zadd("launch:agents", {"a1": store.now() - 11})
    assert store.adopt(store.record("mine"), "a2", locality="here", dead_after_s=10) is None, "its own heart is young"

    store.redis.hset("launch:agent:a2", "unbroken_since", store.now() - 11)
    adopted = store.adopt(store.record("mine"), "a2", locality="here", dead_after_s=10)
    assert adopted is not None
    assert (adopted.record.agent, adopted.record.attempt, adopted.fence.epoch) == ("a2", 1, 2)


def test_two_agents_that_see_the_same_orphan_share_it_not(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)
    store.release("mine", mine.fence)
    seen = store.record("mine")

    answers = [store.adopt(seen, agent, locality="here", dead_after_s=10) for agent in ("a2", "a3")]

    assert [answer is not None for answer in answers] == [True, False]


# --- stop -------------------------------------------------------------------------------------------------------------


def test_a_queued_run_that_is_stopped_is_gone_from_the_queue_at_once_with_its_message(
    store: RunStore, queue: str
) -> None:
    first, second, third = store.enqueue_many([a_launch() for _ in range(3)])

    stopped = store.request_stop(second.id, by="ann", grace_s=10)

    assert stopped.state is RunState.STOPPED
    assert stopped.cause is not None
    assert stopped.cause.message == "Stopped by ann before it started."
    assert store.messages(queue) == (2, 2)
    assert [claim(store).record.id, claim(store).record.id] == [first.id, third.id]


def test_a_claimed_run_is_asked_to_stop_and_a_shorter_grace_counts(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    claim(store)
    for grace in (10, 3, 60):
        run = store.request_stop("mine", by="ann", grace_s=grace)

    assert run.state is RunState.BUILDING
    assert run.stop is not None
    assert run.stop.grace_s == 3
    assert store.stops(["mine"]) == {"mine": 3}


def test_a_stopped_run_that_goes_back_to_the_queue_ends_instead(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)
    store.request_stop("mine", by="ann", grace_s=1)
    store.unclaim(mine.record, mine.fence, note="engine away")

    assert store.record("mine").state is RunState.STOPPED
    assert store.claim(queue, "a1") is None


def test_stopping_an_ended_or_unknown_run_says_so(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    store.request_stop("mine", by="ann", grace_s=1)
    assert store.request_stop("mine", by="bob", grace_s=1).state is RunState.STOPPED
    with pytest.raises(NotFoundError, match="no run 'yours'"):
        store.request_stop("yours", by="ann", grace_s=1)


# --- log, messages ----------------------------------------------------------------------------------------------------


def test_a_log_write_repeated_after_a_lost_answer_adds_nothing(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)
    for _ in range(2):
        store.append_log(
            "mine", mine.fence, [("stdout", "one\n")], cursor="4", bytes_before=0, bytes_after=20, cap_chars=100
        )
    store.append_log(
        "mine", mine.fence, [("stderr", "two\n")], cursor="8", bytes_before=20, bytes_after=40, cap_chars=100
    )

    assert [(entry.stream, entry.text) for entry in store.read_log("mine")] == [
        ("stdout", "one\n"),
        ("stderr", "two\n"),
    ]
    run = store.record("mine")
    assert (run.log_cursor, run.log_bytes) == ("8", 40)


def test_redis_holds_the_newest_part_of_a_log_only(store: RunStore, queue: str) -> None:
    store.enqueue(a_launch(run_id="mine"))
    mine = claim(store)
    for number in range(100):
        store.append_log(
            "mine",
            mine.fence,
            [("stdout", f"{number:09d}\n")],
            cursor=None,
            bytes_before=number,
            bytes_after=number + 1,
            cap_chars=100,
        )

    assert [entry.text for entry in store.read_log("mine")] == [f"{number:09d}\n" for number in range(90, 100)]


def test_missing_messages_are_rung_and_no_more_than_are_missing(store: RunStore, queue: str) -> None:
    store.enqueue_many([a_launch() for _ in range(5)])
    store.redis.rpop(message_lists(queue)[0], 3)

    assert store.ring_missing(queue) == 3
    assert store.messages(queue) == (5, 5)
    assert store.ring_missing(queue) == 0
    messages = [decode_message(raw) for _, raw in store.peek(queue)]
    assert all(message is not None and message.is_recorded for message in messages)


def test_a_queued_run_costs_at_most_4_kb_message_and_places_included(store: RunStore, queue: str) -> None:
    before = store.redis.info("memory")["used_memory"]
    store.enqueue_many([a_launch().model_copy(update={"config": {"epochs": 3, "lr": 0.1}}) for _ in range(5000)])

    assert (store.redis.info("memory")["used_memory"] - before) / 5000 <= 4096


def test_a_claim_said_again_because_its_answer_was_lost_is_the_same_claim(store: RunStore, queue: str) -> None:
    first, _ = store.enqueue_many([a_launch(), a_launch()])
    said = [store._run("claim", queue, "a1", "here", "the-nonce", SCHEMA_VERSION) for _ in range(2)]

    assert said == [["RUN", first.id]] * 2
    assert list(store.owners(queue)) == [first.id]
