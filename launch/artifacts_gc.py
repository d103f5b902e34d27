"""Which blobs nothing needs any more, and their removal.

Needed is whatever a record names: a version of a job, one that was deleted a moment ago, a run in Redis whatever its
state, an archived run. Any 64 hexadecimal digits count, so that a field of a later version is heeded too.

A writer puts a blob first and its record afterwards, so a young blob is never removed; one that is there already
becomes young when it is put again, and its age is looked at once more in the moment of its removal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from launch.archive import archived_references, digests_in
from launch.artifacts import ArtifactStore
from launch.artifacts.place import Stored
from launch.errors import ConfigError
from launch.scripted import P
from launch.store import RunStore

_PAGE = 500


@dataclass(frozen=True)
class Collected:
    """What a store held, and what of it was removed, or would have been."""

    blobs: int
    bytes: int
    removed: int
    removed_bytes: int
    young: int
    """Blobs that nothing needs, but too young to be sure."""
    leftovers: int
    """Unfinished uploads of writers that died, removed."""
    leftover_bytes: int
    is_dry_run: bool


def collect(store: RunStore, artifacts: ArtifactStore, *, older_than_s: float, is_dry_run: bool) -> Collected:
    """Remove blobs that nothing needs and that were last put longer ago than that.

    Args:
        store: the records.
        artifacts: where the blobs are.
        older_than_s: the time a writer is given from putting a blob to writing the record that needs it.
        is_dry_run: only say what would be removed.

    Raises:
        ConfigError: other installations keep blobs in the same place.
    """
    elsewhere = artifacts.place.collect(older_than_s, is_dry_run=is_dry_run)
    if elsewhere is not None:
        return Collected(**elsewhere)
    _check_owner(store, artifacts)
    before = time.time() - older_than_s
    blobs = list(artifacts.place.blobs())
    unneeded = _without(blobs, _references(store, artifacts, older_than_s))
    old = [blob for blob in unneeded if blob.modified_at < before]
    removed = old if is_dry_run else _remove(store, artifacts, old, before, older_than_s)
    leftovers = [left for left in artifacts.place.leftovers() if left.modified_at < before]
    if not is_dry_run:
        for left in leftovers:
            artifacts.place.remove_leftover(left.name)
    return Collected(
        blobs=len(blobs),
        bytes=sum(blob.size_bytes for blob in blobs),
        removed=len(removed),
        removed_bytes=sum(blob.size_bytes for blob in removed),
        young=len(unneeded) - len(old),
        leftovers=len(leftovers),
        leftover_bytes=sum(left.size_bytes for left in leftovers),
        is_dry_run=is_dry_run,
    )


def _check_owner(store: RunStore, artifacts: ArtifactStore) -> None:
    others = set(artifacts.place.marks()) - {store.installation()}
    if others:
        names = ", ".join(sorted(others))
        raise ConfigError(
            f"LAUNCH_ARTIFACTS: installation {names} keeps blobs in {artifacts.url} too, which this one, "
            f"{store.installation()}, would take for unneeded. Give each a store of its own; if {names} is no more, "
            f"delete its name below {artifacts.url}/installations"
        )


def _without(blobs: list[Stored], needed: set[str]) -> list[Stored]:
    return [blob for blob in blobs if blob.name not in needed]


def _remove(
    store: RunStore, artifacts: ArtifactStore, old: list[Stored], before: float, older_than_s: float
) -> list[Stored]:
    """Remove those that are still old and unneeded, and return them."""
    if not old:
        return []
    # The first look may have been long ago, with many blobs and records between it and this.
    unneeded = _without(old, _references(store, artifacts, older_than_s))
    return [blob for blob in unneeded if artifacts.place.remove(blob.name, before=before)]


def _references(store: RunStore, artifacts: ArtifactStore, older_than_s: float) -> set[str]:
    # Runs before the archive: one that moves there meanwhile is met in one of them.
    needed = {digest for text in _records(store, older_than_s) for digest in digests_in(text)}
    return needed.union(archived_references(store, artifacts))


def _records(store: RunStore, older_than_s: float) -> Iterator[str]:
    redis = store.redis
    for kind in ("job", "run"):
        keys: list[str] = []
        for key in redis.scan_iter(f"{P}{kind}:*", count=_PAGE, _type="hash"):
            keys.append(key)
            if len(keys) >= _PAGE:
                yield from _values(store, keys)
                keys.clear()
        yield from _values(store, keys)
    yield from redis.zrange(f"{P}deleted", store.now() - older_than_s, "+inf", byscore=True)


def _values(store: RunStore, keys: list[str]) -> Iterator[str]:
    with store.redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hvals(key)
        for values in pipe.execute():
            yield from values
