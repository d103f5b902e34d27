"""A job prints its secrets in every form; then all that the installation has written and shown is looked through."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from launch.models import RunState
from launch.plugins import MASK
from tests.acceptance.test_docker import Installation
from tests.agents import wait_until
from tests.leaks import cmdlines, holds, in_files, in_redis

pytestmark = pytest.mark.timeout(600)

CANARY = "c4n4ry-0f/4+s3cr3t=&'x"
KEY = "-----BEGIN CANARY KEY-----\nMIIEc4n4ryADANBgkq\nhkiG9c4n4ryFAASC\n-----END CANARY KEY-----"

JOB = r"""
import base64, html, json, os, pathlib, sys, time, urllib.parse
go_on = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
if "--tracked" in sys.argv:
    import wandb
    wandb.init(config={"lr": 0.1}).log({"loss": 1.0})
for value in (os.environ["TOKEN"], os.environ["KEY"], os.environ["WANDB_API_KEY"]):
    raw = value.encode()
    forms = [value, repr(value), json.dumps({"a": value}), urllib.parse.quote(value, safe=""), html.escape(value),
             urllib.parse.quote_plus(value), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(),
             base64.b64encode(b"user:" + raw).decode(), f"https://me:{value}@host/", *value.splitlines()]
    for form in forms:
        print("out", form)
        print("err", form, file=sys.stderr)
    for character in value:
        sys.stdout.write(character)
        sys.stdout.flush()
    print()
print("printed", flush=True)
while go_on is not None and not go_on.exists():
    time.sleep(0.05)
raise SystemExit("died with " + os.environ["TOKEN"])
"""


class Secretive:
    """An installation whose agent has a folder with a token and a key."""

    def __init__(self, here: Installation, folder: Path) -> None:
        self.here = here
        folder.mkdir()
        for name, value in {"TOKEN": CANARY, "KEY": KEY}.items():
            (folder / name).write_text(value + "\n")
        self.config = here.home / "agent.yaml"
        self.config.write_text(json.dumps({"secrets": {"sources": [{"files": {"folder": str(folder)}}]}}))

    def agent(self) -> None:
        known = {agent.id for agent in self.here.client.agents()}
        self.here.start("agent", "-q", "secretive", "--config", str(self.config))
        wait_until(lambda: {agent.id for agent in self.here.client.agents()} - known, what="the agent's heartbeat")

    def queue(self, resource: str) -> None:
        config = json.dumps({"env": {"TOKEN": "${secret:TOKEN}", "KEY": "${secret:KEY}"}})
        self.here.launch("queue", "create", "secretive", "--resource", resource, "--config", config)

    def leaks(self, *more: str) -> dict[str, list[str]]:
        """Return where the secrets are found of all that was written and is shown."""
        here, said, found = self.here, self._said(), {}
        for secret in (CANARY, KEY, *more):
            found[f"redis {secret[:6]}"] = in_redis(here.client.store.redis, secret)
            found[f"files {secret[:6]}"] = in_files(here.home, secret)
            found[f"processes {secret[:6]}"] = cmdlines(secret)
            found[f"words {secret[:6]}"] = [words for words, text in said.items() if holds(text, secret)]
        return {place: what for place, what in found.items() if what}

    def _said(self) -> dict[str, str]:
        """Return ``{command or page: what it says}``."""
        here = self.here
        (run,) = here.client.runs()
        commands = ["runs --json", f"show {run.id}", f"show {run.id} --json", f"logs {run.id}", "queue list --json"]
        said = {command: here.launch(*command.split()) for command in [*commands, "agents", f"explain {run.id}"]}
        what = ("--image", "busybox") if here.client.store.queue("secretive").resource == "docker" else ()
        said["dry run"] = here.launch("enqueue", "-q", "secretive", *what, "--dry-run", "--", "true")
        for page in (f"local/uncategorized/runs/{run.id}", "local/uncategorized", "metrics"):
            url = f"{here.client.store.server_urls()[0].rstrip('/')}/{page}"
            with urllib.request.urlopen(url) as answer:
                said[page] = answer.read().decode()
        return said


def ended(secretive: Secretive) -> None:
    """Check what every such run comes to."""
    (run,) = secretive.here.client.runs()
    run.wait(timeout_s=60)
    assert run.state is RunState.FAILED
    lines = [*run.logs()]
    assert lines.count(f"out {MASK}") >= 2 * 5
    assert lines.count(f"err {MASK}") >= 2 * 5
    assert f"out https://me:{MASK}@host/" in lines
    assert f"died with {MASK}" in lines
    assert run.cause is not None
    assert f"died with {MASK}" in run.cause.log_tail


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def test_a_process_tells_nobody_its_secrets(redis_url: str, home: Path, tmp_path: Path) -> None:
    here = Installation(home, redis_url, "unix:///nonexistent")
    here.client.store.redis.flushall()
    try:
        here.start("server")
        wait_until(here.client.store.server_urls, what="the tracking server")
        secretive = Secretive(here, tmp_path / "secrets")
        secretive.queue("process")
        secretive.agent()
        script, go_on = tmp_path / "job.py", tmp_path / "go-on"
        script.write_text(JOB)
        run = here.client.enqueue(command=[sys.executable, str(script), str(go_on), "--tracked"], queue="secretive")
        wait_until(lambda: "printed" in run.logs(follow=False), what="what the job prints")
        key = _environment_of(str(script))["WANDB_API_KEY"]
        assert {"TOKEN": CANARY, "KEY": KEY}.items() <= _environment_of(str(script)).items()
        # The run folder holds what the job itself has written, as long as it is there.
        assert all("/process/launch-" in path for paths in secretive.leaks(key).values() for path in paths)
        go_on.touch()
        ended(secretive)
        assert run.refresh().summary["loss"] == 1
        wait_until(lambda: secretive.leaks(key) == {}, what="the run folder's removal")
    finally:
        here.end()
    assert secretive_files(home, key) == []


def secretive_files(home: Path, *more: str) -> list[str]:
    return [path for secret in (CANARY, KEY, *more) for path in in_files(home, secret)]


def _environment_of(script: str) -> dict[str, str]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text().split("\0")
            if words[1:2] == [script]:
                return dict(item.split("=", 1) for item in (path / "environ").read_text().split("\0") if item)
        except OSError:
            continue
    raise AssertionError(f"{script} does not run")


@pytest.fixture
def engine(docker_host: str, base_image: str) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=docker_host, version="auto")
    yield client
    client.close()


def test_a_container_tells_its_secrets_to_its_engine_only(
    redis_url: str, docker_host: str, base_image: str, engine: docker.APIClient, home: Path, tmp_path: Path
) -> None:
    """``docker inspect`` shows a container's variables to whoever may ask the engine; nothing else there does."""
    here = Installation(home, redis_url, docker_host)
    here.client.store.redis.flushall()
    try:
        gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
        here.start("server", "--host", gateway)
        wait_until(here.client.store.server_urls, what="the tracking server")
        secretive = Secretive(here, tmp_path / "secrets")
        secretive.queue("docker")
        secretive.agent()
        code = tmp_path / "code"
        code.mkdir()
        (code / "job.py").write_text(JOB)
        images = {image["Id"] for image in engine.images()}
        here.client.create_job("teller", path=code, entrypoint="python job.py /tmp/go-on", tracking="optional")
        run = here.client.enqueue(job="teller", queue="secretive")
        wait_until(lambda: "printed" in run.logs(follow=False), timeout_s=200, what="what the job prints")
        label = f"ai.openlaunch.installation={here.client.store.installation()}"
        (container,) = engine.containers(filters={"label": label})
        found = engine.inspect_container(container["Id"])
        key = next(item for item in found["Config"]["Env"] if item.startswith("WANDB_API_KEY=")).partition("=")[2]
        assert f"TOKEN={CANARY}" in found["Config"].pop("Env")
        made = [image["Id"] for image in engine.images() if image["Id"] not in images]
        history = [engine.history(image) for image in (*made, found["Image"])]
        for secret in (CANARY, KEY, key):
            assert not holds(json.dumps([found, container, history]), secret)
        assert secretive.leaks(key) == {}
        done = engine.exec_create(container["Id"], ["touch", "/tmp/go-on"])
        engine.exec_start(done["Id"])
        ended(secretive)
        assert secretive.leaks(key) == {}
    finally:
        here.end()
    assert secretive_files(home, key) == []
