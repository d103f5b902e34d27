"""What the tests against real services share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from launch.store import RunStore


@pytest.fixture
def store(redis_url: str) -> Iterator[RunStore]:
    """An empty store in a real Redis."""
    store = RunStore.connect(redis_url)
    store.redis.flushall()
    yield store
    store.redis.close()
