"""Redis behind a password, an ACL user, TLS, or sentinels: a run goes all the way through each."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.client import Client
from launch.errors import ConfigError, TemporaryError
from launch.models import RunState
from launch.settings import read_settings
from launch.store import RunStore
from tests.agents import a_fleet, wait_until

USER = "agent"
PASSWORD = "p@ss:word/1"
IN_URL = "p%40ss%3Aword%2F1"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def a_server(folder: Path, *words: str) -> Iterator[None]:
    program = shutil.which("redis-server") or pytest.skip("redis-server is not installed")
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([str(program), *words], cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def connected(url: str) -> RunStore:
    """Return the store once the server answers."""
    until = time.monotonic() + 20
    while True:
        try:
            return RunStore.connect(url, timeout_s=2)
        except TemporaryError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(params=["password", "acl user", "tls", "sentinel"])
def guarded_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    base = ("--port", str(port), "--bind", "127.0.0.1", "--save", "")
    with contextlib.ExitStack() as servers:
        if request.param == "password":
            servers.enter_context(a_server(tmp_path / "redis", *base, "--requirepass", PASSWORD))
            yield f"redis://:{IN_URL}@127.0.0.1:{port}/1"
        elif request.param == "acl user":
            rights = f"user {USER} on >{PASSWORD} ~* &* +@all"
            (tmp_path / "acl").write_text(f"user default off\n{rights}\n")
            servers.enter_context(a_server(tmp_path / "redis", *base, "--aclfile", str(tmp_path / "acl")))
            yield f"redis://{USER}:{IN_URL}@127.0.0.1:{port}/0"
        elif request.param == "tls":
            certificate, key = a_certificate(tmp_path)
            tls = ("--tls-port", str(port), "--port", "0", "--tls-auth-clients", "no")
            files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
            servers.enter_context(a_server(tmp_path / "redis", *base[2:], *tls, *files))
            yield f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}&ssl_cert_reqs=required"
        else:
            servers.enter_context(a_server(tmp_path / "redis", *base))
            sentinel_port = free_port()
            config = tmp_path / "sentinel.conf"
            config.write_text(f"port {sentinel_port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {port} 1\n")
            servers.enter_context(a_server(tmp_path / "sentinel", str(config), "--sentinel"))
            yield f"sentinel://127.0.0.1:{sentinel_port}/0?master_name=mymaster"


def a_certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    words = (
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    )
    subprocess.run(["openssl", *words, *subject], check=True, capture_output=True)
    return certificate, key


def test_a_run_goes_through_a_guarded_redis(guarded_url: str, home: Path, tmp_path: Path) -> None:
    store = connected(guarded_url)
    settings = read_settings({"LAUNCH_BROKER_URL": guarded_url, "LAUNCH_HOME": str(home)})
    with Client(settings=settings) as client, a_fleet(store, guarded_url, home, tmp_path) as fleet:
        client.create_queue("q", resource="process")
        fleet.start("q")
        run = client.enqueue(command=["echo", "through"], queue="q", tracking="optional").wait(timeout_s=40)
        assert run.state is RunState.FINISHED
        assert list(run.logs())[-1] == "through"
        wait_until(lambda: store.messages("q") == (0, 0))
        assert PASSWORD not in "".join(path.read_text() for path in tmp_path.glob("agent-*.log"))
    store.redis.close()


def test_a_wrong_password_is_said_without_showing_it(tmp_path: Path) -> None:
    port = free_port()
    words = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD)
    with a_server(tmp_path / "redis", *words):
        connected(f"redis://:{IN_URL}@127.0.0.1:{port}/0").redis.close()
        with pytest.raises(TemporaryError) as refused:
            RunStore.connect(f"redis://:wrong@127.0.0.1:{port}/0")
    assert "wrong" not in str(refused.value).replace("WRONGPASS", "")
    assert str(port) in str(refused.value)


def test_a_sentinel_url_without_a_name_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="master_name=NAME"):
        RunStore.connect("sentinel://127.0.0.1:26379")
