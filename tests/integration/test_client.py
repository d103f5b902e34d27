"""The SDK and the command line against a real Redis, with the store's own calls in the agent's place."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from services import RedisServer, is_alive, wait_until

from launch.cli import cli
from launch.client import Client
from launch.errors import ConfigError, ConflictError, NotFoundError, RequestError, TemporaryError
from launch.models import Cause, CauseKind, RunState
from launch.settings import Settings
from launch.settings import settings as process_settings
from launch.store import Claimed, RunStore
from launch.tracking import TrackingStore
from launch.watch import Metrics

pytestmark = pytest.mark.redis


@pytest.fixture
def client(redis_url: str, tmp_path: Path) -> Iterator[Client]:
    """A client with one ``process`` queue, ``q``."""
    with Client(redis_url, Settings(home=tmp_path / "home")) as client:
        client.create_queue("q", resource="process", config={"env": {"A": "1"}})
        yield client


@pytest.fixture
def launch_cli(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """``launch WORDS…`` in this process, with the same Redis and home as ``client``."""
    monkeypatch.setenv("LAUNCH_BROKER_URL", redis_url)
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    process_settings.cache_clear()
    yield lambda *words: CliRunner().invoke(cli, words)
    process_settings.cache_clear()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def a_command(**fields: Any) -> dict[str, Any]:
    return {"command": ["true"], "queue": "q", **fields}


class Played:
    """An agent's part, played with the store's calls: one claimed run."""

    def __init__(self, store: RunStore, queue: str = "q") -> None:
        claimed = store.claim(queue, "agent-1")
        assert isinstance(claimed, Claimed)
        self.store, self.id, self.fence = store, claimed.record.id, claimed.fence
        self.bytes = 0

    def start(self) -> None:
        self.store.advance(self.id, self.fence, RunState.STARTING)
        self.store.advance(self.id, self.fence, RunState.RUNNING)

    def write(self, text: str, stream: str = "stdout", cap: int = 1_000_000) -> None:
        after = self.bytes + len(text)
        self.store.append_log(
            self.id,
            self.fence,
            [(stream, text)],
            cursor=None,
            bytes_before=self.bytes,
            bytes_after=after,
            cap_chars=cap,
        )
        self.bytes = after

    def end(self, state: RunState = RunState.FINISHED, *, log_archive: str | None = None) -> None:
        cause = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 0.", exit_code=0)
        self.store.finish(self.id, self.fence, state, cause, log_archive=log_archive)


# --- enqueue ---------------------------------------------------------------------------------------------------------


def test_a_run_is_recorded_as_it_was_asked_for(client: Client) -> None:
    run = client.enqueue(**a_command(config={"epochs": 3}, name="first", project="p", run_id="r-1"))
    found = client.run("r-1")
    assert (found.id, found.state, found.config, found.spec) == ("r-1", RunState.QUEUED, {"epochs": 3}, run.spec)
    assert (found.spec.name, found.spec.project, found.spec.resource_config) == ("first", "p", {"env": {"A": "1"}})
    assert (found.attempt, found.agent, found.cause, found.summary) == (0, None, None, {})


def test_the_same_again_is_the_same_run_and_another_is_a_conflict(client: Client) -> None:
    launch = a_command(run_id="r", config={"a": 1})
    assert client.enqueue(**launch).id == client.enqueue(**launch).id
    assert len(client.runs()) == 1
    with pytest.raises(ConflictError, match="'r' is taken by another launch"):
        client.enqueue(**{**launch, "config": {"a": 2}})


@pytest.mark.parametrize(
    "wrong",
    [{"queue": "nope"}, {"run_id": "Bad"}, {"priority": "high"}, {"config": {"x": float("nan")}}, {"image": "a b"},
     {"resource_args": {"wrokdir": "x"}}, {"command": None, "job": "nope"}, {"config": {"x": "y" * (1 << 20)}},
     {"command": None, "path": "/nonexistent"}],
)  # fmt: skip
def test_a_wrong_request_writes_nothing(client: Client, wrong: dict[str, Any]) -> None:
    def keys() -> set[str]:
        return set(client.store.redis.keys())

    before = keys()
    with pytest.raises(RequestError):
        client.enqueue(**a_command(**wrong))
    with pytest.raises(RequestError):
        client.enqueue_many([a_command(), a_command(**wrong)])
    assert keys() == before
    assert not (client.settings.home / "artifacts").exists()


def test_many_keep_their_order(client: Client) -> None:
    runs = client.enqueue_many([a_command(run_id=f"r{n}", config={"n": n}) for n in range(700)])
    assert [run.id for run in runs] == [f"r{n}" for n in range(700)]
    assert [client.store.position(f"r{n}") for n in (0, 350, 699)] == [1, 351, 700]


def test_code_is_kept_with_the_run(client: Client, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print(1)\n")
    run = client.enqueue(queue="q", path=tmp_path / "code", entrypoint="python train.py")
    assert client.artifacts.has(run.spec.job.source.archive)  # type: ignore[union-attr]
    assert run.spec.command == ("python", "train.py")


def test_jobs_are_versions(client: Client, tmp_path: Path) -> None:
    notes: list[str] = []
    client.note = notes.append
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("import wandb\n")
    first = client.create_job("digits", path=tmp_path / "code", entrypoint="python train.py", tracking="optional")
    again = client.create_job("digits", path=tmp_path / "code", entrypoint="python train.py", tracking="optional")
    image = client.create_job("img", image="python:3.11", aliases=["best"])
    assert (first.ref, again.ref, notes[-1]) == ("digits:v0", "digits:v0", "nothing has changed: this is digits:v0")
    assert [job.ref for job in client.jobs()] == ["digits:v0", "img:v0"]
    client.create_queue("box", resource="docker")
    assert client.enqueue(job="img:best", queue="box").spec.job == image.job
    with pytest.raises(ConfigError, match="give one of path and image"):
        client.create_job("both", path=tmp_path, image="x")


def test_runs_are_listed_by_queue_and_state(client: Client) -> None:
    client.create_queue("other", resource="process")
    client.enqueue_many([a_command(run_id=f"r{n}") for n in range(3)])
    client.enqueue(**a_command(queue="other", run_id="o"))
    client.stop("r1")
    assert [run.id for run in client.runs()] == ["o", "r2", "r1", "r0"]
    assert [run.id for run in client.runs(queue="q", state="queued")] == ["r2", "r0"]
    assert [run.id for run in client.runs(state=["stopped", RunState.FAILED])] == ["r1"]
    assert [run.id for run in client.runs(limit=1)] == ["o"]
    with pytest.raises(NotFoundError, match="no queue 'nope'"):
        client.runs(queue="nope")
    with pytest.raises(ConfigError, match="state: should be one of queued, "):
        client.runs(state="done")


# --- a run -----------------------------------------------------------------------------------------------------------


def test_waiting_ends_when_the_run_does(client: Client, pool: ThreadPoolExecutor) -> None:
    run = client.enqueue(**a_command())
    waiting = pool.submit(run.wait, 30)
    agent = Played(client.store)
    agent.start()
    assert not waiting.done()
    agent.end()
    ended = time.monotonic()
    assert waiting.result(30).state is RunState.FINISHED
    assert time.monotonic() - ended < 1
    assert run.wait(0).state.is_final


def test_waiting_gives_up_when_told_to(client: Client) -> None:
    run = client.enqueue(**a_command())
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"run {run.id} is still queued after 0\.2 s; it goes on"):
        run.wait(timeout_s=0.2)
    assert time.monotonic() - began < 2


def test_waiting_survives_a_restart_of_redis(
    client: Client, redis_server: RedisServer, pool: ThreadPoolExecutor
) -> None:
    run = client.enqueue(**a_command())
    waiting = pool.submit(run.wait, 60)
    redis_server.kill(signal.SIGTERM)
    redis_server.start()
    agent = Played(client.store)
    agent.end()
    assert waiting.result(60).state is RunState.FINISHED


def test_a_stopped_run_that_never_started_says_who_stopped_it(client: Client) -> None:
    run = client.enqueue(**a_command()).stop()
    assert run.wait(5).state is RunState.STOPPED
    assert run.cause is not None
    assert run.cause.message.endswith("before it started.")


def test_stopping_a_running_one_asks_its_agent(client: Client) -> None:
    run = client.enqueue(**a_command())
    agent = Played(client.store)
    agent.start()
    assert run.stop(grace_s=1.5).state is RunState.RUNNING
    assert client.store.stops([run.id]) == {run.id: 1.5}


def test_a_log_is_followed_line_by_line_to_its_end(client: Client, pool: ThreadPoolExecutor) -> None:
    run = client.enqueue(**a_command())
    assert list(run.logs()) == []
    lines: list[str] = []
    following = pool.submit(lambda: lines.extend(run.logs(follow=True)))
    agent = Played(client.store)
    agent.write("pulling\n", "build")
    agent.start()
    agent.write("10%\r")
    agent.write("100%\nhal")
    agent.write("err\n", "stderr")
    wait_until(lambda: not following.done() and list(run.logs())[:1] == ["pulling"], "the log is there")
    agent.write("f\nlast")
    agent.end()
    following.result(30)
    assert lines == ["pulling", "100%", "err", "half", "last"]
    assert list(run.logs()) == lines
    assert "".join(run.logs(raw=True)) == "pulling\n10%\r100%\nhalerr\nf\nlast"


def test_after_the_end_the_whole_log_is_read_however_long_it_was(client: Client) -> None:
    """Redis holds only the end of a long log; the artifact store has all of it."""
    run = client.enqueue(**a_command())
    agent = Played(client.store)
    texts = [f"line {n}\n" for n in range(100)]
    for text in texts:
        agent.write(text, cap=50)
    assert len(list(run.logs())) < 10
    archive = "".join(json.dumps({"s": "stdout", "t": text}) + "\n" for text in texts)
    agent.end(log_archive=client.artifacts.put_bytes(archive.encode()))
    assert list(run.logs()) == [f"line {n}" for n in range(100)]


def test_metrics_come_as_rows(client: Client) -> None:
    run = client.enqueue(**a_command())
    agent = Played(client.store)
    agent.start()
    tracking = TrackingStore(client.store.redis)
    tracking.start(run.id, 1, config={"epochs": 3, "lr": 0.1})
    tracking.add_history(run.id, 1, 0, [json.dumps({"_step": n, "loss": 1 / (n + 1)}) for n in range(3)])
    tracking.set_summary(run.id, 1, {"loss": 0.25})
    agent.end()
    assert [row["loss"] for row in run.history()] == [1.0, 0.5, 1 / 3]
    assert (run.summary["loss"], run.config) == (0.25, {"epochs": 3, "lr": 0.1})
    (metrics,) = [item for item in run.news() if isinstance(item, Metrics)]
    assert [row["_step"] for row in metrics.rows] == [0, 1, 2]


# --- Redis away ------------------------------------------------------------------------------------------------------


def test_redis_away_is_said_within_five_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        Client("redis://:secret@127.0.0.1:1/0", Settings(home=tmp_path)) as client,
        pytest.raises(TemporaryError, match=r"redis://:\*{8}@127\.0\.0\.1:1/0 is away"),
    ):
        client.enqueue(**a_command())
    assert time.monotonic() - began < 5


def test_an_embedded_broker_that_does_not_run_is_not_started(tmp_path: Path) -> None:
    client = Client(settings=Settings(home=tmp_path / "home"))
    with pytest.raises(TemporaryError, match=r"nothing runs in .*: start it with `launch up`"):
        client.queues()
    assert not (tmp_path / "home").exists()


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_queue_from_its_making_to_its_pause(launch_cli: Callable[..., Result], client: Client) -> None:
    made = launch_cli("queue", "create", "gpu", "-r", "local-process", "-c", '{"workdir": "src"}', "--overrides", "env")
    assert (made.exit_code, made.output.splitlines()[0]) == (0, "queue gpu (resource: process) is ready")
    shown = json.loads(launch_cli("queue", "show", "gpu", "--json").stdout)
    assert (shown["config"], shown["overrides"], shown["agents"]) == ({"workdir": "src"}, ["env"], [])
    launch_cli("queue", "pause", "gpu")
    assert client.store.queue("gpu").paused
    assert "paused" in launch_cli("queue", "list").output
    launch_cli("queue", "resume", "gpu")
    assert not client.store.queue("gpu").paused
    other = launch_cli("queue", "create", "gpu", "-r", "process", "--priorities")
    assert (other.exit_code, "exists with other settings" in other.stderr) == (2, True)


def test_a_job_from_its_making_to_its_launch(launch_cli: Callable[..., Result], client: Client, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print(1)\n")
    made = launch_cli("job", "create", "code", str(tmp_path / "code"), "-n", "digits", "-E", "python train.py")
    assert "job digits:v0 is ready" in made.stdout
    assert [job["ref"] for job in json.loads(launch_cli("job", "list", "--json").stdout)] == ["digits:v0"]
    assert "python train.py" in launch_cli("job", "show", "digits").output
    enqueued = launch_cli("enqueue", "digits", "-q", "q", "-c", "epochs=3", "--run-id", "r", "--", "--fast")
    assert (enqueued.exit_code, "enqueued run r of digits:v0 in q, place 1" in enqueued.output) == (0, True)
    assert client.run("r").spec.command == ("python", "train.py", "--fast")
    missing = launch_cli("enqueue", "digits:v9", "-q", "q")
    assert (missing.exit_code, "job 'digits' has no version 'v9'" in missing.stderr) == (2, True)
    assert [run.id for run in client.runs()] == ["r"]


def test_show_has_what_programs_need(launch_cli: Callable[..., Result], client: Client) -> None:
    client.enqueue(**a_command(run_id="r", config={"opt": {"lr": 1}}, resource_args={"env": {"B": "2"}}))
    shown = json.loads(launch_cli("show", "r", "--json").stdout)
    assert {"id", "state", "queue", "job", "config", "summary", "cause", "attempt", "agent", "times"} <= set(shown)
    assert (shown["id"], shown["state"], shown["position"], shown["config"]) == ("r", "queued", 1, {"opt": {"lr": 1}})
    origins = json.loads(launch_cli("show", "r", "--config", "--json").stdout)["provenance"]
    assert origins["resource_config"] == {"env/A": "queue", "env/B": "launch"}
    assert origins["config"] == {"opt.lr": "launch"}
    text = launch_cli("show", "r", "--config").output
    assert "  env.A  1  (queue)" in text
    assert "  env.B  2  (launch)" in text
    assert [run["id"] for run in json.loads(launch_cli("runs", "--json").stdout)] == ["r"]
    assert launch_cli("show", "nope").exit_code == 2


def test_a_dry_run_prints_the_request_and_touches_nothing(launch_cli: Callable[..., Result], client: Client) -> None:
    before = set(client.store.redis.keys()) | {"launch:installation"}
    result = launch_cli(
        "enqueue",
        "-q",
        "q",
        "-c",
        "epochs=3",
        "-R",
        '{"env": {"B": "${run_id}"}}',
        "--run-id",
        "r",
        "--dry-run",
        "--",
        "true",
    )
    plan = json.loads(result.stdout)
    assert (plan["command"], plan["env"]["A"], plan["env"]["B"]) == (["true"], "1", "r")
    assert plan["env"]["WANDB_CONFIG"] == '{"epochs": 3}'
    assert plan["env"]["WANDB_API_KEY"] == "********"
    assert set(client.store.redis.keys()) | {"launch:installation"} == before


@pytest.mark.parametrize(("state", "code"), [(RunState.FINISHED, 0), (RunState.FAILED, 1)])
def test_following_ends_with_the_runs_exit(
    launch_cli: Callable[..., Result], client: Client, pool: ThreadPoolExecutor, state: RunState, code: int
) -> None:
    def play() -> None:
        wait_until(lambda: client.store.position("r") == 1, "the run waits")
        agent = Played(client.store)
        agent.start()
        agent.write("hello\n")
        agent.end(state)

    playing = pool.submit(play)
    result = launch_cli("enqueue", "-q", "q", "--run-id", "r", "--follow", "--", "true")
    playing.result(30)
    assert result.exit_code == code
    assert "| hello" in result.stdout
    assert f"\n{state} in " in result.stdout
    assert "No agent serves q now" in result.stderr


def test_interrupting_a_follower_leaves_the_run(redis_url: str, client: Client, tmp_path: Path) -> None:
    environ = {**os.environ, "LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "launch", "enqueue", "-q", "q", "--run-id", "r", "--follow", "--", "true"]
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline().startswith("enqueued run r")
        Played(client.store).start()
        assert any(line.startswith("running") for line in iter(follower.stdout.readline, ""))
        follower.send_signal(signal.SIGINT)
        rest = follower.stdout.read()
    assert follower.returncode == 130
    assert "No longer following; run r goes on" in rest
    assert client.run("r").state is RunState.RUNNING


def test_logs_and_stop_on_the_command_line(launch_cli: Callable[..., Result], client: Client) -> None:
    client.enqueue(**a_command(run_id="r"))
    client.enqueue(**a_command(run_id="s"))
    waiting = launch_cli("logs", "r")
    assert (waiting.exit_code, waiting.stdout) == (0, "")
    assert "run r is queued and has no log yet" in waiting.stderr
    agent = Played(client.store)
    agent.start()
    agent.write("10%\r100%\n")
    assert launch_cli("logs", "r").stdout == "100%\n"
    assert launch_cli("logs", "r", "--raw").stdout_bytes == b"10%\r100%\n"
    stopped = launch_cli("stop", "r", "s", "--grace", "2")
    assert stopped.stdout.splitlines()[0].startswith("run r is asked to end, and has 2 s for it")
    assert stopped.stdout.splitlines()[1] == "run s is stopped"
    assert launch_cli("stop", "nope").exit_code == 2


# --- a whole installation --------------------------------------------------------------------------------------------


def installation_environ(tmp_path: Path) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCH_")}
    return {**environ, "LAUNCH_HOME": str(tmp_path / "home")}


@pytest.fixture
def launch_program(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """``launch WORDS…`` as a program, with a home of its own that is empty of processes in the end."""
    environ = installation_environ(tmp_path)

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *words]
        return subprocess.run(
            command, env={**environ, **more}, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )

    yield run
    run("down", "--detach", "--force")


@pytest.fixture
def launch_in_background(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``launch WORDS…`` that goes on, in the same home; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        with (tmp_path / f"background-{len(started)}.log").open("w") as log:
            command = [sys.executable, "-m", "launch", *words]
            env = {**installation_environ(tmp_path), "PYTHONUNBUFFERED": "1"}
            started.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def test_one_command_starts_all_it_needs_and_another_ends_it(
    launch_program: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").write_text(
        "import sys, time\nprint('hello', *sys.argv[1:], flush=True)\ntime.sleep(float(sys.argv[1]))\n"
    )
    code = str(tmp_path / "code")

    ran = launch_program("run", code, "--tracking", "optional", "--", "0")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "| hello 0" in ran.stdout
    for started in ("started the broker", "made the queue 'local'", "started the server", "started an agent for local"):
        assert started in ran.stderr
    pids = [json.loads(path.read_text())["pid"] for path in sorted((tmp_path / "home" / "run").glob("*.json"))]
    assert len(pids) == 2

    again = launch_program("up")
    assert "started" not in again.stdout + again.stderr
    other = launch_program("up", "-q", "other")
    assert (other.returncode, "no queue 'other'" in other.stderr) == (2, True)
    assert json.loads(launch_program("status", "--json").stdout)["queues"]["local"]["active"] == 0

    detached = launch_program("run", code, "--tracking", "optional", "--detach", "--json", "--", "60")
    run_id = json.loads(detached.stdout)["id"]
    wait_until(lambda: "hello 60" in launch_program("logs", run_id).stdout, "the job runs")
    asked = launch_program("down")
    assert (asked.returncode, f"1 run is live ({run_id})" in asked.stderr) == (2, True)

    down = launch_program("down", "--stop")
    assert down.returncode == 0, down.stderr
    assert down.stdout.splitlines() == [
        f"run {run_id} is stopped", "ended the agent", "ended the server", "ended the broker; its data stays",
    ]  # fmt: skip
    assert not [pid for pid in pids if is_alive(pid)]


@pytest.fixture
def a_run_of_another_agent(
    launch_program: Callable[..., subprocess.CompletedProcess[str]],
    launch_in_background: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> tuple[str, subprocess.Popen[str]]:
    """``launch up``, and beside it a user's own agent on the embedded broker with a run that ends when told to.

    Returns:
        The run's id, and the agent's process.
    """
    launch_program("up")
    launch_program("queue", "create", "own", "--resource", "process")
    agent = launch_in_background("agent", "-q", "own", "--name", "mine")
    script = f"echo started >> {tmp_path}/ledger; until test -e {tmp_path}/end; do sleep 0.1; done"
    asked = launch_program("enqueue", "-q", "own", "--tracking", "optional", "--json", "--", "sh", "-c", script)
    run_id = str(json.loads(asked.stdout)["id"])
    wait_until((tmp_path / "ledger").exists, "the job runs")
    wait_until(lambda: run_id in launch_program("agents").stdout, "the agent says what it carries")
    return run_id, agent


def test_down_does_not_take_the_broker_from_an_agent_that_it_did_not_start(
    launch_program: Callable[..., subprocess.CompletedProcess[str]],
    a_run_of_another_agent: tuple[str, subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    """Forced, it does: the agent waits, the job goes on, and with the next ``launch up`` its end is on record."""
    run_id, agent = a_run_of_another_agent

    refused = launch_program("down", "--detach")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.search(rf"used by agent mine \(process \d+, with run {run_id}\);", refused.stderr)
    assert "`launch agents drain mine`" in refused.stderr
    assert "`launch down --force`" in refused.stderr
    assert json.loads(launch_program("status", "--json").stdout)["server"], "nothing was ended"

    forced = launch_program("down", "--detach", "--force")
    assert forced.returncode == 0, forced.stderr
    assert "ended the broker; its data stays" in forced.stdout
    assert f"with run {run_id}" in forced.stdout
    assert agent.poll() is None

    (tmp_path / "end").touch()
    launch_program("up")
    wait_until(lambda: "finished" in launch_program("show", run_id).stdout, "the run's end is recorded", 60)
    shown = json.loads(launch_program("show", run_id, "--json").stdout)
    assert (shown["attempt"], (tmp_path / "ledger").read_text()) == (1, "started\n")
    assert agent.poll() is None

    agent.terminate()
    agent.wait(20)
    assert launch_program("down").stdout.splitlines()[-1] == "ended the broker; its data stays"


def test_up_in_the_foreground_leaves_the_broker_to_an_agent_that_needs_it(
    launch_program: Callable[..., subprocess.CompletedProcess[str]],
    launch_in_background: Callable[..., subprocess.Popen[str]],
    a_run_of_another_agent: tuple[str, subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    run_id, agent = a_run_of_another_agent
    foreground = launch_in_background("up", "--foreground")
    log = tmp_path / "background-1.log"
    wait_until(lambda: "Ctrl-C ends it all" in log.read_text(), "it is up")

    foreground.send_signal(signal.SIGINT)
    foreground.wait(30)

    assert "ended the agent" in log.read_text()
    assert "left the server and the broker running for agent mine" in log.read_text()
    (tmp_path / "end").touch()
    wait_until(lambda: "finished" in launch_program("show", run_id).stdout, "the run ends")
    assert agent.poll() is None


def test_a_broker_that_does_not_answer_is_ended_by_force(
    launch_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    launch_program("up")
    Path(urlsplit(json.loads(launch_program("status", "--json").stdout)["broker"]).path).unlink()
    refused = launch_program("down")
    assert refused.returncode == 3
    assert "`launch down --force` ends it all the same" in refused.stderr
    forced = launch_program("down", "--force")
    assert (forced.returncode, forced.stdout.splitlines()[-1]) == (0, "ended the broker; its data stays")


def test_what_does_not_come_up_shows_the_end_of_its_log(
    launch_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """A port that is taken is the server's to complain about; the command passes it on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = launch_program("up", LAUNCH_TRACKING_PORT=port)
    assert done.returncode == 3
    assert "error: the server ended as it started; its log" in done.stderr
    assert port in done.stderr.partition("ends with:")[2]
