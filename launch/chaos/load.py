"""The load: runs enqueued all along, singly, in bursts and by plain Celery, each until it is acknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from launch.broker import TASK_NAME, celery_queue, make_app
from launch.chaos.ledger import JOB_SCRIPT
from launch.chaos.world import QueuePlan, World
from launch.errors import TemporaryError
from launch.request import Launch

_BACKLOG = 80
"""More waiting runs than this tell nothing new, and take the end longer to come."""
_RETRY_S = 0.2
_UNSEEN_S = 5.0


@dataclass(frozen=True)
class Wanted:
    """One run of the load."""

    run_id: str
    queue: str
    lines: int
    how: str
    """``one``, ``many`` or ``celery``."""


@dataclass
class Ledgers:
    """What the load knows of itself: the other side of the comparison."""

    acknowledged: dict[str, Wanted] = field(default_factory=dict)
    """``{run id: what was wanted}`` of those whose enqueueing was answered."""
    stopped: set[str] = field(default_factory=set)
    """Runs somebody asked to stop."""
    sent_again: int = 0
    """Messages of plain Celery that were sent once more."""


class Load:
    """Enqueues from a thread of its own until told to end.

    Args:
        world: where.
        pause_s: how long between two enqueueings, on average, in seconds a run.
    """

    def __init__(self, world: World, pause_s: float) -> None:
        self.known = Ledgers()
        self.problem: BaseException | None = None
        self._world = world
        self._pause_s = pause_s
        self._dice = random.Random(world.options.seed + 1)  # noqa: S311
        self._number = 0
        self._ended = threading.Event()
        self._celery = make_app(world.redis.url)
        self._unseen: dict[str, tuple[Launch, float]] = {}
        """What was sent by plain Celery and is on no record yet, and when it was sent last."""
        self._thread = threading.Thread(target=self._work, name="load", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Return when the enqueueing under way is acknowledged.

        Raises:
            Exception: what ended the load early.
        """
        self._ended.set()
        self._thread.join()
        if self.problem is not None:
            raise self.problem

    def close(self) -> None:
        """Let go of the broker."""
        self._celery.close()

    def unseen(self) -> list[str]:
        """Return what plain Celery has sent and no record shows yet, for people."""
        return [f"{run_id} was sent by plain Celery and is on no record" for run_id in self._unseen]

    def send_again(self) -> None:
        """Send what plain Celery may have lost once more, with the same id, as a careful client does.

        A worker that is killed in the moment between Redis handing it a message and kombu noting that takes the message
        with it. The same id twice is the same run.
        """
        for run_id, (launch, sent_at) in list(self._unseen.items()):
            if time.monotonic() - sent_at < _UNSEEN_S:
                continue
            with suppress(TemporaryError, OSError, RedisError, OperationalError):
                if self._world.store.records([run_id]):
                    del self._unseen[run_id]
                    continue
                self._send_task(launch)
                self._unseen[run_id] = (launch, time.monotonic())
                self.known.sent_again += 1

    def _work(self) -> None:
        try:
            while not self._ended.is_set():
                self.send_again()
                batch = self._next_batch()
                self._enqueue(batch)
                self._ended.wait(self._dice.expovariate(1 / self._pause_s) * len(batch))
                self._wait_for_room()
        except BaseException as exc:
            self.problem = exc

    def _next_batch(self) -> list[tuple[Wanted, Launch]]:
        how = self._dice.choices(("one", "many", "celery"), (5, 2, 3))[0]
        queue = self._dice.choice(self._world.queues)
        size = self._dice.randint(3, 10) if how == "many" else 1
        return [self._make(how, queue) for _ in range(size)]

    def _make(self, how: str, queue: QueuePlan) -> tuple[Wanted, Launch]:
        self._number += 1
        run_id = f"r{self._number:05d}"
        seconds = round(min(5.0, 0.1 + self._dice.expovariate(1 / 1.2)), 2)
        lines = self._dice.randint(1, 5)
        command = ["sh", "-c", JOB_SCRIPT, "sh", str(lines), f"{seconds / lines:.3f}"]
        launch: Launch = {"queue": queue.name, "command": command, "run_id": run_id, "tracking": "optional"}
        if queue.resource == "docker":
            launch["image"] = self._world.image
        if queue.priorities:
            launch["priority"] = self._dice.choice(("critical", "high", "medium", "medium", "low"))
        return Wanted(run_id, queue.name, lines, how), launch

    def _enqueue(self, batch: list[tuple[Wanted, Launch]]) -> None:
        launches = [launch for _, launch in batch]
        how = batch[0][0].how
        if how == "celery":
            self._insist(lambda: self._send_task(launches[0]))
            self._unseen[launches[0]["run_id"] or ""] = (launches[0], time.monotonic())
        elif how == "many":
            self._insist(lambda: self._world.client.enqueue_many(launches))
        else:
            self._insist(lambda: self._world.client.enqueue(**launches[0]))
        self.known.acknowledged.update({wanted.run_id: wanted for wanted, _ in batch})
        with (self._world.folder / "load.log").open("a") as log:
            log.writelines(f"{time.time():.3f} {wanted.run_id} {wanted.how} {wanted.queue}\n" for wanted, _ in batch)

    def _send_task(self, launch: Launch) -> None:
        spec: dict[str, Any] = {**launch}
        task_id, queue = spec.pop("run_id"), spec.pop("queue")
        self._celery.send_task(TASK_NAME, kwargs={"spec": spec}, queue=celery_queue(queue), task_id=task_id)

    def _insist(self, enqueue: Callable[[], object]) -> None:
        """Enqueue until it is acknowledged: the same run again is the same run."""
        while True:
            try:
                enqueue()
                return
            except (TemporaryError, OSError, RedisError, OperationalError):
                time.sleep(_RETRY_S)

    def _wait_for_room(self) -> None:
        names = [queue.name for queue in self._world.queues]
        while not self._ended.wait(_RETRY_S):
            try:
                counts = self._world.store.counts(names)
            except TemporaryError:
                continue
            if sum(count.waiting for count in counts.values()) < _BACKLOG:
                return
