"""The systemd units: read by systemd itself, and run as it would run them, on a read-only root as an ordinary user."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.client import Client
from launch.models import RunState
from launch.settings import read_settings
from launch.store import RunStore
from tests.agents import QUICK, wait_until
from tests.deployment import DEPLOY, a_process, create_train_job
from tests.services import free_port, need_program, unavailable

UNITS = DEPLOY / "systemd"
NAMES = ("openlaunch-agent@.service", "openlaunch-server.service", "openlaunch-redis.service")
NOBODY = 65534
INSTALLED = "/opt/openlaunch/bin/launch"

# What systemd's ProtectSystem=strict, ProtectHome=yes, ReadWritePaths= and StateDirectory= come to. A Python that is in
# somebody's home is all that is left of it.
SANDBOX = """
set -e
state=$1 python=$2
shift 2
mount --make-rprivate /
for folder in "$state" /tmp /var/tmp; do mount --bind "$folder" "$folder"; done
mount -o bind,remount,ro /
exec 3<"$python"
for folder in /root /home; do
    mount -t tmpfs -o mode=755 none "$folder"
    case $python/ in "$folder"/*) mkdir -p "$python"; mount --no-canonicalize --bind /proc/self/fd/3 "$python" ;; esac
    mount -o remount,ro "$folder"
done
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all "$@" 3<&-
"""
# And MemoryDenyWriteExecute= (PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), which what it starts inherits.
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit("this kernel has no PR_SET_MDWE")
os.execv(sys.argv[1], sys.argv[1:])
"""


def settings_of(unit: str) -> dict[str, list[str]]:
    """Return ``{setting: values}`` of a unit, in the order they stand there."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a folder of their own, with programs that are there."""
    redis = need_program("redis-server")
    for name in NAMES:
        text = (UNITS / name).read_text().replace(INSTALLED, sys.executable).replace("/usr/bin/redis-server", redis)
        (tmp_path / name.replace("@.", "@gpu-box.")).write_text(text)
    return tmp_path


def test_systemd_finds_nothing_wrong(units: Path) -> None:
    """Neither an unknown setting, nor one in the wrong section, nor a program that is missing."""
    words = [need_program("systemd-analyze"), "verify", "--recursive-errors=no", *map(str, sorted(units.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "most"), [(NAMES[0], 4.0), (NAMES[1], 2.0), (NAMES[2], 2.0)])
def test_what_a_unit_may_do_is_little(units: Path, name: str, most: float) -> None:
    """By systemd's own measure, 0 to 10."""
    unit = units / name.replace("@.", "@gpu-box.")
    words = [need_program("systemd-analyze"), "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(words, capture_output=True, text=True).stdout
    level = re.search(r"Overall exposure level for .*: ([\d.]+)", said)
    assert level is not None
    assert float(level[1]) <= most


def test_an_agents_jobs_outlive_it_and_have_their_devices() -> None:
    """Each of these would end a job with its agent, or keep it from a GPU."""
    agent = settings_of(NAMES[0])
    assert (agent["KillMode"], agent["OOMPolicy"]) == (["process"], ["continue"])
    assert "/tmp" in agent["ReadWritePaths"][0].split()
    breaking = {"PrivateTmp", "PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"}
    assert not breaking & set(agent)


# --- run as systemd would ---------------------------------------------------------------------------------------------


@pytest.fixture
def state() -> Iterator[Path]:
    """What ``StateDirectory=`` gives: the user's own, and all he may write to."""
    if os.geteuid() != 0:
        unavailable("a read-only root for a test needs root")
    need_program("unshare")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        unavailable("this machine allows no mount namespaces")
    # Not below pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="launch-state-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def command_of(unit: str, instance: str) -> list[str]:
    """Return a unit's ``ExecStart=`` for this checkout."""
    (line,) = settings_of(unit)["ExecStart"]
    program = f"{shlex.quote(sys.executable)} -P -m launch"
    return shlex.split(line.replace("%i", instance).replace(INSTALLED, program))


def sandboxed(state: Path, *words: str) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", SANDBOX, "sh", str(state), sys.base_prefix, *words]


@pytest.mark.redis
@pytest.mark.timeout(180)
def test_server_and_agent_need_no_more_than_their_state_directory(
    redis_url: str, store: RunStore, state: Path, tmp_path: Path
) -> None:
    """A tracked job with code, which writes to /tmp, goes all the way; neither can write anywhere else."""
    pytest.importorskip("wandb", reason="needs the wandb SDK: pip install wandb")
    environment = {
        **QUICK,
        "LAUNCH_BROKER_URL": redis_url,
        "LAUNCH_HOME": str(state),
        "LAUNCH_TRACKING_PORT": str(free_port()),
        "PYTHONPATH": str(DEPLOY.parent),
        "HOME": str(state),
        "TMPDIR": "/tmp",
    }
    denied = [sys.executable, "-c", DENY_WRITE_EXECUTE]
    server = sandboxed(state, *denied, *command_of("openlaunch-server.service", ""))
    agent = sandboxed(state, *command_of("openlaunch-agent@.service", "gpu-box"))
    closed = " ".join(f"! touch {folder}/here 2>/dev/null &&" for folder in (tmp_path, "/etc", "/root", "/home"))
    with Client(settings=read_settings({"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(state)})) as client:
        client.create_queue("gpu-box", resource="process")
        create_train_job(client, tmp_path / "code")
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", state], check=True)
        with a_process(server, tmp_path / "server.log", environment):
            wait_until(store.server_urls, what=f"the tracking server; see {tmp_path}/server.log")
            with a_process(agent, tmp_path / "agent.log", environment):
                tracked = client.enqueue(job="train", queue="gpu-box")
                confined = client.enqueue(
                    command=["sh", "-c", f"{closed} mktemp /tmp/XXXXXX"], queue="gpu-box", tracking="optional"
                )
                assert tracked.wait(timeout_s=90).state is RunState.FINISHED, list(tracked.logs())
                assert len(tracked.history()) == 3
                assert confined.wait(timeout_s=60).state is RunState.FINISHED, list(confined.logs())
                Path(next(line for line in confined.logs() if line.startswith("/tmp/"))).unlink()
