"""Ended runs after their time in Redis: one JSON document each in the artifact store, found by the run's id."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launch.artifacts import DIGEST_PATTERN, ArtifactStore
from launch.errors import NotFoundError, PermanentError
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
        document, needed = _document(store, run_id)
        store.forget(run_id, artifacts.put_bytes(document), needed)
    return len(old)


def read_archived(store: RunStore, artifacts: ArtifactStore, run_id: str) -> ArchivedRun:
    """Return a run that has left Redis.

    Raises:
        NotFoundError: there never was such a run.
    """
    kept = store.redis.hget(f"{P}archive", run_id)
    if kept is None:
        raise NotFoundError(f"no run {run_id!r}; `launch runs` lists them")
    held = json.loads(artifacts.get_bytes(kept.split()[0]))
    events = tuple(RunEvent(**event) for event in held["events"])
    return ArchivedRun(run_from_hash(held["record"]), tuple(held["history"]), events)


def archived_references(store: RunStore, artifacts: ArtifactStore) -> Iterator[str]:
    """Yield the digests of all documents, and of the blobs that what they hold needs: code, requirements, logs."""
    for _, kept in store.redis.hscan_iter(f"{P}archive", count=_PAGE):
        document, *needed = kept.split()
        yield document
        # One that was written before the digests stood beside it has to be read; if it is lost, nothing leads to them.
        yield from needed or _read_references(artifacts, document)


def _read_references(artifacts: ArtifactStore, digest: str) -> list[str]:
    try:
        return digests_in(json.dumps(json.loads(artifacts.get_bytes(digest))["record"]))
    except PermanentError:
        return []


def digests_in(text: str) -> list[str]:
    """Return whatever may be a blob's digest in a record, so that a field that is added to it is heeded too."""
    return list(dict.fromkeys(re.findall(rf"(?<![0-9a-f]){DIGEST_PATTERN}(?![0-9a-f])", text)))


def _document(store: RunStore, run_id: str) -> tuple[bytes, list[str]]:
    """Return a run as its document, and the blobs it needs."""
    history: list[dict[str, Any]] = []
    after = "0"
    while page := store.read_history(run_id, after, _PAGE):
        history += [row for _, row in page]
        after = page[-1][0]
    record = store.redis.hgetall(f"{P}run:{run_id}")
    document = {
        "record": record,
        "history": history,
        "events": [vars(event) for event in store.read_events(run_id)],
    }
    return json.dumps(document, sort_keys=True).encode(), digests_in(json.dumps(record))
