"""The Docker builder makes and fetches images with a real engine, pip and registry."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launch.errors import BuildError, ConfigError, PullError, TemporaryError
from launch.plugins import BuildRequest, TargetContext
from workers.builders.docker import DockerBuilder

pytestmark = pytest.mark.docker

MakeBuilder = Callable[..., DockerBuilder]


@pytest.fixture
def api(docker_host: str) -> Iterator[Any]:
    """The engine itself, to look at what was made."""
    import docker

    with contextlib.closing(docker.APIClient(base_url=docker_host)) as client:
        yield client


@pytest.fixture
def make_builder(docker_host: str, base_image: str, tmp_path: Path) -> MakeBuilder:
    """Builders of one launch home."""

    def make(**settings: Any) -> DockerBuilder:
        return DockerBuilder(TargetContext("a1b2c3d4", tmp_path, {"host": docker_host, **settings}))

    return make


@pytest.fixture
def fresh(api: Any, base_image: str) -> Iterator[str]:
    """A base image of this test alone, so that nothing built from it was there before."""
    name = f"fresh-base:{secrets.token_hex(4)}"
    made = api.create_container_from_config({"Image": base_image, "Cmd": ["true"], "Labels": {"made-for": name}})
    api.commit(made["Id"], *name.split(":"), changes=f"LABEL made-for={name}")
    api.remove_container(made["Id"])
    yield name
    for image in api.images(filters={"label": f"made-for={name}"}):
        with contextlib.suppress(Exception):
            api.remove_image(image["Id"], force=True)


def never() -> bool:
    return False


def request(requirements: str | None = None, image: str | None = None, **options: Any) -> BuildRequest:
    return BuildRequest(image, requirements, "3.11", options)


def output_of(api: Any, image: str, *command: str) -> str:
    made = api.create_container_from_config({"Image": image, "Cmd": list(command)})
    try:
        api.start(made["Id"])
        assert api.wait(made["Id"])["StatusCode"] == 0
        return str(api.logs(made["Id"]).decode())
    finally:
        api.remove_container(made["Id"], force=True)


def test_an_environment_image_is_built_once(make_builder: MakeBuilder, fresh: str, api: Any) -> None:
    """Requirements are installed for a user who is not root and has a home; the same needs build nothing again."""
    log: list[str] = []
    wanted = request("six==1.17.0\n", base_image=fresh)
    first = make_builder().build(wanted, log.append, never)
    assert not first.reused
    assert first.because == f"built environment image {first.image}: first run with these requirements"
    assert "six-1.17.0" in "".join(log)

    script = (
        "import six, os; open(os.path.expanduser('~/x'), 'w').close();"
        "print(six.__version__, os.getuid(), os.environ['PYTHONUNBUFFERED'])"
    )
    assert output_of(api, first.image, "python", "-c", script) == "1.17.0 1000 1\n"

    log.clear()
    began = time.monotonic()
    second = make_builder().build(wanted, log.append, never)
    assert (second.image, second.reused, log) == (first.image, True, [])
    assert second.because == f"reused environment image {first.image}, same base and requirements"
    assert time.monotonic() - began < 1


def test_other_needs_make_another_image(make_builder: MakeBuilder, fresh: str) -> None:
    """No requirements and some, this base and its successor: three images."""
    builder = make_builder()
    without = builder.build(request(base_image=fresh), lambda _: None, never).image
    with_six = builder.build(request("six==1.17.0", base_image=fresh), lambda _: None, never).image
    assert without != with_six


def test_ten_agents_build_once(make_builder: MakeBuilder, fresh: str) -> None:
    """However many ask at the same time, one builds and the others wait for it."""
    wanted = request("six==1.16.0\n", base_image=fresh)
    with ThreadPoolExecutor(10) as pool:
        builds = list(pool.map(lambda _: make_builder().build(wanted, lambda _: None, never), range(10)))
    assert [build.reused for build in builds].count(False) == 1
    assert len({build.image for build in builds}) == 1


def test_a_failed_build_names_its_step(make_builder: MakeBuilder, fresh: str) -> None:
    """The error says which step failed, and ends with what it printed; the log has it all."""
    log: list[str] = []
    with pytest.raises(BuildError) as caught:
        make_builder().build(request("no-such-package-of-ours==1.0\n", base_image=fresh), log.append, never)
    message = str(caught.value)
    assert re.search(r"this failed: Step \d/\d : RUN .*pip install", message)
    assert "No matching distribution found for no-such-package-of-ours==1.0" in message
    assert "no-such-package-of-ours" in "".join(log)


def test_a_build_can_be_cancelled(make_builder: MakeBuilder, base_image: str, fresh: str) -> None:
    """Cancelled while a step runs that would take for ever: it returns within a second or so, with nothing made."""
    log: list[str] = []
    slow = f"slow @ http://10.255.255.1/{secrets.token_hex(4)}.tar.gz"  # nobody answers there
    asked_at: list[float] = []

    def cancelled() -> bool:
        if re.search(r"pip install .*\n.*Running in", "".join(log)) and not asked_at:
            asked_at.append(time.monotonic())
        return bool(asked_at)

    with pytest.raises(InterruptedError):
        make_builder().build(request(slow, base_image=fresh), log.append, cancelled)
    assert time.monotonic() - asked_at[0] < 3


def test_an_image_is_pulled_as_its_policy_says(
    make_builder: MakeBuilder, registry: str, base_image: str, api: Any
) -> None:
    """``never`` refuses what is not there, ``missing`` fetches it once, ``always`` sees a new one of the same name."""
    name = f"{registry}/job-{secrets.token_hex(4)}"
    builder = make_builder()
    _push(api, base_image, name, "first")
    with pytest.raises(PullError, match="pull: never"):
        builder.build(request(image=name, pull="never"), lambda _: None, never)

    log: list[str] = []
    assert not builder.build(request(image=name), log.append, never).reused
    assert f"pulling {name}\n" in log
    assert "Status: Downloaded newer image" in "".join(log)
    first = api.inspect_image(name)["Id"]

    _push(api, base_image, name, "second")
    api.tag(first, name, "latest")
    assert builder.build(request(image=name), lambda _: None, never).reused
    assert api.inspect_image(name)["Id"] == first
    build = builder.build(request(image=name, pull="always"), lambda _: None, never)
    assert build.because == f"pulled image {name}"
    assert api.inspect_image(name)["Id"] != first
    assert builder.build(request(image=name, pull="always"), lambda _: None, never).because.endswith("is up to date")
    api.remove_image(name, force=True)


def _push(api: Any, base: str, name: str, label: str) -> None:
    """Push an image that differs from others by a label, and forget it here."""
    made = api.create_container_from_config({"Image": base, "Cmd": ["true"]})
    api.commit(made["Id"], name, "latest", changes=f"LABEL made={label}")
    api.remove_container(made["Id"])
    answer = api.push(name, "latest")
    assert "errorDetail" not in answer, answer
    api.remove_image(name, force=True)


def test_an_image_that_is_nowhere(make_builder: MakeBuilder, registry: str) -> None:
    """A name that its registry does not know is the user's to mend, with the engine's words."""
    with pytest.raises(PullError, match=r"no-such-image.*(not found|unknown)"):
        make_builder().build(request(image=f"{registry}/no-such-image:1"), lambda _: None, never)


def test_a_registry_that_is_away(make_builder: MakeBuilder) -> None:
    """It is tried again later."""
    with pytest.raises(TemporaryError, match="connection refused"):
        make_builder().build(request(image="127.0.0.1:9/image:1"), lambda _: None, never)


def test_an_engine_that_is_away(tmp_path: Path) -> None:
    """It is tried again later, and ``check`` says what to do."""
    builder = DockerBuilder(TargetContext("a1b2c3d4", tmp_path, {"host": f"unix://{tmp_path}/no.sock"}))
    with pytest.raises(TemporaryError, match=r"no\.sock does not answer: .*No such file"):
        builder.build(request(image="python:3.11-slim"), lambda _: None, never)
    assert [problem.fix[:12] for problem in builder.check()] == ["start Docker"]


def test_a_misspelt_option_is_refused(make_builder: MakeBuilder) -> None:
    """The builder's section is checked like any other."""
    with pytest.raises(ConfigError, match="builder/base_imgae: unknown key; did you mean 'base_image'"):
        make_builder().build(request(base_imgae="x"), lambda _: None, never)


def test_leaving_a_build_leaves_no_thread(make_builder: MakeBuilder, base_image: str) -> None:
    """Readers of the engine's streams end with what they read for."""
    make_builder().build(request(image=base_image), lambda _: None, never)
    assert not [thread for thread in threading.enumerate() if thread.name == "docker-stream"]
