"""What is told of a run: short, readable by Flower's search, and without secrets."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.models import CommandSource, ImageSource, Job, LaunchSpec, Priority
from launch.run_events import brief, sent_events, task_kwargs, task_name
from workers.dashboard import with_buttons

COMMAND = Job(source=CommandSource(), entrypoint=("python", "train.py", "--password=hunter2"))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def a_launch(**fields: Any) -> LaunchSpec:
    return LaunchSpec.model_validate({"run_id": "mine", "queue": "q", "resource": "docker", "job": COMMAND, **fields})


def test_a_task_is_called_by_project_and_job() -> None:
    assert task_name(a_launch(project="mnist", job_ref="train:v3")) == "mnist/train"
    image = Job(source=ImageSource(image="host:5000/team/train:v1"))
    assert task_name(a_launch(project="mnist", job=image)) == "mnist/host:5000/team/train:v1"


def test_a_command_is_called_by_its_program_only() -> None:
    """What follows it may be a password."""
    assert task_name(a_launch()) == "uncategorized/python"


def test_flowers_search_can_read_the_arguments() -> None:
    said = ast.literal_eval(task_kwargs(a_launch(author="ann", priority=Priority.HIGH, config={"lr": 0.1, "on": True})))

    assert said == {"author": "ann", "priority": "high", "config": {"lr": 0.1, "on": True}}


@pytest.mark.parametrize(
    "given",
    [
        {"env": {"HF_HOME": "hunter2"}},
        {"env": ["HF_HOME=hunter2", "BARE"]},
        {"env": "HF_HOME=hunter2"},
        {"-e": ["HF_HOME=hunter2"]},
        {"Environment": {"HF_HOME": "hunter2"}},
        {"worker_pool_specs": [{"container_spec": {"env": [{"name": "HF_HOME", "value": "hunter2"}]}}]},
        {"build-arg": ["HF_HOME=hunter2"]},
        {"HF_TOKEN": "hunter2", "db": {"password": "hunter2"}, "api_key": {"deep": "hunter2"}},
        {"url": "https://ann:hunter2@host/path"},
    ],
)
def test_no_secret_is_told(given: dict[str, Any]) -> None:
    launch = a_launch(resource_args=given, config=given, args=("--token", "hunter2"))
    told = brief(launch) + sent_events([(launch, 1.0)])

    assert "hunter2" not in told


def test_the_names_of_environment_variables_are_told() -> None:
    assert "['HF_HOME', 'BARE']" in task_kwargs(a_launch(resource_args={"env": ["HF_HOME=hunter2", "BARE"]}))


@pytest.mark.parametrize("inner", ["x" * 1000, {"deep": {"deeper": ["x" * 1000] * 50}}, [["x" * 1000] * 50] * 50])
def test_a_large_config_is_cut_down(inner: Any) -> None:
    config = {f"key{i}": inner for i in range(1000)}

    assert len(brief(a_launch(config=config, resource_args=config))) < 4000


@given(st.dictionaries(st.text(), JSON))
def test_whatever_a_config_holds_is_told_as_json_in_ascii(config: dict[str, Any]) -> None:
    told = brief(a_launch(config=config))

    assert told.isascii()
    ast.literal_eval(json.loads(told)["kwargs"])


class _Task:
    def __init__(self, state: str) -> None:
        self.state = state


@pytest.mark.parametrize(("state", "like"), [("PENDING", "RECEIVED"), ("BUILDING", "STARTED"), ("RUNNING", "STARTED")])
def test_a_live_run_passes_for_what_flower_has_a_button_for(state: str, like: str) -> None:
    shown = with_buttons(_Task(state)).state

    assert shown == like
    assert shown == state
    assert shown != "SUCCESS"
    assert (str(shown), json.dumps(shown), f"{shown}") == (state, f'"{state}"', state)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "STOPPED", "CRASHED"])
def test_a_run_that_has_ended_gets_no_button(state: str) -> None:
    assert with_buttons(_Task(state)).state not in ("STARTED", "RECEIVED", "RETRY")
