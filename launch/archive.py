"""Ended runs after their time in Redis: one JSON document each in the artifact store, found by the run's id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from launch.artifacts import ArtifactStore
from launch.errors import NotFoundError
from launch.models import RunRecord
from launch.records import RunEvent, run_from_hash
from launch.scripted import P
from launch.store import RunStore

_PAGE = 1000


@dataclass(frozen=True)
class ArchivedRun:
    """A run as it was when it left Redis. Its log is in the artifact store as before: ``record.log_archive``."""

    record: RunRecord
    history: tuple[dict[str, Any], ...]
    events: tuple[RunEvent, ...]


def archive_old_runs(store: RunStore, artifacts: ArtifactStore, queue: str, *, older_than_s: float) -> int:
    """Move a queue's runs that ended longer ago than that to the artifact store, a page at a time; returns how many.

    Dying between the two steps leaves a document that nothing points to; the next call writes the same one again.
    """
    ended_before = store.now() - older_than_s
    old = store.redis.zrange(f"{P}queue:{queue}:finished", "-inf", ended_before, byscore=True, offset=0, num=100)
    for run_id in old:
        store.forget(run_id, artifacts.put_bytes(_document(store, run_id)))
    return len(old)


def read_archived(store: RunStore, artifacts: ArtifactStore, run_id: str) -> ArchivedRun:
    """Return a run that has left Redis.

    Raises:
        NotFoundError: there never was such a run.
    """
    digest = store.redis.hget(f"{P}archive", run_id)
    if digest is None:
        raise NotFoundError(f"no run {run_id!r}; `launch runs` lists them")
    held = json.loads(artifacts.get_bytes(digest))
    events = tuple(RunEvent(**event) for event in held["events"])
    return ArchivedRun(run_from_hash(held["record"]), tuple(held["history"]), events)


def _document(store: RunStore, run_id: str) -> bytes:
    history: list[dict[str, Any]] = []
    after = "0"
    while page := store.read_history(run_id, after, _PAGE):
        history += [row for _, row in page]
        after = page[-1][0]
    document = {
        "record": store.redis.hgetall(f"{P}run:{run_id}"),
        "history": history,
        "events": [vars(event) for event in store.read_events(run_id)],
    }
    return json.dumps(document, sort_keys=True).encode()
