"""The variables a job gets: W&B Launch's contract, and how long the SDK waits for a server that is gone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.models import CommandSource, ImageSource, Job, LaunchSpec
from launch.tracking import launch_env, tracking_env


def spec(**fields: object) -> LaunchSpec:
    job = Job(source=CommandSource(), entrypoint=("python", "train.py"))
    return LaunchSpec.model_validate({"run_id": "r1", "queue": "gpu", "resource": "process", "job": job, **fields})


def env(**fields: object) -> dict[str, str]:
    return tracking_env(spec(**fields), 2, base_url="http://127.0.0.1:2", wandb_dir=None)


def test_contract_of_a_launch() -> None:
    """What W&B's own agent sets, so that its users' scripts find it here."""
    given = env(project="My Project", entity="team", name="try", author="ada", config={"lr": 0.5})

    expected = {
        "WANDB_BASE_URL": "http://127.0.0.1:2",
        "WANDB_PROJECT": "my project",
        "WANDB_ENTITY": "team",
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": "r1",
        "WANDB_NAME": "try",
        "WANDB_USERNAME": "ada",
        "WANDB_LAUNCH_QUEUE_NAME": "gpu",
        "WANDB_LAUNCH_QUEUE_ENTITY": "team",
        "WANDB_CONFIG": '{"lr": 0.5}',
        "WANDB_LAUNCH_FILE_OVERRIDES": "{}",
        "WANDB_ARTIFACTS": "{}",
    }
    assert given.items() >= expected.items()
    assert "WANDB_API_KEY" not in given
    assert "WANDB_DOCKER" not in given


def test_image_job_names_its_image() -> None:
    """WANDB_DOCKER is for image jobs alone."""
    assert env(job=Job(source=ImageSource(image="repo/image:1")))["WANDB_DOCKER"] == "repo/image:1"


@given(st.text(max_size=30))
def test_author_fits_into_a_header(author: str) -> None:
    """The SDK sends the user name as an HTTP header, which a line break would cut."""
    assert env(author=author).get("WANDB_USERNAME", "").isprintable()


@given(st.integers(1, 80_000))
def test_long_config_comes_in_pieces(length: int) -> None:
    """Each piece fits into a variable, and all together are the config; never both spellings."""
    given = env(config={"text": "ü" * (length // 6)})
    pieces = [given[f"WANDB_CONFIG_{number}"] for number in range(99) if f"WANDB_CONFIG_{number}" in given]

    text = given.get("WANDB_CONFIG") or "".join(pieces)
    assert json.loads(text) == {"text": "ü" * (length // 6)}
    assert ("WANDB_CONFIG" in given) != bool(pieces)
    assert all(len(piece) <= 32670 for piece in [text] if not pieces)
    assert all(len(piece) <= 32670 for piece in pieces)


def test_values_of_files_are_given() -> None:
    files = {"a.yaml": {"x": {"y": 1}}}
    assert json.loads(env(files=files)["WANDB_LAUNCH_FILE_OVERRIDES"]) == files


def test_pieces_are_as_short_as_asked() -> None:
    """SageMaker takes 512 characters."""
    given = launch_env(spec(config={"text": "x" * 2000}, files={"a.yaml": {"y": "z" * 600}}), 1, chunk_chars=512)
    assert {"WANDB_CONFIG_3", "WANDB_LAUNCH_FILE_OVERRIDES_1"} <= set(given)
    assert max(map(len, given.values())) == 512


def test_a_launch_without_a_server_is_told_its_config_too() -> None:
    """A job whose network is cut off runs with what it was launched with."""
    given = launch_env(spec(config={"lr": 1}), 1)
    assert given.items() <= env(config={"lr": 1}).items() | {("WANDB_LAUNCH_TRACE_ID", "r1-1")}
    assert "WANDB_BASE_URL" not in given


def test_a_first_run_is_to_tell_of_its_inputs() -> None:
    """Whatever the job is made of, the SDK then makes a job artifact of it."""
    given = tracking_env(spec(job_ref="digits:v1"), 1, base_url="http://h", wandb_dir=None, reports_inputs=True)
    assert (given["WANDB_DISABLE_JOB_CREATION"], given["WANDB_DOCKER"]) == ("false", "digits:v1")
    image = spec(job=Job(source=ImageSource(image="repo/image:1")))
    given = tracking_env(image, 1, base_url="http://h", wandb_dir=None, reports_inputs=True)
    assert given["WANDB_DOCKER"] == "repo/image:1"


def test_files_of_the_sdk_stay_in_its_folder() -> None:
    """With a folder of its own, nothing goes to the user's home."""
    given = tracking_env(spec(), 1, base_url="http://h", wandb_dir="/work/w")

    assert given["WANDB_DIR"] == "/work/w"
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        assert given[name].startswith("/work/w/")


@pytest.mark.parametrize("give_up_after_s", [1, 4, 60, 720, 3600])
def test_waits_for_a_lost_server_add_up(give_up_after_s: float) -> None:
    """The stream's tries last as long as asked, the GraphQL ones that follow a third of it, in both spellings."""
    given = tracking_env(spec(), 1, base_url="http://h", wandb_dir=None, give_up_after_s=give_up_after_s)

    for channel, expected in (("FILE_STREAM", give_up_after_s), ("GRAPHQL", give_up_after_s / 3)):
        for prefix in ("WANDB__", "WANDB_X_"):
            tries = int(given[f"{prefix}{channel}_RETRY_MAX"])
            first = int(given[f"{prefix}{channel}_RETRY_WAIT_MIN_SECONDS"])
            longest = int(given[f"{prefix}{channel}_RETRY_WAIT_MAX_SECONDS"])
            total = sum(min(first * 2**number, longest) for number in range(tries))
            assert expected <= total <= expected + longest


def test_sdk_knows_every_setting() -> None:
    """A misspelt setting would be ignored without a word."""
    pytest.importorskip("wandb", reason="needs the wandb SDK: pip install wandb")
    from wandb.sdk.wandb_settings import Settings

    private = [name for name in env() if name.startswith("WANDB_X_")]

    assert len(private) > 10
    unknown = {name for name in private if f"x_{name.removeprefix('WANDB_X_').lower()}" not in Settings.model_fields}
    assert unknown == {"WANDB_X_DISABLE_UPDATE_CHECK"}  # of SDKs before 0.19
