"""The Docker side of a world: an engine that chaos started itself and may kill, or one that is there and is spared.

The jobs' image is made of this machine's own shell, so nothing is downloaded. The engine is asked over its unix socket
with the standard library: what an agent does through the SDK is under test, and must not share its mistakes.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from launch.errors import ConfigError, TemporaryError

IMAGE = "openlaunch-chaos:1"
_PATIENCE_S = 90.0
_PROGRAMS = ("sh", "sleep")
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Engine:
    """A Docker engine behind a unix socket.

    Args:
        host: ``unix:///path``.

    Raises:
        ConfigError: it is somewhere else, where jobs could not write to this machine's ledger.
    """

    may_be_killed = False

    def __init__(self, host: str) -> None:
        if not host.startswith("unix://"):
            raise ConfigError(f"DOCKER_HOST: chaos needs an engine of this machine, unix:///path, not {host!r}")
        self.host = host

    def start(self, *, live_restore: bool = False) -> None:
        """Nothing: it is there."""

    def keep_alive(self) -> None:
        """Nothing: it is somebody else's."""

    def end(self) -> None:
        """Nothing: it stays."""

    def answers(self) -> bool:
        """Whether it answers its ping."""
        with suppress(OSError, http.client.HTTPException):
            return self._ask("GET", "/_ping")[0] == 200
        return False

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            TemporaryError: it does not.
        """
        until = time.monotonic() + _PATIENCE_S
        while not self.answers():
            if time.monotonic() > until:
                raise TemporaryError(f"the Docker engine at {self.host} does not answer")
            time.sleep(0.05)

    def load_image(self) -> None:
        """Make the jobs' image, if it is not there."""
        if self._ask("GET", f"/images/{IMAGE}/json")[0] == 200:
            return
        repository, tag = IMAGE.split(":")
        path = f"/images/create?fromSrc=-&repo={repository}&tag={tag}"
        status, said = self._ask("POST", path, _image_tar(), {"Content-Type": "application/x-tar"})
        if status != 200 or b'"error"' in said:
            raise TemporaryError(f"the Docker engine took no image: {said[-300:]!r}")

    def containers(self, installation: str) -> dict[str, str]:
        """Return ``{container id: state}`` of an installation, ended ones too."""
        filters = quote(json.dumps({"label": [f"ai.openlaunch.installation={installation}"]}))
        status, said = self._ask("GET", f"/containers/json?all=1&filters={filters}")
        if status != 200:
            raise TemporaryError(f"the Docker engine lists no containers: {said[-300:]!r}")
        return {str(item["Id"]): str(item["State"]) for item in json.loads(said)}

    def kill_container(self, container: str) -> bool:
        """Kill a container; false if it does not run."""
        return self._ask("POST", f"/containers/{container}/kill")[0] == 204

    def remove_container(self, container: str) -> bool:
        """Remove a container, running or not; false if that is not possible now."""
        return self._ask("DELETE", f"/containers/{container}?force=1")[0] == 204

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        with closing(_UnixConnection(self.host.removeprefix("unix://"))) as connection:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class PrivateEngine(Engine):
    """A ``dockerd`` with its own socket and data, without a network of its own: jobs use the machine's.

    Args:
        folder: where its data and log are; its socket needs a short path.
    """

    may_be_killed = True

    def __init__(self, folder: Path) -> None:
        super().__init__(f"unix://{folder}/d.sock")
        folder.mkdir(mode=0o700)
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def keep_alive(self) -> None:
        """Start it again if it ended by itself, as an init system would."""
        if self._process is not None and self._process.poll() is not None:
            self._start()

    def start(self, *, live_restore: bool = False) -> None:
        """Start it on what it had before; it answers a little later."""
        (self.folder / "daemon.json").write_text(json.dumps({"live-restore": live_restore}))
        self._start()

    def _start(self) -> None:
        (self.folder / "docker.pid").unlink(missing_ok=True)
        _forget_dead(self.folder / "exec" / "containerd" / "containerd.pid")
        options = {
            "host": self.host,
            "data-root": self.folder / "data",
            "exec-root": self.folder / "exec",
            "pidfile": self.folder / "docker.pid",
            "config-file": self.folder / "daemon.json",
            "bridge": "none",
            "iptables": "false",
            "ip-forward": "false",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program("dockerd"), *words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PATH": _SEARCH},
            )

    def kill(self) -> None:
        """End it by SIGKILL; containers go on under their shims."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """End it and its containers."""
        self._end(signal.SIGTERM)
        for pid in _shims(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # What a killed engine had mounted stays mounted; the innermost first.
        for mounted in sorted(_mounts_below(self.folder), reverse=True):
            subprocess.run([_program("umount"), mounted], capture_output=True, check=False)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None


def why_no_private_engine(*, beside_another: bool = False) -> str | None:
    """Return why this machine can have no engine for chaos alone, or none if it can.

    Args:
        beside_another: whether one that runs here may lose its default bridge: dockerd removes it when it starts.
    """
    if shutil.which("dockerd", path=_SEARCH) is None:
        return "dockerd is not installed"
    if os.geteuid() != 0:
        return "a Docker engine needs root"
    if Path("/sys/class/net/docker0").exists() and not beside_another:
        return "this machine runs an engine whose bridge a second one would remove; name it in DOCKER_HOST"
    return None


def _program(name: str) -> str:
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise ConfigError(f"{name} is not installed")
    return found


def _forget_dead(pidfile: Path) -> None:
    """Delete the file of a process that has ended: one that nobody has waited for yet would be taken for alive."""
    with suppress(OSError, ValueError):
        stat = Path(f"/proc/{int(pidfile.read_text())}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            pidfile.unlink()


def _shims(folder: Path) -> list[int]:
    """Return the processes that stood between a killed engine and its containers, which the next one did not find."""
    address = str(folder / "exec" / "containerd" / "containerd.sock").encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"containerd-shim-runc-v2") and address in words:
                found.append(int(place.name))
    return found


def _mounts_below(folder: Path) -> list[str]:
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{folder}/")]


def _image_tar() -> bytes:
    """Return a file system with this machine's shell and ``sleep``, and the libraries they need."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("tmp", "ledger", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(entry)
        programs = {f"bin/{name}": os.path.realpath(_program(name)) for name in _PROGRAMS}
        libraries = {path.lstrip("/"): path for program in programs.values() for path in _libraries(program)}
        for name, path in {**libraries, **programs}.items():
            archive.add(os.path.realpath(path), arcname=name)
    return buffer.getvalue()


def _libraries(program: str) -> list[str]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [word for line in said.splitlines() for word in line.split() if word.startswith("/")]
