"""What a process queue may say, and what reaches the job of it."""

from __future__ import annotations

import pytest

from launch.checking import parse
from launch.errors import ConfigError
from launch.plugins import Attempt, TargetContext
from workers.runners.process import ProcessOptions, ProcessRunner

AGENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/me",
    "LANG": "de_DE.UTF-8",
    "LC_TIME": "C",
    "TZ": "UTC",
    "SSL_CERT_FILE": "/etc/own-ca.pem",
    "LAUNCH_BROKER_URL": "redis://:s3cr3t@host/0",
    "AWS_SECRET_ACCESS_KEY": "agent-key",
    "WANDB_API_KEY": "somebody's",
    "PYTHONPATH": "/agent/code",
    "DATA_DIR": "/data/sets",
}


def options(**config):
    return parse(ProcessOptions, config, where="config")


def plan_env(tmp_path, image=None, settings=None, config=None, **fields):
    runner = ProcessRunner(TargetContext("0a0a0a0a", tmp_path, settings or {}), environ=AGENT)
    attempt = Attempt("0a0a0a0a", "r1", 1, ("true",), **fields)
    return runner.plan(attempt, image, options(**(config or {})))


def test_the_agents_environment_stays_with_the_agent(tmp_path):
    """A job gets what it needs to find its way, and nothing else of the agent's."""
    env = plan_env(tmp_path).request["env"]
    assert env == {
        "PYTHONUNBUFFERED": "1",
        **{name: AGENT[name] for name in ("PATH", "HOME", "LANG", "LC_TIME", "TZ", "SSL_CERT_FILE")},
    }


def test_the_virtual_environment_comes_first(tmp_path):
    """``python`` is the environment's, also when the queue sets a PATH."""
    env = plan_env(tmp_path, image="/home/venvs/ab12", config={"env": {"PATH": "/opt/cuda/bin"}}).request["env"]
    assert env["PATH"] == "/home/venvs/ab12/bin:/opt/cuda/bin"
    assert env["VIRTUAL_ENV"] == "/home/venvs/ab12"


def test_who_wins(tmp_path):
    """The attempt's own variables win over the queue's, a secret over both."""
    config = {"env": ["A=queue", "B=queue", "C=queue", "TZ=Asia/Tokyo"]}
    env = plan_env(tmp_path, config=config, env={"B": "run", "C": "run"}, secret_env={"C": "secret"}).request["env"]
    assert [env[name] for name in ("A", "B", "C", "TZ")] == ["queue", "run", "secret", "Asia/Tokyo"]


@pytest.mark.parametrize(
    ("given", "env"),
    [
        (["A=1", "B=x=y", "EMPTY="], {"A": "1", "B": "x=y", "EMPTY": ""}),
        ({"A": 1, "B": 2.5, "C": True, "D": "x"}, {"A": "1", "B": "2.5", "C": "true", "D": "x"}),
        (["BARE"], {"BARE": None}),
    ],
)
def test_ways_to_write_env(given, env):
    """A list as ``docker run --env`` takes it, or a mapping as YAML has it."""
    assert options(env=given).env == env


def test_a_bare_name_needs_the_agents_leave(tmp_path):
    """A variable of the agent's goes to a job only if the agent config lists it; its value is masked in views."""
    with pytest.raises(ConfigError, match=r"env: 'DATA_DIR' .* pass_env; write DATA_DIR=value"):
        plan_env(tmp_path, config={"env": ["DATA_DIR"]})
    plan = plan_env(tmp_path, settings={"pass_env": ["DATA_DIR", "NOT_SET"]}, config={"env": ["DATA_DIR", "NOT_SET"]})
    assert plan.request["env"]["DATA_DIR"] == "/data/sets"
    assert "NOT_SET" not in plan.request["env"]
    assert "/data/sets" not in str(plan.view())


def test_the_agents_own_settings_cannot_be_passed(tmp_path):
    """No config can hand a job the broker's URL."""
    with pytest.raises(ConfigError, match="'LAUNCH_BROKER_URL' is the agent's own"):
        plan_env(tmp_path, settings={"pass_env": ["LAUNCH_BROKER_URL"]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"wrkdir": "src"}, r"config/wrkdir: unknown key; did you mean 'workdir'\?"),
        ({"workdir": "/etc"}, "config/workdir: should be a folder of the job's code, such as 'src', not '/etc'"),
        ({"workdir": "a/../../b"}, r"config/workdir: .* not 'a/../../b'"),
        ({"env": "A=1"}, "config/env: should be a mapping or a list of 'NAME=value', not 'A=1'"),
        ({"env": ["=1"]}, "config/env: '' is no name of a variable"),
        ({"env": {"A": [1]}}, r"config/env: A: should be text or a number, not \[1\]"),
    ],
)
def test_bad_options(config, message):
    """A wrong option is named with its value and what would be right."""
    with pytest.raises(ConfigError, match=message):
        options(**config)


def test_what_cannot_be_planned(tmp_path):
    """An image, an empty command and a NUL character are refused before anything is sent."""
    runner = ProcessRunner(TargetContext("0a0a0a0a", tmp_path), environ=AGENT)
    with pytest.raises(ConfigError, match=r"runs no images such as 'python:3\.11'; use a docker queue"):
        runner.plan(Attempt("0a0a0a0a", "r1", 1, ("true",)), "python:3.11", options())
    with pytest.raises(ConfigError, match="command: the process target needs one"):
        runner.plan(Attempt("0a0a0a0a", "r1", 1, ()), None, options())
    with pytest.raises(ConfigError, match="NUL character"):
        runner.plan(Attempt("0a0a0a0a", "r1", 1, ("echo", "a\0b")), None, options())
    with pytest.raises(ConfigError, match=r"agent config: process/pass_evn: unknown key; did you mean 'pass_env'\?"):
        ProcessRunner(TargetContext("0a0a0a0a", tmp_path, {"pass_evn": []}))


def test_an_empty_secret_masks_nothing(tmp_path):
    """An empty value would be "found" between all characters of a view."""
    assert plan_env(tmp_path, secret_env={"EMPTY": ""}).view()["command"] == ["true"]


def test_problems_of_a_target_are_named(tmp_path):
    """A launch home that cannot be made is a problem with a fix, not an exception."""
    (tmp_path / "file").write_text("")
    (problem,) = ProcessRunner(TargetContext("0a0a0a0a", tmp_path / "file")).check()
    assert str(tmp_path / "file") in problem.what
