"""What the first finished run of a job's version tells of it: the types of its inputs and outputs, and its schemas."""

from __future__ import annotations

import logging
from contextlib import suppress

from launch.artifacts import ArtifactStore
from launch.errors import NotFoundError
from launch.job_types import recorded
from launch.jobs import JobRegistry
from launch.models import LaunchSpec, RunRecord
from launch.store import RunStore
from launch.tracking import TrackingStore

log = logging.getLogger(__name__)


class FirstRuns:
    """Finds out which runs are the first of their job's version, and keeps what they tell."""

    def __init__(self, store: RunStore, artifacts: ArtifactStore) -> None:
        self._jobs = JobRegistry(store.redis, artifacts)
        self._tracking = TrackingStore(store.redis)

    def is_wanted(self, spec: LaunchSpec) -> bool:
        """Whether a run would tell of a registered version, run as it is, what none has told yet."""
        if spec.job_ref is None:
            return False
        with suppress(NotFoundError):  # deleted while the run waited
            version = self._jobs.get(spec.job_ref)
            return version.types is None and version.job.entrypoint == spec.job.entrypoint
        return False

    def keep(self, record: RunRecord) -> None:
        """Keep what a finished run tells, if it is wanted; may be repeated."""
        if record.spec.job_ref is None or not record.tracked or not self.is_wanted(record.spec):
            return
        declared = self._tracking.declared(record.id)
        try:
            types = recorded(record, declared)
        except Exception:  # what a script has sent must not cost its run the result
            log.exception("run %s: what it tells of its job cannot be read", record.id)
        else:
            self._jobs.fill_in_types(record.spec.job_ref, types)
