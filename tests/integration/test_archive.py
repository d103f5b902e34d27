"""Ended runs leave Redis after their time and are found as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.archive import archive_old_runs, read_archived
from launch.artifacts import ArtifactStore
from launch.errors import ConflictError, NotFoundError
from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, QueueSpec, RunState, Tracking
from launch.store import Claimed, RunStore

JOB = Job(source=CommandSource(), entrypoint=("true",), tracking=Tracking.OPTIONAL)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}")


def an_ended_run(store: RunStore, run_id: str) -> None:
    store.create_queue(QueueSpec(name="q", resource="process"))
    store.enqueue(LaunchSpec(run_id=run_id, queue="q", resource="process", job=JOB))
    claimed = store.claim("q", "a1")
    assert isinstance(claimed, Claimed)
    for step in range(3):
        store.redis.xadd(f"launch:run:{run_id}:history", {"r": f'{{"loss": {step}}}'})
    store.finish(run_id, claimed.fence, RunState.FINISHED, Cause(kind=CauseKind.EXIT_CODE, message="done"))


def test_a_run_past_retention_is_a_document_and_reads_as_before(store: RunStore, artifacts: ArtifactStore) -> None:
    an_ended_run(store, "old")
    record, events = store.record("old"), store.read_events("old")
    assert archive_old_runs(store, artifacts, "q", older_than_s=3600) == 0

    assert archive_old_runs(store, artifacts, "q", older_than_s=0) == 1

    assert store.runs() == []
    assert store.redis.keys("launch:run:*") == []
    archived = read_archived(store, artifacts, "old")
    assert archived.record == record
    assert list(archived.events) == events
    assert [row["loss"] for row in archived.history] == [0, 1, 2]


def test_a_live_run_is_never_archived(store: RunStore, artifacts: ArtifactStore) -> None:
    store.create_queue(QueueSpec(name="q", resource="process"))
    store.enqueue(LaunchSpec(run_id="live", queue="q", resource="process", job=JOB))
    assert archive_old_runs(store, artifacts, "q", older_than_s=0) == 0
    store.forget("live", "0" * 64)
    assert store.record("live").state is RunState.QUEUED


def test_an_archived_runs_id_stays_taken_and_an_unknown_one_is_said(store: RunStore, artifacts: ArtifactStore) -> None:
    an_ended_run(store, "old")
    archive_old_runs(store, artifacts, "q", older_than_s=0)
    with pytest.raises(ConflictError, match="'old' is taken"):
        store.enqueue(LaunchSpec(run_id="old", queue="q", resource="process", job=JOB))
    with pytest.raises(NotFoundError, match="no run 'never'"):
        read_archived(store, artifacts, "never")
