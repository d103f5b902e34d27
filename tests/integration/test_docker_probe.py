"""Whether a container reaches the tracking server, asked from a real one."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from services import need_program

from launch.checking import parse
from launch.errors import ConfigError
from launch.plugins import Reach, TargetContext
from launch.reach import PATIENCE_S
from workers.builders.docker import CONTENT_LABEL
from workers.runners.docker import DockerRunner
from workers.runners.docker_options import DockerOptions

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def options_of(**config: Any) -> DockerOptions:
    return parse(DockerOptions, DockerRunner.canonical(config), where="test")


@pytest.fixture
def api(docker_host: str) -> Iterator[Any]:
    import docker

    with contextlib.closing(docker.APIClient(base_url=docker_host)) as client:
        yield client


@pytest.fixture
def runner(docker_host: str, base_image: str, tmp_path: Path, api: Any) -> Iterator[DockerRunner]:
    """A runner whose engine has an image with Python; every probe's container is gone afterwards."""
    yield DockerRunner(TargetContext("a1b2c3d4", tmp_path, {"host": docker_host}))
    assert api.containers(all=True, filters={"label": "ai.openlaunch.probe=a1b2c3d4"}) == []


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"ok": True, "name": "openlaunch"}).encode())

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[str], str]]:
    """Starts a server that answers as ours does at an address of this machine, and returns its URL."""
    with contextlib.ExitStack() as running:

        def start(host: str) -> str:
            server = running.enter_context(HTTPServer((host, 0), Health))
            Thread(target=server.serve_forever, daemon=True).start()
            running.callback(server.shutdown)
            return f"http://{host}:{server.server_port}"

        yield start


@pytest.mark.parametrize("network", [None, "host"])
def test_a_server_at_the_tracking_host_is_reached(
    runner: DockerRunner, serve: Callable[[str], str], network: str | None
) -> None:
    options = options_of(network=network) if network else options_of()
    url = serve(str(runner.tracking_host(options)))
    reach = runner.probe(url, options)
    assert reach == Reach(f"reached at {url} from a container on network {network or 'bridge'}")


def test_the_extra_hosts_of_a_queue_count(runner: DockerRunner, serve: Callable[[str], str]) -> None:
    url = serve(str(runner.tracking_host(options_of())))
    host, port = url.removeprefix("http://").split(":")
    named = f"http://tracker.lan:{port}"
    assert runner.probe(named, options_of(add_host=f"tracker.lan:{host}")).problem is None
    unknown = runner.probe(named, options_of()).problem
    assert unknown is not None
    assert "unknown host name" in unknown.what
    assert "tracker.lan is the wrong address" in unknown.fix


def test_a_server_that_listens_on_loopback_only_is_refused_at_the_bridge(
    runner: DockerRunner, serve: Callable[[str], str]
) -> None:
    gateway = runner.tracking_host(options_of())
    url = serve("127.0.0.1").replace("127.0.0.1", str(gateway))
    problem = runner.probe(url, options_of()).problem
    assert problem is not None
    assert problem.what == f"from a container on network bridge, {url}: connection refused"
    assert problem.fix.startswith(f"launch server --host {gateway}")


def test_a_server_that_never_answers_is_timed_out(runner: DockerRunner) -> None:
    gateway = str(runner.tracking_host(options_of()))
    with socket.create_server((gateway, 0)) as deaf:
        began = time.monotonic()
        problem = runner.probe(f"http://{gateway}:{deaf.getsockname()[1]}", options_of()).problem
    assert problem is not None
    assert "no answer within 3 s" in problem.what
    assert time.monotonic() - began > PATIENCE_S


def test_a_firewall_before_a_server_that_is_up_is_told_by_its_command(
    runner: DockerRunner, serve: Callable[[str], str], api: Any
) -> None:
    url = serve(str(runner.tracking_host(options_of())))
    port = url.rpartition(":")[2]
    subnet = api.inspect_network("bridge")["IPAM"]["Config"][0]["Subnet"]
    rule = ["INPUT", "-s", subnet, "-p", "tcp", "--dport", port, "-j", "DROP"]
    iptables = [need_program("iptables"), "-w"]
    subprocess.run([*iptables, "-I", *rule], check=True)
    try:
        problem = runner.probe(url, options_of()).problem
    finally:
        subprocess.run([*iptables, "-D", *rule], check=True)
    assert problem is not None
    assert "no answer within 3 s" in problem.what
    command = f"iptables -I INPUT -s {subnet} -p tcp --dport {port} -j ACCEPT"
    assert f"a firewall keeps containers from it: sudo {command}" in problem.fix
    assert runner.probe(url, options_of()).problem is None


def test_another_program_at_the_port_is_not_taken_for_the_server(runner: DockerRunner) -> None:
    class Other(Health):
        def do_GET(self) -> None:
            self.send_error(404)

    with HTTPServer((str(runner.tracking_host(options_of())), 0), Other) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        problem = runner.probe(f"http://{server.server_address[0]}:{server.server_port}", options_of()).problem
        server.shutdown()
    assert problem is not None
    assert "something else answers there" in problem.what


def test_without_an_image_that_has_python_nothing_is_fetched_and_nothing_tested(
    runner: DockerRunner, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [item for item in api.images() if not item.get("RepoTags")]
    monkeypatch.setattr(type(runner.engine.api), "images", lambda self: images)
    reach = runner.probe("http://127.0.0.1:9", options_of())
    assert reach.problem is None
    assert reach.said.startswith("not tested: there is no image with Python yet")


def test_an_image_without_python_is_passed_over(
    runner: DockerRunner, api: Any, base_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as an environment image, and is tried first."""
    api.import_image_from_data(b"", repository="launch-test-empty", tag="1", changes=[f"LABEL {CONTENT_LABEL}=none"])
    # Other tests make images on this engine meanwhile.
    ours = [item for item in api.images() if {"launch-test-empty:1", base_image} & set(item.get("RepoTags") or ())]
    monkeypatch.setattr(type(runner.engine.api), "images", lambda self: ours)
    since = int(time.time())
    try:
        problem = runner.probe(f"http://{runner.tracking_host(options_of())}:9", options_of()).problem
    finally:
        api.remove_image("launch-test-empty:1", force=True)
    events = api.events(since=since, until=int(time.time()) + 1, filters={"event": "create"}, decode=True)
    created = [event["Actor"]["Attributes"]["image"] for event in events if event["Type"] == "container"]
    assert "launch-test-empty:1" in created
    assert problem is not None
    assert "connection refused" in problem.what


def test_a_network_that_there_is_not_is_named(runner: DockerRunner) -> None:
    with pytest.raises(ConfigError, match="no-such-network"):
        runner.probe("http://127.0.0.1:9", options_of(network="no-such-network"))
