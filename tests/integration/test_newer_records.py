"""Runs that a later version of openlaunch wrote, as this one meets them: refused, never mangled, in nobody's way."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from launch.client import Client
from launch.errors import NewerVersionError
from launch.models import SCHEMA_VERSION, RunState
from launch.run_reader import _warn_once
from launch.store import Blocked, RunStore
from launch.watch import Run
from tests.agents import Fleet, wait_until
from tests.integration.test_execute import Bench

pytestmark = pytest.mark.redis


def age_backwards(store: RunStore, run_id: str, **fields: str) -> dict[str, str]:
    """Let a run be one that a later version wrote; returns its record as it stands then."""
    key = f"launch:run:{run_id}"
    spec = json.loads(store.redis.hget(key, "spec"))
    spec |= {"schema_version": SCHEMA_VERSION + 1, "topology": {"nodes": 2}}
    store.redis.hset(key, mapping={"spec": json.dumps(spec), "schema": SCHEMA_VERSION + 1, "topology": "2", **fields})
    return dict(store.redis.hgetall(key))


def enqueue(client: Client, run_id: str) -> Run:
    return client.enqueue(queue="q", command=["true"], tracking="optional", run_id=run_id)


@pytest.fixture(autouse=True)
def warnings_anew() -> None:
    _warn_once.cache_clear()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda client: client.run("new"),
        lambda client: client.stop("new"),
        lambda client: client.hold("new"),
        lambda client: client.release("new"),
        lambda client: client.move("new"),
        lambda client: client.move("old", before="new"),
        lambda client: client.edit("new", config={"a": 1}),
        lambda client: client.rerun("new"),
        lambda client: client.explain("new"),
    ],
    ids=["show", "stop", "hold", "release", "move", "move before", "edit", "rerun", "explain"],
)
def test_whoever_names_one_is_told_to_update_and_nothing_is_touched(
    client: Client, attempt: Callable[[Client], Any]
) -> None:
    for run_id in ("new", "old"):
        enqueue(client, run_id)
    before = age_backwards(client.store, "new")
    places = client.store.redis.zrange("launch:queue:q:waiting", 0, -1, withscores=True)

    with pytest.raises(NewerVersionError, match=r"run new was written by a later version .* update openlaunch here"):
        attempt(client)

    assert client.store.redis.hgetall("launch:run:new") == before
    assert client.store.redis.zrange("launch:queue:q:waiting", 0, -1, withscores=True) == places


def test_lists_and_what_concerns_many_leave_it_out_and_say_so_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for run_id in ("a", "new", "b"):
        enqueue(client, run_id)
    before = age_backwards(client.store, "new")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [run.id for run in client.runs()] == ["b", "a"]
        client.explain("b")
        assert {run.id for run in client.stop_all("q")} == {"a", "b"}
    assert [record.message for record in caplog.records if "run new" in record.message] == [
        f"run new was written by a later version of openlaunch (form {SCHEMA_VERSION + 1}, and this one knows "
        f"{SCHEMA_VERSION}): update openlaunch here; nothing of the run was touched"
    ]
    assert client.store.redis.hgetall("launch:run:new") == before
    assert client.store.counts(["q"])["q"].waiting == 1


def test_one_at_the_head_waits_for_an_agent_that_knows_it_with_its_message(client: Client, store: RunStore) -> None:
    """Its missing message is added, byte for byte with the launch as it is on record."""
    enqueue(client, "new")
    age_backwards(store, "new")
    store.redis.delete("launch.q")

    assert store.ring_missing("q") == 1

    assert store.messages("q") == (1, 1)
    assert store.claim("q", "a1") == Blocked("newer")
    assert store.position("new") == 1


def test_an_orphan_among_them_keeps_no_other_orphan_from_being_adopted(store: RunStore, tmp_path: Any) -> None:
    """Nor is its job touched at the target, whether it runs or has ended."""
    bench = Bench(store, tmp_path)
    gone = bench.agent()
    gone.slots.max_jobs = 2
    first, second = bench.enqueue(), bench.enqueue()
    for run_id in (first, second):
        bench.ring(gone)
        bench.runner.wait_until_submitted(run_id)
        wait_until(lambda run_id=run_id: store.record(run_id).state is RunState.RUNNING)
    gone.detach()
    before = age_backwards(store, first)
    bench.runner.end(first)

    heir = bench.supervise(bench.agent())
    wait_until(lambda: store.record(second).agent == heir.id, what="the other orphan's adoption")
    bench._supervisors[0].sweep()
    bench.runner.end(second)

    assert bench.final(second).attempt == 1
    assert store.redis.hgetall(f"launch:run:{first}") == before
    assert [attempt.run_id for attempt in bench.target.attempts.values()] == [first]
    bench.close()


def test_a_real_agent_serves_the_other_queues_beside_it(client: Client, fleet: Fleet) -> None:
    enqueue(client, "new")
    before = age_backwards(client.store, "new")
    other = client.enqueue(queue="r", command=["true"], tracking="optional")
    fleet.start("q", "r")

    assert other.wait(timeout_s=30).state is RunState.FINISHED
    assert client.store.redis.hgetall("launch:run:new") == before
    assert client.store.position("new") == 1
