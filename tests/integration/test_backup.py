"""Backup and restore as ``deploy/README.md`` says: runs and queues are there, beside the original or in its place."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.client import Client
from launch.models import RunState
from launch.settings import read_settings
from launch.store import RunStore
from launch.watch import Run
from tests.agents import a_fleet, wait_until
from tests.deployment import DEPLOY, a_redis, a_tracking_server, create_train_job, launch_command
from tests.services import free_port, need_program

pytest.importorskip("wandb", reason="needs the wandb SDK: pip install wandb")
pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]

REDIS = DEPLOY / "redis"
CONFIG = DEPLOY.parent / "config" / "redis.conf"


@dataclass
class Installation:
    """A Redis on data of its own, and a launch home."""

    store: RunStore
    port: int
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"LAUNCH_BROKER_URL": f"redis://127.0.0.1:{self.port}/0", "LAUNCH_HOME": str(self.home)}

    def client(self) -> Client:
        return Client(settings=read_settings(self.environment))

    def cli(self, *words: str) -> str:
        done = launch_command(*words, environment=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def an_installation(data: Path, home: Path) -> Iterator[Installation]:
    """Run a Redis with ``config/redis.conf`` on a data folder, which may hold what was restored."""
    data.mkdir(exist_ok=True)
    port = free_port()
    words = (need_program("redis-server"), CONFIG, "--dir", data, "--port", str(port), "--bind", "127.0.0.1")
    with a_redis(words, data / "log", f"redis://127.0.0.1:{port}/0") as store:
        yield Installation(store, port, home)


def back_up(original: Installation, folder: Path) -> None:
    folder.mkdir()
    (folder / "url").write_text(f"{original.environment['LAUNCH_BROKER_URL']}\n")
    subprocess.run([REDIS / "backup", folder / "url", folder / "redis.rdb"], check=True)
    shutil.copytree(original.home / "artifacts", folder / "artifacts")


def restore(backup: Path, data: Path) -> None:
    subprocess.run([REDIS / "restore", backup / "redis.rdb", data], check=True)


@dataclass
class AtWork:
    """What there was when the backup was made."""

    done: Run
    running: Run
    waiting: list[Run]
    until: Path


@contextmanager
def at_work(one: Installation, folder: Path) -> Iterator[AtWork]:
    """Let an installation have runs of all kinds, its agent and server alive during the block."""
    with ExitStack() as stack:
        client = stack.enter_context(one.client())
        url = stack.enter_context(a_tracking_server(one.store, folder / "server.log", one.environment))
        broker = one.environment["LAUNCH_BROKER_URL"]
        fleet = stack.enter_context(a_fleet(one.store, broker, one.home, folder))
        client.create_queue("q", resource="process", config={"env": ["A=1"]})
        client.create_queue("idle", resource="process", priorities=True)
        create_train_job(client, folder / "code")
        fleet.start("q", options=("--tracking-url", url))
        done = client.enqueue(job="train", queue="q").wait(timeout_s=90)
        assert done.state is RunState.FINISHED
        until = folder / "until"
        running = client.enqueue(job="train", queue="q", config={"until": str(until)})
        wait_until(lambda: len(running.history()) == 3, what="a run at work")
        waiting = [client.enqueue(command=["true"], queue="q", tracking="optional") for _ in range(3)]
        yield AtWork(done, running, waiting, until)


def facts(one: Installation, run_ids: list[str]) -> dict[str, object]:
    """Return what the command line says of runs and queues."""
    return {
        "runs": [(run["id"], run["state"], run["position"]) for run in json.loads(one.cli("runs", "--json"))],
        "queues": [(queue["name"], queue["waiting"]) for queue in json.loads(one.cli("queue", "list", "--json"))],
        "jobs": one.cli("job", "show", "train", "--json"),
        **{f"show {id}": json.loads(one.cli("show", id, "--json")) for id in run_ids},
        **{f"logs {id}": one.cli("logs", id) for id in run_ids},
    }


def test_all_is_there_on_another_machine_beside_the_original(tmp_path: Path) -> None:
    """Copied while live. What was at work has ended in the copy alone; what waited there runs there too."""
    with ExitStack() as stack:
        original = stack.enter_context(an_installation(tmp_path / "redis", tmp_path / "home"))
        work = stack.enter_context(at_work(original, tmp_path))
        back_up(original, tmp_path / "backup")
        before = facts(original, [work.done.id])

        restore(tmp_path / "backup", tmp_path / "redis2")
        shutil.copytree(tmp_path / "backup" / "artifacts", tmp_path / "home2" / "artifacts")
        copy = stack.enter_context(an_installation(tmp_path / "redis2", tmp_path / "home2"))
        assert facts(copy, [work.done.id]) == before
        assert copy.store.installation() == original.store.installation()

        separated = subprocess.run(
            ["redis-cli", "-p", str(copy.port), "--eval", REDIS / "separate.lua"], capture_output=True, text=True
        )
        assert separated.stdout.strip() == "1"
        assert copy.store.installation() != original.store.installation()
        fleet = stack.enter_context(
            a_fleet(copy.store, copy.environment["LAUNCH_BROKER_URL"], copy.home, tmp_path / "backup")
        )
        fleet.start("q", name="copy")
        client = stack.enter_context(copy.client())
        assert [client.run(run.id).wait(timeout_s=60).state for run in work.waiting] == ["finished"] * 3
        ended = client.run(work.running.id)
        assert (ended.state, ended.record.cause.kind) == (RunState.CRASHED, "host_lost")
        assert "goes on in the original" in copy.cli("explain", work.running.id)

        # The original has noticed nothing.
        assert work.running.refresh().state is RunState.RUNNING
        work.until.touch()
        assert [run.wait(timeout_s=60).state for run in (work.running, *work.waiting)] == ["finished"] * 4
        assert work.running.attempt == 1


def test_in_the_place_of_a_lost_redis_agents_follow_on(tmp_path: Path) -> None:
    """The same machine and home: what still runs is adopted, and what came after the backup is not known."""
    home = tmp_path / "home"
    with an_installation(tmp_path / "redis", home) as original, at_work(original, tmp_path) as work:
        back_up(original, tmp_path / "backup")
        running, until = work.running.id, work.until
        (home / "logs").mkdir(exist_ok=True)
    restore(tmp_path / "backup", tmp_path / "redis2")
    with ExitStack() as stack:
        again = stack.enter_context(an_installation(tmp_path / "redis2", home))
        url = stack.enter_context(a_tracking_server(again.store, tmp_path / "server.log", again.environment))
        client = stack.enter_context(again.client())
        broker = again.environment["LAUNCH_BROKER_URL"]
        fleet = stack.enter_context(a_fleet(again.store, broker, home, tmp_path / "backup"))
        fleet.start("q", options=("--tracking-url", url))
        run = client.run(running)
        until.touch()
        assert (run.wait(timeout_s=60).state, run.attempt) == (RunState.FINISHED, 1)
        assert len(run.history()) == 3
        assert [one.wait(timeout_s=60).state for one in client.runs(queue="q")] == ["finished"] * 5


@pytest.mark.parametrize("kind", ["no backup", "data there"])
def test_restore_overwrites_nothing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"REDIS0011" if kind == "data there" else b"something")
    if kind == "data there":
        (tmp_path / "data" / "appendonlydir").mkdir(parents=True)

    done = subprocess.run([REDIS / "restore", tmp_path / "file", tmp_path / "data"], capture_output=True, text=True)

    assert done.returncode == 2
    assert ("holds the data" if kind == "data there" else "should be a file") in done.stderr
    assert not list((tmp_path / "data").glob("appendonlydir/*"))
