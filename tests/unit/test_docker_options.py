"""A Docker queue's config, and the request that it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.checking import parse
from launch.errors import ConfigError
from launch.plugins import Attempt, Plan, TargetContext
from workers.runners.docker import DockerRunner
from workers.runners.docker_options import BuilderOptions, DockerOptions, parse_memory, with_memory
from workers.runners.docker_state import status_of

ATTEMPT = Attempt("a1b2c3d4", "run-1", 2, ("python", "train.py"))


def options_of(**config: Any) -> DockerOptions:
    return parse(DockerOptions, config, where="queue")


def plan_of(
    attempt: Attempt = ATTEMPT, environ: dict[str, str] | None = None, pass_env: tuple[str, ...] = (), **config: Any
) -> Plan:
    context = TargetContext("a1b2c3d4", Path("/nowhere"), {"pass_env": pass_env})
    return DockerRunner(context, environ or {}).plan(attempt, "img", options_of(**config))


def host_config(**config: Any) -> dict[str, Any]:
    return {
        key: value for key, value in plan_of(**config).request["HostConfig"].items() if key not in ("Init", "LogConfig")
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        (2048, 2048),
        ("1k", 1024),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("1t", 1 << 40),
    ],
)
def test_memory_sizes(text: str | int, size: int) -> None:
    """Suffixes as Docker has them, of 1024."""
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "12x", "1 2g", True, "1e3"])
def test_odd_memory_sizes(text: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(ValueError, match="should be a size"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"cpus": 1.5}, {"NanoCpus": 1_500_000_000}),
        ({"cpu-shares": 512, "cpuset-cpus": "0-3,5"}, {"CpuShares": 512, "CpusetCpus": "0-3,5"}),
        ({"cpuset-mems": 0}, {"CpusetMems": "0"}),
        ({"cpu-period": 100000, "cpu-quota": 50000}, {"CpuPeriod": 100000, "CpuQuota": 50000}),
        ({"memory": "1g"}, {"Memory": 1 << 30, "MemorySwap": 1 << 30}),
        ({"memory": "1g", "memory-swap": "2g"}, {"Memory": 1 << 30, "MemorySwap": 2 << 30}),
        ({"memory": "1g", "memory-swap": -1}, {"Memory": 1 << 30, "MemorySwap": -1}),
        ({"shm-size": "64m"}, {"ShmSize": 64 << 20}),
        ({"ulimit": "nofile=1024:2048"}, {"Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 2048}]}),
        ({"ulimit": {"memlock": -1}}, {"Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}]}),
        (
            {"gpus": "all"},
            {"DeviceRequests": [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]], "Options": {}}]},
        ),
        ({"gpus": 2}, {"DeviceRequests": [{"Driver": "", "Count": 2, "Capabilities": [["gpu"]], "Options": {}}]}),
        (
            {"gpus": '"device=0,2"'},
            {"DeviceRequests": [{"Driver": "", "DeviceIDs": ["0", "2"], "Capabilities": [["gpu"]], "Options": {}}]},
        ),
        ({"volume": "/data:/data:ro"}, {"Binds": ["/data:/data:ro"]}),
        ({"volume": ["cache:/root/.cache", "/a:/b"]}, {"Binds": ["cache:/root/.cache", "/a:/b"]}),
        ({"tmpfs": "/scratch:size=1g,mode=1777"}, {"Tmpfs": {"/scratch": "size=1g,mode=1777"}}),
        (
            {"device": "/dev/fuse:/dev/fuse:rw"},
            {"Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rw"}]},
        ),
        (
            {"device": ["/dev/a:/dev/b"]},
            {"Devices": [{"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "rwm"}]},
        ),
        (
            {"device": "/dev/a:r"},
            {"Devices": [{"PathOnHost": "/dev/a", "PathInContainer": "/dev/a", "CgroupPermissions": "r"}]},
        ),
        ({"network": "host", "dns": "9.9.9.9"}, {"NetworkMode": "host", "Dns": ["9.9.9.9"]}),
        (
            {"publish": "127.0.0.1:8080:80/udp"},
            {"PortBindings": {"80/udp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}},
        ),
        ({"publish": 6006}, {"PortBindings": {"6006/tcp": [{"HostIp": "", "HostPort": ""}]}}),
        ({"add-host": {"db": "10.0.0.1"}}, {"ExtraHosts": ["db:10.0.0.1"]}),
        ({"privileged": True, "cap-add": "SYS_PTRACE"}, {"Privileged": True, "CapAdd": ["SYS_PTRACE"]}),
        ({"sysctl": {"net.core.somaxconn": 1024}}, {"Sysctls": {"net.core.somaxconn": "1024"}}),
        ({"pids-limit": 100, "ipc": "host"}, {"PidsLimit": 100, "IpcMode": "host"}),
        ({"runtime": "nvidia"}, {"Runtime": "nvidia"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_options_become_the_engines_own(config: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each option is what ``docker run`` would send."""
    assert host_config(**config) == expected


@pytest.mark.parametrize("spelling", ["shm-size", "shm_size", "--shm-size", "SHM_SIZE"])
def test_spellings_of_an_option(spelling: str) -> None:
    """W&B's spellings are the same option."""
    assert DockerRunner.canonical({spelling: "1g"}) == {"shm-size": "1g"}
    assert options_of(**{spelling: "1g"}).shm_size == 1 << 30


def test_short_names() -> None:
    """``docker run``'s one-letter options, and ``cpu``, which W&B has."""
    short = {"e": ["A=1"], "m": "1g", "w": "/w", "v": "/a:/b", "cpu": 2, "u": 5, "net": "host"}
    assert set(DockerRunner.canonical(short)) == {"env", "memory", "workdir", "volume", "cpus", "user", "network"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"memroy": "1g"}, "queue/memroy: unknown key; did you mean 'memory'?"),
        ({"rm": True}, "queue: rm: cannot be set, since a container is removed once its result and log are recorded"),
        ({"name": "x"}, "queue: name: cannot be set"),
        ({"shm_size": "1g", "shm-size": "1g"}, "queue: shm-size: shm-size is given twice"),
        ({"memory": "lots"}, "queue/memory: should be a size such as '512m' or '2g', not 'lots'"),
        ({"memory": "512"}, "queue/memory: '512' is 512 bytes, below Docker's minimum of 6m; did you mean '512m'?"),
        ({"memory": "1g", "memory-swap": "512m"}, "queue: memory-swap: is memory and swap together"),
        ({"memory-swap": "1g"}, "queue: memory-swap: needs memory too"),
        ({"cpus": 0}, "queue/cpus: should be greater than 0, not 0"),
        ({"cpus": 1, "cpu-quota": 5000}, "queue: cpus: is a cpu-quota of its own"),
        ({"gpus": "some"}, "queue/gpus: should be 'all', a number of GPUs or 'device=0,2', not 'some'"),
        ({"gpus": True}, "queue/gpus: should be"),
        ({"ulimit": "nofile"}, "queue/ulimit: should be name=soft[:hard], such as 'nofile=1024:2048', not 'nofile'"),
        ({"volume": "data"}, "queue/volume: should be source:/target[:ro]"),
        ({"volume": "./data:/data"}, "queue/volume: should be source:/target[:ro]"),
        ({"env": ["=x"]}, "queue/env: should be KEY=value"),
        ({"env": {"A": ["x"]}}, "queue/env: A: should be a string or a number, not ['x']"),
        ({"label": "ai.openlaunch.run=x"}, "queue/label: labels that start with 'ai.openlaunch.'"),
        ({"builder": {"pull": "sometimes"}}, "queue/builder/pull: should be 'missing', 'always' or 'never'"),
        ({"platform": "Linux AMD"}, "queue/platform: should be like"),
    ],
)
def test_mistakes_are_named(config: dict[str, Any], message: str) -> None:
    """The path, the value, and what would be right."""
    with pytest.raises(ConfigError) as caught:
        options_of(**config)
    assert message in str(caught.value)


def test_every_safe_override_is_an_option() -> None:
    """The list of what a launch may override names real options, and none that reaches the host."""
    known = {field.alias for field in DockerOptions.model_fields.values()}
    assert known >= DockerRunner.safe_overrides
    assert not DockerRunner.safe_overrides & {"volume", "privileged", "network", "device", "user", "cap-add", "runtime"}


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_whole_request() -> None:
    """Name, labels, command and environment of a plain attempt."""
    attempt = Attempt(
        "a1b2c3d4", "run-1", 2, ("python", "train.py"), env={"A": "run", "B": "2"}, secret_env={"KEY": "s3cr3t"}
    )
    plan = plan_of(attempt, env=["A=queue", "C=3"], label={"team": "x"})
    assert plan.name == "launch-a1b2c3d4-run-1-2"
    assert plan.request == {
        "Image": "img",
        "Entrypoint": ["python"],
        "Cmd": ["train.py"],
        "Env": ["A=run", "C=3", "B=2", "KEY=s3cr3t"],
        "Labels": {
            "team": "x",
            "ai.openlaunch.installation": "a1b2c3d4",
            "ai.openlaunch.run": "run-1",
            "ai.openlaunch.attempt": "2",
            "ai.openlaunch.name": "launch-a1b2c3d4-run-1-2",
        },
        "HostConfig": {
            "Init": True,
            "LogConfig": {"Type": "local", "Config": {"max-size": "1000g", "max-file": "1", "compress": "false"}},
        },
    }
    assert plan.secrets == {"s3cr3t"}
    assert plan.view()["Env"][-1] == "KEY=********"


def test_the_agents_own_variables() -> None:
    """A name without a value is the agent's to give, where its config says so, and never shown."""
    plan = plan_of(environ={"TOKEN": "t0ken", "OTHER": "x"}, pass_env=("TOKEN", "UNSET"), env=["TOKEN", "UNSET"])
    assert plan.request["Env"] == ["TOKEN=t0ken"]
    assert plan.secrets == {"t0ken"}
    with pytest.raises(ConfigError, match="env: 'OTHER' has no value, and this agent does not pass on its own"):
        plan_of(environ={"OTHER": "x"}, pass_env=("TOKEN",), env=["OTHER"])


def test_an_image_keeps_its_entrypoint_without_a_command() -> None:
    """A command replaces the image's entrypoint; the config's entrypoint takes the command as arguments."""
    bare = Attempt("a1b2c3d4", "run-1", 1, ())
    assert not {"Entrypoint", "Cmd"} & set(plan_of(bare).request)
    wrapped = plan_of(entrypoint=["nice", "-n", "5"]).request
    assert (wrapped["Entrypoint"], wrapped["Cmd"]) == (["nice", "-n", "5"], ["python", "train.py"])


def test_code_has_its_place() -> None:
    """A code job works in its code; a user of the queue's choosing gets a home."""
    attempt = Attempt("a1b2c3d4", "run-1", 1, ("./x",), code=Path("code.tar.gz"))
    assert plan_of(attempt).request["WorkingDir"] == "/launch/code"
    assert plan_of(attempt, workdir="sub").request["WorkingDir"] == "/launch/code/sub"
    assert plan_of(attempt, workdir="/data").request["WorkingDir"] == "/data"
    assert plan_of(attempt, user="1234").request["Env"] == ["HOME=/launch/home"]
    assert "Env" not in plan_of(attempt).request


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"read-only": True}, "read-only: a code job's files"),
        ({"tmpfs": "/launch"}, "tmpfs: '/launch' would cover"),
        ({"volume": "/data:/launch/code"}, "volume: '/launch/code' would cover"),
    ],
)
def test_nothing_may_cover_the_code(config: dict[str, Any], message: str) -> None:
    """Code that would be hidden or refused at start is refused before, with the reason."""
    plan_of(**config)
    with pytest.raises(ConfigError, match=message):
        plan_of(Attempt("a1b2c3d4", "run-1", 1, ("./x",), code=Path("code.tar.gz")), **config)


def test_plan_needs_an_image() -> None:
    """A command without an image is told so."""
    runner = DockerRunner(TargetContext("a1b2c3d4", Path("/nowhere")))
    with pytest.raises(ConfigError, match="image: the docker target needs one"):
        runner.plan(ATTEMPT, None, options_of())


def test_the_builder_is_told_its_part() -> None:
    """Its own section, and the two options of ``docker run`` that are about the image."""
    runner = DockerRunner(TargetContext("a1b2c3d4", Path("/nowhere")))
    options = options_of(pull="always", platform="linux/arm64", builder={"base-image": "cuda:12"})
    told = runner.build_options(options)
    assert told == {"base_image": "cuda:12", "pull": "always", "platform": "linux/arm64"}
    assert parse(BuilderOptions, told, where="builder").base == "cuda:12"
    wandb = parse(BuilderOptions, {"accelerator": {"base_image": "cuda:11"}}, where="builder")
    assert wandb.base == "cuda:11"
    assert runner.build_options(options_of()) == {}


def test_unknown_agent_settings_are_refused() -> None:
    """The agent's own section is checked too."""
    with pytest.raises(ConfigError, match="agent config: targets/docker/hots: unknown key; did you mean 'host'"):
        DockerRunner(TargetContext("a1b2c3d4", Path("/nowhere"), {"hots": "x"}))


# --- how it ended ----------------------------------------------------------------------------------------------------


def inspected(**state: Any) -> dict[str, Any]:
    return {"State": {"Status": "exited", "ExitCode": 0, **state}, "HostConfig": {"Memory": 1 << 30}}


def test_a_child_that_ran_out_of_memory() -> None:
    """The engine's flag is set by any process of the job: it counts only when the job failed."""
    assert status_of(inspected(OOMKilled=True, ExitCode=1), lambda: "").cause == "oom"
    assert status_of(inspected(OOMKilled=True, ExitCode=0), lambda: "").cause is None
    assert "limit of 1g" in status_of(inspected(OOMKilled=True, ExitCode=137), lambda: "").message


def test_signals() -> None:
    """128 more than a signal's number is that signal; 255 is an exit code."""
    assert status_of(inspected(ExitCode=143), lambda: "").signal == 15
    assert status_of(inspected(ExitCode=255), lambda: "").signal is None


def test_exit_code_127_of_the_jobs_own() -> None:
    """A shell in the job that misses a program is the job's failure, not the configuration's."""
    assert status_of(inspected(ExitCode=127), lambda: "sh: 1: foo: not found").cause is None


def test_a_retry_multiplies_the_limits_of_memory_that_are_there() -> None:
    config = {"cpus": 1, "memory": "1g", "memory-swap": "-1", "memory-reservation": "512m"}
    assert with_memory(config, 1.5) == {**config, "memory": 3 << 29, "memory-reservation": 3 << 28}
    assert with_memory({"memory": 64 << 20, "memory-swap": "128m"}, 2) == {
        "memory": 128 << 20,
        "memory-swap": 256 << 20,
    }
    assert with_memory({"cpus": 1}, 2) == {"cpus": 1}
