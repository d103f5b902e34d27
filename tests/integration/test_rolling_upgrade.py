"""Agents of two versions beside each other: what the later one wrote waits for it, and the earlier one says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.client import Client
from launch.models import SCHEMA_VERSION, RunState
from launch.store import RunStore
from launch.watch import Run
from tests.agents import QUICK, Fleet, wait_until
from tests.deployment import launch_command
from workers.config import ENV_BROKER, ENV_CONFIG, ENV_DRAIN, AgentConfig

pytestmark = [pytest.mark.redis, pytest.mark.timeout(150)]

NEXT_VERSION = f"""
import launch.models
launch.models.SCHEMA_VERSION = {SCHEMA_VERSION + 1}
from workers.child import main
main()
"""


@contextmanager
def a_newer_agent(fleet: Fleet, name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent of the next version of openlaunch that serves ``q``."""
    config = AgentConfig(name=name, queues=("q",), tracking_url="http://127.0.0.1:9")
    environment = {
        **os.environ,
        **QUICK,
        **fleet.environment,
        ENV_CONFIG: config.model_dump_json(),
        ENV_BROKER: fleet.environment["LAUNCH_BROKER_URL"],
        ENV_DRAIN: "",
    }
    words = [sys.executable, "-P", "-c", NEXT_VERSION]
    with (folder / f"{name}.log").open("ab") as log:
        # Its standard input is what keeps it alive.
        process = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdin
        process.stdin.close()


def enqueue(client: Client, queue: str, *command: str) -> Run:
    return client.enqueue(command=list(command), queue=queue, tracking="optional")


def enqueue_by_newer(client: Client, *command: str) -> Run:
    """Enqueue as the next version would: the same, marked as its own."""
    run = enqueue(client, "q", *command)
    key = f"launch:run:{run.id}"
    spec = {**json.loads(client.store.redis.hget(key, "spec")), "schema_version": SCHEMA_VERSION + 1}
    client.store.redis.hset(key, mapping={"spec": json.dumps(spec), "schema": SCHEMA_VERSION + 1})
    return run


def raw(store: RunStore, run: Run) -> dict[str, str]:
    return dict(store.redis.hgetall(f"launch:run:{run.id}"))


def logged(fleet: Fleet, words: str) -> list[str]:
    return [line for line in fleet.agents[0].log.read_text().splitlines() if words in line]


def test_a_newer_head_waits_for_a_newer_agent_and_the_older_one_says_so(
    client: Client, store: RunStore, fleet: Fleet, tmp_path: Path
) -> None:
    """Those behind it wait as well, in order; other queues go on."""
    store.set_paused("q", True)
    newer, behind = enqueue_by_newer(client, "true"), enqueue(client, "q", "true")
    store.set_paused("q", False)
    fleet.start("q", "r", max_jobs=2, name="old")

    assert enqueue(client, "r", "true").wait(timeout_s=40).state is RunState.FINISHED
    wait_until(lambda: logged(fleet, "written by a later version"), what="the agent's word on it")
    wait_until(lambda: client.agents()[0].outdated == ("q",), what="its next heartbeat")
    assert "update these: old on" in client.explain(behind.id).lines[0]
    listed = launch_command("agents", environment=fleet.environment)
    assert (listed.returncode, listed.stderr) == (0, "old: queue q: its next run needs a later openlaunch\n")
    shown = launch_command("show", newer.id, environment=fleet.environment)
    assert shown.returncode == 2
    assert "update openlaunch here" in shown.stderr
    assert raw(store, newer)["state"] == raw(store, behind)["state"] == "queued"
    assert store.messages("q") == (2, 2)

    with a_newer_agent(fleet, "new", tmp_path):
        wait_until(lambda: raw(store, newer)["state"] == "finished", what="the newer run's end")
        assert raw(store, newer)["worker"].startswith("new-")
        assert behind.wait(timeout_s=40).state is RunState.FINISHED
        wait_until(lambda: {agent.outdated for agent in client.agents()} == {()}, what="nobody is outdated any more")
    assert len(logged(fleet, "written by a later version")) == 1


def test_a_newer_orphan_is_left_to_a_newer_agent(client: Client, store: RunStore, fleet: Fleet, tmp_path: Path) -> None:
    """Its agent is killed: the older one beside it neither adopts the run nor touches its job."""
    until = tmp_path / "until"
    run = enqueue_by_newer(client, "sh", "-c", f"until [ -e {until} ]; do sleep 0.1; done; echo whole")
    with a_newer_agent(fleet, "new", tmp_path) as newer:
        wait_until(lambda: raw(store, run)["state"] == "running", what="the run at work")
        fleet.start("q", "r", name="old")
        newer.send_signal(signal.SIGKILL)
        newer.wait(20)
    before = raw(store, run)
    wait_until(lambda: logged(fleet, "not adopted"), what="the older agent's word on it")
    assert enqueue(client, "r", "true").wait(timeout_s=40).state is RunState.FINISHED
    assert raw(store, run) == before
    assert len(logged(fleet, "not adopted")) == 1

    with a_newer_agent(fleet, "newer", tmp_path):
        wait_until(lambda: raw(store, run)["agent"].startswith("newer-"), what="its adoption")
        until.touch()
        wait_until(lambda: raw(store, run)["state"] == "finished", what="its end")
    assert raw(store, run)["attempt"] == "1"
    assert [entry.text for entry in store.read_log(run.id) if entry.stream == "stdout"] == ["whole\n"]
