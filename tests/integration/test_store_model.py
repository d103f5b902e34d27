"""The store against a model of it in plain Python, over random histories of producers, agents and stops."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from launch.errors import LostClaimError
from launch.models import (
    Cause,
    CauseKind,
    CommandSource,
    Fence,
    Job,
    LaunchSpec,
    Priority,
    QueueSpec,
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

    @rule(priority=st.sampled_from(Priority), again=st.booleans())
    def enqueue(self, priority: Priority, again: bool) -> None:
        run_id = f"run-{self.seq}"
        self.seq += 1
        spec = LaunchSpec(run_id=run_id, queue="q", resource="process", job=JOB, priority=priority)
        self.store.enqueue_many([spec, spec] if again else [spec])
        self.model.runs[run_id] = ModelRun((int(priority), self.seq))

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
        if not self._is_current(record.id, fence):
            with pytest.raises(LostClaimError):
                self.store.release(record.id, fence)
            return multiple()
        self.store.release(record.id, fence)
        adopted = self.store.adopt(self.store.record(record.id), "a3", locality="x", dead_after_s=10)
        assert adopted is not None
        self.model.runs[record.id].fence = adopted.fence
        return (adopted.record, adopted.fence)

    @rule(claim=consumes(claims), counts=st.booleans())
    def unclaim(self, claim: tuple[RunRecord, Fence], counts: bool) -> None:
        record, fence = claim
        if not self._is_current(record.id, fence):
            with pytest.raises(LostClaimError):
                self.store.unclaim(record, fence, note="back", counts=counts)
            return
        self.store.unclaim(record, fence, note="back", counts=counts)
        run = self.model.runs[record.id]
        run.attempt -= 0 if counts else 1
        run.state, run.fence = ("stopped" if run.stop else "queued"), None

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
        if run.state == "queued":
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
            assert run.state == ("claimed" if record.state.is_claimed else record.state)


def test_the_store_does_what_its_model_does(store: RunStore) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("Machine", (StoreAgainstModel,), {"store": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
