"""What is done with queues, runs and agents that there are: by the SDK and the command line, on a real Redis."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from services import RedisServer, free_port, need_program

from launch.archive import archive_old_runs
from launch.artifacts import ArtifactStore
from launch.broker_health import broker_warnings, read_broker
from launch.cli import cli
from launch.client import Client
from launch.errors import ConfigError, ConflictError, NotFoundError, TemporaryError
from launch.models import Cause, CauseKind, Limits, Priority, RetryRule, RunState
from launch.operations import retry_id
from launch.settings import Settings
from launch.settings import settings as process_settings
from launch.store import Claimed, RunStore
from launch.watch import Metrics, Note, as_they_end
from tests.agents import a_fleet, wait_until

pytestmark = pytest.mark.redis

FAILED = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 1.", exit_code=1, log_tail=("boom",))
FINE = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 0.", exit_code=0)
LOST = Cause(kind=CauseKind.HOST_LOST, message="Its machine is gone.")


@pytest.fixture
def client(redis_url: str, tmp_path: Path) -> Iterator[Client]:
    """A client with one ``process`` queue, ``q``, that knows priorities."""
    with Client(redis_url, Settings(home=tmp_path / "home")) as client:
        client.create_queue("q", resource="process", priorities=True)
        yield client


Cli = Callable[..., Result]


@pytest.fixture
def launch_cli(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """``launch WORDS…`` in this process, with the same Redis and home as ``client``."""
    monkeypatch.setenv("LAUNCH_BROKER_URL", redis_url)
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    process_settings.cache_clear()
    yield lambda *words: CliRunner().invoke(cli, words)
    process_settings.cache_clear()


def fill(client: Client, *run_ids: str, **launch: Any) -> None:
    launches = [{"command": ["true"], "queue": "q", "run_id": run_id, **launch} for run_id in run_ids]
    client.enqueue_many(launches)  # type: ignore[arg-type]


def order(client: Client, queue: str = "q") -> list[str]:
    return client.store.ids(queue, "waiting")


def claim(client: Client, queue: str = "q", agent: str = "box-1") -> Claimed:
    assert client.store.redis.rpop(f"launch.{queue}") is not None, "a message for each waiting run"
    claimed = client.store.claim(queue, agent, locality="here")
    assert isinstance(claimed, Claimed)
    return claimed


def start(client: Client, queue: str = "q") -> Claimed:
    claimed = claim(client, queue)
    for state in (RunState.STARTING, RunState.RUNNING):
        client.store.advance(claimed.record.id, claimed.fence, state, note=f"now {state}")
    return claimed


def end(client: Client, claimed: Claimed, state: RunState = RunState.FINISHED, cause: Cause = FINE) -> str:
    client.store.finish(claimed.record.id, claimed.fence, state, cause)
    return claimed.record.id


def an_agent(client: Client, agent: str = "box-1", **fields: Any) -> None:
    """Let an agent's heart beat once."""
    said = {
        "name": agent.partition("-")[0],
        "host": "host",
        "pid": 1,
        "version": "0.1.0",
        "queues": ["q"],
        "localities": ["here"],
        "max_jobs": 1,
        "runs": [],
        "state": "serving",
        "problems": [],
        "started_at": 0.0,
    }
    client.store.heartbeat(agent, {**said, **fields}, gap_s=5)


# --- queues ----------------------------------------------------------------------------------------------------------


def test_a_queues_settings_are_made_shown_and_changed(client: Client, launch_cli: Cli) -> None:
    retry = '{"preempted": 2, "oom": {"times": 1, "memory": "x1.5"}}'
    words = ("--retry", retry, "--run-limit", "2h", "--start-limit", "30m", "--max-concurrent", "3")
    assert launch_cli("queue", "create", "gpu", "-r", "process", *words).exit_code == 0
    made = client.store.queue("gpu")
    assert (made.limits, made.max_concurrent) == (Limits(start_s=1800, run_s=7200), 3)
    assert (made.retry.preempted, made.retry.oom) == (RetryRule(times=2), RetryRule(times=1, memory="x1.5"))

    changed = launch_cli("queue", "update", "gpu", "--run-limit", "none", "--max-concurrent", "none")
    assert changed.output.splitlines() == [
        "queue gpu is changed:",
        "  max_concurrent: 3 -> none",
        "  run_limit: 2 h -> none",
    ]
    after = client.store.queue("gpu")
    assert after == made.model_copy(update={"limits": Limits(start_s=1800), "max_concurrent": None})

    shown = launch_cli("queue", "show", "gpu").output
    for part in (
        "oom: 1 time, memory x1.5",
        "start limit     30 min",
        "run limit       none",
        "at once         no limit",
    ):
        assert part in shown
    assert launch_cli("queue", "update", "gpu").exit_code == 2
    assert launch_cli("queue", "update", "nope", "--run-limit", "1h").exit_code == 2
    assert launch_cli("queue", "update", "gpu", "--max-concurrent", "0").exit_code == 2
    assert launch_cli("queue", "update", "gpu", "--priorities").exit_code == 0
    assert json.loads(launch_cli("queue", "update", "gpu", "--no-priorities", "--json").stdout)["priorities"] is False


def test_a_new_config_is_for_runs_to_come(client: Client) -> None:
    fill(client, "old")
    client.update_queue("q", config={"workdir": "new"})
    fill(client, "new")
    configs = {run.id: (run.spec.queue_version, run.spec.resource_config) for run in client.runs()}
    assert configs == {"old": (1, {}), "new": (2, {"workdir": "new"})}


def test_a_queue_is_deleted_when_it_holds_nothing(client: Client, launch_cli: Cli) -> None:
    fill(client, "r1")
    refused = launch_cli("queue", "delete", "q")
    assert (refused.exit_code, "launch stop --queue q --all" in refused.stderr) == (2, True)
    assert launch_cli("stop", "--queue", "q", "--all").exit_code == 0
    assert launch_cli("queue", "delete", "q").output == "queue q is deleted\n"
    assert client.queues() == []
    assert client.run("r1").state is RunState.STOPPED
    assert launch_cli("queue", "delete", "q").exit_code == 2


FILE = """
queues:
  q: {resource: process, priorities: true, max_concurrent: 4}
  gpu:
    resource: process
    retry: {preempted: 3}
    run_limit: 7d
"""


def test_a_file_of_queues_is_applied_once_and_then_changes_nothing(
    client: Client, launch_cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "queues.yaml"
    path.write_text(FILE)
    client.store.set_paused("q", True)
    words = ("queue", "apply", "-f", str(path))
    told = [
        "queue q would be changed:",
        "  max_concurrent: none -> 4",
        "queue gpu (resource: process) would be made",
    ]
    assert launch_cli(*words, "--dry-run").output.splitlines() == told
    assert [spec.name for spec in client.queues()] == ["q"]
    assert (
        launch_cli(*words)
        .output.replace("is changed", "would be changed")
        .replace("is made", "would be made")
        .splitlines()
        == told
    )
    assert {spec.name: (spec.max_concurrent, spec.limits.run_s, spec.paused) for spec in client.queues()} == {
        "q": (4, None, True),
        "gpu": (None, 604_800, False),
    }
    assert launch_cli(*words).output.splitlines() == ["queue q stays as it is", "queue gpu stays as it is"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace("retry:", "retries:"), "queues.yaml: queues/gpu/retries: unknown key; did you mean 'retry'?"),
        (FILE.replace("process, pri", "docker, pri"), "queue 'q' is of resource 'process' and stays so"),
        ("queues: [", "--file: "),
    ],
)
def test_a_wrong_file_of_queues_changes_nothing(
    client: Client, launch_cli: Cli, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "queues.yaml"
    path.write_text(text)
    before = client.queues()
    refused = launch_cli("queue", "apply", "-f", str(path))
    assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
    assert client.queues() == before


def test_a_job_carries_its_own_retry_policy(client: Client, launch_cli: Cli) -> None:
    client.create_queue("box", resource="docker", retry={"error": 1})
    made = launch_cli("job", "create", "image", "train:1", "-n", "train", "--retry", '{"error": 7}')
    assert made.exit_code == 0, made.output
    assert client.enqueue(job="train", queue="box").spec.retry.error.times == 7
    assert client.enqueue(image="train:1", queue="box").spec.retry.error.times == 1
    assert "error: 7 times" in launch_cli("job", "show", "train").output
    assert launch_cli("job", "create", "image", "t:1", "-n", "t", "--retry", '{"eror": 7}').exit_code == 2


# --- order -----------------------------------------------------------------------------------------------------------


def test_runs_are_moved_held_and_released(client: Client, launch_cli: Cli) -> None:
    fill(client, "a", "b", "c", "d")
    assert launch_cli("queue", "move", "d", "--first").output == "run d has place 1\n"
    assert launch_cli("queue", "move", "c", "--before", "b").exit_code == 0
    assert order(client) == ["d", "a", "c", "b"]
    assert launch_cli("hold", "a", "d").exit_code == 0
    assert order(client) == ["c", "b"]
    assert (client.run("a").record.held_by or "").count("@") == 1
    assert launch_cli("release", "a").output == "run a waits again, place 1\n"
    assert order(client) == ["a", "c", "b"]
    for words in (
        ("queue", "move", "a"),
        ("queue", "move", "a", "--first", "--before", "b"),
        ("queue", "move", "nope", "--first"),
        ("queue", "move", "a", "--before", "nope"),
        ("queue", "move", "d", "--first"),
        ("release", "a"),
        ("hold", "nope"),
    ):
        refused = launch_cli(*words)
        assert (refused.exit_code, refused.stderr[:7]) == (2, "error: "), words
    assert order(client) == ["a", "c", "b"]


def test_a_queued_run_is_edited_and_claimed_as_edited(client: Client, launch_cli: Cli) -> None:
    fill(client, "a", "b", config={"lr": 1, "deep": {"x": 1, "y": 2}})
    edited = launch_cli("edit", "b", "--priority", "high", "-c", "deep.x=5", "-c", "lr=null", "--json")
    assert json.loads(edited.stdout)["position"] == 1
    claimed = claim(client)
    assert (claimed.record.id, claimed.record.spec.config) == ("b", {"deep": {"x": 5, "y": 2}})
    assert claimed.record.spec.priority is Priority.HIGH
    refused = launch_cli("edit", "b", "--name", "late")
    assert (refused.exit_code, "is building, and only a queued run" in refused.stderr) == (2, True)
    assert launch_cli("edit", "a").exit_code == 2
    assert launch_cli("edit", "a", "-c", "=3").exit_code == 2


def test_an_edit_keeps_the_resource_config_of_its_time(client: Client) -> None:
    client.update_queue("q", config={"workdir": "then"})
    fill(client, "a")
    client.update_queue("q", config={"workdir": "now"})
    record = client.edit("a", resource_args={"env": ["A=1"]}, name="renamed").record
    assert record.spec.resource_config == {"workdir": "then", "env": ["A=1"]}
    assert (record.spec.queue_version, record.spec.name) == (2, "renamed")


# --- another go ------------------------------------------------------------------------------------------------------


def test_a_rerun_is_a_new_run_that_says_where_it_is_from(client: Client, launch_cli: Cli) -> None:
    fill(client, "a", config={"lr": 1}, name="first")
    end(client, start(client), RunState.FAILED, FAILED)
    done = launch_cli("rerun", "a", "-c", "epochs=3", "--priority", "low")
    assert "a rerun of a, in q, place 1" in done.output
    (new,) = [run for run in client.runs() if run.id != "a"]
    assert (new.spec.rerun_of, new.spec.config, new.spec.name) == ("a", {"lr": 1, "epochs": 3}, "first")
    assert "rerun of   a" in launch_cli("show", new.id).output
    assert json.loads(launch_cli("rerun", "a", "--json").stdout)["rerun_of"] == "a"
    assert launch_cli("rerun", "nope").exit_code == 2
    assert launch_cli("rerun", "a", "-q", "nope").exit_code == 2


def test_retry_repeats_what_a_cause_ended_and_nothing_twice(client: Client, launch_cli: Cli) -> None:
    client.create_queue("other", resource="process")
    fill(client, "fine", "lost-1", "failed", "lost-2")
    fill(client, "lost-3", queue="other")
    for state, cause in [(RunState.FINISHED, FINE), (RunState.CRASHED, LOST), (RunState.FAILED, FAILED)]:
        end(client, start(client), state, cause)
    end(client, start(client), RunState.CRASHED, LOST)
    end(client, start(client, "other"), RunState.CRASHED, LOST)
    words = ("retry", "--cause", "host_lost")

    looked = launch_cli(*words, "--dry-run")
    assert looked.output.splitlines()[-1] == "3 run(s) ended by host_lost"
    assert launch_cli(*words).exit_code == 2, "nobody is there to be asked"
    assert len(client.runs()) == 5
    done = json.loads(launch_cli(*words, "--queue", "q", "--json").stdout)
    assert [item["rerun_of"] for item in done["enqueued"]] == ["lost-1", "lost-2"]
    assert order(client) == [retry_id("lost-1"), retry_id("lost-2")]

    again = launch_cli(*words, "--yes")
    assert "enqueued run" in again.output
    assert "2 more were retried before" in again.output
    assert order(client, "other") == [retry_id("lost-3")]
    assert launch_cli(*words, "-y").output == "no run(s) ended by host_lost; 3 more were retried before\n"
    assert len(client.runs()) == 8


def test_a_retry_that_died_half_way_goes_on_where_it_was(client: Client) -> None:
    fill(client, "a")
    end(client, start(client), RunState.CRASHED, LOST)
    record = client.run("a").record
    with ThreadPoolExecutor() as pool:
        made = {run.id for run in pool.map(client.retry, [record] * 8)}
    assert made == {retry_id("a")}
    assert order(client) == [retry_id("a")]


def test_only_what_ended_lately_is_retried(client: Client) -> None:
    fill(client, "a")
    end(client, start(client), RunState.CRASHED, LOST)
    client.store.redis.zadd("launch:queue:q:finished", {"a": client.store.now() - 7200})
    assert client.ended_by("host_lost", since_s=3600) == ([], [])
    assert [run.id for run in client.ended_by(CauseKind.HOST_LOST, since_s=10_800)[0]] == ["a"]
    with pytest.raises(ConfigError, match="unknown cause 'lost'; did you mean 'host_lost'"):
        client.ended_by("lost", since_s=1)
    with pytest.raises(NotFoundError):
        client.ended_by("oom", since_s=1, queue="nope")


# --- stop and wait ---------------------------------------------------------------------------------------------------


def test_stopping_is_a_plain_sentence_in_every_state(client: Client, launch_cli: Cli) -> None:
    fill(client, "running", "queued", "ended", "held")
    client.hold("held")
    start(client)
    client.stop("ended")
    told = launch_cli("stop", "running", "queued", "ended", "held")
    assert told.exit_code == 0
    assert told.output.splitlines() == [
        "run running is asked to end, and has 10 s for it; `launch logs -f running` follows it",
        "run queued is stopped",
        "run ended has ended already: stopped",
        "run held is stopped",
    ]
    assert launch_cli("stop", "running").output.startswith("run running was asked to end before, and has 10 s")
    assert launch_cli("stop", "running", "--grace", "1").output.startswith(
        "run running was asked to end before, and has 1 s"
    )
    refused = launch_cli("stop", "running", "nope")
    assert (refused.exit_code, refused.stdout) == (2, "")
    for words in ((), ("--all",), ("--queue", "q"), ("running", "--queue", "q", "--all"), ("--queue", "no", "--all")):
        assert launch_cli("stop", *words).exit_code == 2, words


def test_all_of_a_queue_is_stopped_and_nothing_of_another(client: Client, launch_cli: Cli) -> None:
    client.create_queue("other", resource="process")
    fill(client, *(f"r{n}" for n in range(30)))
    fill(client, "o", queue="other")
    running = start(client)
    client.hold("r5")
    stopped = json.loads(launch_cli("stop", "--queue", "q", "--all", "--json").stdout)
    assert {item["id"] for item in stopped} == {f"r{n}" for n in range(30)}
    assert stopped[-1]["id"] == "r0", "those at work come last"
    assert client.run("r0").record.stop is not None
    assert client.store.counts(["q"])["q"].waiting == 0
    assert client.store.messages("q") == (0, 0)
    assert client.run("o").state is RunState.QUEUED
    end(client, running, RunState.STOPPED, Cause(kind=CauseKind.STOPPED, message="Stopped."))
    assert launch_cli("stop", "-q", "q", "--all").output == "queue q has no runs to stop\n"


def test_wait_tells_of_each_run_as_it_ends(client: Client, launch_cli: Cli) -> None:
    fill(client, "a", "b", "c")
    first, second, third = start(client), start(client), start(client)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(launch_cli, "wait", "a", "b", "c")
        anyone = pool.submit(lambda: next(as_they_end([client.run(run_id) for run_id in ("a", "b", "c")])).id)
        end(client, second)
        assert anyone.result(20) == "b"
        end(client, third, RunState.FAILED, FAILED)
        end(client, first)
        result = waiting.result(20)
    assert result.exit_code == 1
    assert sorted(result.output.splitlines()) == [
        "run a finished",
        "run b finished",
        "run c failed: The job exited with code 1.",
    ]
    assert launch_cli("wait", "a", "b").exit_code == 0
    assert launch_cli("wait", "--any", "c", "a").output == "run c failed: The job exited with code 1.\n"
    assert [item["id"] for item in json.loads(launch_cli("wait", "a", "--json").stdout)] == ["a"]


def test_wait_gives_up_in_time_and_says_what_goes_on(client: Client, launch_cli: Cli) -> None:
    fill(client, "a", "b")
    end(client, start(client))
    began = time.monotonic()
    result = launch_cli("wait", "a", "b", "--timeout", "0.3s")
    assert time.monotonic() - began < 5
    assert (result.exit_code, result.stdout) == (1, "run a finished\n")
    assert "not ended, and going on: b (queued)" in result.stderr
    assert launch_cli("wait", "a", "--timeout", "soon").exit_code == 2
    assert launch_cli("wait", "nope").exit_code == 2


def test_wait_outlasts_a_restart_of_redis(client: Client, redis_server: RedisServer) -> None:
    fill(client, "a", "b")
    running = start(client)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: [run.id for run in as_they_end([client.run("a")])])
        wait_until(lambda: client.store.redis.info()["blocked_clients"] > 0, what="the wait")
        redis_server.kill()
        redis_server.start()
        wait_until(client.store.redis.ping)
        end(client, running)
        assert waiting.result(40) == ["a"]


# --- agents ----------------------------------------------------------------------------------------------------------


def test_agents_are_asked_by_name_or_id(client: Client, launch_cli: Cli) -> None:
    an_agent(client, "box-1", runs=["r1", "r2"], max_jobs=2)
    an_agent(client, "box-2")
    an_agent(client, "other-1")
    client.store.redis.zadd("launch:agents", {"other-1": client.store.now() - 60})
    assert sorted(launch_cli("agents", "set", "box", "--max-jobs", "1", "--all").output.splitlines()) == [
        "agent box-1 (host:1) carries up to 1 from now on; the 2 it has go on",
        "agent box-2 (host:1) carries up to 1 from now on",
    ]
    assert [client.store.wishes(agent).max_jobs for agent in ("box-1", "box-2")] == [1, 1]
    assert launch_cli("agents", "drain", "box-2").output.count("ends now") == 1
    assert [client.store.wishes(agent).drain for agent in ("box-1", "box-2")] == [False, True]
    for name, said in [("other", "is not alive"), ("bix", "did you mean 'box'?")]:
        refused = launch_cli("agents", "drain", name)
        assert (refused.exit_code, said in refused.stderr) == (2, True)
    with pytest.raises(ConfigError, match="max_jobs: should be 1 to 1000, not 0"):
        client.set_max_jobs("box", 0)
    assert "box" in launch_cli("agents").output
    assert len(json.loads(launch_cli("agents", "--json").stdout)) == 3


def test_a_real_agent_takes_more_and_then_drains(
    client: Client, redis_url: str, tmp_path: Path, launch_cli: Cli
) -> None:
    with a_fleet(client.store, redis_url, tmp_path / "home", tmp_path) as fleet:
        agent = fleet.start("q", name="box")
        gate = tmp_path / "gate"
        script = f"while [ ! -e {gate} ]; do sleep 0.05; done"
        runs = [client.enqueue(queue="q", command=["sh", "-c", script], tracking="optional") for _ in range(3)]

        def at_work() -> int:
            return sum(run.refresh().state is RunState.RUNNING for run in runs)

        wait_until(lambda: at_work() == 1, what="the first run")
        wait_until(lambda: any(found.runs for found in client.agents()), what="a heartbeat that tells of it")
        waiting = launch_cli("explain", runs[2].id).output
        assert "place 2 of 2" in waiting
        assert f"box (1 of 1: {runs[0].id})" in waiting
        assert launch_cli("agents", "set", "box", "-j", "2").exit_code == 0
        wait_until(lambda: at_work() == 2, what="the second run")
        assert launch_cli("agents", "drain", "box").exit_code == 0
        wait_until(lambda: client.agents()[0].state == "draining", what="the drain")
        assert "take no more runs and end when" in launch_cli("explain", runs[2].id).output
        gate.touch()
        assert agent.process.wait(30) == 0
        assert [run.refresh().state for run in runs] == [RunState.FINISHED, RunState.FINISHED, RunState.QUEUED]


# --- explain, show, logs ---------------------------------------------------------------------------------------------


def test_the_list_of_runs_says_what_the_queued_wait_for(client: Client, launch_cli: Cli) -> None:
    client.create_queue("lonely", resource="process")
    fill(client, "at-work", "next", "held")
    fill(client, "alone", queue="lonely")
    client.hold("held")
    start(client)
    an_agent(client, "box-1", runs=["at-work"])
    rows = {line.split()[0]: line for line in launch_cli("runs").output.splitlines()}
    assert rows["run"].endswith("waits for")
    assert rows["next"].endswith("agents full")
    assert "held by" in rows["held"]
    assert rows["alone"].endswith("no agent")
    client.update_queue("q", max_concurrent=1)
    assert launch_cli("explain", "next").output.count("gives out at most 1 at once, and these are at work: at-work")
    client.store.set_paused("q", True)
    assert "queue paused" in launch_cli("runs", "-s", "queued").output
    assert "waits for" not in launch_cli("runs", "-s", "running").output


def test_an_expected_start_comes_from_what_earlier_runs_took(client: Client, launch_cli: Cli) -> None:
    an_agent(client, "box-1")
    for n, seconds in enumerate((100, 200, 300)):
        fill(client, f"done-{n}")
        end(client, start(client))
        claimed_at = client.store.now() - seconds
        client.store.redis.hset(
            f"launch:run:done-{n}", mapping={"claimed_at": claimed_at, "ended_at": claimed_at + seconds}
        )
    fill(client, "at-work", "before", "mine")
    start(client)
    an_agent(client, "box-1", runs=["at-work"])
    expected = json.loads(launch_cli("explain", "mine", "--json").stdout)["expected_start"]
    assert expected["median_s"] == pytest.approx(400, abs=5)
    assert expected["p90_s"] == pytest.approx(560, abs=5)
    assert (expected["basis"], expected["unknown"]) == (3, [])
    assert "in about 6 min" in launch_cli("explain", "mine").output
    fill(client, "strange", command=["sleep", "1"])
    client.move("strange", before="mine")
    assert client.explain("mine").expected is not None
    assert "unknown (fewer than 3 earlier runs" in launch_cli("explain", "mine").output


def test_explaining_a_run_at_work_and_one_without_an_agent(client: Client) -> None:
    fill(client, "a")
    start(client)
    an_agent(client, "box-1", runs=["a"])
    assert client.explain("a").lines[0].startswith("Agent box on host follows it")
    client.store.redis.zadd("launch:agents", {"box-1": client.store.now() - 60})
    assert "No living agent can follow it" in client.explain("a").lines[0]
    an_agent(client, "far-1", localities=["elsewhere"])
    assert "No living agent can follow it" in client.explain("a").lines[0]
    an_agent(client, "near-1")
    assert client.explain("a").lines[0].endswith("one of these takes it over in a moment: near.")


def test_past_attempts_are_shown_with_their_logs(client: Client, launch_cli: Cli) -> None:
    client.update_queue("q", retry={"error": 2, "backoff_s": 0})
    fill(client, "a")
    for number in (1, 2):
        claimed = start(client)
        log = json.dumps({"s": "stdout", "t": f"output of {number}\n"}) + "\n"
        client.store.append_log(
            "a", claimed.fence, [("stdout", f"output of {number}\n")],
            cursor=None, bytes_before=0, bytes_after=len(log), cap_chars=1000,
        )  # fmt: skip
        archive = client.artifacts.put_bytes(log.encode()) if number == 1 else None
        record = client.store.record("a")
        rule = record.spec.retry.error
        client.store.retry(record, claimed.fence, FAILED, log_archive=archive, rule=rule)
    claimed = start(client)
    client.store.append_log(
        "a", claimed.fence, [("stdout", "output of 3\n")], cursor=None, bytes_before=0, bytes_after=9, cap_chars=1000
    )
    assert launch_cli("logs", "a", "--attempt", "1").output == "output of 1\n"
    assert launch_cli("logs", "a", "--attempt", "3").output == "output of 3\n"
    assert launch_cli("logs", "a").output == "output of 3\n"
    assert "was not kept" in launch_cli("logs", "a", "--attempt", "2").stderr
    assert "has no attempt 4; it has had 3" in launch_cli("logs", "a", "--attempt", "4").stderr
    shown = launch_cli("show", "a").output
    assert "attempt 1 on box-1: exit_code" in shown
    assert "(launch logs a --attempt 1)" in shown
    assert "(launch logs a --attempt 2)" not in shown
    assert "error: 2 times" in shown
    assert [item["number"] for item in json.loads(launch_cli("show", "a", "--json").stdout)["attempts"]] == [1, 2]
    assert "exit_code" in launch_cli("explain", "a").output


def test_a_run_that_has_left_redis_is_found_as_before(client: Client, launch_cli: Cli) -> None:
    fill(client, "a", config={"lr": 1})
    claimed = start(client)
    log = client.artifacts.put_bytes(b'{"s": "stdout", "t": "hello\\n"}\n')
    client.store.redis.xadd("launch:run:a:history", {"r": '{"loss": 1}'})
    client.store.finish("a", claimed.fence, RunState.FINISHED, FINE, log_archive=log)
    shown = launch_cli("show", "a").output
    assert archive_old_runs(client.store, ArtifactStore(client.settings.artifacts_url), "q", older_than_s=-1) == 1
    with pytest.raises(NotFoundError):
        client.store.record("a")

    assert launch_cli("show", "a").output.partition("enqueued")[0] == shown.partition("enqueued")[0]
    assert launch_cli("logs", "a").output == "hello\n"
    assert launch_cli("stop", "a").output == "run a has ended already: finished\n"
    assert launch_cli("wait", "a").output == "run a finished\n"
    assert "The job exited with code 0." in launch_cli("explain", "a").output
    run = client.run("a")
    assert (run.state, run.history(), list(run.logs(follow=True))) == (RunState.FINISHED, [{"loss": 1}], ["hello"])
    news = list(run.news())
    assert isinstance(news[0], Note)
    assert news[-1] == Metrics(({"loss": 1},))
    assert client.rerun("a").spec.config == {"lr": 1}


# --- a Redis that is not as it should be -----------------------------------------------------------------------------


@pytest.fixture
def careless_redis(tmp_path: Path) -> Iterator[RunStore]:
    """A Redis of its own, that a test may spoil."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", need_program("redis-server", "valkey-server"), free_port())
    server.start()
    store = RunStore.connect(server.url)
    yield store
    store.redis.close()
    server.kill()


@pytest.fixture
def at_careless(careless_redis: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    monkeypatch.setenv("LAUNCH_BROKER_URL", careless_redis.redis.launch_url)
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    process_settings.cache_clear()
    yield lambda *words: CliRunner().invoke(cli, words)
    process_settings.cache_clear()


def test_a_redis_that_voids_a_promise_is_warned_of(careless_redis: RunStore, at_careless: Cli) -> None:
    careless_redis.redis.config_set("appendonly", "yes")
    at_careless("queue", "create", "q", "-r", "process")
    words = ("enqueue", "-q", "q", "--json", "--", "true")
    assert broker_warnings(careless_redis) == []
    assert at_careless(*words).stderr == ""
    careless_redis.redis.config_set("appendonly", "no")
    careless_redis.redis.config_set("maxmemory", "1gb")
    careless_redis.redis.config_set("maxmemory-policy", "allkeys-lru")
    warned = at_careless(*words)
    assert warned.exit_code == 0
    assert json.loads(warned.stdout)["state"] == "queued"
    assert [line.partition(".")[0] for line in warned.stderr.splitlines()] == [
        "warning: Redis has no append-only file: nothing is kept on disk",
        "warning: Redis throws keys away when it is full (maxmemory-policy allkeys-lru)",
    ]


def test_a_user_who_may_not_ask_for_settings_is_no_reason_to_fail(careless_redis: RunStore) -> None:
    redis = careless_redis.redis
    redis.execute_command("ACL", "SETUSER", "ada", "on", ">pw", "~*", "&*", "+@all", "-@dangerous", "+info")
    port = redis.connection_pool.connection_kwargs["port"]
    store = RunStore.connect(f"redis://ada:pw@127.0.0.1:{port}/0")
    facts = read_broker(store)
    assert (facts.fsync, facts.has_aof, len(facts.pings_s)) == (None, True, 100)
    assert "pw" not in facts.url
    assert broker_warnings(store) == []
    redis.execute_command("ACL", "SETUSER", "ada", "-info")
    assert broker_warnings(store) == []
    store.redis.close()


def test_the_doctor_finds_what_is_wrong_and_ends_with_1(careless_redis: RunStore, at_careless: Cli) -> None:
    careless_redis.redis.config_set("appendonly", "no")
    at_careless("queue", "create", "q", "-r", "process")
    told = at_careless("doctor")
    assert told.exit_code == 1
    for part in ("no append-only file", "CONFIG SET appendonly yes", "No tracking server is up", "launch agent -q q"):
        assert part in told.output
    found = json.loads(at_careless("doctor", "--json").stdout)
    assert found["is_well"] is False
    assert [check["subject"] for check in found["checks"]] == [
        "broker", "server", "queues", "agents", "process", "watching", "store", "disk", "versions",
    ]  # fmt: skip


def test_a_full_redis_refuses_a_launch_clearly_and_keeps_what_it_has(
    careless_redis: RunStore, at_careless: Cli, tmp_path: Path
) -> None:
    at_careless("queue", "create", "q", "-r", "process")
    at_careless("enqueue", "-q", "q", "--run-id", "before", "--", "true")
    before = careless_redis.redis.dbsize()
    careless_redis.redis.config_set("maxmemory-policy", "noeviction")
    careless_redis.redis.config_set("maxmemory", "1mb")
    with Client(careless_redis.redis.launch_url, Settings(home=tmp_path / "home")) as client:
        for many in (1, 700):
            with pytest.raises(TemporaryError, match="is full"):
                client.enqueue_many([{"queue": "q", "command": ["true"]}] * many)
        refused = at_careless("enqueue", "-q", "q", "--", "true")
        assert (refused.exit_code, "is full (maxmemory)" in refused.stderr) == (3, True)
        assert careless_redis.redis.dbsize() == before
        assert client.run("before").state is RunState.QUEUED
        assert "uses" in at_careless("doctor").output
        careless_redis.redis.config_set("maxmemory", "0")
        assert client.store.messages("q") == (1, 1)
        assert client.enqueue(queue="q", command=["true"]).state is RunState.QUEUED


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (("CONFIG", "SET", "min-replicas-to-write", "1"), "NOREPLICAS"),
        (("REPLICAOF", "127.0.0.1", "1"), "is read-only (a replica?)"),
        (("ACL", "SETUSER", "default", "-evalsha"), "does not permit it"),
    ],
)
def test_a_redis_that_takes_no_writes_says_why(
    careless_redis: RunStore, at_careless: Cli, spoil: tuple[str, ...], said: str
) -> None:
    at_careless("queue", "create", "q", "-r", "process")
    careless_redis.redis.execute_command(*spoil)
    refused = at_careless("enqueue", "-q", "q", "--", "true")
    assert (refused.exit_code, said in refused.stderr) == (3, True), refused.stderr
    assert "Traceback" not in refused.output


def test_moves_and_holds_by_many_at_once_lose_nothing(client: Client) -> None:
    """Whatever the order of the operations, the runs and the messages are the same in number."""
    ids = [f"r{n}" for n in range(20)]
    fill(client, *ids)
    errors: list[Exception] = []

    def edit(run_id: str) -> None:
        client.edit(run_id, config={"at": time.monotonic()})

    def shuffle(seed: int) -> None:
        for n in range(15):
            run_id = ids[(seed * 7 + n * 3) % 20]
            for call in (client.hold, client.move, client.release, edit):
                try:
                    call(run_id)
                except ConflictError:
                    continue
                except Exception as exc:
                    errors.append(exc)

    threads = [threading.Thread(target=shuffle, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run_id in client.store.ids("q", "held"):
        client.release(run_id)
    assert errors == []
    assert sorted(order(client)) == sorted(ids)
    assert client.store.messages("q") == (20, 20)
