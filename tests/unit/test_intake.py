"""A request becomes a launch, or an error that names the value and the fix; no Redis is needed for either."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import ConfigError, NotFoundError, RequestError
from launch.intake import SpecBuilder
from launch.models import (
    CodeSource,
    CommandSource,
    ImageSource,
    Job,
    JobTypes,
    JobVersion,
    Priority,
    QueueSpec,
    Tracking,
)
from launch.queue_spec import queue_spec

DIGITS = Job(
    source=CodeSource(archive="a" * 64, archive_bytes=10, files=1), entrypoint=("python", "train.py"), requirements=None
)


class Queues:
    """Three queues in memory."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.known = {
            "local": QueueSpec(name="local", resource="process"),
            "box": QueueSpec(name="box", resource="docker"),
            "fast": QueueSpec(name="fast", resource="process", priorities=True, version=3),
            "open": QueueSpec(name="open", resource="process", config={"env": {"A": "1"}}, overrides="all"),
        }

    def queue(self, name: str) -> QueueSpec:
        self.asked.append(name)
        if name not in self.known:
            raise NotFoundError(f"no queue {name!r}; there are: {', '.join(self.known)}")
        return self.known[name]


class Jobs:
    """One job in memory."""

    types: JobTypes | None = None

    def get(self, ref: str) -> JobVersion:
        if ref.partition(":")[0] != "digits":
            raise NotFoundError(f"no job {ref!r}; there are: digits")
        return JobVersion(name="digits", version=2, job=DIGITS, created_at=0.0, types=self.types)


@pytest.fixture
def builder() -> SpecBuilder:
    return SpecBuilder(Queues(), Jobs())


def refusal(builder: SpecBuilder, **request: Any) -> str:
    with pytest.raises(RequestError) as caught:
        builder.build(request)
    return str(caught.value)


# --- what is launched ------------------------------------------------------------------------------------------------


def test_a_job_is_pinned_to_its_version(builder: SpecBuilder) -> None:
    spec = builder.build({"job": "digits:latest", "queue": "local", "args": ["--fast"], "config": {"epochs": 3}})
    assert (spec.job_ref, spec.command, spec.config) == ("digits:v2", ("python", "train.py", "--fast"), {"epochs": 3})


def test_a_command_is_a_job_without_a_source(builder: SpecBuilder) -> None:
    spec = builder.build({"command": ["sh", "-c", "echo $A"], "queue": "local", "tracking": "optional"})
    assert spec.job == Job(source=CommandSource(), entrypoint=("sh", "-c", "echo $A"), tracking=Tracking.OPTIONAL)


def test_an_image_with_a_command_is_an_image_job(builder: SpecBuilder) -> None:
    spec = builder.build({"image": "python:3.11", "command": "python -c 'print(1)'", "queue": "box"})
    assert spec.job == Job(source=ImageSource(image="python:3.11"), entrypoint=("python", "-c", "print(1)"))


def test_a_dockerfile_replaces_a_jobs_own(builder: SpecBuilder) -> None:
    spec = builder.build({"job": "digits", "queue": "box", "dockerfile": "docker/Dockerfile.gpu"})
    assert spec.job == DIGITS.model_copy(update={"dockerfile": "docker/Dockerfile.gpu"})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"job": "digits", "queue": "local"}, "dockerfile: queue 'local' is of resource 'process', which builds no"),
        ({"image": "a:1", "queue": "box"}, "dockerfile: is for jobs of code; the source of this one is image"),
        ({"job": "digits", "queue": "box", "dockerfile": "../D"}, "dockerfile: '../D' should be relative"),
        ({"job": "digits", "queue": "box", "dockerfile": "/D"}, "dockerfile: '/D' should be relative"),
        ({"job": "digits", "queue": "box", "dockerfile": ""}, "dockerfile: should be a path in the job's code"),
        ({"job": "digits", "queue": "box", "dockerfile": 3}, "dockerfile: should be a path in the job's code, not 3"),
    ],
)
def test_a_dockerfile_out_of_place_is_refused(builder: SpecBuilder, request_: dict[str, Any], message: str) -> None:
    assert message in refusal(builder, **{"dockerfile": "D", **request_})


def test_what_looks_wrong_is_noted() -> None:
    """The types of a job's first run are no schema: what differs may be meant."""
    notes: list[str] = []
    jobs = Jobs()
    jobs.types = JobTypes(config={"lr": "number"})
    spec = SpecBuilder(Queues(), jobs, note=notes.append).build(
        {"job": "digits", "queue": "local", "config": {"lr": "fast"}}
    )
    assert spec.config == {"lr": "fast"}
    assert notes == ["config/lr: is text; in the first run of job digits:v2 it was number"]


def test_an_entrypoint_replaces_a_jobs_own(builder: SpecBuilder) -> None:
    spec = builder.build({"job": "digits", "queue": "local", "entrypoint": ["python", "test.py"]})
    assert (spec.command, spec.job.source) == (("python", "test.py"), DIGITS.source)


def test_the_effective_config_is_frozen_with_its_queues_version(builder: SpecBuilder) -> None:
    spec = builder.build({"job": "digits", "queue": "open", "resource_args": {"local-process": {"env": {"B": "2"}}}})
    assert spec.resource_args == {"env": {"B": "2"}}
    assert spec.resource_config == {"env": {"A": "1", "B": "2"}}
    assert builder.build({"job": "digits", "queue": "fast"}).queue_version == 3


def test_dockers_words_and_wandbs_meet() -> None:
    queues = Queues()
    queues.known["gpu-box"] = queue_spec(
        "gpu-box", "docker", {"cpus": 1, "memory": "1g", "env": ["A=1"]}, "safe", False, None
    )
    spec = SpecBuilder(queues, Jobs()).build(
        {"job": "digits", "queue": "gpu-box", "resource_args": {"local-container": {"shm_size": "1g", "cpus": 2}}}
    )
    assert spec.resource_config == {"cpus": 2, "memory": "1g", "env": ["A=1"], "shm-size": "1g"}


def test_a_launch_does_not_change_with_the_callers_own_mapping(builder: SpecBuilder) -> None:
    config: dict[str, Any] = {"optimizer": {"lr": 0.1}}
    spec = builder.build({"job": "digits", "queue": "local", "config": config})
    config["optimizer"]["lr"] = 0.2
    assert spec.config == {"optimizer": {"lr": 0.1}}


def test_priorities_are_names_or_numbers(builder: SpecBuilder) -> None:
    for value in ("high", "HIGH", 1, Priority.HIGH):
        assert builder.build({"job": "digits", "queue": "fast", "priority": value}).priority is Priority.HIGH
    assert builder.build({"job": "digits", "queue": "local", "priority": "medium"}).priority is Priority.MEDIUM


def test_ids_are_made_when_none_is_given(builder: SpecBuilder) -> None:
    ids = {builder.build({"job": "digits", "queue": "local"}).run_id for _ in range(50)}
    assert len(ids) == 50


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"queue": "gpu"}, "no queue 'gpu'; there are: local, box, fast, open"),
        ({"job": "digit"}, "no job 'digit'; there are: digits"),
        ({"job": None}, "give one of job, image and command"),
        ({"image": "python:3.11"}, "not job and image"),
        ({"command": ["true"]}, "give one of job and command"),
        ({"job": None, "command": []}, "command: is empty"),
        ({"job": None, "command": "sh -c 'oops"}, "unbalanced quotes"),
        ({"job": None, "command": ["a\0b"]}, "zero character"),
        ({"job": None, "command": [1]}, "should be a valid string, not 1"),
        ({"job": None, "image": "python:3.11"}, "which runs no images; use a queue of resource docker"),
        ({"job": None, "image": "Bad Image"}, "image: should be like"),
        ({"job": None, "entrypoint": "python x.py"}, "an entrypoint needs a job, image or path"),
        ({"job": None, "path": "."}, "path: code cannot be named by a path here"),
        ({"priority": "urgent"}, "should be one of critical, high, medium, low, not 'urgent'"),
        ({"priority": True}, "should be one of critical, high, medium, low, not True"),
        ({"priority": "high"}, "queue 'local' was created without priorities"),
        ({"config": [1]}, "config: should be a mapping, such as {'epochs': 3}, not '[1]'"),
        ({"config": {"lr": float("nan")}}, "config/lr: nan is not JSON"),
        ({"config": {"tags": {1}}}, "config/tags: {1} is not JSON"),
        ({"resource_args": {"workdri": "x"}}, "did you mean 'workdir'?"),
        ({"resource_args": {"kubernetes": {}}}, "the queue's resource is 'process', not 'kubernetes'"),
        ({"resource": "docker"}, "queue 'local' is of resource 'process', not 'docker'"),
        ({"run_id": "Bad_ID"}, "run_id: should be 1 to 40 of a-z, 0-9 and '-'"),
        ({"run_id": "a" * 41}, "run_id: should be 1 to 40"),
        ({"run_id": "-a"}, "neither starting nor ending with '-'"),
        ({"run_id": 7}, "run_id: should be a valid string, not 7"),
        ({"name": "x" * 129}, "name:"),
        ({"name": "a\nb"}, "name:"),
        ({"project": "a/b"}, "project:"),
        ({"tracking": "maybe"}, "tracking: should be one of required, optional, not 'maybe'"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"pirority": "high"}, "did you mean 'priority'?"),
        ({"args": "--fast"}, "args: should be a valid tuple, not '--fast'"),
        ({"config": {"x": "y" * (1 << 20)}}, "more than the 1,048,576 a launch may have; the largest part is config"),
    ],
)
def test_a_wrong_request_names_the_value_and_the_fix(
    builder: SpecBuilder, request_: dict[str, Any], message: str
) -> None:
    assert message in refusal(builder, **{"queue": "local", "job": "digits", **request_})


def test_an_override_the_queue_forbids_is_refused() -> None:
    queues = Queues()
    queues.known["local"] = QueueSpec(name="local", resource="process", overrides="none")
    message = refusal(SpecBuilder(queues, Jobs()), queue="local", job="digits", resource_args={"env": {}})
    assert "queue 'local' does not let a launch override 'env' (overrides: none)" in message


def test_no_snapshot_is_taken_for_a_request_that_is_wrong_elsewhere() -> None:
    taken = []

    def snapshot(path: Path, entrypoint: tuple[str, ...], tracking: Tracking) -> Job:
        taken.append(path)
        return DIGITS

    builder = SpecBuilder(Queues(), Jobs(), snapshot)
    for wrong in (
        {"tracking": "maybe"},
        {"run_id": "Bad"},
        {"name": "x" * 200},
        {"config": {"x": "y" * (1 << 20)}},
        {"priority": "high"},
    ):
        refusal(builder, queue="local", path=".", **wrong)
    assert taken == []
    assert builder.build({"queue": "local", "path": "."}).job == DIGITS
    assert taken == [Path()]


# --- many ------------------------------------------------------------------------------------------------------------


def test_many_are_built_with_one_look_at_each_queue() -> None:
    queues = Queues()
    specs = SpecBuilder(queues, Jobs()).build_many(
        [{"job": "digits", "queue": "local", "config": {"n": n}} for n in range(20)]
    )
    assert [spec.config["n"] for spec in specs] == list(range(20))
    assert queues.asked == ["local"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"queue": "local"}, "launches/1: launch: give one of"),
        ("digits", "launches/1: should be a mapping"),
        ({"queue": "local", "job": "digits", "run_id": "one"}, "launches/1: run_id 'one' is launches/0's already"),
    ],
)
def test_one_wrong_among_many_is_named_by_its_place(builder: SpecBuilder, second: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        builder.build_many([{"job": "digits", "queue": "local", "run_id": "one"}, second])
    assert message in str(caught.value)


# --- plain Celery messages and W&B's spellings -----------------------------------------------------------------------


def test_a_wandb_launch_spec_is_understood(builder: SpecBuilder) -> None:
    spec = builder.register_foreign(
        {
            "job": "team/project/digits:v2",
            "docker": {},
            "uri": None,
            "git": {"version": None, "repo": None},
            "queue": "local",
            "resource": "local-process",
            "resource_args": {"local-process": {"env": ["A=1"]}},
            "overrides": {
                "args": ["--fast"],
                "run_config": {"lr": 0.1},
                "entry_point": ["python", "x.py"],
                "files": {},
            },
            "template_variables": {},
            "priority": 2,
            "_wandb_api_key": "secret",
        },
        run_id="from-the-task",
    )
    assert (spec.job_ref, spec.command, spec.config) == ("digits:v2", ("python", "x.py", "--fast"), {"lr": 0.1})
    assert (spec.run_id, spec.resource_args) == ("from-the-task", {"env": ["A=1"]})
    assert "secret" not in spec.model_dump_json()


def test_a_wandb_image_is_understood(builder: SpecBuilder) -> None:
    spec = builder.register_foreign({"queue": "box", "docker": {"docker_image": "img:1"}, "run_id": "own"}, run_id="x")
    assert (spec.job.source, spec.run_id) == (ImageSource(image="img:1"), "own")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits", "spec: should be a mapping"),
        ({"queue": "local", "job": "digits", "sweep_id": "s"}, "spec/sweep_id: is not supported"),
        (
            {"queue": "local", "job": "digits", "overrides": {"artifacts": {"a": 1}}},
            "spec/overrides/artifacts: is not supported",
        ),
        (
            {"queue": "local", "job": "digits", "overrides": {"working_dir": "jobs"}},
            "spec/overrides/working_dir: is not supported",
        ),
        (
            {"queue": "local", "job": "digits", "overrides": {"files": {"a": 1}}},
            "files: 'a': should end with .json, .yaml or .yml",
        ),
        ({"queue": "local", "job": "digits", "overrides": []}, "there is nothing wrong"),
        ({"queue": "local", "job": "digits", "overrides": [1]}, "spec/overrides: should be a mapping"),
        (
            {"queue": "local", "job": "digits", "config": {"a": 1}, "overrides": {"run_config": {"a": 2}}},
            "are the same",
        ),
        ({"queue": "local", "path": "/etc"}, "spec/path: code cannot be named by a path in a message"),
        ({"queue": "local", "job": "digits", "qeueu": "x"}, "unknown key; did you mean 'queue'?"),
    ],
)
def test_a_foreign_message_is_checked_like_any_other(builder: SpecBuilder, spec: Any, message: str) -> None:
    if message == "there is nothing wrong":
        assert builder.register_foreign(spec).job == DIGITS
        return
    with pytest.raises(ConfigError) as caught:
        builder.register_foreign(spec)
    assert message in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=5), below, max_size=2),
    max_leaves=5,
)
WORDS = st.sampled_from(
    ["queue", "job", "docker", "overrides", "config", "resource_args", "priority", "command", "args", "name", "git"]
)


@given(st.dictionaries(WORDS, JSON) | JSON)
def test_no_message_raises_anything_but_a_request_error(spec: Any) -> None:
    """Whatever plain Celery sends, an agent can answer it."""
    builder = SpecBuilder(Queues(), Jobs())
    if isinstance(spec, dict):
        spec.setdefault("queue", "local")
    with suppress(RequestError):
        assert builder.register_foreign(spec).queue in Queues().known


# --- queues ----------------------------------------------------------------------------------------------------------


def test_a_queue_is_kept_in_canonical_words() -> None:
    spec = queue_spec(
        "gpu", "local-process", {"resource_args": {"local-process": {"workdir": "src"}}}, ["env"], True, 2
    )
    assert spec == QueueSpec(
        name="gpu", resource="process", config={"workdir": "src"}, overrides=("env",), priorities=True, max_concurrent=2
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "-x"}, "name: should be 1 to 64"),
        ({"name": "x" * 65}, "name: should be 1 to 64"),
        ({"resource": "proces"}, "unknown resource 'proces'; did you mean 'process'?"),
        ({"config": {"envv": {}}}, "config/envv: unknown key; did you mean 'env'?"),
        ({"config": [1]}, "config: should be a mapping"),
        ({"config": {"kubernetes": {}}}, "the queue's resource is 'process', not 'kubernetes'"),
        ({"overrides": "most"}, "overrides: should be 'safe', 'all', 'none' or a list of keys, not 'most'"),
        ({"overrides": ["evn"]}, "overrides/evn: unknown key; did you mean 'env'?"),
        ({"max_concurrent": 0}, "max_concurrent: should be greater than or equal to 1, not 0"),
    ],
)
def test_a_wrong_queue_names_the_value_and_the_fix(change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "name": "q", "resource": "process", "config": None, "overrides": "safe", "priorities": False,
        "max_concurrent": None, **change,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        queue_spec(**settings)
    assert message in str(caught.value)
