"""Virtual environments by this Python's venv and pip, from a wheel that the test makes. No network."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from launch.errors import BuildError
from launch.plugins import BuildRequest, TargetContext
from launch.testing import wait_until
from workers.builders.venv import VenvBuilder

PATIENCE_S = 60.0
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "600", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


def build(home: Path, requirements=None, *, log=None, cancelled=lambda: False):
    request = BuildRequest(image=None, requirements=requirements, python_version=None)
    builder = VenvBuilder(TargetContext("0a0a0a0a", home), environ={"PATH": os.environ["PATH"], **OFFLINE})
    return builder.build(request, log or (lambda _: None), cancelled)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A package ``tiny`` whose module says 42."""
    path = tmp_path_factory.mktemp("wheels") / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_requirements_are_installed_once(home, wheel):
    """The first build installs and shows pip's output; the next one finds the environment in no time."""
    said: list[str] = []
    requirements = f"tiny @ {wheel.as_uri()}\n"
    first = build(home, requirements, log=said.append)
    python = Path(first.image) / "bin" / "python"
    answer = subprocess.run([python, "-c", "import tiny; print(tiny.ANSWER)"], capture_output=True, text=True)
    assert answer.stdout == "42\n"
    assert "Successfully installed tiny-1.0" in "".join(said)
    assert not first.reused
    assert re.fullmatch(r"built venv [0-9a-f]{8}…: first run with these requirements", first.because)

    began = time.monotonic()
    second = build(home, requirements, log=said.append)
    assert time.monotonic() - began < 0.5
    assert (second.image, second.reused) == (first.image, True)
    assert re.fullmatch(r"reused venv [0-9a-f]{8}…, same requirements", second.because)


def test_an_environment_without_requirements(home):
    """A job that needs nothing has a clean environment of its own, with pip in it."""
    first, second = build(home), build(home)
    assert (first.reused, second.reused, first.image) == (False, True, second.image)
    check = "import sys, pip; print(sys.prefix != sys.base_prefix)"
    python = Path(first.image) / "bin" / "python"
    assert subprocess.run([python, "-I", "-c", check], capture_output=True, text=True).stdout == "True\n"


def test_a_requirement_that_cannot_be_had(home):
    """What pip says about it is in the message."""
    with pytest.raises(BuildError, match="No matching distribution found for no-such-package-here"):
        build(home, "no-such-package-here==9\n")


@pytest.fixture
def silent_server():
    """A server that takes a request for a wheel and never answers; ``(requirements, close)``."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        requirements = f"tiny @ http://127.0.0.1:{server.getsockname()[1]}/tiny-1.0-py3-none-any.whl\n"

        def close() -> None:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in accepted:
                connection.close()
            accepted.clear()

        yield requirements, accepted, close
        if thread.is_alive():
            close()


def processes_of(home: Path) -> list[str]:
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if f"{home}/venvs" in line]


def test_a_build_can_be_cancelled(home, silent_server):
    """Pip is gone within seconds, and so is what it had made."""
    requirements, accepted, _ = silent_server
    seen: list[list[str]] = []

    def cancelled() -> bool:
        if accepted and not seen:
            seen.append(processes_of(home))
        return bool(accepted)

    with pytest.raises(InterruptedError):
        build(home, requirements, cancelled=cancelled)
    assert seen[0], "pip was running"
    assert processes_of(home) == []
    assert [path.suffix for path in (home / "venvs").iterdir()] == [".lock"]


def test_the_next_agent_waits_for_a_killed_ones_pip(home, silent_server):
    """Two pips never work in one environment: a killed agent's keeps the lock as long as it lives."""
    requirements, accepted, close = silent_server
    script = """
import sys; from pathlib import Path
from launch.plugins import BuildRequest, TargetContext
from workers.builders.venv import VenvBuilder
builder = VenvBuilder(TargetContext("0a0a0a0a", Path(sys.argv[1])))
builder.build(BuildRequest(None, sys.argv[2], None), print, lambda: False)
"""
    root, env = Path(__file__).parents[2], {**os.environ, **OFFLINE}
    with subprocess.Popen([sys.executable, "-c", script, str(home), requirements], cwd=root, env=env) as agent:
        wait_until(lambda: accepted, timeout_s=PATIENCE_S, what="pip's request")
        agent.send_signal(signal.SIGKILL)
    assert processes_of(home), "its pip lives on"

    said: list[str] = []

    def give_up() -> bool:
        if "waiting for another build of the same environment\n" in said and accepted:
            close()
        return False

    with pytest.raises(BuildError, match="Connection refused"):
        build(home, requirements, log=said.append, cancelled=give_up)
    assert said[0] == "waiting for another build of the same environment\n"
    assert processes_of(home) == []
