"""Asks the tracking server from a short-lived container that is connected as a queue's jobs are.

The container is of an image that is there already, does nothing but run ``launch/reach.py``, and is removed by the
engine when it ends, so that a probe that is killed leaves nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch import reach
from launch.errors import ConfigError
from launch.plugins import Problem, Reach
from launch.reach import WORDS, Answer
from workers.docker_engine import Engine, Refused, away
from workers.docker_images import CONTENT_LABEL
from workers.docker_streams import PAUSE_S, json_lines, read_with_pauses
from workers.runners.docker_options import DockerOptions
from workers.runners.docker_plan import connection_of

PATIENCE_S = 30.0
"""How long a container may take to start, ask and end."""
_MOST_IMAGES = 4
_NO_PYTHON = ("executable file not found", "no such file or directory")


def probe(engine: Engine, url: str, options: DockerOptions, base_image: str, installation: str) -> Reach:
    """Return what a container with a queue's network options hears from ``url``.

    Args:
        engine: where to start it.
        url: the tracking server's.
        options: of them, those that say how a container is connected.
        base_image: what environment images are made from there; used if it is on the engine.
        installation: whose container it is.

    Raises:
        TemporaryError: the engine is away.
        ConfigError: it cannot make a container that is connected like this.
    """
    images = list(_images(engine, base_image))
    for image in images[:_MOST_IMAGES]:
        code = _exit_code(engine, _body(image, url, options, installation), f"launch-{installation}-probe")
        if code is None:
            return Reach(f"not tested: a container of {image} did not end within {PATIENCE_S:g} s")
        if code in list(Answer):
            return _reach(Answer(code), engine, url, options)
    why = f"none of {', '.join(images)} has a Python that starts" if images else "there is no image with Python yet"
    return Reach(f"not tested: {why}; the first run of a code job makes one")


def _images(engine: Engine, base_image: str) -> Iterator[str]:
    """Yield references of the images that should have Python, the likeliest first."""
    listed = _ask(engine, lambda api: api.images())
    made = [item for item in listed if CONTENT_LABEL in (item.get("Labels") or {})]
    made.sort(key=lambda item: -item["Created"])
    yield from ((item.get("RepoTags") or [item["Id"]])[0] for item in made[: _MOST_IMAGES - 1])
    tags = [tag for item in listed for tag in item.get("RepoTags") or ()]
    wanted = base_image if ":" in base_image.rpartition("/")[2] else f"{base_image}:latest"
    yield from [wanted] if wanted in tags else [tag for tag in tags if tag.startswith("python:")][:1]


def _body(image: str, url: str, options: DockerOptions, installation: str) -> dict[str, Any]:
    return {
        "Image": image,
        "Entrypoint": ["python3", "-I", "-c"],
        "Cmd": [Path(reach.__file__).read_text(), url],
        "Labels": {"ai.openlaunch.probe": installation},
        "HostConfig": {**connection_of(options), "AutoRemove": True},
    }


def _exit_code(engine: Engine, body: Mapping[str, Any], name: str) -> int | None:
    """Run a container to its end and return its exit code; none if it takes too long, -1 if it cannot start."""
    container = _create(engine, body, f"{name}-{secrets.token_hex(3)}")
    try:
        return _run(engine, container)
    except Refused as exc:
        if any(words in exc.words for words in _NO_PYTHON):
            return -1
        raise ConfigError(f"the engine starts no container connected like this: {exc.words}") from exc
    finally:
        _remove(engine, container)


def _create(engine: Engine, body: Mapping[str, Any], name: str) -> str:
    try:
        with engine.talk() as api:
            return str(api.create_container_from_config(dict(body), name)["Id"])
    except Refused as exc:
        raise ConfigError(f"the engine makes no container connected like this: {exc.words}") from exc


def _run(engine: Engine, container: str) -> int | None:
    # Asked before the start: afterwards the container may be gone already.
    pieces, close = engine.open_stream("POST", f"/containers/{container}/wait", {"condition": "removed"})
    try:
        with engine.talk() as api:
            api.start(container)
    except BaseException:
        close()
        raise
    deadline = time.monotonic() + PATIENCE_S
    for batch in read_with_pauses(json_lines(pieces), close, PAUSE_S):
        if batch:
            return int(batch[0]["StatusCode"])
        if time.monotonic() > deadline:
            break
    return None


def _remove(engine: Engine, container: str) -> None:
    with contextlib.suppress(Refused), engine.talk() as api:  # the engine has removed it, or does so now
        api.remove_container(container, v=True, force=True)


# --- what it means ----------------------------------------------------------------------------------------------------


def _reach(answer: Answer, engine: Engine, url: str, options: DockerOptions) -> Reach:
    where = f"from a container on network {options.network or 'bridge'}"
    if answer is Answer.REACHED:
        return Reach(f"reached at {url} {where}")
    return Reach("not reached", Problem(f"{where}, {url}: {WORDS[answer]}", _fix(answer, engine, url, options)))


def _fix(answer: Answer, engine: Engine, url: str, options: DockerOptions) -> str:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    is_there = reach.ask(url) is Answer.REACHED
    if is_there and (subnet := _subnet(engine, options.network or "bridge")):
        return (
            f"a firewall keeps containers from it: sudo iptables -I INPUT -s {subnet} -p tcp --dport {port} -j ACCEPT "
            f"(with ufw: sudo ufw allow proto tcp from {subnet} to any port {port})"
        )
    if is_there or answer in (Answer.NO_ROUTE, Answer.UNKNOWN_NAME, Answer.NO_ADDRESS):
        return (
            f"{host} is the wrong address: name one of this machine that containers reach, as tracking_host under "
            "targets/docker in the agent's config"
        )
    return f"launch server --host {host}; if one is up, end it first (launch down)"


def _subnet(engine: Engine, network: str) -> str | None:
    """Return the addresses a network's containers have, none where they have the machine's own."""
    if network == "host" or network.startswith("container:"):
        return None
    found = _ask(engine, lambda api: api.inspect_network(network))
    return next((item["Subnet"] for item in found["IPAM"]["Config"] or () if item.get("Subnet")), None)


def _ask(engine: Engine, question: Any) -> Any:
    try:
        with engine.talk() as api:
            return question(api)
    except Refused as exc:
        raise away(exc) from exc
