"""Images in registries: pushed, found again, pinned; with a real docker-registry that wants a login over TLS."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_builds import MakeBuilder, built, code_archive, commit, output_of, request
from services import free_port, unavailable
from tls import PASSWORD, USER, secured_registry

from launch.client import Client
from launch.errors import BuildError, ConfigError, PullError, TemporaryError
from launch.plugins import BuildRequest
from launch.registry import CERTIFICATES, resolve_digest
from launch.settings import read_settings
from launch.store import RunStore
from workers.builds import build_request

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LOGIN = {"username": USER, "password": PASSWORD}


@pytest.fixture(scope="module")
def gateway(docker_host: str) -> str:
    """This machine's address on the containers' network: to the engine a registry there is as any other machine's."""
    import docker

    with contextlib.closing(docker.APIClient(base_url=docker_host)) as api:
        return str(api.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"])


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, gateway: str) -> Iterator[tuple[str, Path]]:
    """A registry with TLS and a login, trusted as Docker trusts one: its address, and its authority's folder."""
    if os.geteuid() != 0:
        unavailable("what an engine trusts is in /etc/docker/certs.d, which only root can write")
    folder = tmp_path_factory.mktemp("registry")
    with secured_registry(folder, gateway) as address, contextlib.ExitStack() as after:
        place = CERTIFICATES / address
        made = [path for path in (place, *place.parents) if not path.exists()]
        place.mkdir(parents=True)
        after.callback(lambda: [path.rmdir() for path in made])
        after.callback((place / "ca.crt").unlink)
        shutil.copy(folder / "ca.crt", place)
        yield address, folder


@pytest.fixture
def config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Docker config of the test's own."""
    folder = tmp_path / "docker-config"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


def log_in(folder: Path, address: str, password: str = PASSWORD) -> None:
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))


def install_helper(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the login with a credential helper, as desktops do."""
    program = folder / "docker-credential-test"
    answer = json.dumps({"ServerURL": address, "Username": USER, "Secret": PASSWORD})
    missing = "credentials not found in native keychain"
    program.write_text(
        f"#!/bin/sh\nread -r host\n"
        f"if [ \"$1 $host\" = 'get {address}' ]; then echo '{answer}'; else echo '{missing}'; exit 1; fi\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{Path('/usr/bin')}:/bin")
    (folder / "config.json").write_text(json.dumps({"credHelpers": {address: "test"}}))


def forget(api: Any, *images: str) -> None:
    for image in images:
        with contextlib.suppress(Exception):
            api.remove_image(image, force=True)


# --- the builder's destination ---------------------------------------------------------------------------------------


def test_another_machine_finds_what_was_built(
    make_builder: MakeBuilder, secured: tuple[str, Path], config_dir: Path, fresh: str, api: Any, tmp_path: Path
) -> None:
    """Built and pushed by one; the second, without it on its engine, fetches it instead of building."""
    address, _ = secured
    settings = {"destination": f"{address}/team/repo", "registries": {address: LOGIN}}
    wanted = request("six==1.17.0\n", base_image=fresh)
    log: list[str] = []
    first = built(make_builder(tmp_path / "one", **settings), wanted, log)
    assert first.image.startswith(f"{address}/team/repo:")
    assert first.digest is not None
    assert f"pushing {first.image}\n" in log
    assert "Pushed" in "".join(log)

    log.clear()
    again = built(make_builder(tmp_path / "one", **settings), wanted, log)
    assert (again.digest, again.reused, log) == (first.digest, True, [])

    api.remove_image(first.image, force=True)
    second = built(make_builder(tmp_path / "two", **settings), wanted, log)
    assert (second.image, second.digest, second.reused) == (first.image, first.digest, True)
    assert second.because.endswith(f"; fetched from {address}/team/repo")
    assert "Step" not in "".join(log)
    assert output_of(api, second.image, "python", "-c", "import six; print(six.__version__)") == "1.17.0\n"
    forget(api, second.image)


def test_what_was_built_and_not_pushed_is_pushed_later(
    make_builder: MakeBuilder, secured: tuple[str, Path], config_dir: Path, fresh: str, api: Any
) -> None:
    """A queue's destination counts, a wrong password is said, and the next try builds nothing again."""
    address, _ = secured
    wanted = request(base_image=fresh, destination=f"{address}/queues/own")
    log_in(config_dir, address, "wrong")
    with pytest.raises(BuildError, match=f"(?s){address}/queues/own.* refuses the login.*docker login"):
        built(make_builder(), wanted)
    log_in(config_dir, address)
    log: list[str] = []
    build = built(make_builder(), wanted, log)
    assert build.image.startswith(f"{address}/queues/own:")
    tag = build.image.rpartition(":")[2]
    assert resolve(secured, f"{address}/queues/own:{tag}") == build.digest
    forget(api, build.image)


def test_a_registry_that_is_away_is_waited_for(make_builder: MakeBuilder, config_dir: Path, fresh: str) -> None:
    wanted = request(base_image=fresh, destination=f"127.0.0.1:{free_port()}/team/repo")
    with pytest.raises(TemporaryError, match=r"cannot be looked for now: .*connection refused"):
        built(make_builder(), wanted)


def test_an_authority_that_the_engine_does_not_know(
    make_builder: MakeBuilder, config_dir: Path, fresh: str, gateway: str, tmp_path: Path
) -> None:
    """Where to put it is said."""
    with secured_registry(tmp_path, gateway) as address:
        settings = {"destination": f"{address}/team/repo", "registries": {address: LOGIN}}
        with pytest.raises(BuildError, match=r"x509.*/etc/docker/certs\.d/<host:port>/ca\.crt"):
            built(make_builder(**settings), request(base_image=fresh))


@pytest.mark.parametrize("how", ["config", "helper", "agent"])
def test_every_way_to_log_in_pulls(
    make_builder: MakeBuilder,
    secured: tuple[str, Path],
    config_dir: Path,
    base_image: str,
    api: Any,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    address, _ = secured
    image = pushed(api, base_image, secured, f"ways/{how}:1", "one")
    with pytest.raises(PullError, match=r"refuses the login: .*no basic auth"):
        built(make_builder(), request(image=image))
    if how == "config":
        log_in(config_dir, address)
    elif how == "helper":
        install_helper(config_dir, address, monkeypatch)
    build = built(make_builder(**({"registries": {address: LOGIN}} if how == "agent" else {})), request(image=image))
    assert build.because == f"pulled image {image}"
    assert build.digest == resolve(secured, image)
    forget(api, image)


# --- image jobs ------------------------------------------------------------------------------------------------------


def pushed(api: Any, base: str, secured: tuple[str, Path], name: str, label: str) -> str:
    """Push an image that knows its label to the registry, and return its reference; the engine forgets it."""
    image = f"{secured[0]}/{name}"
    commit(api, base, image, f"made={label}")
    answer = api.push(*image.rsplit(":", 1), auth_config=LOGIN)
    assert "errorDetail" not in answer, answer
    api.remove_image(image, force=True)
    return image


def resolve(secured: tuple[str, Path], image: str, password: str = PASSWORD) -> str:
    """Ask the registry, with a Docker config that has the login."""
    address, folder = secured
    config = folder / f"config-{secrets.token_hex(4)}"
    config.mkdir()
    log_in(config, address, password)
    return resolve_digest(image, environ={"DOCKER_CONFIG": str(config)})


def test_a_digest_is_what_runs_whatever_the_tag_means_now(
    make_builder: MakeBuilder, secured: tuple[str, Path], config_dir: Path, base_image: str, api: Any
) -> None:
    image = pushed(api, base_image, secured, "moving/job:v1", "old")
    old = resolve(secured, image)
    pushed(api, base_image, secured, "moving/job:v1", "new")
    builder = make_builder(registries={secured[0]: LOGIN})

    pinned = built(builder, BuildRequest(image, None, None, digest=old))
    moved = built(builder, request(image=image))

    def label(name: str) -> str:
        return str(api.inspect_image(name)["Config"]["Labels"]["made"])

    assert (pinned.digest, label(pinned.image)) == (old, "old")
    assert (moved.digest, label(moved.image)) == (resolve(secured, image), "new")
    # Both are on the engine now: nothing is asked, and still each is what it was.
    assert built(make_builder(), BuildRequest(image, None, None, digest=old)).image == pinned.image
    because = built(make_builder(), request(image=image)).because
    assert "is on the engine already, and 'pull: missing' asks no registry" in because
    forget(api, pinned.image, moved.image, image)


def test_always_never_means_a_stale_image(
    make_builder: MakeBuilder, config_dir: Path, base_image: str, api: Any
) -> None:
    """With its registry away, an image that is here is no substitute for what was asked for."""
    image = f"127.0.0.1:{free_port()}/job:1"
    commit(api, base_image, image, "made=stale")
    with pytest.raises(TemporaryError, match="cannot be fetched now"):
        built(make_builder(), request(image=image, pull="always"))
    assert built(make_builder(), request(image=image)).image == image
    forget(api, image)


# --- what a tag means, asked by the client ---------------------------------------------------------------------------


def test_a_tag_is_resolved(secured: tuple[str, Path], base_image: str, api: Any) -> None:
    image = pushed(api, base_image, secured, "asked/job:v1", "x")
    digest = resolve(secured, image)
    assert digest.startswith("sha256:")
    assert resolve(secured, f"{image}@sha256:{'0' * 64}") == f"sha256:{'0' * 64}"


def test_what_cannot_be_resolved_says_what_to_do(secured: tuple[str, Path], base_image: str, api: Any) -> None:
    address, folder = secured
    image = pushed(api, base_image, secured, "asked/job:v1", "x")
    with pytest.raises(ConfigError, match=f"registry {address} has no tag 'v9' of 'asked/job'"):
        resolve(secured, f"{address}/asked/job:v9")
    with pytest.raises(ConfigError, match=f"registry {address} refuses the login of ada: `docker login {address}`"):
        resolve(secured, image, "wrong")
    nobody = {"DOCKER_CONFIG": str(folder / "nothing")}
    with pytest.raises(ConfigError, match=r"wants a login, and Docker's config has none"):
        resolve_digest(image, environ=nobody)
    with pytest.raises(ConfigError, match=rf"certificate of registry .* is not trusted .*{address}/ca\.crt"):
        resolve_digest(image, environ=nobody, certificates=folder / "nothing")
    with pytest.raises(TemporaryError, match=r"does not answer: .*refused"):
        resolve_digest(f"127.0.0.1:{free_port()}/a:1", environ=nobody)
    with pytest.raises(ConfigError, match=r"names no registry.*LAUNCH_DEFAULT_REGISTRY"):
        resolve_digest("python:3.11", environ=nobody)


def test_a_registry_of_this_machine_needs_no_encryption(registry: str, base_image: str, api: Any) -> None:
    image = f"{registry}/plain:1"
    commit(api, base_image, image, "made=plain")
    api.push(*image.rsplit(":", 1))
    digest = resolve_digest("plain:1", default_registry=registry, environ={})
    assert f"{registry}/plain@{digest}" in api.inspect_image(image)["RepoDigests"]
    forget(api, image)


def test_an_enqueue_pins_what_the_tag_means(
    store: RunStore, redis_url: str, registry: str, base_image: str, api: Any, tmp_path: Path, config_dir: Path
) -> None:
    """In a queue that resolves at enqueue; elsewhere it is left to the agent."""
    image = f"{registry}/pinned:1"
    commit(api, base_image, image, "made=pinned")
    api.push(*image.rsplit(":", 1))
    settings = read_settings({"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(tmp_path)})
    with Client(settings=settings) as client:
        client.create_queue("late", resource="docker")
        client.create_queue("early", resource="docker", resolve_images="enqueue")
        left = client.enqueue(image=image, queue="late", command=["true"])
        pinned = client.enqueue(image=image, queue="early", command=["true"])
        with pytest.raises(ConfigError, match="has no tag 'gone'"):
            client.enqueue(image=f"{registry}/pinned:gone", queue="early", command=["true"])
        assert len(client.runs()) == 2
    digest = resolve_digest(image, environ={})
    assert build_request(left.spec, {}, None, None).digest is None  # type: ignore[arg-type]
    assert build_request(pinned.spec, {}, None, None).digest == digest  # type: ignore[arg-type]
    forget(api, image)


def test_a_dockerfile_may_start_from_a_private_image(
    make_builder: MakeBuilder, secured: tuple[str, Path], config_dir: Path, base_image: str, api: Any, tmp_path: Path
) -> None:
    base = pushed(api, base_image, secured, "private/base:1", "private")
    code = code_archive(tmp_path / "code", {"Dockerfile": f"FROM {base}\nCMD echo hello\n"})
    wanted = BuildRequest(None, None, None, code=code, dockerfile="Dockerfile")
    build = built(make_builder(registries={secured[0]: LOGIN}), wanted)
    assert output_of(api, build.image) == "hello\n"
    forget(api, build.image, base)
