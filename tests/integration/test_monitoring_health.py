"""What the doctor says of those who look on: a real Flower, ``/metrics``, hooks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from services import free_port, wait_until

from launch.findings import Check
from launch.monitoring import check_monitoring
from launch.reach import Answer, ask
from launch.settings import Settings

NOBODY = "http://127.0.0.1:1"


def looked(settings: Settings, urls: tuple[str, ...] = (), flower: str = NOBODY) -> Check:
    return check_monitoring(settings, urls, flower_url=flower)


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# --- Flower ----------------------------------------------------------------------------------------------------------


@contextmanager
def a_flower(redis_url: str, address: str = "127.0.0.1", *options: str, **environment: str) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, "-m", "celery", "-A", "workers.app", "flower", f"--address={address}"]
    process = subprocess.Popen(
        [*argv, f"--port={port}", *options],
        env={**os.environ, "LAUNCH_BROKER_URL": redis_url, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://{address}:{port}"
    try:
        wait_until(lambda: ask(url) is Answer.SOMETHING_ELSE, "Flower answers", 60)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_a_flower_whose_api_is_open_is_found(redis_url: str, tmp_path: Path) -> None:
    with a_flower(redis_url, FLOWER_UNAUTHENTICATED_API="true") as url:
        (finding,) = looked(Settings(home=tmp_path), flower=url).findings
    assert finding.what == f"Flower's API at {url} asks for no login."
    assert "--basic_auth" in finding.fix


def test_a_flower_with_a_login_is_well(redis_url: str, tmp_path: Path) -> None:
    with a_flower(redis_url, FLOWER_BASIC_AUTH="ada:x") as url:
        check = looked(Settings(home=tmp_path, flower_url=url))
    assert check == Check("watching", f"Flower at {url}")


def test_a_flower_without_a_login_may_show_its_pages_on_loopback_only(redis_url: str, tmp_path: Path) -> None:
    """Its API refuses by itself; other addresses than loopback are reached by others too."""
    here = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()[0]
    with a_flower(redis_url) as url:
        assert looked(Settings(home=tmp_path, flower_url=url)).findings == ()
    with a_flower(redis_url, here) as url:
        (finding,) = looked(Settings(home=tmp_path, flower_url=url)).findings
    assert finding.what == f"Flower's pages at {url} ask for no login."


class SendsToALogin(BaseHTTPRequestHandler):
    """Flower with OAuth: its pages and API lead to the provider's login, which is open."""

    server_version = "TornadoServer/6"

    def do_GET(self) -> None:
        leads_on = self.path not in ("/healthcheck", "/login")
        self.send_response(302 if leads_on else 200)
        if leads_on:
            self.send_header("Location", "/login")
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *words: object) -> None:
        pass


def test_a_flower_that_sends_to_a_login_is_well(tmp_path: Path) -> None:
    with answering(SendsToALogin) as url:
        assert looked(Settings(home=tmp_path, flower_url=url)) == Check("watching", f"Flower at {url}")


def test_only_a_flower_that_is_meant_to_be_there_is_missed(tmp_path: Path) -> None:
    assert looked(Settings(home=tmp_path)) == Check("watching", "nobody")
    (finding,) = looked(Settings(home=tmp_path, flower_url=NOBODY)).findings
    assert NOBODY in finding.what


# --- /metrics --------------------------------------------------------------------------------------------------------


class HalfAServer(BaseHTTPRequestHandler):
    """Well, but for its metrics."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/healthz", "/healthcheck") else 500)
        self.end_headers()
        self.wfile.write(b'{"ok": true, "name": "openlaunch"}')

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def half_a_server() -> Iterator[str]:
    with answering(HalfAServer) as url:
        yield url


def test_a_server_without_metrics_is_found_and_one_that_is_away_is_not_ours_to_name(
    half_a_server: str, tmp_path: Path
) -> None:
    (finding,) = looked(Settings(home=tmp_path), (NOBODY, half_a_server)).findings
    assert finding.what == f"The tracking server answers {half_a_server}/metrics with status 500."
    assert looked(Settings(home=tmp_path), (NOBODY,)).findings == ()


def test_something_else_at_flowers_port_is_not_taken_for_flower(half_a_server: str, tmp_path: Path) -> None:
    assert looked(Settings(home=tmp_path), flower=half_a_server) == Check("watching", "nobody")


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_are_read_without_the_servers_secrets(tmp_path: Path) -> None:
    path = tmp_path / "notify.yaml"
    path.write_text("hooks: [{name: team, url: '${secret:NO_SUCH_VARIABLE_HERE}'}]\n")
    assert looked(Settings(home=tmp_path, notify=path)) == Check("watching", "1 hook(s): team")


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("hooks: [", "is no YAML"), ("hooks: [{name: a, url: 'ftp://x'}]", "http:// or https")],
)
def test_a_hooks_file_that_cannot_be_used_is_found(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "notify.yaml"
    if text is not None:
        path.write_text(text)
    (finding,) = looked(Settings(home=tmp_path, notify=path)).findings
    assert said in finding.what
    assert str(path) in finding.fix
