"""``docker-compose up``, as its head says: all services, agents that come and go under running jobs, and an end."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from services import BASE_IMAGE, free_port, need_program

from launch.client import Client
from launch.models import RunState
from launch.settings import read_settings
from launch.watch import Run
from tests.agents import QUICK, wait_until

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
PROJECT = "openlaunch-acceptance"
REDIS_IMAGE = "redis:7.4-alpine"
MOST_ADDED_BYTES = 250_000_000
LOGIN = "ada:s3cret"

TRAIN = """
import wandb
run = wandb.init()
for step in range(3):
    wandb.log({"loss": run.config["lr"] / (step + 1)})
"""


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(docker_host: str, base_image: str) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=docker_host, version="auto", timeout=300)
    yield client
    client.close()


def build(engine: docker.APIClient, name: str, files: dict[str, bytes]) -> None:
    """Have an image built from these files, unless it is there from the same ones."""
    digest = hashlib.sha256(engine.inspect_image(BASE_IMAGE)["Id"].encode())
    for path, content in sorted(files.items()):
        digest.update(path.encode() + content)
    label = {"ai.openlaunch.recipe": digest.hexdigest()}
    with contextlib.suppress(docker.errors.ImageNotFound):
        if (engine.inspect_image(name)["Config"]["Labels"] or {}).items() >= label.items():
            return
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    context.seek(0)
    said = list(engine.build(fileobj=context, custom_context=True, tag=name, labels=label, rm=True, decode=True))
    assert "error" not in said[-1], said[-5:]


@pytest.fixture(scope="module")
def redis_image(engine: docker.APIClient) -> None:
    """This machine's Redis under the name of the official image: with its own libraries, whichever Debian that is."""
    if os.environ.get("LAUNCH_TEST_DOCKER_HOST"):
        return
    programs = {name: Path(need_program(name)).resolve() for name in ("redis-server", "redis-cli")}
    listed = "".join(subprocess.check_output(["ldd", str(path)], text=True) for path in programs.values())
    libraries = {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
    loader = next(path.name for path in libraries if path.name.startswith("ld-"))
    files = {f"redis/{path.name}": path.read_bytes() for path in libraries}
    for name, path in programs.items():
        files[f"redis/{name}"] = path.read_bytes()
        start = f'exec /redis/{loader} --library-path /redis --argv0 {name} /redis/{name} "$@"'
        files[f"bin/{name}"] = f"#!/bin/sh\n{start}\n".encode()
    files["Dockerfile"] = (
        f"FROM {BASE_IMAGE}\nCOPY redis /redis\nCOPY bin /usr/local/bin\n"
        "RUN useradd redis && install -d -o redis /data\nVOLUME /data\nWORKDIR /data\n"
    ).encode()
    build(engine, REDIS_IMAGE, files)


@pytest.fixture(scope="module")
def wandb_image(engine: docker.APIClient) -> str:
    """An image that jobs which call ``wandb.init`` can run in."""
    dockerfile = f"FROM {BASE_IMAGE}\nRUN pip install --no-cache-dir wandb\n"
    build(engine, "openlaunch-acceptance:wandb", {"Dockerfile": dockerfile.encode()})
    return "openlaunch-acceptance:wandb"


# --- docker-compose --------------------------------------------------------------------------------------------------


class Composed:
    """The compose file on the test's engine; only for the test, Redis is published, on loopback."""

    def __init__(self, engine: docker.APIClient, docker_host: str, folder: Path) -> None:
        self.engine = engine
        gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
        self.redis_port, self.flower_port = free_port(), free_port()
        socket = docker_host.removeprefix("unix://")
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME")},
            "DOCKER_HOST": docker_host,
            "DOCKER_SOCKET": socket,
            "DOCKER_GID": str(Path(socket).stat().st_gid),
            "REDIS_PASSWORD": "abc123",
            "FLOWER_BASIC_AUTH": LOGIN,
            "FLOWER_PORT": str(self.flower_port),
            "TRACKING_BIND": gateway,
            "TRACKING_URL": f"http://{gateway}:8765",
            "COMPOSE_PROJECT_NAME": PROJECT,
        }
        override = folder / "override.yml"
        services = {name: {"environment": QUICK} for name in ("server", "agent", "flower")}
        services["redis"] = {"ports": [f"127.0.0.1:{self.redis_port}:6379"]}
        override.write_text(yaml.safe_dump({"services": services}))
        (folder / "env").touch()
        program = need_program("docker-compose")
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(override), "--project-directory", str(ROOT))
        self._argv = [program, *files, "--env-file", str(folder / "env")]

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*self._argv, *words], env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"docker-compose {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """Return the containers of a service, or of all, also those that have ended."""
        labels = [f"com.docker.compose.project={PROJECT}"]
        if service is not None:
            labels.append(f"com.docker.compose.service={service}")
        return list(self.engine.containers(all=True, filters={"label": labels}))

    def health(self, service: str) -> set[str]:
        found = [self.engine.inspect_container(one["Id"]) for one in self.containers(service)]
        return {one["State"]["Health"]["Status"] for one in found}


@pytest.fixture(scope="module")
def composed(
    engine: docker.APIClient, docker_host: str, redis_image: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Composed]:
    compose = Composed(engine, docker_host, tmp_path_factory.mktemp("compose"))
    compose("down", "--volumes", "--remove-orphans", "--timeout", "1")  # what a killed test left
    compose("up", "-d", "--build")
    yield compose
    compose("down", "--volumes", "--timeout", "5")


@pytest.fixture
def client(composed: Composed, tmp_path: Path) -> Iterator[Client]:
    environment = {
        **QUICK,
        "LAUNCH_HOME": str(tmp_path),
        "LAUNCH_BROKER_URL": f"redis://:abc123@127.0.0.1:{composed.redis_port}/0",
        "LAUNCH_ARTIFACTS": composed.environment["TRACKING_URL"],
    }
    made = Client(settings=read_settings(environment))
    wait_until(lambda: living(made), what="the first agent", timeout_s=60)
    yield made
    for job in attempts(composed, made):  # only what a failed test leaves running
        with contextlib.suppress(docker.errors.APIError):  # its agent is faster
            composed.engine.remove_container(job, force=True)
    made.close()


def living(client: Client) -> set[str]:
    """Return the ids of the containers whose agents live."""
    return {agent.host for agent in client.agents() if agent.is_alive}


def attempts(composed: Composed, client: Client) -> list[str]:
    """Return the names of this installation's job containers."""
    label = f"ai.openlaunch.installation={client.store.installation()}"
    return [one["Names"][0].lstrip("/") for one in composed.engine.containers(all=True, filters={"label": label})]


def quick(client: Client, script: str, **more: Any) -> Run:
    return client.enqueue(image=BASE_IMAGE, command=["sh", "-c", script], queue="docker", tracking="optional", **more)


# --- tests, in this order: the later ones find what the earlier ones left running -------------------------------------


def test_the_image_is_small_and_no_service_of_ours_runs_as_root(composed: Composed) -> None:
    base = composed.engine.inspect_image(BASE_IMAGE)["Size"]
    for name in ("openlaunch:0.1.0", "openlaunch-server:0.1.0"):
        image = composed.engine.inspect_image(name)
        print(f"{name}: {(image['Size'] - base) / 1e6:.0f} MB on a base of {base / 1e6:.0f} MB")
        assert image["Size"] - base < MOST_ADDED_BYTES
        assert image["Config"]["User"] == "launch"


def test_a_job_launched_from_outside_runs_in_a_container_and_is_tracked(client: Client, wandb_image: str) -> None:
    run = client.enqueue(image=wandb_image, command=["python", "-c", TRAIN], queue="docker", config={"lr": 0.5})

    run.wait(timeout_s=120)

    assert run.state is RunState.FINISHED, (run.cause, list(run.logs()))
    assert [row["loss"] for row in run.history()] == [0.5, 0.25, pytest.approx(0.5 / 3)]


def test_flower_asks_for_its_password_for_pages_and_for_its_api(composed: Composed, client: Client) -> None:
    """And shows the run to whoever has it."""
    run = quick(client, "echo hello").wait(timeout_s=60)
    url = f"http://127.0.0.1:{composed.flower_port}"

    assert [answer_of(f"{url}{path}")[0] for path in ("/", "/tasks", "/api/tasks", "/api/workers")] == [401] * 4

    def task() -> Any:
        status, body = answer_of(f"{url}/api/tasks", LOGIN)
        assert status == 200
        return json.loads(body).get(run.id)

    assert wait_until(task, what="the run in Flower")["worker"]
    assert answer_of(f"{url}/task/{run.id}", LOGIN)[0] == 200


def answer_of(url: str, login: str | None = None) -> tuple[int, bytes]:
    """Return ``(status, body)``."""
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code, b""


def test_three_agents_share_the_queue_in_order(composed: Composed, client: Client) -> None:
    composed("up", "-d", "--no-build", "--no-recreate", "--scale", "agent=3")
    wait_until(lambda: len(living(client)) == 3, what="three agents", timeout_s=90)

    runs = [quick(client, "sleep 1") for _ in range(9)]
    records = [run.wait(timeout_s=90).refresh() for run in runs]

    assert {run.state for run in records} == {RunState.FINISHED}
    claims = [client.store.record(run.id).claimed_at or 0.0 for run in runs]
    assert claims == sorted(claims)
    assert len({run.agent for run in records}) == 3


def test_a_killed_agents_job_goes_on_with_another_and_finishes_once(composed: Composed, client: Client) -> None:
    run = quick(client, "for i in $(seq 80); do echo line $i; sleep 0.1; done")
    wait_until(lambda: len(list(run.logs())) > 5, what="the first lines")
    (job,) = attempts(composed, client)
    (agent,) = [agent for agent in client.agents() if run.id in agent.runs]

    composed.engine.kill(agent.host)
    run.wait(timeout_s=60)

    assert (run.state, run.attempt) == (RunState.FINISHED, 1)
    assert [line for line in run.logs() if line.startswith("line")] == [f"line {i}" for i in range(1, 81)]
    notes = [event.note for event in client.store.read_events(run.id)]
    assert len([note for note in notes if note.startswith("adopted")]) == 1
    wait_until(lambda: job not in attempts(composed, client), what="the container's removal")


def test_agents_that_are_restarted_leave_the_job_alone(composed: Composed, client: Client) -> None:
    run = quick(client, "until [ -e /tmp/end ]; do sleep 0.1; done; echo ended")
    wait_until(lambda: run.refresh().state is RunState.RUNNING, what="the job")
    (job,) = attempts(composed, client)
    before = composed.engine.inspect_container(job)["State"]
    known = {agent.id for agent in client.agents()}

    composed("restart", "--timeout", "10", "agent")
    wait_until(lambda: run.refresh().agent and run.agent not in known, what="the new agent's adoption", timeout_s=90)

    after = composed.engine.inspect_container(job)["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    composed.engine.exec_start(composed.engine.exec_create(job, ["touch", "/tmp/end"])["Id"])
    assert run.wait(timeout_s=60).state is RunState.FINISHED
    assert run.attempt == 1


def test_services_tell_their_health(composed: Composed) -> None:
    for service in ("redis", "server", "flower", "agent"):
        wait_until(
            lambda service=service: composed.health(service) == {"healthy"}, what=f"{service}'s health", timeout_s=90
        )


def test_the_command_line_is_a_service_too(composed: Composed) -> None:
    said = json.loads(composed("run", "--rm", "-T", "cli", "status", "--json"))
    assert said["queues"]["docker"]["active"] == 0
    assert len(said["agents"]) == 3


def test_it_goes_without_a_trace(composed: Composed) -> None:
    composed("down", "--volumes", "--timeout", "10")

    assert composed.containers() == []
    assert composed.engine.networks(filters={"label": f"com.docker.compose.project={PROJECT}"}) == []
    left = composed.engine.volumes(filters={"label": f"com.docker.compose.project={PROJECT}"})
    assert not left["Volumes"]
