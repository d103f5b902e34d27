"""The Docker builder makes and fetches images with a real engine, pip and registry."""

from __future__ import annotations

import re
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker_builds import MakeBuilder, built, bytes_of, commit, never, output_of, request
from tls import package_index

from launch.errors import BuildError, ConfigError, PullError, TemporaryError
from launch.plugins import TargetContext
from workers.builders._locks import EngineLock
from workers.builders.docker import DockerBuilder

pytestmark = pytest.mark.docker


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
    assert re.search(r"this failed: Step \d+/\d+ : RUN PIP_.*pip install", message)
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
    assert build.image == f"{name}@{build.digest}"
    assert api.inspect_image(name)["Id"] != first
    assert builder.build(request(image=name, pull="always"), lambda _: None, never).because.endswith("is up to date")
    api.remove_image(name, force=True)


def _push(api: Any, base: str, name: str, label: str) -> None:
    """Push an image that differs from others by a label, and forget it here."""
    commit(api, base, f"{name}:latest", f"made={label}")
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


# --- what goes into it -----------------------------------------------------------------------------------------------


def test_debian_packages_have_a_layer_of_their_own(make_builder: MakeBuilder, fresh: str, api: Any) -> None:
    """They are installed before the requirements, and other requirements do not install them again."""
    wanted = replace(request("six==1.17.0", base_image=fresh), apt=("hello",))
    first = built(make_builder(), wanted)
    assert output_of(api, first.image, "hello", "-t") == "hello, world\n"
    assert "lists are empty" in output_of(
        api, first.image, "sh", "-c", "ls /var/lib/apt/lists | grep . || echo lists are empty"
    )
    log: list[str] = []
    built(make_builder(), replace(wanted, requirements="six==1.16.0"), log)
    text = "".join(log)
    assert "Setting up hello" not in text
    assert "Using cache" in text[text.index("hello") :]


def test_a_package_that_is_none_is_named(make_builder: MakeBuilder, fresh: str) -> None:
    with pytest.raises(BuildError, match=r"(?s)apt-get install.*Unable to locate package no-such-package-of-ours"):
        built(make_builder(), replace(request(base_image=fresh), apt=("no-such-package-of-ours",)))


@pytest.fixture
def without_python(api: Any, fresh: str) -> str:
    """A Debian image as those of accelerators are: no Python in it."""
    name = fresh.replace("fresh-base", "fresh-accelerator")
    purge = "apt-get purge -qy --auto-remove 'python3*' 'libpython3*' >/dev/null && rm -f /usr/bin/python"
    made = api.create_container_from_config({"Image": fresh, "Cmd": ["sh", "-c", purge]})
    api.start(made["Id"])
    assert api.wait(made["Id"])["StatusCode"] == 0, api.logs(made["Id"])
    api.commit(made["Id"], *name.split(":"))
    api.remove_container(made["Id"])
    return name


@pytest.mark.parametrize("spelling", ["accelerator", "cuda"])
def test_an_accelerators_image_gets_python(
    make_builder: MakeBuilder, without_python: str, api: Any, spelling: str
) -> None:
    """W&B's spellings name a base image, which need not have Python."""
    build = built(make_builder(), request("six==1.17.0", **{spelling: {"base_image": without_python}}))
    script = "import six, sys, os; print(six.__version__, os.getuid(), sys.version_info >= (3, 11))"
    assert output_of(api, build.image, "python", "-c", script) == "1.17.0 1000 True\n"


def test_a_jobs_base_image_goes_before_the_queues(make_builder: MakeBuilder, fresh: str) -> None:
    wanted = replace(request(base_image="queue/own:1", pull="never"), base_image=fresh)
    log: list[str] = []
    built(make_builder(), wanted, log)
    assert f"from {fresh}" in "".join(log)
    with pytest.raises(ConfigError, match="base image: should be like"):
        built(make_builder(), replace(wanted, base_image="a b"))


# --- why -------------------------------------------------------------------------------------------------------------


def test_each_build_says_what_has_changed(make_builder: MakeBuilder, fresh: str, api: Any, base_image: str) -> None:
    """Compared with the last image of the same job, in words that people know."""
    job = {"org.opencontainers.image.title": f"job-{secrets.token_hex(4)}"}
    wanted = replace(request("six==1.17.0", base_image=fresh), labels=job)

    def why(**changes: Any) -> str:
        nonlocal wanted
        wanted = replace(wanted, **changes)
        return built(make_builder(), wanted).because.split(": ")[-1]

    assert why() == "first run with these requirements"
    assert why(requirements="six==1.16.0\nidna==3.10") == "requirements changed (+idna 3.10, six 1.17.0 -> 1.16.0)"
    assert why().endswith("same base and requirements")
    assert (
        why(requirements=None, apt=("hello",)) == "requirements changed (-six, -idna), Debian packages changed (+hello)"
    )
    commit(api, fresh, fresh, f"made-for={fresh}")
    assert why() == f"base image {fresh} moved"
    api.remove_image(built(make_builder(), wanted).image)
    assert why() == "the image was no longer on the engine"


# --- settings that stay outside --------------------------------------------------------------------------------------


def test_a_private_index_leaves_no_trace(
    make_builder: MakeBuilder, fresh: str, api: Any, tmp_path: Path, gateway: str
) -> None:
    """Its password, its address and its authority are in no image, no layer below it, no history and no log."""
    canary = f"canary{secrets.token_hex(8)}"
    folder = tmp_path / "index"
    folder.mkdir()
    with package_index(folder, gateway, f"ada:{canary}", {"inhouse": "1.2"}) as address:
        pip = {"index_url": f"https://ada:{canary}@{address}/simple", "cert": str(folder / "ca.crt")}
        builder = make_builder(pip=pip, build_args={"SOME_TOKEN": f"{canary}-too", "NO_PROXY": "*"})
        log: list[str] = []
        build = built(builder, request("inhouse==1.2\n", base_image=fresh), log)
        with pytest.raises(BuildError) as caught:
            built(builder, request("no-such-package==1\n", base_image=fresh), log)
    assert output_of(api, build.image, "python", "-c", "import inhouse; print(inhouse.__version__)") == "1.2\n"
    authority = (folder / "ca.crt").read_bytes().splitlines()[3]
    everything = bytes_of(api, build.image)
    assert b"inhouse" in everything
    for secret in (canary.encode(), address.encode(), authority):
        assert secret not in everything
    assert canary not in "".join(log) + str(caught.value)
    assert "ftp_proxy" not in "".join(log) + str(caught.value)


@pytest.fixture
def gateway(api: Any) -> str:
    """This machine's address in containers."""
    return str(api.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"])


# --- how long, and by whom -------------------------------------------------------------------------------------------


def test_a_build_has_a_time_limit(make_builder: MakeBuilder, fresh: str) -> None:
    slow = f"slow @ http://10.255.255.1/{secrets.token_hex(4)}.tar.gz"
    began = time.monotonic()
    with pytest.raises(BuildError, match=r"longer than 2 s, the build_limit_s in this agent's config"):
        built(make_builder(build_limit_s=2), request(slow, base_image=fresh))
    assert time.monotonic() - began < 10


def test_agents_of_two_machines_build_once(make_builder: MakeBuilder, fresh: str, tmp_path: Path) -> None:
    """Two launch homes that share an engine: one builds, the other waits for it."""
    wanted = request("six==1.15.0\n", base_image=fresh)
    homes = [tmp_path / "one", tmp_path / "two"]
    with ThreadPoolExecutor(2) as pool:
        builds = list(pool.map(lambda home: built(make_builder(home), wanted), homes))
    assert sorted(build.reused for build in builds) == [False, True]
    assert next(build.because for build in builds if build.reused).endswith("built just now by another agent")


def test_the_lock_of_a_dead_agent_is_taken_over(make_builder: MakeBuilder, api: Any) -> None:
    """A holder that lives keeps it, however long; one that says nothing any more loses it."""
    engine = make_builder().engine
    tag = secrets.token_hex(6)
    dead = EngineLock(engine, tag, beat_s=3600)._take(never, never)
    assert dead
    alive = EngineLock(engine, tag, beat_s=0.1, dead_after_s=1.0)
    with alive.held(never, never) as is_held:
        assert is_held
        waiting = EngineLock(engine, tag, dead_after_s=1.0)
        until = time.monotonic() + 3
        with pytest.raises(InterruptedError), waiting.held(lambda: time.monotonic() > until, never):
            pass
        with waiting.held(never, is_done=lambda: True) as is_held_too:
            assert not is_held_too
    assert api.containers(all=True, filters={"name": f"launch-build-{tag}"}) == []
