"""Secrets come from the environment, files and AWS Secrets Manager, and from nowhere else; no message holds one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

from launch.checking import parse
from launch.cli import cli
from launch.errors import ConfigError, TemporaryError
from launch.plugins import TargetContext
from workers.config import AgentConfig, load_config
from workers.secret_sources import AwsSettings, AwsSource, Secrets, SecretSettings
from workers.targets import make_targets

CANARY = "c4n4ry-0f-4-s3cr3t"


def secrets_of(*sources: dict[str, Any], environ: dict[str, str] | None = None, **more: Any) -> Secrets:
    return Secrets(parse(SecretSettings, {"sources": sources, **more}, where="secrets"), environ or {})


# --- the environment --------------------------------------------------------------------------------------------------


def test_only_listed_variables_are_secrets() -> None:
    environ = {"HF_TOKEN": "hf", "JOB_SECRET_DB": "db", "PATH": "/bin", "JOB_SECRET_": "x"}
    secrets = secrets_of({"env": {"names": ["HF_TOKEN", "UNSET"], "prefix": "JOB_SECRET_"}}, environ=environ)
    assert secrets.get("HF_TOKEN") == "hf"
    assert secrets.get("DB") == "db"
    assert secrets.sources[0].names() == ["DB", "HF_TOKEN"]
    for name, answer in {"PATH": "JOB_SECRET_PATH not set", "UNSET": "UNSET and JOB_SECRET_UNSET not set"}.items():
        with pytest.raises(ConfigError, match=f"secret '{name}': no source of this agent has it.*{answer}"):
            secrets.get(name)


def test_without_sources_there_are_no_secrets() -> None:
    with pytest.raises(ConfigError, match="list them under secrets/sources"):
        secrets_of(environ={"HF_TOKEN": "x"}).get("HF_TOKEN")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as Kubernetes mounts it: links to links, which are swapped when a secret changes."""
    inner = tmp_path / "mounted" / "..2024_01"
    inner.mkdir(parents=True)
    for name, text in {"HF_TOKEN": CANARY + "\n", "crlf": "a-value\r\n", "two": "a\n\n", "nested": "x"}.items():
        (inner / name).write_text(text)
        (inner / name).chmod(0o600)
    (inner.parent / "..data").symlink_to(inner.name)
    for name in ("HF_TOKEN", "crlf", "two"):
        (inner.parent / name).symlink_to(f"..data/{name}")
    return inner.parent


def test_a_file_is_a_secret_without_its_last_newline(folder: Path) -> None:
    secrets = secrets_of({"files": {"folder": str(folder)}})
    assert [secrets.get(name) for name in ("HF_TOKEN", "crlf", "two")] == [CANARY, "a-value", "a\n"]
    assert secrets.sources[0].names() == ["HF_TOKEN", "crlf", "two"]


@pytest.mark.parametrize("name", ["out", "a/../../outside", "..data/../../outside", "nothing", "sub"])
def test_no_name_and_no_link_leads_out_of_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text(CANARY)
    (folder / "out").symlink_to("../outside")
    (folder / "sub").mkdir()
    with pytest.raises(ConfigError, match=r"no source|a secret's name is") as caught:
        secrets_of({"files": {"folder": str(folder)}}).get(name)
    assert CANARY not in str(caught.value)


def test_what_a_variable_cannot_hold_is_refused_without_being_shown(folder: Path) -> None:
    for name, data in {
        "nul": b"c4n4ry\0x",
        "bytes": b"c4n4ry\xff",
        "empty": b"\n",
        "large": b"c4n4ry" * 20_000,
    }.items():
        (folder / name).write_bytes(data)
        with pytest.raises(ConfigError, match=name) as caught:
            secrets_of({"files": {"folder": str(folder)}}).get(name)
        assert "c4n4ry" not in str(caught.value)


def test_it_is_said_once_that_everybody_can_read_a_file(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    secrets = secrets_of({"files": {"folder": str(folder)}})
    secrets.get("HF_TOKEN")
    assert caplog.messages == []
    (folder / "HF_TOKEN").resolve().chmod(0o644)
    with caplog.at_level(logging.WARNING):
        secrets.get("HF_TOKEN")
        secrets.get("HF_TOKEN")
    (message,) = caplog.messages
    assert "can be read by every user of this machine; chmod o-r" in message


def test_a_value_too_short_to_be_masked_is_told(caplog: pytest.LogCaptureFixture) -> None:
    secrets = secrets_of({"env": {"names": ["PIN"]}}, environ={"PIN": "123"})
    assert [secrets.get("PIN"), secrets.get("PIN")] == ["123", "123"]
    (message,) = caplog.messages
    assert "cannot be masked" in message
    assert "123" not in message


# --- AWS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an account whose secrets are gone afterwards."""
    for name, value in {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("secretsmanager", region_name="eu-central-1", endpoint_url=moto_url)
    yield client
    for item in client.list_secrets()["SecretList"]:
        client.delete_secret(SecretId=item["ARN"], ForceDeleteWithoutRecovery=True)


def aws_settings(moto_url: str, **more: Any) -> dict[str, Any]:
    return {"aws": {"region": "eu-central-1", "endpoint": moto_url, **more}}


def test_aws_secrets_are_read_under_a_prefix_and_by_key(aws: Any, moto_url: str) -> None:
    aws.create_secret(Name="launch/HF_TOKEN", SecretString=CANARY)
    aws.create_secret(Name="launch/db", SecretString=json.dumps({"user": "me", "port": 5432, "more": {}}))
    aws.create_secret(Name="launch/binary", SecretBinary=b"as-bytes")
    aws.create_secret(Name="other", SecretString="x")
    secrets = secrets_of(aws_settings(moto_url, prefix="launch/"))
    assert secrets.get("HF_TOKEN") == CANARY
    assert secrets.get("db#user") == "me"
    assert secrets.get("db#port") == "5432"
    assert secrets.get("binary") == "as-bytes"
    assert secrets.sources[0].names() == ["HF_TOKEN", "binary", "db"]
    for name, message in {
        "other": "no such secret",
        "db#pasword": "its keys are: more, port, user",
        "db#more": "no text under the key 'more'",
        "HF_TOKEN#x": "is no JSON object",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            secrets.get(name)
        assert CANARY not in str(caught.value)


def test_an_aws_secret_is_asked_for_again_after_a_while(aws: Any, moto_url: str) -> None:
    now = [0.0]
    source = AwsSource(AwsSettings(region="eu-central-1", endpoint=moto_url, ttl_s=60), clock=lambda: now[0])
    aws.create_secret(Name="X", SecretString="old")
    assert source.get("X") == "old"
    aws.put_secret_value(SecretId="X", SecretString="new")
    assert source.get("X") == "old"
    now[0] = 60.0
    assert source.get("X") == "new"


def test_a_source_that_is_away_is_waited_for_and_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "testing")
    secrets = secrets_of(
        {"aws": {"region": "eu-central-1", "endpoint": "http://127.0.0.1:9"}},
        {"env": {"names": ["HF_TOKEN"]}},
        environ={"HF_TOKEN": "older"},
    )
    with pytest.raises(TemporaryError, match=r"secrets: aws eu-central-1 http://127\.0\.0\.1:9 does not answer"):
        secrets.get("HF_TOKEN")


def test_an_aws_source_that_cannot_work_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(ConfigError, match="cannot be set up: You must specify a region"):
        secrets_of({"aws": {}})
    with pytest.raises(ConfigError, match=r"cannot be set up.*\(nobody\)"):
        secrets_of({"aws": {"region": "eu-central-1", "profile": "nobody"}})


# --- all of them ------------------------------------------------------------------------------------------------------


def test_the_first_source_that_has_a_name_wins(folder: Path) -> None:
    environ = {"HF_TOKEN": "of env", "ONLY": "here"}
    env, files = {"env": {"names": ["HF_TOKEN", "ONLY"]}}, {"files": {"folder": str(folder)}}
    assert secrets_of(env, files, environ=environ).get("HF_TOKEN") == "of env"
    secrets = secrets_of(files, env, environ=environ)
    assert [secrets.get("HF_TOKEN"), secrets.get("ONLY")] == [CANARY, "here"]
    assert secrets.in_hand == {CANARY, "here"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sources": [{"env": {}}]}, "secrets/sources/0/env: give names, a prefix, or both"),
        ({"sources": [{"files": {"folder": "run/secrets"}}]}, "should be an absolute path"),
        ({"sources": [{}]}, "should be one source"),
        ({"sources": [{"env": {"prefix": "A_"}, "files": {"folder": "/a"}}]}, "should be one source"),
        ({"sources": [{"vault": {}}]}, "vault: unknown key"),
        ({"launchable": ["A B"]}, "secret 'A B': a secret's name is"),
    ],
)
def test_a_wrong_section_is_refused_with_its_path(tmp_path: Path, section: Any, message: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(json.dumps({"secrets": section}))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)


def test_a_listed_secret_is_listed_with_its_keys() -> None:
    settings = SecretSettings(launchable=("db", "aws#id"))
    assert [settings.may_launch(name) for name in ("db", "db#user", "aws#id")] == [True] * 3
    assert [settings.may_launch(name) for name in ("aws", "aws#key", "other")] == [False] * 3


def test_settings_of_targets_are_filled_in_and_no_error_quotes_a_secret(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TargetContext] = []
    monkeypatch.setattr("workers.runners.process.ProcessRunner.__init__", lambda _, context: seen.append(context))
    secrets = secrets_of({"files": {"folder": str(folder)}})
    config = AgentConfig(targets={"process": {"login": "me:${secret:HF_TOKEN}"}})
    make_targets(["process"], "0fa4e0fa", tmp_path, config, secrets)
    assert seen[0].settings == {"login": f"me:{CANARY}"}
    assert CANARY in secrets.in_hand
    monkeypatch.undo()

    config = AgentConfig(targets={"docker": {"host": "${secret:HF_TOKEN}", "min_free_gb": "${secret:HF_TOKEN}"}})
    with pytest.raises(ConfigError) as caught:
        make_targets(["docker"], "0fa4e0fa", tmp_path, config, secrets)
    assert CANARY not in str(caught.value)


# --- the command ------------------------------------------------------------------------------------------------------


def typed(*words: str, code: int = 0, **environ: str) -> str:
    done = CliRunner().invoke(cli, ["secret", *words], env=environ)
    assert done.exit_code == code, done.output
    assert CANARY not in done.output
    return done.output


def test_check_says_where_each_secret_is_and_fails_when_one_is_missing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    sources = [{"env": {"names": ["ONLY"]}}, {"files": {"folder": str(folder)}}]
    path.write_text(json.dumps({"secrets": {"sources": sources, "launchable": ["ONLY"]}}))
    config = ("-c", str(path))

    said = typed("check", "HF_TOKEN", "ONLY", *config, ONLY="here")
    assert said == f"secret 'HF_TOKEN': in files {folder}\nsecret 'ONLY': in env; a launch may name it\n"

    said = typed("check", "HF_TOKEN", "GONE", *config, code=2)
    assert "secret 'GONE': no source of this agent has it (env: not listed under names; files" in said
    assert "a secret's name is" in typed("check", "A B", *config, code=2)

    (item,) = json.loads(typed("check", "HF_TOKEN#key", *config, "--json", code=2))
    assert (item["source"], item["launchable"]) == (None, False)
    assert "is no JSON object" in item["problem"]


def test_list_gives_names_only(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(
        json.dumps({"secrets": {"sources": [{"files": {"folder": str(folder)}}, {"files": {"folder": "/x"}}]}})
    )
    said = typed("list", "-c", str(path))
    assert said == f"files {folder}: HF_TOKEN, crlf, two\nfiles /x: does not tell: No such file or directory\n"
    path.write_text("{}")
    assert "no sources" in typed("list", "-c", str(path))
