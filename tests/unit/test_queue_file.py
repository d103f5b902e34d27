"""Queues as files, Python and the command line describe them, and what applying a file would change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.cli.queue_settings import _settings, shown
from launch.errors import ConfigError, ConflictError
from launch.models import Limits, QueueSpec, RetryPolicy, RetryRule
from launch.queue_file import change_of, read_queues, shown_retry, variable_lines
from launch.queue_spec import changed_queue, queue_spec

RETRY = {"preempted": 3, "oom": {"times": 1, "memory": "x1.5"}, "error": 0}


def one(settings: Any) -> QueueSpec:
    (spec,) = read_queues({"queues": {"gpu": settings}}, where="queues.yaml")
    return spec


def test_a_file_of_queues_is_read_with_every_setting() -> None:
    spec = one(
        {
            "resource": "local-container",
            "config": {"shm_size": "2g"},
            "overrides": ["cpus", "shm_size"],
            "priorities": True,
            "max_concurrent": 4,
            "retry": RETRY,
            "start_limit": "30m",
            "run_limit": "7d",
            "orphan_timeout": 7200,
        }
    )
    assert (spec.resource, spec.config, spec.overrides) == ("docker", {"shm-size": "2g"}, ("cpus", "shm-size"))
    assert spec.limits == Limits(start_s=1800, run_s=604_800, orphan_s=7200)
    assert spec.retry.oom == RetryRule(times=1, memory="x1.5")
    assert (spec.retry.preempted.times, spec.retry.error.times, spec.retry.host_lost.times) == (3, 0, 0)


def test_what_a_file_leaves_out_has_its_default() -> None:
    assert one({"resource": "process"}) == QueueSpec(name="gpu", resource="process")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "queues.yaml: should be a mapping, not list"),
        ({}, "queues.yaml: names no queues"),
        ({"queues": []}, "queues.yaml: queues: should be a mapping, not list"),
        ({"queues": {"a": {"resource": "process"}}, "quues": 1}, "quues: unknown key; did you mean 'queues'?"),
        ({"queues": {"a": None}}, "queues.yaml: queues/a: should be a mapping, not NoneType"),
        ({"queues": {"a": {}}}, "queues.yaml: queues/a/resource: is required, such as process or docker"),
        ({"queues": {"a": {"resource": "proces"}}}, "unknown resource 'proces'; did you mean 'process'?"),
        ({"queues": {"a": {"resource": 3}}}, "queues.yaml: queues/a/resource: should be a target resource's name"),
        ({"queues": {"a b": {"resource": "process"}}}, "queues.yaml: queues/a b/name: should be 1 to 64 of letters"),
        ({"queues": {1: {"resource": "process"}}}, "queues.yaml: queues/1/name: should be a valid string, not 1"),
    ],
)  # fmt: skip
def test_an_error_is_a_path_into_the_file(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_queues(data, where="queues.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_concurent": 2}, "max_concurent: unknown key; did you mean 'max_concurrent'?"),
        ({"where": "x"}, "where: unknown key"),
        ({"name": "x"}, "name: unknown key"),
        ({"max_concurrent": "two"}, "max_concurrent: should be a valid integer, unable to parse string as an integer"),
        ({"max_concurrent": 0}, "max_concurrent: should be greater than or equal to 1, not 0"),
        ({"overrides": "some"}, "overrides: should be 'safe', 'all', 'none' or a list of keys, not 'some'"),
        ({"overrides": {"cpus": 1}}, "overrides: should be 'safe', 'all', 'none' or a list of keys"),
        ({"overrides": None}, "overrides: should be 'safe', 'all', 'none' or a list of keys"),
        ({"overrides": ["workdri"]}, "overrides/workdri: unknown key; did you mean 'workdir'?"),
        ({"config": {"workdri": "x"}}, "config/workdri: unknown key; did you mean 'workdir'?"),
        ({"config": 3}, "config: should be a mapping"),
        ({"run_limit": "soon"}, "run_limit: should be a time span, such as 90s, 30m, 2h or 7d, not 'soon'"),
        ({"orphan_timeout": 0}, "orphan_timeout: should be a time span"),
        ({"retry": 3}, "retry: should be a mapping"),
        ({"retry": {"eror": 1}}, "retry/eror: unknown key; did you mean 'error'?"),
        ({"retry": {"oom": {"tims": 1}}}, "retry/oom/tims: unknown key; did you mean 'times'?"),
        ({"retry": {"oom": {"times": 1, "memory": "1.5"}}}, "retry/oom/memory: should be a multiple, such as 'x1.5'"),
        ({"retry": {"error": -1}}, "retry/error/times: should be greater than or equal to 0"),
    ],
)
def test_a_wrong_setting_names_itself_and_the_fix(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one({"resource": "process", **settings})
    assert str(caught.value).startswith("queues.yaml: queues/gpu/")
    assert message in str(caught.value)


def test_all_wrong_queues_of_a_file_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_queues({"queues": {"a": {}, "b": {"resource": "process"}, "c": {"resourc": 1}}}, where="q.yaml")
    assert [line.partition(":")[2].split("/")[1] for line in str(caught.value).splitlines()] == ["a", "c"]


# --- changes ---------------------------------------------------------------------------------------------------------


def test_a_change_is_told_setting_by_setting() -> None:
    before = queue_spec("gpu", "process", max_concurrent=2, run_limit="1h").model_copy(update={"version": 7})
    after = queue_spec("gpu", "process", retry={"error": 2}, run_limit="2h", config={"workdir": "x"})
    change = change_of(after, before)
    assert {key: (old, new) for key, old, new in change.differences if key != "retry"} == {
        "max_concurrent": (2, None),
        "run_limit": (3600, 7200),
        "config": ({}, {"workdir": "x"}),
    }
    assert change.spec.version == 7


def test_the_same_settings_are_no_change_whatever_the_version_and_the_pause() -> None:
    spec = queue_spec("gpu", "process", retry=RETRY)
    assert change_of(spec, spec.model_copy(update={"version": 3, "paused": True})).differences == ()
    assert change_of(spec, spec.model_copy(update={"paused": True})).spec.paused is True


def test_a_queue_does_not_change_its_resource() -> None:
    with pytest.raises(ConflictError, match="is of resource 'process' and stays so"):
        change_of(queue_spec("gpu", "docker"), queue_spec("gpu", "process"))


def test_only_what_is_given_changes() -> None:
    spec = queue_spec(
        "gpu", "process", max_concurrent=2, run_limit="1h", start_limit="5m", retry=RETRY, priorities=True
    )
    after = changed_queue(spec, {"run_limit": None, "max_concurrent": 3})
    assert after.limits == Limits(start_s=300)
    assert after == spec.model_copy(update={"limits": after.limits, "max_concurrent": 3})
    assert changed_queue(spec, {"retry": None}).retry == RetryPolicy()
    assert changed_queue(spec, {}) == spec
    with pytest.raises(ConfigError, match="queue 'gpu'/resource: unknown key"):
        changed_queue(spec, {"resource": "docker"})


# --- the command line's form of them ---------------------------------------------------------------------------------


def test_options_that_were_not_given_set_nothing() -> None:
    assert _settings({"config": None, "run_limit": None, "priorities": None}) == {}
    assert _settings({"run_limit": -1.0, "max_concurrent": "none"}) == {"run_limit": None, "max_concurrent": None}
    assert _settings({"overrides": "cpus, env", "max_concurrent": "3"}) == {
        "overrides": ["cpus", "env"],
        "max_concurrent": 3,
    }
    assert _settings({"retry": '{"error": 1}'}) == {"retry": {"error": 1}}


def test_settings_are_shown_as_they_are_written() -> None:
    assert shown_retry(RetryPolicy.model_validate(RETRY))["oom"] == {"times": 1, "memory": "x1.5"}
    assert shown_retry(RetryPolicy.model_validate(RETRY))["preempted"] == 3
    assert RetryPolicy.model_validate(shown_retry(RetryPolicy.model_validate(RETRY))) == RetryPolicy.model_validate(
        RETRY
    )
    assert [shown("run_limit", 5400.0), shown("run_limit", None), shown("config", {"a": 1})] == [
        "1 h 30 min",
        "none",
        '{"a": 1}',
    ]


# --- template variables ----------------------------------------------------------------------------------------------

CPU = {"type": "integer", "minimum": 1, "maximum": 4, "default": 2, "description": "cores"}
SIZED = {"resource": "docker", "config": {"cpus": "{{cpu}}"}, "template_variables": {"cpu": CPU}}


def test_variables_in_a_file_are_shown_as_they_are_written() -> None:
    before, after = one(SIZED), one({**SIZED, "template_variables": {"cpu": {**CPU, "maximum": 8}}})
    assert change_of(after, before).differences == (
        ("template_variables", {"cpu": CPU}, {"cpu": {**CPU, "maximum": 8}}),
    )
    assert change_of(one(SIZED), before).differences == ()


def test_a_wrong_variable_in_a_file_is_named_by_its_path() -> None:
    with pytest.raises(
        ConfigError, match=r"queues\.yaml: queues/gpu/template_variables/cpu/default: should be an integer"
    ):
        one({**SIZED, "template_variables": {"cpu": {**CPU, "default": 9}}})


def test_variables_are_shown_with_type_range_and_default() -> None:
    assert variable_lines(one(SIZED)) == ["cpu = an integer between 1 and 4, default 2: cores"]
    sized = one({**SIZED, "template_variables": {"cpu": {"type": "number"}}})
    assert variable_lines(sized) == ["cpu = a number, has to be given"]


def test_variables_on_the_command_line(tmp_path: Path) -> None:
    """As YAML, as files, or none; what several options give is one set."""
    path = tmp_path / "vars.yaml"
    path.write_text("size: {enum: [2g, 8g]}")
    options = {"template_variables": ("cpu: {type: integer, minimum: 1}", str(path))}
    assert _settings(options) == {
        "template_variables": {"cpu": {"type": "integer", "minimum": 1}, "size": {"enum": ["2g", "8g"]}}
    }
    assert _settings({"template_variables": ("none",)}) == {"template_variables": {}}
    assert _settings({"template_variables": ()}) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("cpu: {",), "--var: is no valid YAML"),
        (("cpu",), "--var: should be like"),
        (("cpu: 3",), "--var: should be like"),
        (("a: {}", "a: {}"), "--var: 'a' is defined twice"),
        (("missing.yaml",), "--var: should be a JSON object or a file"),
    ],
)
def test_a_wrong_variable_on_the_command_line_is_named(values: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _settings({"template_variables": values})
    assert message in str(caught.value)
