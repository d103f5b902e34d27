"""The job registry in a real Redis: versions never race, never change, and are found by every name they have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch.artifacts import ArtifactStore
from launch.code_jobs import code_job, create_code_job
from launch.connection import LaunchRedis, connect
from launch.embedded import broker_url, stop_broker
from launch.errors import ConfigError, NotFoundError, TemporaryError
from launch.jobs import JobRegistry
from launch.models import CodeSource, CommandSource, ImageSource, Job, Tracking
from launch.settings import Settings

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    try:
        found = broker_url(settings)
    except ConfigError as exc:
        pytest.fail(str(exc)) if os.environ.get("CI") else pytest.skip(str(exc))
    yield found
    stop_broker(settings)


@pytest.fixture
def redis(url: str) -> Iterator[LaunchRedis]:
    connection = connect(url)
    connection.flushall()
    yield connection
    connection.close()


@pytest.fixture
def registry(redis: LaunchRedis, tmp_path: Path) -> JobRegistry:
    return JobRegistry(redis, ArtifactStore(f"file://{tmp_path}/artifacts"))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text("import wandb\n")
    (folder / "requirements.txt").write_text("wandb\n")
    return folder


def job(number: int = 0) -> Job:
    return Job(source=CommandSource(), entrypoint=("echo", str(number)))


# --- versions --------------------------------------------------------------------------------------------------------


def test_versions_count_up_and_come_back_whole(registry: JobRegistry) -> None:
    jobs = [
        Job(source=ImageSource(image="a/b:1")),
        Job(source=CommandSource(), entrypoint=("sh", "-c", "echo '%d ü \"\\'\n"), tracking=Tracking.OPTIONAL),
        Job(
            source=CodeSource(archive="0" * 64, archive_bytes=2**40, files=3), entrypoint=("x",), requirements="1" * 64
        ),
    ]
    made = [registry.create("digits", one) for one in jobs]

    assert [is_new for _, is_new in made] == [True, True, True]
    assert [version.ref for version, _ in made] == ["digits:v0", "digits:v1", "digits:v2"]
    assert [version.job for version in registry.versions("digits")] == jobs
    assert all(version.created_at == pytest.approx(registry.redis.time()[0], abs=60) for version, _ in made)


def test_the_same_content_is_the_same_version(registry: JobRegistry) -> None:
    first, _ = registry.create("digits", job(1))
    registry.create("digits", job(2))

    again, is_new = registry.create("digits", job(1))

    assert (again, is_new) == (first, False)
    assert len(registry.versions("digits")) == 2
    assert registry.get("digits") == first


def test_a_default_that_is_written_out_changes_nothing(registry: JobRegistry) -> None:
    first, _ = registry.create("digits", job())

    again, _ = registry.create("digits", Job(**{**dict(job()), "tracking": Tracking.REQUIRED, "python_version": None}))

    assert again == first


def test_a_version_is_found_by_each_of_its_names(registry: JobRegistry) -> None:
    first, _ = registry.create("digits", job(1), aliases=["best", "v1.0"])
    second, _ = registry.create("digits", job(2))

    assert registry.get("digits:v0") == registry.get("digits:best") == registry.get("digits:v1.0") == first
    assert registry.get("digits") == registry.get("digits:latest") == registry.get("digits:v1") == second
    assert registry.aliases("digits") == {"latest": 1, "best": 0, "v1.0": 0}

    registry.create("digits", job(2), aliases=["best"])
    assert registry.get("digits:best") == second


def test_the_list_has_the_latest_of_each_by_name(registry: JobRegistry) -> None:
    assert registry.list() == []
    for name, number in [("b", 1), ("a", 2), ("b", 3)]:
        registry.create(name, job(number))

    assert [version.ref for version in registry.list()] == ["a:v0", "b:v1"]


def test_many_at_once_never_share_a_number(registry: JobRegistry, url: str) -> None:
    """Eight writers, forty contents, each written by all of them: forty versions, numbered without a gap."""
    start = threading.Barrier(8)

    def write(_: int) -> list[tuple[int, bool]]:
        connection = connect(url)
        mine = JobRegistry(connection, registry.artifacts)
        start.wait(timeout=30)
        made = [mine.create("digits", job(number)) for number in range(40)]
        connection.close()
        return [(version.version, is_new) for version, is_new in made]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for answers in pool.map(write, range(8)) for answer in answers]

    assert sorted(number for number, is_new in answers if is_new) == list(range(40))
    assert {number for number, _ in answers} == set(range(40))
    assert {version.job for version in registry.versions("digits")} == {job(number) for number in range(40)}


def test_processes_at_once_never_share_a_number(registry: JobRegistry, url: str) -> None:
    program = """
import sys
from launch.connection import connect
from launch.jobs import JobRegistry
from launch.models import CommandSource, Job
registry = JobRegistry(connect(sys.argv[1]), None)
for number in range(50):
    job = Job(source=CommandSource(), entrypoint=("echo", sys.argv[2], str(number)))
    print(registry.create("digits", job)[0].version)
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, url]
    writers = [
        subprocess.Popen([*command, str(which)], stdout=subprocess.PIPE, text=True, env=environ) for which in range(4)
    ]
    numbers = [int(line) for writer in writers for line in writer.communicate(timeout=60)[0].split()]

    assert sorted(numbers) == list(range(200))


# --- what there is not -----------------------------------------------------------------------------------------------


def test_an_unknown_job_lists_those_there_are(registry: JobRegistry) -> None:
    with pytest.raises(NotFoundError, match=r"no job 'digits'; there are none yet.*launch job create"):
        registry.get("digits")
    registry.create("digits", job())
    registry.create("other", job())
    with pytest.raises(NotFoundError, match="no job 'digit'; did you mean 'digits'"):
        registry.get("digit:v0")
    with pytest.raises(NotFoundError, match="no job 'zzz'; there are: digits, other"):
        registry.versions("zzz")


def test_an_unknown_version_lists_those_there_are(registry: JobRegistry) -> None:
    registry.create("digits", job(1), aliases=["production"])
    registry.create("digits", job(2))

    with pytest.raises(NotFoundError, match="job 'digits' has no version 'qqq'; there are: latest, production, v0, v1"):
        registry.get("digits:qqq")
    with pytest.raises(NotFoundError, match="did you mean 'production'"):
        registry.get("digits:prodution")


@pytest.mark.parametrize("which", ["next", "content:0", "alias:best", "v0 ", "0", "v-1"])
def test_no_field_of_ours_is_a_version(registry: JobRegistry, which: str) -> None:
    registry.create("digits", job(), aliases=["best"])

    with pytest.raises(NotFoundError, match="has no version"):
        registry.get(f"digits:{which}")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("my job", "my_job"), ("team/digits:v1", "team_digits_v1"), ("-x", "x"), ("é", None), ("", None), ("a\n", "a_")],
)
def test_a_bad_name_proposes_a_good_one(registry: JobRegistry, name: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.create(name, job())
    assert repr(name) in str(caught.value)
    assert re.findall(r"did you mean '(.*)'\?", str(caught.value)) == ([meant] if meant else [])
    assert registry.list() == []


def test_a_long_name_proposes_its_ends(registry: JobRegistry) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean '{'a' * 63}\.\.{'b' * 63}'"):
        registry.create("a" * 100 + "b" * 100, job())


@pytest.mark.parametrize("alias", ["latest", "v3", "a b", "", "x:y"])
def test_a_bad_alias_leaves_nothing_behind(registry: JobRegistry, alias: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        registry.create("digits", job(), aliases=["good", alias])
    assert registry.redis.keys() == []


def test_redis_away_is_said(redis: LaunchRedis, registry: JobRegistry, tmp_path: Path) -> None:
    from redis import ConnectionPool, UnixDomainSocketConnection

    pool = ConnectionPool(connection_class=UnixDomainSocketConnection, path=str(tmp_path / "none"))
    away = JobRegistry(LaunchRedis(connection_pool=pool), registry.artifacts)

    with pytest.raises(TemporaryError, match="away"):
        away.create("digits", job())
    with pytest.raises(TemporaryError, match="away"):
        away.get("digits")


# --- code jobs -------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_job(registry: JobRegistry, code: Path) -> None:
    version, is_new, notes = create_code_job(
        registry, code, "digits", "python train.py --lr '0.1 0.2'", python_version="3.11", aliases=["best"]
    )

    assert (version.ref, is_new, notes) == ("digits:v0", True, [])
    made = registry.get("digits:best").job
    assert made.entrypoint == ("python", "train.py", "--lr", "0.1 0.2")
    assert made.python_version == "3.11"
    assert made.requirements is not None
    assert registry.artifacts.get_bytes(made.requirements) == b"wandb\n"
    assert isinstance(made.source, CodeSource)
    assert made.source.files == 2
    assert len(registry.artifacts.get_bytes(made.source.archive)) == made.source.archive_bytes


def test_unchanged_code_is_no_new_version(registry: JobRegistry, code: Path) -> None:
    create_code_job(registry, code, "digits", "python train.py")
    (code / "train.py").touch()
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "train.pyc").touch()

    assert create_code_job(registry, code, "digits", "python train.py")[1] is False
    (code / "train.py").write_text("import wandb  # changed\n")
    assert create_code_job(registry, code, "digits", "python train.py")[0].version == 1


def test_notes_tell_what_was_guessed_and_what_is_missing(registry: JobRegistry, code: Path) -> None:
    (code / "requirements.txt").write_text("numpy\n")

    _, _, notes = create_code_job(registry, code, "digits", "train.py")
    assert "became 'python train.py'" in notes[0]
    assert "do not name wandb" in notes[1]
    assert create_code_job(registry, code, "digits", "python train.py", tracking=Tracking.OPTIONAL)[2] == []


def test_an_unregistered_job_leaves_the_registry_alone(registry: JobRegistry, code: Path) -> None:
    heard: list[str] = []

    made = code_job(registry.artifacts, code, ("train.py",), note=heard.append)

    assert made.entrypoint == ("python", "train.py")
    assert heard == []
    assert registry.list() == []


def test_main_py_needs_no_entrypoint(registry: JobRegistry, code: Path) -> None:
    with pytest.raises(ConfigError, match=r"entrypoint: is required.*'python train\.py'"):
        code_job(registry.artifacts, code)
    (code / "main.py").touch()
    assert code_job(registry.artifacts, code).entrypoint == ("python", "main.py")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "a b"}, "did you mean 'a_b'"),
        ({"entrypoint": "python 'x"}, "unbalanced"),
        ({"entrypoint": "python trian.py"}, "no such file; did you mean 'train.py'"),
        ({"entrypoint": "python3 ./secret.py"}, "left out of the snapshot"),
        ({"python_version": "3.11.2"}, r"like '3\.11'"),
        ({"requirements": Path("/nowhere/r.txt")}, "/nowhere/r.txt, cannot be read"),
        ({"aliases": ["latest"]}, "alias"),
        ({"path": Path("/nowhere")}, "no folder /nowhere"),
        ({"max_bytes": 3}, "the biggest: train.py"),
    ],
)
def test_a_refused_job_leaves_nothing_behind(
    registry: JobRegistry, code: Path, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    (code / "secret.py").touch()
    (code / ".launchignore").write_text("secret.py\n")
    given = {"path": code, "name": "digits", "entrypoint": "python train.py", **change}

    with pytest.raises(ConfigError, match=why):
        create_code_job(registry, **given)  # type: ignore[arg-type]
    assert registry.redis.keys() == []
    assert not (tmp_path / "artifacts").exists()
