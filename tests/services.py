"""The services that tests start for themselves: a Redis server, a Docker engine, its base image, a registry.

Nothing of the machine's own is used: each has a folder and a socket or port of its own. Engine and registry are shared
by all pytest processes of a checkout (pytest-xdist's workers, a second pytest beside the first) and ended by the last;
images stay in the cache folder from one session to the next.

A service that cannot be had is skipped with the reason at a desk, and fails when ``CI=true``.

Environment:
    LAUNCH_TEST_CACHE: where images are kept; default ``.cache/tests`` in the checkout.
    LAUNCH_TEST_DOCKER_HOST: an engine to use instead of a private one; it has the base image or can pull it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parent.parent
BASE_IMAGE = "python:3.11-slim"


def cache_dir() -> Path:
    """Return the folder whose content outlives a test session."""
    path = Path(os.environ.get("LAUNCH_TEST_CACHE") or ROOT / ".cache" / "tests")
    path.mkdir(parents=True, exist_ok=True)
    return path


def unavailable(reason: str) -> NoReturn:
    """Skip the test at a desk; fail it in CI, where everything has to be there."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI needs this service: {reason}", pytrace=False)
    pytest.skip(reason)


def need_program(*names: str) -> str:
    """Return the path of the first of these programs that is installed, or skip."""
    found = next((path for name in names if (path := shutil.which(name, path=_search_path()))), None)
    if found is None:
        unavailable(f"{' or '.join(names)} is not installed")
    assert found is not None
    return found


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout_s:g} s", pytrace=False)
        time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# --- Redis -----------------------------------------------------------------------------------------------------------


@dataclass
class RedisServer:
    """A Redis server of this test session alone, with an append-only file, so that it can be killed and come back."""

    folder: Path
    program: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:port/0``"""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        """The same server's unix socket."""
        return self.folder / "redis.sock"

    def start(self) -> None:
        """Start it, with the data it had before, and return when it answers."""
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket_path),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self.program, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self.answers, "redis-server answers")

    def answers(self) -> bool:
        """Whether it answers PING."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(1)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False

    def kill(self, with_signal: int = signal.SIGKILL) -> None:
        """End it with a signal and return when it is gone; ``start`` brings it back."""
        if self.process is not None:
            self.process.send_signal(with_signal)
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A private Redis server; a test that kills it starts it again."""
    program = need_program("redis-server", "valkey-server")
    with tempfile.TemporaryDirectory(prefix="launch-redis-") as folder:
        server = RedisServer(Path(folder), program)
        server.start()
        yield server
        server.kill(signal.SIGTERM)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The private Redis server's URL; it is empty when the test begins."""
    _flush(redis_server)
    return redis_server.url


def _flush(server: RedisServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(16).startswith(b"+OK")


# --- services shared by all pytest processes of a checkout -----------------------------------------------------------


class Shared:
    """A service that the first user starts and the last user ends; a killed user counts as gone.

    Each user holds ``users.lock`` shared; who gets it for itself alone at the end was the last.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._users = (folder / "users.lock").open("w")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / "start.lock").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def in_use(
        self, answers: Callable[[], bool], start: Callable[[], None], stop: Callable[[], None]
    ) -> Iterator[None]:
        """Hold the service for a block."""
        try:
            with self._alone():
                fcntl.flock(self._users, fcntl.LOCK_SH)
                if not answers():
                    start()
            yield
        finally:
            with self._alone(), contextlib.suppress(BlockingIOError):
                fcntl.flock(self._users, fcntl.LOCK_UN)
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stop()
            self._users.close()


def start_detached(words: list[str], log: Path) -> int:
    """Start a program that outlives this process and return its pid."""
    script = 'log=$1; shift; "$@" >"$log" 2>&1 </dev/null & echo $!'
    done = subprocess.run(
        ["setsid", "sh", "-c", script, "sh", str(log), *words], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def stop_by_pidfile(pidfile: Path, timeout_s: float = 30.0) -> None:
    """End the process a file names and return when it is gone."""
    try:
        pid = int(pidfile.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    wait_until(lambda: not is_alive(pid), f"process {pid} ({pidfile.name}) ends", timeout_s)
    pidfile.unlink(missing_ok=True)


# --- Docker ----------------------------------------------------------------------------------------------------------


@dataclass
class PrivateEngine:
    """A Docker engine with its own socket, data, and bridge, on this machine."""

    data: Path
    """Images and containers: kept."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its ``daemon.json`` says."""

    @property
    def tag(self) -> str:
        """Short and the same for every process of this checkout: unix sockets and bridges have short names."""
        return hashlib.sha256(str(self.data).encode()).hexdigest()[:8]

    @property
    def run(self) -> Path:
        """Sockets and pid files."""
        return Path(tempfile.gettempdir()) / f"launch-docker-{self.tag}"

    @property
    def host(self) -> str:
        """What ``DOCKER_HOST`` would say."""
        return f"unix://{self.run}/docker.sock"

    @property
    def bridge(self) -> str:
        """The network interface that its containers are on: not the ``docker0`` of the machine's own engine."""
        return f"lt{self.tag}"

    def free_subnet(self) -> int:
        """Return a third number for its networks' addresses that no other engine of this machine uses."""
        shown = subprocess.run([need_program("ip"), "-4", "-o", "address"], capture_output=True, text=True, check=True)
        others = "\n".join(line for line in shown.stdout.splitlines() if self.bridge not in line)
        first = int(self.tag[:2], 16)
        return next(n % 256 for n in range(first, first + 256) if f" 10.213.{n % 256}.1/" not in others)

    def answers(self) -> bool:
        """Whether it answers its ping."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.run / "docker.sock"))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b"200 OK" in connection.recv(64)
        return False

    def start(self) -> None:
        """Start it, and return when it answers.

        ``vfs`` would copy each image for each container, so the file system below must be able to do ``overlay2``.
        """
        self.run.mkdir(mode=0o700, exist_ok=True)
        for stale in (self.run / "docker.pid", self.run / "exec/containerd/containerd.pid"):
            stale.unlink(missing_ok=True)  # of an engine that was killed: its number may be another process's now
        subnet = self.free_subnet()
        _make_bridge(self.bridge, f"10.213.{subnet}.1/24")
        options = {
            "host": self.host,
            "data-root": self.data,
            "exec-root": self.run / "exec",
            "pidfile": self.run / "docker.pid",
            "config-file": self._config(),
            "bridge": self.bridge,
            "storage-driver": "overlay2",
            "default-address-pool": f"base=10.214.{subnet}.0/24,size=28",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        pid = start_detached([need_program("dockerd"), *words], self.log)
        deadline = time.monotonic() + 60
        while not self.answers():
            if not is_alive(pid) or time.monotonic() > deadline:
                unavailable(f"a private dockerd does not start; the end of {self.log}:\n{_tail(self.log)}")
            time.sleep(0.1)

    def _config(self) -> Path:
        """Return a configuration file of its own: the machine's is for the machine's engine."""
        path = self.run / "daemon.json"
        path.write_text(json.dumps(dict(self.settings)))
        return path

    @property
    def log(self) -> Path:
        """Where the engine writes what it does."""
        return self.data.parent / "dockerd.log"

    def kill(self) -> None:
        """End it as a crash would; ``start`` brings it back."""
        pid = int((self.run / "docker.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "dockerd is gone")

    def stop(self) -> None:
        """End it, its containers and its bridge; images stay."""
        stop_by_pidfile(self.run / "docker.pid", 60)
        subprocess.run([need_program("ip"), "link", "delete", self.bridge], capture_output=True)
        for place in (self.run, self.data):
            _unmount_below(place)
        shutil.rmtree(self.run, ignore_errors=True)


def _unmount_below(folder: Path) -> None:
    """Unmount what an engine leaves mounted: its network namespace, and after a crash its data."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in places if Path(place).is_relative_to(folder)]):
        subprocess.run([need_program("umount"), place], capture_output=True)


def _make_bridge(name: str, address: str) -> None:
    ip = need_program("ip")
    subprocess.run([ip, "link", "add", name, "type", "bridge"], capture_output=True)  # there already: as good
    subprocess.run([ip, "address", "replace", address, "dev", name], check=True, capture_output=True)
    subprocess.run([ip, "link", "set", name, "up"], check=True, capture_output=True)


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def need_private_engines() -> None:
    """Skip where no engine of the tests' own can be started."""
    need_program("dockerd")
    if os.geteuid() != 0:
        unavailable("a private dockerd needs root; or set LAUNCH_TEST_DOCKER_HOST to an engine to use")
    if Path("/sys/class/net/docker0").exists() and not os.environ.get("CI"):
        # A second engine removes the first one's default bridge and the rules of its published ports.
        unavailable("this machine runs a Docker engine of its own; set LAUNCH_TEST_DOCKER_HOST to use that")


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """The address of a Docker engine for tests: ``unix:///…/docker.sock``."""
    given = os.environ.get("LAUNCH_TEST_DOCKER_HOST")
    if given:
        yield given
        return
    pytest.importorskip("docker", reason="the Docker SDK is not installed: pip install 'openlaunch[docker]'")
    need_private_engines()
    folder = cache_dir() / "docker"
    engine = PrivateEngine(folder / "data")
    with Shared(folder).in_use(engine.answers, engine.start, engine.stop):
        yield engine.host


@pytest.fixture
def docker_env(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine's address, also as ``DOCKER_HOST`` for everything the test starts."""
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    return docker_host


@contextlib.contextmanager
def engine_of_its_own(data: Path, settings: Mapping[str, Any] | None = None) -> Iterator[PrivateEngine]:
    """Give an engine with the base image on it, which nobody else uses."""
    need_private_engines()
    engine = PrivateEngine(data, settings or {})
    data.mkdir()
    engine.start()
    try:
        ensure_base_image(engine.host)
        yield engine
    finally:
        engine.stop()


# --- the base image --------------------------------------------------------------------------------------------------

_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
_RECIPE = 1
"""Count up when the image is made in another way: it is made anew then."""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_UNNEEDED = (
    "./var/cache/apt",
    "./var/lib/apt/lists",
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./dev",
)


def _recipe() -> str:
    """Return a digest of everything the base image depends on."""
    parts = [str(_RECIPE), _PACKAGES, _mirror()]
    certificates = _CERTIFICATES.read_bytes() if _CERTIFICATES.exists() else b""
    return hashlib.sha256("\n".join(parts).encode() + certificates).hexdigest()[:16]


def _mirror() -> str:
    """Return the Debian mirror that this machine uses: read when needed, and written nowhere."""
    folder = Path("/etc/apt")
    for path in [*sorted(folder.glob("sources.list.d/*.sources")), *sorted(folder.glob("**/*.list"))]:
        text = path.read_text(errors="replace")
        for address in re.findall(r"^(?:URIs:|deb)\s+(?:\[.*?\]\s+)?(\S+)", text, re.MULTILINE):
            if address.rstrip("/").endswith("/debian"):
                return str(address)
    unavailable("no Debian mirror is named under /etc/apt")


def _archive() -> Path:
    """Return the base image's file system as a tar, made by debootstrap once and kept."""
    path = cache_dir() / f"python-3.11-{_recipe()}.tar.gz"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="rootfs-") as folder:
            _bootstrap(Path(folder))
            _pack(Path(folder), path)
    return path


def _bootstrap(root: Path) -> None:
    log = cache_dir() / "debootstrap.log"
    words = [need_program("debootstrap"), "--variant=minbase", f"--include={_PACKAGES}", "bookworm", root, _mirror()]
    with log.open("wb") as out:
        done = subprocess.run(words, stdout=out, stderr=out, env={**os.environ, "PATH": _search_path()})
    if done.returncode:
        unavailable(f"debootstrap cannot make a base image; the end of {log}:\n{_tail(log)}")
    if _CERTIFICATES.exists():
        shutil.copy(_CERTIFICATES, root / "etc/ssl/certs/ca-certificates.crt")
    (root / "usr/bin/python").symlink_to("python3")
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()


def _pack(root: Path, path: Path) -> None:
    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.startswith(tuple(f"{prefix}/" for prefix in _UNNEEDED)) else member

    part = path.with_suffix(".part")
    with tarfile.open(part, "w:gz", compresslevel=1) as archive:
        archive.add(root, arcname=".", filter=wanted)
    part.rename(path)


@pytest.fixture(scope="session")
def base_image(docker_host: str) -> str:
    """``python:3.11-slim``: Debian's Python with pip, made on this machine, in the engine."""
    ensure_base_image(docker_host)
    return BASE_IMAGE


def ensure_base_image(docker_host: str) -> None:
    """Have the base image in an engine."""
    docker = pytest.importorskip("docker")
    client = docker.APIClient(base_url=docker_host, timeout=300)
    with contextlib.closing(client) as api, (cache_dir() / "base.lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        _ensure_base(api)


def _ensure_base(api: Any) -> None:
    docker = pytest.importorskip("docker")
    label = {"Labels": None}
    with contextlib.suppress(docker.errors.ImageNotFound):
        label = api.inspect_image(BASE_IMAGE)["Config"]
        if os.environ.get("LAUNCH_TEST_DOCKER_HOST"):
            return
    if (label["Labels"] or {}).get("ai.openlaunch.recipe") == _recipe():
        return
    if os.environ.get("LAUNCH_TEST_DOCKER_HOST"):
        api.pull(BASE_IMAGE)
        return
    changes = [
        "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1",
        f"LABEL ai.openlaunch.recipe={_recipe()}",
        'CMD ["python3"]',
    ]
    repository, tag = BASE_IMAGE.split(":")
    api.import_image_from_file(str(_archive()), repository=repository, tag=tag, changes=changes)
    api.inspect_image(BASE_IMAGE)


# --- a registry ------------------------------------------------------------------------------------------------------


@dataclass
class PrivateRegistry:
    """A container registry on a loopback port: one that an engine may use without encryption."""

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        """What image references begin with."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it and return when it answers."""
        config = self.folder / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder}/data}}}}\nhttp: {{addr: 127.0.0.1:{self.port}}}\n"
        )
        with (self.folder / "log").open("wb") as log:
            words = [need_program("docker-registry"), "serve", str(config)]
            process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self.answers, "docker-registry answers")
        return process

    def answers(self, address: str = "127.0.0.1") -> bool:
        """Whether it takes connections."""
        with contextlib.suppress(OSError), socket.create_connection((address, self.port), 1):
            return True
        return False


@pytest.fixture(scope="session")
def registry() -> Iterator[str]:
    """The address of an empty registry: ``127.0.0.1:port``."""
    need_program("docker-registry")
    with tempfile.TemporaryDirectory(prefix="launch-registry-") as folder:
        service = PrivateRegistry(Path(folder))
        process = service.start()
        yield service.address
        process.terminate()
        process.wait(20)
