"""The nginx example in front of the real server and Flower: scripts report through TLS, and pages are guarded."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from launch.client import Client
from launch.models import RunState
from tests.agents import Fleet, wait_until
from tests.deployment import DEPLOY, a_process, a_tracking_server
from tests.services import free_port, need_program
from tests.tls import make_certificates

pytest.importorskip("wandb", reason="needs the wandb SDK: pip install wandb")
pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

SCRIPT = """
import os, wandb
run = wandb.init()
run.log({"loss": 0.5})
with open("big.bin", "wb") as file:
    file.write(os.urandom(4_000_000))
run.save("big.bin", policy="now")
run.finish()
"""
LOGIN = ("ann", "flower-pass-7")


@dataclass
class Site:
    """What nginx listens on, and whom its certificate is from."""

    port: int
    plain_port: int
    authority: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def get(self, path: str, auth: tuple[str, str] | None = None) -> httpx.Response:
        trusted = ssl.create_default_context(cafile=self.authority)
        return httpx.get(f"{self.url}{path}", auth=auth, verify=trusted, timeout=30)


def configured(folder: Path, site: Site, certificate: Path, key: Path, server: int, flower: int) -> str:
    """Return the example with this machine's ports and files, inside what Debian's nginx.conf is around it."""
    text = (DEPLOY / "nginx" / "openlaunch.conf").read_text()
    for before, after in {
        r"listen \[::\].*": "",
        r"listen 443 ssl;": f"listen 127.0.0.1:{site.port} ssl;",
        r"listen 80;": f"listen 127.0.0.1:{site.plain_port};",
        r"server 127.0.0.1:8765;": f"server 127.0.0.1:{server};",
        r"server 127.0.0.1:5555;": f"server 127.0.0.1:{flower};",
        r"/etc/nginx/tls/\S+\.crt": str(certificate),
        r"/etc/nginx/tls/\S+\.key": str(key),
        r"server_name launch.example;": "server_name 127.0.0.1;",
    }.items():
        text, count = re.subn(before, after, text)
        assert count, before
    kept = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"pid {folder}/pid; events {{}} daemon off; http {{ access_log off; {kept} {text} }}"


@pytest.fixture(scope="module")
def nginx() -> str:
    return need_program("nginx")


@pytest.fixture
def site(nginx: str, client: Client, redis_url: str, home: Path, tmp_path: Path) -> Iterator[Site]:
    made = make_certificates(tmp_path, "127.0.0.1")
    site = Site(free_port(), free_port(), made.authority)
    flower_port = free_port()
    environment = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(home)}
    flower = [sys.executable, "-P", "-m", "celery", "-A", "workers.app", "flower", "--address=127.0.0.1"]
    options = [f"--port={flower_port}", "--url-prefix=flower", f"--basic-auth={':'.join(LOGIN)}"]
    with ExitStack() as stack:
        server = stack.enter_context(a_tracking_server(client.store, tmp_path / "server.log", environment))
        stack.enter_context(a_process([*flower, *options], tmp_path / "flower.log", environment))
        config = configured(tmp_path, site, made.server, made.key, int(server.rpartition(":")[2]), flower_port)
        (tmp_path / "nginx.conf").write_text(config)
        words = [nginx, "-p", tmp_path, "-e", tmp_path / "error.log", "-c", tmp_path / "nginx.conf"]
        checked = subprocess.run([*words, "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr, checked.stderr
        stack.enter_context(a_process(words, tmp_path / "nginx.log"))
        wait_until(lambda: _status(site, "/healthz") == 200, what="the server through nginx")
        wait_until(lambda: _status(site, "/flower/") == 401, what="Flower through nginx")
        yield site


def _status(site: Site, path: str) -> int:
    try:
        return site.get(path).status_code
    except httpx.TransportError:
        return 0


def test_scripts_report_through_it_and_pages_are_guarded(
    site: Site, client: Client, fleet: Fleet, home: Path, tmp_path: Path
) -> None:
    """Metrics, a file larger than nginx' own limit, Flower's page below its path, who may read /metrics."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text(SCRIPT)
    # As the machine's own list of authorities would have it: requests' and the SDK's core read these.
    trust = {name: str(site.authority) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
    client.create_queue("tls", resource="process", config={"env": [f"{name}={value}" for name, value in trust.items()]})
    client.create_job("train", path=code, entrypoint=[sys.executable, "train.py"])
    fleet.start("tls", options=("--tracking-url", site.url), environment=trust)

    run = client.enqueue(job="train", queue="tls").wait(timeout_s=90)

    assert run.state is RunState.FINISHED, list(run.logs())
    assert [row["loss"] for row in run.history()] == [0.5]
    assert (home / "runs" / run.id / "files" / "big.bin").stat().st_size == 4_000_000

    page = site.get("/flower/", auth=LOGIN)
    assert page.status_code == 200
    assert site.get("/flower").headers["location"].endswith("/flower/")
    assert all(link.startswith("/flower/") for link in re.findall(r'(?:src|href)="(/[^"]*)"', page.text))
    styles = re.findall(r'href="(/flower/static/[^"?]*css)', page.text)
    assert styles
    assert site.get(styles[0], auth=LOGIN).status_code == 200
    assert site.get("/flower/", auth=("ann", "wrong")).status_code == 401
    assert "launch_queue_runs" in site.get("/metrics").text
    assert httpx.get(f"http://127.0.0.1:{site.plain_port}/healthz").status_code == 403


def test_metrics_are_for_prometheus_alone(site: Site, tmp_path: Path) -> None:
    """From an address that is not allowed they are refused, while the rest is there."""
    config = tmp_path / "nginx.conf"
    config.write_text(config.read_text().replace("allow 127.0.0.1;", ""))
    pid = int((tmp_path / "pid").read_text())
    subprocess.run(["kill", "-HUP", str(pid)], check=True)

    wait_until(lambda: _status(site, "/metrics") == 403, what="nginx with the new config")
    assert _status(site, "/healthz") == 200
