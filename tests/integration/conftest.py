"""What the tests against real services share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.client import Client
from launch.settings import read_settings
from launch.store import RunStore
from tests.agents import Fleet, a_fleet


@pytest.fixture
def store(redis_url: str) -> Iterator[RunStore]:
    """An empty store in a real Redis."""
    store = RunStore.connect(redis_url)
    store.redis.flushall()
    yield store
    store.redis.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launch home for all tests of a module."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def fleet(store: RunStore, redis_url: str, home: Path, tmp_path: Path) -> Iterator[Fleet]:
    """Real agents, ended with the test."""
    with a_fleet(store, redis_url, home, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def client(store: RunStore, redis_url: str, home: Path) -> Iterator[Client]:
    """A client of that Redis and home, with two queues of resource ``process``."""
    with Client(settings=read_settings({"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(home)})) as client:
        for name in ("q", "r"):
            client.create_queue(name, resource="process")
        yield client
