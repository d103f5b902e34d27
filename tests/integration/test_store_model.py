"""The store against a model of it in plain Python, over random histories of producers, agents and stops."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from launch.errors import ConflictError, LostClaimError
from launch.models import (
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
    RunRecord,
    RunState,
    Tracking,
)
from launch.store import Blocked, Claimed, RunStore

JOB = Job(source=CommandSource(), entrypoint=("true",), tracking=Tracking.OPTIONAL)
DONE = Cause(kind=CauseKind.EXIT_CODE, message="done")


@dataclass
class ModelRun:
    place: tuple[int, int]
    state: str = "queued"
    attempt: int = 0
    fence: Fence | None = None
    stop: bool = False


@dataclass
class ModelQueue:
    runs: dict[str, ModelRun] = field(default_factory=dict)
    paused: bool = False

    def waiting(self) -> list[str]:
        return sorted(
            (id for id, run in self.runs.items() if run.state == "queued"), key=lambda id: self.runs[id].place
        )

    def claimed(self) -> list[str]:
        return [id for id, run in self.runs.items() if run.state == "claimed"]


class StoreAgainstModel(RuleBasedStateMachine):
    """Claims, current and superseded ones alike, stay in a bundle: a late agent may use an old one at any time."""

    store: RunStore
    claims = Bundle("claims")

    @initialize()
    def start(self) -> None:
        self.store.redis.flushall()
        self.store.create_queue(QueueSpec(name="q", resource="process", priorities=True, max_concurrent=3))
        self.model = ModelQueue()
        self.seq = 0
        self.released: list[Fence] = []

    @rule(priority=st.sampled_from(Priority), again=st.booleans())
    def enqueue(self, priority: Priority, again: bool) -> None:
        run_id = f"run-{self.seq}"
        self.seq += 1
        spec = LaunchSpec(run_id=run_id, queue="q", resource="process", job=JOB, priority=priority)
        self.store.enqueue_many([spec, spec] if again else [spec])
        self.model.runs[run_id] = ModelRun((int(priority), self.seq))
        self._read_places()

    @rule(target=claims, agent=st.sampled_from(["a1", "a2"]))
    def claim(self, agent: str) -> object:
        answer = self.store.claim("q", agent)
        waiting = self.model.waiting()
        if self.model.paused or len(self.model.claimed()) >= 3:
            assert isinstance(answer, Blocked)
            return multiple()
        if not waiting:
            assert answer is None
            return multiple()
        assert isinstance(answer, Claimed)
        assert answer.record.id == waiting[0]
        run = self.model.runs[answer.record.id]
        run.state, run.attempt, run.fence = "claimed", run.attempt + 1, answer.fence
        assert answer.record.attempt == run.attempt
        return (answer.record, answer.fence)

    @rule(target=claims, claim=claims)
    def let_go_and_be_adopted(self, claim: tuple[RunRecord, Fence]) -> object:
        record, fence = claim
        if fence in self.released:
            # Said again: an answer that was lost. Whether it is still remembered or not, nothing happens.
            with suppress(LostClaimError):
                self.store.release(record.id, fence)
            return multiple()
        if not self._is_current(record.id, fence):
            with pytest.raises(LostClaimError):
                self.store.release(record.id, fence)
            return multiple()
        self.store.release(record.id, fence)
        self.released.append(fence)
        adopted = self.store.adopt(self.store.record(record.id), "a3", locality="x", dead_after_s=10)
        assert adopted is not None
        self.model.runs[record.id].fence = adopted.fence
        return (adopted.record, adopted.fence)

    @rule(claim=consumes(claims))
    def unclaim(self, claim: tuple[RunRecord, Fence]) -> None:
        record, fence = claim
        if not self._is_current(record.id, fence):
            with pytest.raises(LostClaimError):
                self.store.unclaim(record, fence, note="back")
            return
        self.store.unclaim(record, fence, note="back")
        run = self.model.runs[record.id]
        run.attempt -= 1
        run.state, run.fence = ("stopped" if run.stop else "queued"), None

    @rule(claim=consumes(claims), pause_s=st.sampled_from([0.0, 3600.0]))
    def retry(self, claim: tuple[RunRecord, Fence], pause_s: float) -> None:
        record, fence = claim
        paused = record.spec.model_copy(update={"retry": RetryPolicy(backoff_s=pause_s, max_backoff_s=3600)})
        record = self.store.record(record.id).model_copy(update={"spec": paused})
        if not self._is_current(record.id, fence):
            with pytest.raises(LostClaimError):
                self.store.retry(record, fence, DONE, log_archive=None, rule=RetryRule(times=9))
            return
        self.store.retry(record, fence, DONE, log_archive=None, rule=RetryRule(times=9))
        run = self.model.runs[record.id]
        run.state, run.fence = ("stopped" if run.stop else "delayed" if pause_s else "queued"), None
        assert len(self.store.record(record.id).attempts) == len(record.attempts) + 1

    @rule()
    def pauses_end(self) -> None:
        for run_id, run in self.model.runs.items():
            if run.state == "delayed":
                self.store.redis.zadd("launch:queue:q:delayed", {run_id: 1})
                run.state = "queued"
        self.store.promote("q")

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        run_id, run = self._any(data)
        if run is None:
            return
        if run.state in ("queued", "delayed", "held"):
            self.store.hold(run_id, by="ann")
            run.state = "held"
        else:
            with pytest.raises(ConflictError):
                self.store.hold(run_id, by="ann")

    @rule(data=st.data())
    def let_go_on(self, data: st.DataObject) -> None:
        run_id, run = self._any(data)
        if run is None:
            return
        if run.state == "held":
            self.store.let_go_on(run_id)
            run.state = "queued"
        else:
            with pytest.raises(ConflictError):
                self.store.let_go_on(run_id)

    @rule(data=st.data(), to_front=st.booleans())
    def move(self, data: st.DataObject, to_front: bool) -> None:
        run_id, run = self._any(data)
        other_id, other = self._any(data)
        if run is None or other is None:
            return
        order = self.model.waiting()
        same_class = [id for id in order if self.model.runs[id].place[0] == run.place[0]]
        if run.state != "queued" or (not to_front and other_id not in same_class):
            with pytest.raises(ConflictError):
                self.store.move(run_id, before=None if to_front else other_id)
            return
        target = same_class[0] if to_front else other_id
        self.store.move(run_id, before=None if to_front else other_id)
        if target != run_id:
            order.remove(run_id)
            order.insert(order.index(target), run_id)
        assert self.store.redis.zrange("launch:queue:q:waiting", 0, -1) == order
        self._read_places()

    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def change_priority(self, data: st.DataObject, priority: Priority) -> None:
        run_id, run = self._any(data)
        if run is None:
            return
        spec = self.store.record(run_id).spec
        after = spec.model_copy(update={"priority": priority})
        if run.state in ("queued", "held", "delayed"):
            self.store.edit(spec, after)
            assert self.store.record(run_id).spec.priority is priority
            self._read_places()
        else:
            with pytest.raises(ConflictError):
                self.store.edit(spec, after)

    def _any(self, data: st.DataObject) -> tuple[str, ModelRun | None]:
        if not self.model.runs:
            return "", None
        run_id = data.draw(st.sampled_from(sorted(self.model.runs)))
        return run_id, self.model.runs[run_id]

    def _read_places(self) -> None:
        for run_id, run in self.model.runs.items():
            score = int(self.store.redis.hget(f"launch:run:{run_id}", "score"))
            run.place = divmod(score, 1 << 50)

    @rule(claim=claims, repeat=st.booleans())
    def finish(self, claim: tuple[RunRecord, Fence], repeat: bool) -> None:
        record, fence = claim
        run = self.model.runs[record.id]
        if run.fence != fence:
            with pytest.raises(LostClaimError):
                self.store.finish(record.id, fence, RunState.FINISHED, DONE)
            return
        for _ in range(2 if repeat else 1):
            self.store.finish(record.id, fence, RunState.FINISHED, DONE)
        run.state = "finished"

    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        if not self.model.runs:
            return
        run_id = data.draw(st.sampled_from(sorted(self.model.runs)))
        run = self.model.runs[run_id]
        self.store.request_stop(run_id, by="ann", grace_s=1)
        if run.state in ("queued", "held", "delayed"):
            run.state = "stopped"
        elif run.state == "claimed":
            run.stop = True

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.store.set_paused("q", paused)
        self.model.paused = paused

    @rule()
    def ring(self) -> None:
        self.store.ring_missing("q")

    def _is_current(self, run_id: str, fence: Fence) -> bool:
        run = self.model.runs[run_id]
        return run.state == "claimed" and run.fence == fence

    @invariant()
    def records_and_sets_agree(self) -> None:
        waiting = self.model.waiting()
        assert self.store.redis.zrange("launch:queue:q:waiting", 0, -1) == waiting
        assert set(self.store.owners("q")) == set(self.model.claimed())
        for record in self.store.records(list(self.model.runs)):
            run = self.model.runs[record.id]
            assert record.attempt == run.attempt
            states = {"held": "queued", "delayed": "queued"}
            assert states.get(run.state, run.state) == ("claimed" if record.state.is_claimed else record.state)
        for kind in ("held", "delayed"):
            inside = set(self.store.redis.zrange(f"launch:queue:q:{kind}", 0, -1))
            assert inside == {id for id, run in self.model.runs.items() if run.state == kind}


def test_the_store_does_what_its_model_does(store: RunStore) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("Machine", (StoreAgainstModel,), {"store": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
