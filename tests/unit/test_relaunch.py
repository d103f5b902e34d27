"""Launches made from launches: edits of queued runs, reruns of ended ones; a launch's retry policy and limits."""

from __future__ import annotations

from typing import Any

import pytest

from launch.errors import ConfigError
from launch.intake import SpecBuilder
from launch.models import (
    CodeSource,
    ImageSource,
    Job,
    JobInputs,
    JobTypes,
    JobVersion,
    LaunchSpec,
    Limits,
    Priority,
    QueueSpec,
    RetryPolicy,
    RetryRule,
)
from launch.queue_spec import queue_spec
from launch.relaunch import again, edited

OFTEN = RetryPolicy(error=RetryRule(times=3))


class Installation:
    """Queues and jobs in memory."""

    def __init__(self) -> None:
        fast = queue_spec(
            "fast", "process", priorities=True, overrides="all", run_limit="2h", config={"env": {"A": "1"}}
        )
        patient = queue_spec("patient", "process", retry={"error": 9}, start_limit="5m", overrides="none")
        self.queues = {spec.name: spec for spec in (fast, patient, queue_spec("box", "docker"))}
        source = CodeSource(archive="a" * 64, archive_bytes=1, files=1)
        self.jobs = {
            "plain": Job(source=source, entrypoint=("python", "x.py")),
            "stubborn": Job(source=source, entrypoint=("python", "x.py"), retry=OFTEN),
            "image": Job(source=ImageSource(image="train:1")),
        }

    def queue(self, name: str) -> QueueSpec:
        return self.queues[name]

    def get(self, ref: str) -> JobVersion:
        return JobVersion(name=ref, version=3, job=self.jobs[ref], created_at=0)


@pytest.fixture
def there() -> Installation:
    return Installation()


def launch(there: Installation, **request: Any) -> LaunchSpec:
    return SpecBuilder(there, there).build({"queue": "fast", "job": "plain", "run_id": "r1", **request})


# --- variables and inputs --------------------------------------------------------------------------------------------

THREADS = {"threads": {"type": "integer", "maximum": 8, "default": 2}}


def sized(version: int = 1, **variables: Any) -> QueueSpec:
    """A queue whose launches choose their number of threads."""
    config = {"env": {"OMP_NUM_THREADS": "{{threads}}"}}
    spec = queue_spec("sized", "process", config=config, template_variables={**THREADS, **variables}, overrides="none")
    return spec.model_copy(update={"version": version})


def test_variables_stay_with_a_launch_that_is_edited_or_repeated(there: Installation) -> None:
    there.queues["sized"] = sized()
    spec = launch(there, queue="sized", template_variables={"threads": "4"})
    assert (spec.template_variables, spec.resource_config) == ({"threads": 4}, {"env": {"OMP_NUM_THREADS": 4}})
    assert edited(spec, sized(), {"name": "x"}).resource_config == spec.resource_config
    more = edited(spec, sized(), {"template_variables": {"threads": 8}})
    assert more.resource_config == {"env": {"OMP_NUM_THREADS": 8}}
    less = again(spec, sized(), {"template_variables": {"threads": None}}, run_id="r2", author=None)
    assert (less.template_variables, less.resource_config) == ({}, {"env": {"OMP_NUM_THREADS": 2}})
    assert again(spec, sized(), {}, run_id="r2", author=None).resource_config == spec.resource_config


def test_a_variable_that_a_queue_does_not_have_stays_behind(there: Installation) -> None:
    """It means nothing there; one that is asked for now is refused."""
    there.queues["sized"] = sized()
    spec = launch(there, queue="sized", template_variables={"threads": 4})
    elsewhere = again(spec, there.queue("fast"), {}, run_id="r2", author=None)
    assert (elsewhere.template_variables, elsewhere.resource_config) == ({}, {"env": {"A": "1"}})
    with pytest.raises(ConfigError, match="queue 'fast' has no such variable"):
        again(spec, there.queue("fast"), {"template_variables": {"threads": 4}}, run_id="r2", author=None)


def test_a_value_is_held_against_the_queue_as_it_is_now(there: Installation) -> None:
    there.queues["sized"] = sized()
    spec = launch(there, queue="sized", template_variables={"threads": 8})
    now = sized(2, threads={"type": "integer", "maximum": 4, "default": 2})
    with pytest.raises(ConfigError, match="should be an integer of 4 or less, not 8"):
        again(spec, now, {}, run_id="r2", author=None)


def test_values_of_files_are_merged_and_checked(there: Installation) -> None:
    inputs = JobInputs(files={"a.yaml": {"properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}})
    there.jobs["plain"] = there.jobs["plain"].model_copy(update={"inputs": inputs})
    spec = launch(there, files={"./a.yaml": {"x": 1}})
    assert spec.files == {"a.yaml": {"x": 1}}
    assert edited(spec, there.queue("fast"), {"files": {"./a.yaml": {"y": 2}}}).files == {"a.yaml": {"x": 1, "y": 2}}
    assert edited(spec, there.queue("fast"), {"files": {"a.yaml": None}}).files == {}
    with pytest.raises(ConfigError, match=r"files/a\.yaml/y: should be an integer"):
        edited(spec, there.queue("fast"), {"files": {"a.yaml": {"y": "z"}}})


def test_what_the_first_run_excludes_cannot_be_edited_in(there: Installation) -> None:
    types = JobTypes(config={"lr": "number", "seed": "number"}, settable={"lr": "number"})
    spec = launch(there)
    with pytest.raises(ConfigError, match="config/seed: job plain:v3 does not let a launch set it"):
        edited(spec, there.queue("fast"), {"config": {"seed": 1}}, types=types)
    assert edited(spec, there.queue("fast"), {"name": "x"}, types=types).name == "x"


# --- what a launch is frozen with ------------------------------------------------------------------------------------


def test_a_job_retries_as_it_says_itself_else_as_its_queue_says(there: Installation) -> None:
    assert launch(there, job="stubborn", queue="patient").retry == OFTEN
    assert launch(there, queue="patient").retry.error.times == 9
    assert launch(there).retry == RetryPolicy()


def test_limits_are_the_queues_and_a_launch_may_shorten_its_run(there: Installation) -> None:
    assert launch(there, queue="patient").limits == Limits(start_s=300)
    assert launch(there).limits == Limits(run_s=7200)
    short = launch(there, run_limit="30m")
    assert (short.limits, short.run_limit_s) == (Limits(run_s=1800), 1800)
    assert launch(there, queue="patient", run_limit=60).limits == Limits(start_s=300, run_s=60)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("3h", "3 h is longer than the 2 h that queue 'fast' allows"),
        ("soon", "should be a time span"),
        (0, "time span"),
    ],
)
def test_a_wrong_limit_is_refused(there: Installation, limit: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch(there, run_limit=limit)
    assert str(caught.value).startswith("run_limit: ")
    assert message in str(caught.value)


# --- edits -----------------------------------------------------------------------------------------------------------


def test_an_edit_changes_what_it_names_and_nothing_else(there: Installation) -> None:
    spec = launch(there, config={"a": 1, "b": {"c": 2}, "d": 3}, resource_args={"workdir": "x"}, run_limit="1h")
    after = edited(spec, there.queue("fast"), {"config": {"b": {"e": 4}, "d": None}, "priority": "high"})
    assert after.config == {"a": 1, "b": {"c": 2, "e": 4}}
    assert after == spec.model_copy(update={"config": after.config, "priority": Priority.HIGH})
    assert edited(spec, there.queue("fast"), {}) == spec


def test_an_edit_resolves_the_resource_config_again(there: Installation) -> None:
    spec = launch(there, resource_args={"workdir": "x"})
    after = edited(spec, there.queue("fast"), {"resource_args": {"env": {"B": "2"}}})
    assert after.resource_args == {"env": {"B": "2"}}
    assert after.resource_config == {"env": {"A": "1", "B": "2"}}


def test_an_edit_goes_by_the_same_rules_as_a_launch(there: Installation) -> None:
    spec = launch(there, queue="patient")
    patient = there.queue("patient")
    for changes, message in [
        ({"priority": "high"}, "was created without priorities"),
        ({"resource_args": {"workdir": "x"}}, "does not let a launch override 'workdir'"),
        ({"config": {"x": float("nan")}}, "config/x"),
        ({"config": {"x": "y" * (1 << 20)}}, "is 1,04"),
        ({"run_limit": "x"}, "run_limit: should be a time span"),
    ]:
        with pytest.raises(ConfigError) as caught:
            edited(spec, patient, changes)  # type: ignore[arg-type]
        assert message in str(caught.value)


def test_an_edit_of_something_else_does_not_trip_over_a_queue_that_became_stricter(there: Installation) -> None:
    spec = launch(there, run_limit="90m", priority="low")
    stricter = there.queue("fast").model_copy(update={"priorities": False, "limits": Limits(run_s=60)})
    assert edited(spec, stricter, {"config": {"a": 1}}) == spec.model_copy(update={"config": {"a": 1}})


# --- reruns ----------------------------------------------------------------------------------------------------------


def rerun(there: Installation, spec: LaunchSpec, queue: str = "fast", **changes: Any) -> LaunchSpec:
    return again(spec, there.queue(queue), changes, run_id="r2", author="ada")  # type: ignore[arg-type]


def test_a_rerun_is_the_same_but_for_its_id_author_and_origin(there: Installation) -> None:
    spec = launch(there, config={"a": 1}, args=["--x"], name="n", project="p", priority="low", run_limit="1h")
    assert rerun(there, spec) == spec.model_copy(update={"run_id": "r2", "author": "ada", "rerun_of": "r1"})


def test_a_rerun_takes_its_queue_as_it_is_now(there: Installation) -> None:
    """The usual reason for a rerun: the time limit or the memory was too little, and has been raised since."""
    spec = launch(there)
    there.queues["fast"] = queue_spec("fast", "process", run_limit="9h", config={"env": {"A": "2"}}).model_copy(
        update={"version": 2}
    )
    after = rerun(there, spec)
    assert (after.queue_version, after.limits.run_s, after.resource_config) == (2, 32_400, {"env": {"A": "2"}})


def test_a_rerun_may_go_to_another_queue_if_it_fits_there(there: Installation) -> None:
    assert rerun(there, launch(there), "patient").retry.error.times == 9
    assert rerun(there, launch(there, job="stubborn"), "patient").retry == OFTEN
    assert rerun(there, launch(there), "box").resource == "docker"
    with pytest.raises(ConfigError, match="does not let a launch override 'workdir'"):
        rerun(there, launch(there, resource_args={"workdir": "x"}), "patient")
    with pytest.raises(ConfigError, match="was created without priorities"):
        rerun(there, launch(there, priority="low"), "patient")
    assert rerun(there, launch(there, priority="low"), "patient", priority="medium").priority is Priority.MEDIUM
    with pytest.raises(ConfigError, match="which runs no images"):
        rerun(there, launch(there, job="image", queue="box"), "fast")
