"""Secrets are put in at submit, by whoever submits, and masked in all that comes back."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launch.checking import parse
from launch.client import Client
from launch.errors import ConfigError, NotFoundError, TemporaryError
from launch.intake import SpecBuilder
from launch.log_lines import set_up_logging
from launch.models import CauseKind, QueueSpec, RunState
from launch.plugins import MASK
from launch.preview import preview
from launch.store import RunStore
from launch.testing import FakeRunner
from tests.agents import Fleet, wait_until
from tests.integration.test_execute import Bench, text_of
from tests.leaks import cmdlines, in_files, in_redis
from workers.agent import Agent
from workers.config import AgentConfig
from workers.redact import redact_logging
from workers.targets import Target

CANARY = "c4n4ry-0f/4+s3cr3t"
OTHER = "an0ther-0ne-0f-them"


class SecretBench(Bench):
    """A bench whose queue refers to a secret, and whose agents have a folder of them."""

    def __init__(self, store: RunStore, home: Path) -> None:
        super().__init__(store, home / "home")
        store.delete_queue("q")
        store.create_queue(QueueSpec(name="q", resource="fake", config={"env": {"TOKEN": "${secret:TOKEN}"}}))
        self.folder = home / "secrets"
        self.folder.mkdir()
        self.keep("TOKEN", CANARY)

    def keep(self, name: str, value: str) -> None:
        path = self.folder / name
        path.write_text(value)
        path.chmod(0o600)

    def agent(
        self,
        *,
        at_step: Callable[[str, str], None] = lambda *_: None,
        runner: FakeRunner | None = None,
        launchable: tuple[str, ...] = (),
    ) -> Agent:
        secrets = {"sources": [{"files": {"folder": str(self.folder)}}], "launchable": launchable}
        given = {"queues": ("q",), "tracking_url": "http://127.0.0.1:9", "secrets": secrets}
        config = parse(AgentConfig, given, where="config")
        targets = {"fake": Target(runner or self.runner, self.builder)}
        agent = Agent(config, self.settings, self.store, targets=targets, at_step=at_step)
        agent.beat()
        return agent

    def enqueue(self, **fields: Any) -> str:
        config: Mapping[str, Any] = {"env": {"TOKEN": "${secret:TOKEN}"}}
        return super().enqueue(**{"resource_config": config, **fields})

    def failed(self, run_id: str) -> str:
        """Return why a run could not start."""
        run = self.final(run_id)
        assert (run.state, run.cause and run.cause.kind) == (RunState.FAILED, CauseKind.CONFIG)
        assert self.runner.submitted == []
        assert self.builder.requests == []
        assert run.cause is not None
        return run.cause.message


@pytest.fixture
def bench(store: RunStore, tmp_path: Path) -> Iterator[SecretBench]:
    bench = SecretBench(store, tmp_path)
    yield bench
    bench.close()


def shown(bench: SecretBench, run_id: str) -> str:
    """Return the log as Redis has it."""
    return "".join(entry.text for entry in bench.store.whole_log(run_id, stream="stdout"))


def test_the_target_gets_the_value_and_nothing_else_does(bench: SecretBench, tmp_path: Path) -> None:
    agent = bench.agent()
    run_id = bench.enqueue()
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    plan = bench.runner.attempt_of(run_id).plan
    key = plan.request["env"]["WANDB_API_KEY"]
    bench.runner.write(run_id, f"token {CANARY[:7]}")
    bench.runner.write(run_id, f"{CANARY[7:]} and {key}\n")
    bench.runner.write(run_id, f"oh no: {CANARY!r}\n", "stderr")
    bench.runner.end(run_id, 1, cause=CauseKind.CONFIG, message=f"the target quotes {CANARY}")
    run = bench.final(run_id)

    assert plan.request["env"]["TOKEN"] == CANARY
    assert CANARY not in str(plan.view())
    assert text_of(bench, agent, run_id) == f"token {MASK} and {MASK}\n"
    assert run.cause is not None
    assert run.cause.message == f"the target quotes {MASK}"
    assert run.cause.log_tail[1:] == (f"token {MASK} and {MASK}", f"oh no: '{MASK}'")
    assert run.spec.resource_config == {"env": {"TOKEN": "${secret:TOKEN}"}}
    for secret in (CANARY, key):
        assert in_redis(bench.store.redis, secret) == []
        assert in_files(tmp_path / "home", secret) == []


def test_what_an_unexpected_error_says_is_masked(bench: SecretBench) -> None:
    def quote(_: object) -> None:
        raise RuntimeError(f"unexpected: {CANARY}")

    bench.runner.before["plan"] = quote
    run_id = bench.enqueue()
    bench.ring(bench.agent())
    run = bench.final(run_id)
    assert run.cause is not None
    assert run.cause.kind is CauseKind.INTERNAL
    assert run.cause.message.endswith(f"unexpected: {MASK}")


def test_what_an_agent_says_of_itself_is_masked(bench: SecretBench) -> None:
    """Its log with its tracebacks, and what `launch agents` shows of a target that is away."""
    agent = bench.agent()
    agent.secrets.get("TOKEN")
    agent.targets.is_away("fake", f"no login with {CANARY}")
    agent.beat()
    (found,) = bench.store.agents()
    assert found.problems == (f"fake: no login with {MASK}",)

    root, out = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    set_up_logging("json", stream=out)
    try:
        redact_logging(agent.redaction)
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("workers.x").exception("it is %s", CANARY)
    finally:
        root.handlers, root.level = handlers, level
    line = json.loads(out.getvalue())
    assert line["message"] == f"it is {MASK}"
    assert line["traceback"].endswith(f"ValueError: {MASK}")


def test_a_secret_that_is_not_there_fails_the_run_before_anything_is_built(bench: SecretBench) -> None:
    run_id = bench.enqueue()
    (bench.folder / "TOKEN").unlink()
    bench.ring(bench.agent())
    message = bench.failed(run_id)
    assert "secret 'TOKEN': no source of this agent has it (files" in message
    assert "no such file" in message


def test_a_value_that_does_not_fit_is_not_quoted(bench: SecretBench) -> None:
    bench.store.delete_queue("q")
    bench.store.create_queue(QueueSpec(name="q", resource="fake", config={"env": {"A": "${secret:BAD}"}}))
    bench.keep("BAD", f"{CANARY}\0")
    run_id = bench.enqueue(resource_config={"env": {"A": "${secret:BAD}"}})
    bench.ring(bench.agent())
    message = bench.failed(run_id)
    assert "secret 'BAD' holds a NUL character" in message
    assert CANARY not in message


OWN = {
    "resource_args": {"env": {"MINE": "${secret:OTHER}"}},
    "resource_config": {"env": {"TOKEN": "${secret:TOKEN}", "MINE": "${secret:OTHER}"}},
}


def test_a_launch_may_name_only_what_the_agent_lists(bench: SecretBench) -> None:
    bench.keep("OTHER", OTHER)
    run_id = bench.enqueue(**OWN)
    bench.ring(bench.agent())
    message = bench.failed(run_id)
    assert "a launch may not name the secret 'OTHER'" in message
    assert "put it into the config of queue 'q', or list it under secrets/launchable" in message

    allowed = bench.enqueue(**OWN)
    bench.ring(bench.agent(launchable=("OTHER",)))
    bench.runner.wait_until_submitted(allowed)
    assert bench.runner.attempt_of(allowed).plan.request["env"]["MINE"] == OTHER
    bench.runner.end(allowed)
    bench.final(allowed)


def test_a_source_that_is_away_costs_no_attempt(bench: SecretBench, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = bench.agent()

    def away(_: str) -> str:
        raise TemporaryError("secrets: aws does not answer: it is away")

    monkeypatch.setattr(agent.secrets.sources[0], "get", away)
    run_id = bench.enqueue()
    bench.ring(agent)
    wait_until(lambda: agent.slots.free == 1)
    assert (bench.store.position(run_id), bench.store.record(run_id).attempt) == (1, 0)
    assert "aws does not answer" in agent.targets.away["fake"]
    monkeypatch.undo()

    bench.supervise(agent)
    wait_until(lambda: not agent.targets.away)
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    bench.runner.end(run_id)
    assert bench.final(run_id).state is RunState.FINISHED


@pytest.mark.parametrize("config", [{"config": {"token": "${secret:TOKEN}"}}, {"args": ["--token", "${secret:TOKEN}"]}])
def test_where_everybody_would_read_it_a_secret_is_refused_at_enqueue(client: Client, config: dict[str, Any]) -> None:
    part = next(iter(config))
    with pytest.raises(ConfigError, match=rf"^{part}: the secret 'TOKEN' cannot stand here.*put the secret into env"):
        client.enqueue(command=["true"], queue="q", tracking="optional", run_id="refused", **config)
    with pytest.raises(NotFoundError):
        client.run("refused")


def test_a_dry_run_shows_the_reference(client: Client, home: Path) -> None:
    env = {"A": "${secret:TOKEN}", "B": "$${secret:TOKEN}", "C": "${run_id}"}
    request = {"command": ["true"], "queue": "q", "run_id": "dry", "resource_args": {"env": env}}
    spec = SpecBuilder(client.store, client.registry).build(request)
    shown = preview(spec, installation=client.store.installation(), home=home)["env"]
    assert [shown[name] for name in "ABC"] == ["${secret:TOKEN}", "${secret:TOKEN}", "dry"]


# --- over an adoption -------------------------------------------------------------------------------------------------


def silent_after_start(bench: SecretBench) -> tuple[str, Agent]:
    """Return a run that is followed by an agent whose heart does not beat."""
    agent = bench.agent(runner=bench.another_runner())
    run_id = bench.enqueue()
    bench.ring(agent)
    bench.runner.wait_until_submitted(run_id)
    return run_id, agent


def test_an_heir_masks_what_it_goes_on_with(bench: SecretBench) -> None:
    """The first agent dies with half of a value held back; the record says nothing of it."""
    run_id, first = silent_after_start(bench)
    key = bench.runner.attempt_of(run_id).plan.request["env"]["WANDB_API_KEY"]
    bench.runner.write(run_id, f"one\nit is {CANARY[:4]}")
    wait_until(lambda: "one" in shown(bench, run_id))
    first.claims[run_id].release()
    bench.runner.write(run_id, f"{CANARY[4:]}\ntwo {key}\n")

    heir = bench.supervise(bench.agent())
    bench.runner.write(run_id, f"three {CANARY}\n")
    bench.runner.end(run_id)
    bench.final(run_id)

    whole = text_of(bench, heir, run_id)
    assert whole in (
        f"one\nit is {MASK}\ntwo {MASK}\nthree {MASK}\n",
        f"one\nit is {CANARY[:4]}{MASK}\ntwo {MASK}\nthree {MASK}\n",
    )
    assert in_redis(bench.store.redis, CANARY) == []
    assert in_redis(bench.store.redis, key) == []


def test_an_heir_goes_on_without_a_secret_that_is_gone(bench: SecretBench, caplog: pytest.LogCaptureFixture) -> None:
    run_id, first = silent_after_start(bench)
    (bench.folder / "TOKEN").unlink()
    first.claims[run_id].release()
    bench.supervise(bench.agent())
    wait_until(lambda: [text for text in caplog.messages if "its log may show what was this secret" in text])
    bench.runner.write(run_id, "goes on\n")
    bench.runner.end(run_id)
    assert bench.final(run_id).state is RunState.FINISHED
    assert shown(bench, run_id).endswith("goes on\n")


def test_an_heir_shows_nothing_while_a_source_is_away(bench: SecretBench, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, first = silent_after_start(bench)
    first.claims[run_id].release()
    heir = bench.agent()
    asked, is_back, get = threading.Event(), threading.Event(), heir.secrets.sources[0].get

    def away(name: str) -> str:
        asked.set()
        if not is_back.is_set():
            raise TemporaryError("secrets: away")
        return get(name)

    monkeypatch.setattr(heir.secrets.sources[0], "get", away)
    bench.supervise(heir)
    assert asked.wait(10)
    bench.runner.write(run_id, f"it is {CANARY}\n")
    bench.runner.end(run_id)
    assert CANARY not in shown(bench, run_id)
    assert not bench.store.record(run_id).state.is_final
    is_back.set()
    assert bench.final(run_id).state is RunState.FINISHED
    assert text_of(bench, heir, run_id).endswith(f"it is {MASK}\n")


JOB = """
import os, sys, time
token = os.environ["TOKEN"]
for number in range(400):
    sys.stdout.write(f"{number} {token[:number % 18]}")
    sys.stdout.flush()
    sys.stdout.write(f"{token[number % 18:]}|\\n")
    sys.stdout.flush()
    time.sleep(0.02)
"""


def test_killed_agents_lose_repeat_and_tell_nothing(
    client: Client, fleet: Fleet, store: RunStore, tmp_path: Path, home: Path
) -> None:
    """A job prints its secret in two pieces while one agent after the other is killed."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "TOKEN").write_text(CANARY)
    config = tmp_path / "agent.yaml"
    config.write_text(f"secrets: {{sources: [{{files: {{folder: {secrets}}}}}]}}\n")
    (tmp_path / "job.py").write_text(JOB)
    options = ("--tracking-url", "http://127.0.0.1:9", "--config", str(config))
    client.update_queue("q", config={"env": {"TOKEN": "${secret:TOKEN}"}})
    agent = fleet.start("q", options=options)
    run = client.enqueue(command=[sys.executable, str(tmp_path / "job.py")], queue="q", tracking="optional")
    for seen in (" ", "40 ", "120 "):
        wait_until(lambda seen=seen: any(f"{seen}" in line for line in run.logs(follow=False)), what=f"line {seen}")
        assert cmdlines(CANARY) == []
        agent.kill()
        agent = fleet.start("q", options=options)
    run.wait(timeout_s=60)

    assert run.state is RunState.FINISHED
    lines = [line for line in run.logs() if line]
    assert [line.split(" ")[0] for line in lines] == [str(number) for number in range(400)]
    assert {line.split(" ")[1] for line in lines} == {f"{MASK}|"}
    agent.terminate()
    assert in_redis(store.redis, CANARY) == []
    assert in_files(home, CANARY) == []
    assert [log.name for log in tmp_path.glob("agent-*.log") if CANARY in log.read_text()] == []


# --- speed ------------------------------------------------------------------------------------------------------------


def test_fifty_thousand_lines_cost_two_seconds_at_most(bench: SecretBench) -> None:
    """With a secret to mask; what is measured is this machine's processor time, not what else it does."""
    run_id, agent = silent_after_start(bench)
    text = "".join(f"step {number} loss 0.{number % 1000:03d} accuracy 0.9\n" for number in range(50_000))
    before = time.process_time()
    for start in range(0, len(text), 65_536):
        bench.runner.write(run_id, text[start : start + 65_536])
    bench.runner.end(run_id)
    bench.final(run_id)
    assert text_of(bench, agent, run_id) == text
    assert time.process_time() - before < 2.0


def test_the_search_for_leaks_finds_them(store: RunStore, tmp_path: Path) -> None:
    """Whatever the type of key or file, and the form; or else the tests that find nothing say nothing."""
    quoted = base64.b64encode(f"user:{CANARY}".encode()).decode()
    body = base64.b64encode(json.dumps({"env": CANARY}).encode()).decode()
    store.redis.set("string", f"x{CANARY}")
    store.redis.hset("hash", "field", json.dumps({"a": {"b": quoted}}))
    store.redis.rpush("list", json.dumps({"body": body}))
    store.redis.sadd("set", CANARY[:12])
    store.redis.zadd("zset", {CANARY: 1})
    store.redis.xadd("stream", {"t": f"it is {CANARY}\n"})
    store.redis.set(f"key {CANARY}", "")
    store.redis.set("harmless", CANARY[:5])
    (tmp_path / "log.gz").write_bytes(gzip.compress(CANARY.encode()))
    (tmp_path / "plain").write_text(quoted)
    (tmp_path / "harmless").write_text("nothing")

    found = {"string", "hash", "list", "set", "zset", "stream", f"key {CANARY}"}
    assert set(in_redis(store.redis, CANARY)) == found
    assert in_files(tmp_path, CANARY) == [str(tmp_path / name) for name in ("log.gz", "plain")]
    with subprocess.Popen(["sh", "-c", "read line", CANARY], stdin=subprocess.PIPE):
        assert cmdlines(CANARY) == [f"sh -c read line {CANARY} "]
