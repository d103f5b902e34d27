"""The README's Docker commands, typed as a user types them, against a real engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from launch.client import Client
from launch.models import RunState
from launch.settings import read_settings
from tests.agents import QUICK, wait_until

pytestmark = pytest.mark.timeout(900)

DIGITS = Path(__file__).parent.parent / "jobs" / "digits"


class Installation:
    """A launch home of its own on the test's Redis and engine."""

    def __init__(self, home: Path, redis_url: str, docker_host: str) -> None:
        self.home = home
        self.environment = {
            **os.environ,
            **QUICK,
            "LAUNCH_HOME": str(home),
            "LAUNCH_BROKER_URL": redis_url,
            "DOCKER_HOST": docker_host,
        }
        self.client = Client(settings=read_settings(self.environment))
        self._started: list[subprocess.Popen[bytes]] = []

    def launch(self, *words: str, code: int = 0) -> str:
        """Type a command, and return what it prints on standard output."""
        done = subprocess.run(self._argv(words), env=self.environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, f"launch {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Type a command that goes on, such as an agent."""
        with (self.home / f"{words[0]}-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                self._argv(words), env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._started.append(process)
        return process

    def agent(self) -> subprocess.Popen[bytes]:
        known = {agent.id for agent in self.client.agents()}
        process = self.start("agent", "-q", "gpu-box", "--max-jobs", "2")
        wait_until(lambda: {agent.id for agent in self.client.agents()} - known, what="the agent's first heartbeat")
        return process

    def end(self) -> None:
        for process in reversed(self._started):
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=20)
        self.client.close()

    @staticmethod
    def _argv(words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-P", "-m", "launch", *words]


@pytest.fixture
def engine(docker_host: str, base_image: str) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=docker_host, version="auto")
    yield client
    client.close()


@pytest.fixture
def here(tmp_path: Path, redis_url: str, docker_host: str, engine: docker.APIClient) -> Iterator[Installation]:
    installation = Installation(tmp_path, redis_url, docker_host)
    gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
    installation.start("server", "--host", gateway)
    wait_until(installation.client.store.server_urls, what="the tracking server")
    config = '{"cpus": 1, "memory": "1g", "env": ["A=1"]}'
    installation.launch("queue", "create", "gpu-box", "--resource", "docker", "--config", config)
    yield installation
    installation.end()


def forget_environments(engine: docker.APIClient) -> None:
    """Remove the environment images that earlier sessions left in the test engine's cache."""
    for image in engine.images(name="launch-env"):
        engine.remove_image(image["Id"], force=True)


def containers(engine: docker.APIClient, here: Installation) -> list[dict[str, object]]:
    label = f"ai.openlaunch.installation={here.client.store.installation()}"
    return list(engine.containers(all=True, filters={"label": label}))


def test_a_training_script_runs_in_docker_tracked_and_a_code_edit_builds_nothing(
    here: Installation, engine: docker.APIClient, tmp_path: Path
) -> None:
    forget_environments(engine)
    code = tmp_path / "digits"
    shutil.copytree(DIGITS, code)
    here.agent()
    entrypoint = ("--entrypoint", "python train.py")
    here.launch("job", "create", "code", str(code), "--name", "digits", *entrypoint)
    words = ("enqueue", "digits", "-q", "gpu-box", "-c", "epochs=3", "--resource-args", '{"cpus": 2}', "--follow")

    first = here.launch(*words)

    run = here.client.runs(limit=1)[0]
    assert run.state is RunState.FINISHED
    assert "built" in first
    assert re.search(r"step 2 .*accuracy", first)
    assert "epochs = 3" in first
    shown = json.loads(here.launch("show", run.id, "--json"))
    assert {"id", "state", "queue", "job", "config", "summary", "cause", "attempt", "agent"} <= set(shown)
    assert shown["config"]["epochs"] == 3
    assert shown["summary"]["accuracy"] > 0.5
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]
    assert any("epoch 3/3" in line for line in run.logs())
    assert run.spec.resource_config == {"cpus": 2, "memory": "1g", "env": ["A=1"]}

    images = {image["Id"] for image in engine.images()}
    script = code / "train.py"
    script.write_text("print('edited')\n" + script.read_text().replace("from __future__ import annotations\n", ""))
    here.launch("job", "create", "code", str(code), "--name", "digits", *entrypoint)
    second = here.launch(*words)

    assert "reused" in second
    assert "edited" in second
    assert {image["Id"] for image in engine.images()} == images
    assert here.client.runs(limit=1)[0].spec.job_ref == "digits:v1"
    wait_until(lambda: containers(engine, here) == [], what="the containers' removal")


def test_an_image_job_runs_a_command_and_its_container_has_what_the_queue_says(
    here: Installation, base_image: str, engine: docker.APIClient
) -> None:
    here.agent()
    options = ("--image", base_image, "-q", "gpu-box", "--tracking", "optional", "--follow")

    out = here.launch("enqueue", *options, "--", "python", "-c", "import os; print(1, os.environ['A'])")

    assert "1 1" in out
    run = here.client.runs(limit=1)[0]
    assert (run.state, run.cause and run.cause.exit_code) == (RunState.FINISHED, 0)


def test_the_agent_goes_and_comes_back_under_running_containers(
    here: Installation, base_image: str, engine: docker.APIClient
) -> None:
    """Once by SIGTERM, once by SIGKILL: one container, a log without gap or repeat."""
    agent = here.agent()
    script = "for i in $(seq 120); do echo line $i; sleep 0.1; done"
    run = here.client.enqueue(image=base_image, command=["sh", "-c", script], queue="gpu-box", tracking="optional")
    wait_until(lambda: len(list(run.logs())) > 5, what="the first lines")
    (container,) = containers(engine, here)

    started = time.monotonic()
    agent.terminate()
    agent.wait(timeout=20)
    assert time.monotonic() - started < 2.0
    agent = here.agent()
    wait_until(lambda: run.refresh().agent is not None and len(list(run.logs())) > 30, what="the adopted run's lines")
    kill_with_children(agent)
    here.agent()
    run.wait(timeout_s=60)

    assert (run.state, run.attempt) == (RunState.FINISHED, 1)
    assert [line for line in run.logs() if line.startswith("line")] == [f"line {i}" for i in range(1, 121)]
    adoptions = [event for event in here.client.store.read_events(run.id) if event.note.startswith("adopted")]
    assert len(adoptions) == 2
    assert len({container["Id"]}) == 1
    wait_until(lambda: containers(engine, here) == [], what="the container's removal")


def kill_with_children(agent: subprocess.Popen[bytes]) -> None:
    agent.send_signal(signal.SIGSTOP)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)
    agent.kill()
    agent.wait(timeout=20)


def test_stop_ends_a_container_that_ignores_sigterm(
    here: Installation, base_image: str, engine: docker.APIClient
) -> None:
    here.agent()
    command = ["sh", "-c", "trap '' TERM; sleep 300 & while true; do sleep 1; done"]
    run = here.client.enqueue(image=base_image, command=command, queue="gpu-box", tracking="optional")
    wait_until(lambda: run.refresh().state is RunState.RUNNING)

    started = time.monotonic()
    run.stop(grace_s=1)
    run.wait(timeout_s=20)

    assert time.monotonic() - started < 3.0
    assert run.state is RunState.STOPPED
    wait_until(lambda: containers(engine, here) == [], what="the container's removal")


def test_a_container_out_of_memory_says_so(here: Installation, base_image: str) -> None:
    here.agent()
    command = ["python", "-c", "x = bytearray(200 * 1024 * 1024); print(len(x))"]
    run = here.client.enqueue(
        image=base_image, command=command, queue="gpu-box", tracking="optional", resource_args={"memory": "32m"}
    )
    run.wait(timeout_s=60)

    assert run.state is RunState.FAILED
    assert run.cause is not None
    assert run.cause.kind == "oom"
    assert "memory" in run.cause.message


def test_a_job_out_of_memory_is_tried_again_with_more(here: Installation, base_image: str) -> None:
    here.launch("queue", "update", "gpu-box", "--retry", '{"oom": {"times": 1, "memory": "x8"}, "backoff_s": 0}')
    here.agent()
    command = ["python", "-c", "x = bytearray(100 * 1024 * 1024); print(len(x))"]
    run = here.client.enqueue(
        image=base_image, command=command, queue="gpu-box", tracking="optional", resource_args={"memory": "32m"}
    )
    run.wait(timeout_s=60)

    record = here.client.store.record(run.id)
    assert (record.state, record.attempt) == (RunState.FINISHED, 2)
    assert [attempt.cause.kind for attempt in record.attempts] == ["oom"]
    assert "104857600" in list(run.logs())


def test_a_dry_run_prints_the_request_and_touches_nothing(
    here: Installation, base_image: str, engine: docker.APIClient
) -> None:
    out = here.launch("enqueue", "--image", base_image, "-q", "gpu-box", "--dry-run", "--", "true")

    assert '"NanoCpus"' in out
    assert "0" * 40 not in out
    assert here.client.runs() == []
    assert containers(engine, here) == []


def test_an_engine_that_is_away_is_named_with_its_fix(here: Installation, tmp_path: Path) -> None:
    here.environment["DOCKER_HOST"] = f"unix://{tmp_path}/nothing.sock"
    argv = Installation._argv(("agent", "-q", "gpu-box"))
    done = subprocess.run(argv, env=here.environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 3
    assert "nothing.sock" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_whose_jobs_could_not_reach_the_tracking_server_says_where_it_should_listen(
    tmp_path: Path, redis_url: str, docker_host: str, engine: docker.APIClient
) -> None:
    installation = Installation(tmp_path, redis_url, docker_host)
    installation.start("server")
    wait_until(installation.client.store.server_urls, what="the tracking server")
    installation.launch("queue", "create", "gpu-box", "--resource", "docker")
    argv = Installation._argv(("agent", "-q", "gpu-box"))
    done = subprocess.run(argv, env=installation.environment, capture_output=True, text=True, timeout=60)
    installation.end()

    gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
    assert done.returncode == 3
    assert f"launch server --host {gateway}" in done.stderr


def test_the_doctor_asks_the_tracking_server_from_a_container(
    here: Installation, base_image: str, engine: docker.APIClient
) -> None:
    here.agent()

    said = here.launch("doctor", "--json")

    (target,) = [check for check in json.loads(said)["checks"] if check["subject"] == "docker"]
    gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
    assert target["findings"] == []
    assert f"tracking server reached at http://{gateway}:" in target["said"]
    assert "from a container on network bridge" in target["said"]


def test_the_doctor_finds_a_server_that_containers_cannot_reach(
    tmp_path: Path, redis_url: str, docker_host: str, base_image: str, engine: docker.APIClient
) -> None:
    """One that listens on loopback only, and one that says it listens at the bridge and does not."""
    installation = Installation(tmp_path, redis_url, docker_host)
    server = installation.start("server")
    (url,) = wait_until(installation.client.store.server_urls, what="the tracking server")
    installation.launch("queue", "create", "gpu-box", "--resource", "docker")
    gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]

    said = installation.launch("doctor", code=1)

    assert f"look for the tracking server at {gateway}, but it listens at {url} only" in said
    assert f"to mend it: launch down --detach; launch server --host {gateway} & launch up" in said

    server.kill()
    server.wait(timeout=20)
    bridge_url = url.replace("127.0.0.1", gateway)
    installation.client.store.redis.set("launch:server", json.dumps([url, bridge_url]), ex=600)  # as if it were up
    said = installation.launch("doctor", code=1)
    installation.end()

    what = f"from a container on network bridge, {bridge_url}: connection refused"
    assert f"Jobs of docker (queue gpu-box) cannot reach the tracking server: {what}" in said
    assert f"to mend it: launch server --host {gateway}" in said


def test_a_jobs_own_dockerfile_makes_its_image_and_the_run_says_why(
    here: Installation, base_image: str, engine: docker.APIClient, tmp_path: Path
) -> None:
    code = tmp_path / "own"
    code.mkdir()
    (code / "main.py").write_text("import os; print('in', os.getcwd(), 'as', os.getuid())\n")
    (code / "gpu.Dockerfile").write_text(f"FROM {base_image}\nUSER 4321\nWORKDIR /srv/own\nCOPY main.py .\n")
    (code / ".dockerignore").write_text("*.md\n")
    here.launch("job", "create", "code", str(code), "--name", "own")
    here.agent()
    words = ("enqueue", "own", "-q", "gpu-box", "--tracking", "optional", "--dockerfile", "gpu.Dockerfile", "--follow")

    first = here.launch(*words)
    assert "in /srv/own as 4321" in first
    (code / "notes.md").write_text("not part of it")
    here.launch("job", "create", "code", str(code), "--name", "own")
    second = here.launch(*words)

    notes = [event.note for run in here.client.runs() for event in here.client.store.read_events(run.id)]
    assert [note.split(" launch-env:")[0] for note in notes if "image of gpu.Dockerfile" in note] == [
        "reused image of gpu.Dockerfile",
        "built image of gpu.Dockerfile",
    ]
    assert "same Dockerfile, files and base" in second
    assert "eval" not in first


def test_an_image_job_runs_by_its_digest_and_the_run_keeps_it(
    here: Installation, base_image: str, engine: docker.APIClient, registry: str
) -> None:
    image = f"{registry}/shown:1"
    engine.tag(base_image, *image.rsplit(":", 1))
    engine.push(*image.rsplit(":", 1))
    here.agent()
    here.launch("enqueue", "--image", image, "-q", "gpu-box", "--tracking", "optional", "--follow", "--", "true")

    run = here.client.runs(limit=1)[0]
    shown = json.loads(here.launch("show", run.id, "--json"))
    assert f"{registry}/shown@{shown['image_digest']}" in engine.inspect_image(image)["RepoDigests"]
    assert shown["image"] == f"{registry}/shown@{shown['image_digest']}"
    assert shown["image_digest"] in here.launch("show", run.id)
    engine.remove_image(image, force=True)
