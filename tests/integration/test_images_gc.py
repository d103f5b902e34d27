"""Images made here are cleared up, and no other one: on an engine of the test's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_builds import built, code_archive, commit, request
from services import BASE_IMAGE, PrivateEngine, engine_of_its_own

from launch.errors import BuildError
from launch.plugins import Build, BuildRequest, TargetContext
from workers.builders._cleanup import Cleanup
from workers.builders._last_build import mark_used
from workers.builders.docker import DockerBuilder
from workers.docker_images import CONTENT_LABEL

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def own_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateEngine]:
    with engine_of_its_own(tmp_path_factory.mktemp("engine") / "data") as engine:
        yield engine


@pytest.fixture
def api(own_engine: PrivateEngine) -> Iterator[Any]:
    """The engine with nothing on it but the base image."""
    import docker

    with contextlib.closing(docker.APIClient(base_url=own_engine.host)) as client:
        for container in client.containers(all=True):
            client.remove_container(container["Id"], force=True)
        for item in client.images():
            if BASE_IMAGE not in (item["RepoTags"] or ()):
                with contextlib.suppress(Exception):
                    client.remove_image(item["Id"], force=True)
        yield client


class Builds:
    """Images of some megabytes each."""

    def __init__(self, host: str, home: Path, code: Path) -> None:
        self.host, self.home, self.code = host, home, code

    def builder(self, **settings: Any) -> DockerBuilder:
        return DockerBuilder(TargetContext("a1b2c3d4", self.home, {"host": self.host, **settings}))

    def build(self, name: str, megabytes: int = 10, **settings: Any) -> Build:
        step = f"RUN head -c {megabytes}000000 /dev/urandom > /{name}"
        archive = code_archive(self.code, {"Dockerfile": f"FROM {BASE_IMAGE}\n{step}\n"})
        return built(self.builder(**settings), BuildRequest(None, None, None, code=archive, dockerfile="Dockerfile"))


@pytest.fixture
def builds(own_engine: PrivateEngine, api: Any, tmp_path: Path) -> Builds:
    return Builds(own_engine.host, tmp_path / "home", tmp_path / "code")


def tags(api: Any) -> set[str]:
    return {tag for item in api.images() for tag in item["RepoTags"] or ()} - {
        *(BASE_IMAGE, "launch-lock:1", "<none>:<none>")
    }


def unused_for(builds: Builds, api: Any, age_s: float, *unused: Build) -> None:
    for build in unused:
        content = api.inspect_image(build.image)["Config"]["Labels"][CONTENT_LABEL]
        os.utime(builds.home / "images" / content, (time.time() - age_s,) * 2)


def gc(builds: Builds, *words: str) -> str:
    argv = [sys.executable, "-P", "-m", "launch", "images", "gc", *words]
    env = {**os.environ, "DOCKER_HOST": builds.host, "LAUNCH_HOME": str(builds.home)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_longest_unused_go_first(builds: Builds, api: Any) -> None:
    """Reusing an image counts; a dry run says it all and does nothing."""
    one, two, three = (builds.build(name) for name in ("one", "two", "three"))
    for age_s, build in ((300, one), (200, two), (100, three)):
        unused_for(builds, api, age_s, build)
    said = gc(builds, "--dry-run", "--keep-gb", "0.025")
    assert f"would remove {one.image}  0.01 GB, last used 5 min" in said
    assert said.endswith("1 image, 0.01 GB would be removed, 2 images, 0.02 GB left\n")
    assert tags(api) == {one.image, two.image, three.image}

    mark_used(builds.home, api.inspect_image(one.image)["Config"]["Labels"][CONTENT_LABEL])
    assert f"removed {two.image}" in gc(builds, "--keep-gb", "0.025")
    assert tags(api) == {one.image, three.image}


def test_what_is_used_or_foreign_stays(builds: Builds, api: Any) -> None:
    """A container's image, even a stopped one's; images that others made, of ours too; and ours under another name."""
    used, based_on, renamed, free = (builds.build(name) for name in ("used", "based", "renamed", "free"))
    api.create_container_from_config({"Image": used.image, "Cmd": ["true"]})
    commit(api, based_on.image, "theirs:1", "made=theirs")
    commit(api, BASE_IMAGE, "foreign:1", "made=foreign")
    api.tag(renamed.image, "kept-by-hand", "1")
    dangling = commit(api, BASE_IMAGE, "dangling:1", "made=dangling")
    commit(api, BASE_IMAGE, "dangling:1", "made=other")

    gc(builds, "--keep-gb", "0")

    assert tags(api) >= {used.image, "theirs:1", "foreign:1", "kept-by-hand:1", renamed.image, "dangling:1"}
    assert free.image not in tags(api)
    assert api.inspect_image(dangling)
    assert api.inspect_image("theirs:1")


def test_leftovers_of_failed_builds_go(
    builds: Builds, api: Any, own_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once they are old enough to be no layer of a build under way, and not while something is being built."""
    text = f"FROM {BASE_IMAGE}\nRUN head -c 20000000 /dev/urandom > /lost\nRUN exit 1\n"
    archive = code_archive(builds.code, {"Dockerfile": text})
    with pytest.raises(BuildError):
        built(builds.builder(), BuildRequest(None, None, None, code=archive, dockerfile="Dockerfile"))
    lost = [item["Id"] for item in api.images(filters={"dangling": True})]
    assert len(lost) == 1
    cleanup = Cleanup(builds.builder().engine, builds.home)
    assert cleanup.plan(1.0)[1] == []
    monkeypatch.setattr("workers.builders._cleanup.QUIET_S", 0.0)
    with lock_of_a_build(builds):
        assert cleanup.plan(1.0)[1] == []
    (leftover,) = cleanup.plan(1.0)[1]
    assert (leftover.id, leftover.tags) == (lost[0], ())
    assert cleanup.remove([leftover]) == [leftover]
    assert api.images(filters={"dangling": True}) == []


@contextlib.contextmanager
def lock_of_a_build(builds: Builds) -> Iterator[None]:
    from workers.builders._locks import EngineLock

    with EngineLock(builds.builder().engine, "abc").held(lambda: False, lambda: False):
        yield


def test_a_build_above_the_limit_clears_up(builds: Builds, api: Any) -> None:
    first = builds.build("first", 20, max_images_gb=0.05)
    second = builds.build("second", 20, max_images_gb=0.05)
    assert tags(api) == {first.image, second.image}
    unused_for(builds, api, 700, first, second)
    third = builds.build("third", 20, max_images_gb=0.05)
    # Over the limit, a fifth below it is made free, and the image just built is the last one to go.
    assert tags(api) == {third.image} | ({second.image} & tags(api))
    assert first.image not in tags(api)


def test_a_disk_that_is_short_of_space_is_cleared_up(builds: Builds, api: Any) -> None:
    """All that may go goes when nothing less helps; then the agent says what to do."""
    build, lately = builds.build("unused"), builds.build("lately")
    unused_for(builds, api, 700, build)
    builder = builds.builder(min_free_gb=1e9)
    assert [problem.fix for problem in builder.check()] == ["free some space: launch images gc --keep-gb 10"]
    assert tags(api) == {lately.image}
    assert builds.builder().check() == []


def test_environment_images_go_like_others(builds: Builds, api: Any) -> None:
    build = built(builds.builder(), request(base_image=BASE_IMAGE))
    assert f"removed {build.image}" in gc(builds, "--keep-gb", "0")
    assert tags(api) == set()
