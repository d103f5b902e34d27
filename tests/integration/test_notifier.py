"""Hooks that answer, that fail and that come back, told of runs in a real Redis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, QueueSpec, RunState
from launch.notify import Hook
from launch.server import notifier as notifiers
from launch.server.notifier import Notifier
from launch.store import Claimed, RunStore
from tests.agents import wait_until
from tests.receivers import receiving

pytestmark = pytest.mark.redis


class Receiver:
    """Somebody's web server; ``answers`` are what it answers first, then 200."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[dict[str, Any]] = []
        self.answers: list[int] = []

    def take(self, body: bytes) -> int:
        code = self.answers.pop(0) if self.answers else 200
        if code == 200:
            self.got.append(json.loads(body))
        return code

    def hook(self, **fields: Any) -> Hook:
        return Hook(**{"name": "h", "url": f"{self.url}/", **fields})

    @property
    def runs(self) -> list[str]:
        return [said["run"] for said in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with receiving(receiver.take) as receiver.url:
        yield receiver


@pytest.fixture
def tell(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Notifier]]:
    """Start a notifier whose rounds are short."""
    monkeypatch.setattr(notifiers, "ROUND_S", 0.05)
    monkeypatch.setattr(notifiers, "_FIRST_PAUSE_S", 0.05)
    store.create_queue(QueueSpec(name="q", resource="process"))
    started: list[Notifier] = []

    def start(*hooks: Hook, **options: Any) -> Notifier:
        notifier = Notifier(store, hooks, **options)
        notifier.start()
        started.append(notifier)
        wait_until(lambda: all(store.redis.exists(f"launch:notified:{hook.name}") for hook in hooks))
        return notifier

    yield start
    for notifier in started:
        end(notifier)


def end(notifier: Notifier) -> None:
    notifier.stop()
    for thread in notifier._threads:
        thread.join(20)


def fail(store: RunStore, run_id: str) -> None:
    job = Job(source=CommandSource(), entrypoint=("true",))
    store.enqueue(LaunchSpec(run_id=run_id, queue="q", resource="process", job=job))
    claimed = store.claim("q", "a-1")
    assert isinstance(claimed, Claimed)
    cause = Cause(kind=CauseKind.EXIT_CODE, message="It exited with 1.", exit_code=1)
    store.finish(run_id, claimed.fence, RunState.FAILED, cause)


def test_each_ended_run_is_told_once_in_order(
    store: RunStore, receiver: Receiver, tell: Callable[..., Notifier]
) -> None:
    """Two servers with one hook tell it once; what was before the hook is not told."""
    fail(store, "before")
    tell(receiver.hook())
    tell(receiver.hook())
    for n in range(20):
        fail(store, f"r{n}")

    wait_until(lambda: len(receiver.got) >= 20)

    assert receiver.runs == [f"r{n}" for n in range(20)]


def test_a_hook_that_fails_is_told_again(store: RunStore, receiver: Receiver, tell: Callable[..., Notifier]) -> None:
    """Nothing is lost while it is down, and the order stays; another hook does not wait for it."""
    other = receiver.hook(name="other", events=("finished",))
    tell(receiver.hook(), other)
    receiver.answers += [503, 500, 429]
    for n in range(3):
        fail(store, f"r{n}")

    wait_until(lambda: len(receiver.got) == 3)

    assert receiver.runs == ["r0", "r1", "r2"]


def test_a_message_refused_for_good_is_given_up(
    store: RunStore, receiver: Receiver, tell: Callable[..., Notifier]
) -> None:
    """A hook that does not understand one message hears the next."""
    tell(receiver.hook())
    receiver.answers += [400]
    fail(store, "refused")
    fail(store, "next")

    wait_until(lambda: receiver.got)

    assert receiver.runs == ["next"]


def test_a_restart_loses_nothing(store: RunStore, receiver: Receiver, tell: Callable[..., Notifier]) -> None:
    """What ends while no server runs is told by the next one."""
    end(tell(receiver.hook()))
    fail(store, "meanwhile")

    tell(receiver.hook())
    wait_until(lambda: receiver.got)

    assert receiver.runs == ["meanwhile"]


def test_a_queue_without_an_agent_is_told_once_each_time(
    store: RunStore, receiver: Receiver, tell: Callable[..., Notifier]
) -> None:
    """Once when it has lasted, not again while it lasts, and again when it comes back; a paused queue is left alone."""
    store.create_queue(QueueSpec(name="paused", resource="process"))
    store.set_paused("paused", True)
    job = Job(source=CommandSource(), entrypoint=("true",))
    for queue in ("q", "paused"):
        store.enqueue(LaunchSpec(run_id=f"waits-{queue}", queue=queue, resource="process", job=job))
    tell(receiver.hook(), no_agent_after_s=0.2)
    wait_until(lambda: receiver.got)
    fail_after = len(receiver.got)

    store.heartbeat("a-1", serving("q"), gap_s=6)
    progress = "launch:notified:h"
    wait_until(lambda: json.loads(store.redis.get(progress))["lonely"] == [], what="an agent being seen")
    store.forget_agent("a-1")
    wait_until(lambda: len(receiver.got) > fail_after)

    assert [(said["event"], said["queue"], said["waiting"]) for said in receiver.got] == [("no_agent", "q", 1)] * 2


def serving(queue: str) -> dict[str, Any]:
    return {
        **{"name": "a", "host": "h", "pid": 1, "version": "0", "queues": [queue], "localities": [], "runs": []},
        **{"max_jobs": 1, "state": "serving", "problems": [], "started_at": 0.0},
    }
