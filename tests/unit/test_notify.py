"""Hooks: their file, and the words they are told things in."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest

from launch.errors import ConfigError
from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, RunRecord, RunState
from launch.notify import Hook, body_of, headers_of, no_agent, read_hooks, run_ended

ENVIRONMENT = {"SLACK_URL": "https://hooks.example/s3cret", "HOOK_KEY": "k3y"}


def failed(**fields: object) -> RunRecord:
    job = Job(source=CommandSource(), entrypoint=("python", "train.py"))
    cause = Cause(kind=CauseKind.EXIT_CODE, message="It exited with 3.", exit_code=3, log_tail=("a < b", "boom"))
    return RunRecord(
        spec=LaunchSpec(run_id="r1", queue="q", resource="process", job=job, name="try"),
        **{"state": RunState.FAILED, "seq": 1, "attempt": 1, "cause": cause, **fields},
        **{"created_at": 1.0, "started_at": 2.0, "ended_at": 62.0},
    )


def test_the_reference_file_loads() -> None:
    """What the annotated file says is what the server reads, and its secrets are filled in."""
    team, ci = read_hooks(Path("config/notify.yaml"), ENVIRONMENT)
    assert (team.url, team.format, team.queues) == ("https://hooks.example/s3cret", "slack", ("gpu-box",))
    assert ci.key == "k3y"
    assert {"s3cret", "k3y"}.isdisjoint(repr((team, ci)).split("/"))
    said = Path("config/notify.yaml").read_text()
    assert [name for name in Hook.model_fields if f"{name}:" not in said] == []


def test_only_what_was_asked_for() -> None:
    """A hook is told of its occasions in its queues."""
    hook = Hook(name="h", url="http://h/", events=("failed",), queues=("q",))
    assert hook.wants("failed", "q")
    assert not hook.wants("finished", "q")
    assert not hook.wants("failed", "r")


def test_people_are_told_in_a_sentence() -> None:
    """Slack's text says which run, where, how it ended and why, with the end of its log, and breaks out of nothing."""
    text = json.loads(body_of(Hook(name="h", url="http://h/", format="slack"), run_ended(failed())))["text"]
    assert text.startswith(
        "Run r1 (python train.py) in queue q failed after 1 min: It exited with 3.\n```a &lt; b\nboom"
    )


def test_programs_are_told_all_of_it() -> None:
    """The webhook's fields name the run, its state and its cause."""
    said = json.loads(body_of(Hook(name="h", url="http://h/"), run_ended(failed())))
    assert (said["event"], said["run"], said["queue"], said["name"]) == ("failed", "r1", "q", "try")
    assert said["cause"] == {"kind": "exit_code", "message": "It exited with 3."}
    assert said["log_tail"] == ["a < b", "boom"]


def test_a_body_is_signed_as_documented() -> None:
    """Whoever has the key can tell that the message is ours."""
    body = body_of(hook := Hook(name="h", url="http://h/", key="k3y"), no_agent("q", 2))
    expected = "sha256=" + hmac.new(b"k3y", body, hashlib.sha256).hexdigest()
    assert headers_of(hook, body)["X-Launch-Signature"] == expected
    assert "X-Launch-Signature" not in headers_of(Hook(name="h", url="http://h/"), body)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hooks: [{name: a, url: 'ftp://x/'}]", r"hooks/0/url: should be an http:// or https:// URL"),
        ("hooks: [{name: a, url: 'http://x/'}, {name: a, url: 'http://y/'}]", "two hooks are called 'a'"),
        ("hooks: [{name: a, url: 'http://x/', when: [failed]}]", "hooks/0/when: unknown key"),
        ("hooks: [{name: a, url: 'http://x/', events: [broken]}]", "hooks/0/events"),
        ("hooks: [{name: a, url: '${secret:NOT_THERE}'}]", "the secret NOT_THERE is no variable of the server"),
        ("hooks: [", "is no YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    """The message says where, and never shows a URL."""
    path = tmp_path / "notify.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hooks(path, ENVIRONMENT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message names the setting and the file."""
    with pytest.raises(ConfigError, match=r"LAUNCH_NOTIFY: .*nowhere\.yaml cannot be read: No such file"):
        read_hooks(tmp_path / "nowhere.yaml", ENVIRONMENT)
