"""What the tests of Docker builds share: builders of a launch home, and images of a test alone."""

from __future__ import annotations

import contextlib
import io
import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.plugins import Build, BuildRequest, TargetContext
from workers.builders.docker import DockerBuilder

MakeBuilder = Callable[..., DockerBuilder]


@pytest.fixture
def api(docker_host: str) -> Iterator[Any]:
    """The engine itself, to look at what was made."""
    import docker

    with contextlib.closing(docker.APIClient(base_url=docker_host)) as client:
        yield client


@pytest.fixture
def make_builder(docker_host: str, base_image: str, tmp_path: Path) -> MakeBuilder:
    """Builders of one launch home, or of another one by ``home``."""

    def make(home: Path = tmp_path, **settings: Any) -> DockerBuilder:
        return DockerBuilder(TargetContext("a1b2c3d4", home, {"host": docker_host, **settings}))

    return make


@pytest.fixture
def fresh(api: Any, base_image: str) -> Iterator[str]:
    """A base image of this test alone, so that nothing built from it was there before; all of it goes afterwards."""
    name = f"fresh-base:{secrets.token_hex(4)}"
    commit(api, base_image, name, f"made-for={name}")
    yield name
    remove_made_for(api, name)


def commit(api: Any, base: str, name: str, label: str) -> str:
    """Make an image that differs from its base by a label, and return its id."""
    made = api.create_container_from_config({"Image": base, "Cmd": ["true"]})
    found = api.commit(made["Id"], *name.rsplit(":", 1), changes=f"LABEL {label}")
    api.remove_container(made["Id"])
    return str(found["Id"])


def remove_made_for(api: Any, name: str) -> None:
    for image in api.images(filters={"label": f"made-for={name}"}):
        with contextlib.suppress(Exception):
            api.remove_image(image["Id"], force=True)


def never() -> bool:
    return False


def request(requirements: str | None = None, image: str | None = None, **options: Any) -> BuildRequest:
    return BuildRequest(image, requirements, "3.11", options)


def code_archive(folder: Path, files: dict[str, str]) -> Path:
    """Return a gzip tar of files, as a snapshot is one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(8)}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def built(builder: DockerBuilder, wanted: BuildRequest, log: list[str] | None = None) -> Build:
    """Build to the end."""
    return builder.build(wanted, (log if log is not None else []).append, never)


def output_of(api: Any, image: str, *command: str) -> str:
    """Return what a command prints in an image, or what the image's own command prints."""
    made = api.create_container_from_config({"Image": image, **({"Cmd": list(command)} if command else {})})
    try:
        api.start(made["Id"])
        status = api.wait(made["Id"])["StatusCode"]
        text = str(api.logs(made["Id"]).decode())
        assert status == 0, text
        return text
    finally:
        api.remove_container(made["Id"], force=True)


def bytes_of(api: Any, *images: str) -> bytes:
    """Return all that is known of images and of those they are made of: files, configs, histories."""
    steps = [item["Id"] for image in images for item in api.history(image) if item["Id"] != "<missing>"]
    ids = list(dict.fromkeys([*images, *steps]))
    described = "".join(repr(api.inspect_image(found)) + repr(api.history(found)) for found in ids)
    with api.get(api._url("/images/get"), params={"names": ids}, stream=True) as response:
        assert response.status_code == 200, response.text
        return described.encode() + response.content
