"""Deleting jobs. A run carries its job with it, so this takes nothing from those that were enqueued; see also
:mod:`launch.artifacts_gc` for what becomes of code that nothing needs any more.
"""

from __future__ import annotations

import json

from launch.checking import listed
from launch.errors import ConflictError
from launch.jobs import JobRegistry
from launch.scripted import P
from launch.store import RunStore

_SHOWN = 5


def delete_job(store: RunStore, registry: JobRegistry, ref: str, *, is_forced: bool = False) -> list[str]:
    """Delete a version of a job (``name:v3``, ``name:alias``) or all of it (``name``), and return what was deleted.

    Args:
        store: the runs.
        registry: the jobs.
        ref: which.
        is_forced: also when a run that has not ended is of it, or a version has another alias.

    Raises:
        NotFoundError: there is no such job or version.
        ConflictError: a run or an alias is in the way; nothing was deleted.
    """
    name, _, which = ref.partition(":")
    doomed = [registry.get(ref)] if which else registry.versions(name)
    refs = [version.ref for version in doomed]
    users = [] if is_forced else _users(store, set(refs))
    if users:
        raise ConflictError(
            f"job {ref}: runs that have not ended are of it: {listed(users, _SHOWN)}. Wait for them, stop them, or "
            "delete it with --force: they keep what they need"
        )
    spared = None if is_forced or not which else [which]
    registry.delete(name, [version.version for version in doomed], spared=spared)
    return refs


def _users(store: RunStore, refs: set[str]) -> list[str]:
    """Return the runs of these versions that have not ended."""
    found: list[str] = []
    for queue in store.queues():
        for kind in ("waiting", "held", "delayed", "active"):
            run_ids = store.ids(queue.name, kind)
            for start in range(0, len(run_ids), 1000):
                found += _those_of(store, run_ids[start : start + 1000], refs)
    return found


def _those_of(store: RunStore, run_ids: list[str], refs: set[str]) -> list[str]:
    with store.redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(f"{P}run:{run_id}", "spec")
        specs = pipe.execute()
    return [
        run_id
        for run_id, spec in zip(run_ids, specs, strict=True)
        if spec is not None and json.loads(spec).get("job_ref") in refs
    ]
