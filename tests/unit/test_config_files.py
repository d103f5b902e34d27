"""What stands in ``config/``, ``deploy/`` and ``docker-compose.yml`` is complete, and the program takes it."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from services import need_program

from launch.models import RetryPolicy
from launch.plugins import TargetContext, builder_class, runner_class
from launch.queue_file import read_queues
from launch.queue_spec import QueueSettings
from workers.config import AgentConfig, read_config
from workers.docker_settings import EngineSettings
from workers.runners.process import ProcessSettings

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "config" / "agent.yaml"
QUEUES = ROOT / "config" / "queues.yaml"
COMPOSE = ROOT / "docker-compose.yml"
SECRETS = {"REDIS_PASSWORD": "abc123", "FLOWER_BASIC_AUTH": "ada:abc123", "DOCKER_GID": "999"}

# --- config/agent.yaml -----------------------------------------------------------------------------------------------


def test_the_agent_example_is_an_agent_config_with_every_key() -> None:
    read_config(AGENT, {})
    assert set(yaml.safe_load(AGENT.read_text())) == set(AgentConfig.model_fields)


def test_the_agent_examples_sections_have_every_setting_of_runners_and_builders(tmp_path: Path) -> None:
    config = read_config(AGENT, {})
    known = {"process": ProcessSettings, "docker": EngineSettings}
    assert set(config.targets) == set(known)
    assert set(config.builders) == {"docker"}
    for name, settings in config.targets.items():
        runner_class(name)(TargetContext("a1b2c3d4", tmp_path, settings))
        assert set(settings) == set(known[name].model_fields)
    for name, settings in config.builders.items():
        builder_class(name)(TargetContext("a1b2c3d4", tmp_path, {**config.targets[name], **settings}))


def test_every_key_of_the_agent_example_is_explained() -> None:
    lines = AGENT.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r" *[a-z_]+:", line):
            above = lines[number - 1].strip()
            assert above.startswith("#") or above.endswith(":"), f"{AGENT.name}:{number + 1}: {line}"


# --- config/queues.yaml ----------------------------------------------------------------------------------------------


def test_the_queue_examples_can_be_applied() -> None:
    specs = read_queues(yaml.safe_load(QUEUES.read_text()), where=QUEUES.name)
    assert {spec.resource for spec in specs} == {"process", "docker"}


def test_the_queue_examples_show_every_setting() -> None:
    queues = yaml.safe_load(QUEUES.read_text())["queues"].values()
    assert {key for queue in queues for key in queue} == {"resource", *QueueSettings.__annotations__}
    assert {key for queue in queues for key in queue.get("retry", ())} == set(RetryPolicy.model_fields)


# --- docker-compose.yml ----------------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text()))


def run_compose(folder: Path, *words: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run docker-compose with this environment and no .env file of the checkout."""
    program = need_program("docker-compose")
    empty = folder / "env"
    empty.touch()
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    argv = [program, "-f", str(COMPOSE), "--env-file", str(empty), *words]
    return subprocess.run(argv, env={**kept, **environment}, capture_output=True, text=True, timeout=60)


def test_compose_loads(tmp_path: Path) -> None:
    done = run_compose(tmp_path, "config", "--services", environment=SECRETS)
    assert done.returncode == 0, done.stderr
    assert {"redis", "server", "agent", "flower"} <= set(done.stdout.split())


@pytest.mark.parametrize("missing", SECRETS)
def test_compose_has_no_default_for_what_must_be_chosen(missing: str, tmp_path: Path) -> None:
    given = {name: value for name, value in SECRETS.items() if name != missing}
    done = run_compose(tmp_path, "config", "-q", environment=given)
    assert done.returncode != 0
    assert f"put {missing}=" in done.stderr


def test_agents_can_be_scaled() -> None:
    """Several containers of one service cannot share a name or a port of the machine."""
    agent = compose()["services"]["agent"]
    assert not {"container_name", "ports", "hostname"} & set(agent)
    assert agent["init"] is True


def test_only_agents_get_the_engines_socket() -> None:
    with_socket = [name for name, service in compose()["services"].items() if "docker.sock" in str(service)]
    assert with_socket == ["agent"]


def test_redis_is_published_nowhere_and_keeps_its_data() -> None:
    redis = compose()["services"]["redis"]
    assert "ports" not in redis
    assert "redis:/data" in redis["volumes"]
    assert "./config/redis.conf:/etc/redis.conf:ro" in redis["volumes"]
    assert "healthcheck" in redis


def test_every_service_that_stays_tells_its_health() -> None:
    services = compose()["services"]
    assert services["agent"]["healthcheck"]["test"][1:] == ["launch", "agents", "check"]
    ours = {name for name, service in services.items() if not service.get("profiles")}
    # The server's is in its image.
    assert {name for name in ours if "healthcheck" in services[name]} == ours - {"server"}


def test_agents_start_when_the_server_answers() -> None:
    """They would end at once, since their jobs could not reach it."""
    assert compose()["services"]["agent"]["depends_on"]["server"] == {"condition": "service_healthy"}


def test_what_is_published_is_published_on_one_address() -> None:
    """A port alone would be open on all addresses of the machine, past its firewall."""
    ports = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 4
    for port in ports:
        assert re.match(r"(\$\{[A-Z_]+:-)?(127\.0\.0\.1|172\.17\.0\.1)\}?:", port), port


def test_the_monitoring_profile_mounts_what_there_is() -> None:
    mounted = [
        volume.partition(":")[0]
        for name in ("prometheus", "grafana")
        for volume in compose()["services"][name]["volumes"]
        if volume.startswith("./")
    ]
    assert len(mounted) == 3
    assert all((ROOT / path).exists() for path in mounted)
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"


def test_compose_offers_no_processes() -> None:
    for service in compose()["services"].values():
        assert "process" not in str(service.get("command"))


# --- deploy/Dockerfile -----------------------------------------------------------------------------------------------


def test_what_the_dockerfile_copies_reaches_the_engine() -> None:
    """Each copied path exists, and .dockerignore lets it through."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    paths = [path for line in copies for path in line.split()]
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path
        ignored = False
        for rule in rules:
            if fnmatch.fnmatch(path, rule.removeprefix("!")):
                ignored = not rule.startswith("!")
        assert not ignored, path


def test_the_image_runs_as_a_user_and_the_server_tells_its_health() -> None:
    stages = re.split(r"^FROM ", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {name: stage for stage in stages if (name := stage.splitlines()[0].partition(" AS ")[2])}
    (last,) = [stage for stage in stages if " AS " not in stage.splitlines()[0]]
    assert last.strip() == "runtime"
    assert "\nUSER launch\n" in by_name["runtime"]
    assert "\nHEALTHCHECK " in by_name["server"]
    assert "-c constraints.txt" in by_name["build"]
