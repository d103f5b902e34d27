"""The process target when agents, wrappers and machines die between two lines. Real processes, killed for real."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch.errors import PermanentError
from launch.models import CauseKind
from launch.plugins import Attempt, Phase, Status, TargetContext
from launch.testing import read_streams, tar_of, wait_until
from workers.runners import _process_wrapper as wrapper_module
from workers.runners.process import ProcessOptions, ProcessRunner

INSTALLATION = "0a0a0a0a"
PATIENCE_S = 30.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and child subreapers")


class Bench:
    """A launch home with a runner, and short ways to use it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.runner = self.another()

    def another(self) -> ProcessRunner:
        return ProcessRunner(TargetContext(INSTALLATION, self.home))

    def plan(self, *command: str, options: ProcessOptions | None = None, **fields):
        attempt = Attempt(INSTALLATION, f"r{len(self.runner.find())}", 1, command, **fields)
        return self.runner.plan(attempt, None, options or ProcessOptions())

    def start(self, script: str, **fields) -> str:
        return self.runner.submit(self.plan("sh", "-c", script, **fields))

    def finish(self, handle: str) -> Status:
        status = self.runner.wait(handle, PATIENCE_S)
        assert status.is_final
        return status

    def folder(self, handle: str) -> Path:
        return self.home / "process" / handle

    def stdout(self, handle: str) -> str:
        return (self.folder(handle) / "stdout").read_text()

    def wrapper(self, handle: str) -> dict:
        return json.loads((self.folder(handle) / "started").read_text())

    def rewrite_wrapper(self, handle: str, **changes) -> None:
        (self.folder(handle) / "started").write_text(json.dumps({**self.wrapper(handle), **changes}))


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path / "home")
    yield bench
    for handle in bench.runner.find().values():
        bench.runner.remove(handle)


def is_alive(pid: int) -> bool:
    return wrapper_module.start_time(pid) is not None


def read_pid(bench: Bench, handle: str) -> int:
    """Return the number that the job has written as its first line."""
    wait_until(lambda: "\n" in bench.stdout(handle), what="the job's first line")
    return int(bench.stdout(handle).split("\n")[0])


# --- the agent dies --------------------------------------------------------------------------------------------------


def test_a_job_outlives_its_agent(bench):
    """An agent killed right after it submitted leaves a job that another agent follows to its end."""
    script = """
import sys; from pathlib import Path
from launch.plugins import Attempt, TargetContext
from workers.runners.process import ProcessOptions, ProcessRunner
runner = ProcessRunner(TargetContext(sys.argv[1], Path(sys.argv[2])))
job = "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two; exit 6"
plan = runner.plan(Attempt(sys.argv[1], "r1", 1, ("sh", "-c", job)), None, ProcessOptions())
print(runner.submit(plan), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, INSTALLATION, str(bench.home)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as agent:
        handle = agent.stdout.readline().strip()
        agent.kill()
    assert bench.runner.find() == {handle: handle}
    assert bench.runner.status([handle])[handle].phase is Phase.RUNNING
    (bench.folder(handle) / "code" / "go").touch()
    assert bench.finish(handle).exit_code == 6
    assert read_streams(bench.runner.logs(handle))["stdout"] == "one\ntwo\n"


def test_an_agent_that_dies_while_it_tells_the_wrapper_has_started_nothing(bench):
    """A wrapper that gets half of its instructions leaves; the next submit starts the job, once."""
    plan = bench.plan("sh", "-c", "echo started")
    folder = bench.folder(plan.name)
    (folder / "code").mkdir(parents=True)
    half = json.dumps(dict(plan.request)).encode()[:-5]
    command = [sys.executable, "-I", "-S", wrapper_module.__file__, str(folder)]
    assert subprocess.run(command, input=half, capture_output=True).returncode == 1
    assert not (folder / "started").exists()
    bench.finish(bench.runner.submit(plan))
    assert bench.stdout(plan.name) == "started\n"


def test_an_agent_that_dies_while_it_copies_code_has_started_nothing(bench, tmp_path):
    """Half of the code beside its place is not taken for the code."""
    plan = bench.plan("sh", "-c", "cat note", code=tar_of({"note": ("whole", 0o644)}, tmp_path))
    half = bench.folder(plan.name) / "code.deadbeef"
    half.mkdir(parents=True)
    (half / "note").write_text("ha")
    bench.finish(bench.runner.submit(plan))
    assert bench.stdout(plan.name) == "whole"


def test_many_agents_at_once_start_one_job(bench, tmp_path):
    """However many submit at the same moment, with code to unpack: one start, one handle."""
    plan = bench.plan("sh", "-c", "cat note; sleep 0.2", code=tar_of({"note": ("started\n", 0o644)}, tmp_path))
    barrier = threading.Barrier(8)

    def submit(_: int) -> str:
        runner = bench.another()
        barrier.wait()
        return runner.submit(plan)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(submit, range(8))) == {plan.name}
    assert bench.finish(plan.name).exit_code == 0
    assert bench.stdout(plan.name) == "started\n"
    assert [path.name for path in bench.folder(plan.name).glob("code*")] == ["code"]


def test_a_stop_is_carried_out_though_its_agent_died(bench):
    """The request alone, without the signal that an agent sends after it, ends the job."""
    handle = bench.start("trap 'exit 9' TERM; echo $$; while :; do sleep 0.05; done")
    read_pid(bench, handle)
    (bench.folder(handle) / "stop").write_text(json.dumps({"deadline": time.monotonic() + PATIENCE_S}))
    assert bench.finish(handle).exit_code == 9


@linux_only
def test_submitting_leaves_the_agent_no_children(bench):
    """Wrappers are nobody's zombies: neither while they run nor after."""
    running, ended = bench.start("sleep 600"), bench.start("exit 0")
    bench.finish(ended)
    assert wrapper_module.descendants(os.getpid()) == []
    assert bench.runner.status([running])[running].phase is Phase.RUNNING


# --- the wrapper or the machine dies ---------------------------------------------------------------------------------


@linux_only
def test_a_killed_wrapper_takes_the_job_with_it(bench):
    """No job goes on that nobody can follow: it ends as lost, and ``remove`` kills what it had started."""
    handle = bench.start("sleep 600 & echo $!; echo $$; wait")
    child = read_pid(bench, handle)
    wait_until(lambda: bench.stdout(handle).count("\n") == 2)
    job = int(bench.stdout(handle).split()[1])
    os.kill(bench.wrapper(handle)["pid"], signal.SIGKILL)
    status = bench.finish(handle)
    assert (status.phase, status.exit_code, status.cause) == (Phase.ENDED, None, CauseKind.HOST_LOST)
    assert "wrapper process was killed" in status.message
    wait_until(lambda: not is_alive(job))
    bench.runner.remove(handle)
    wait_until(lambda: not is_alive(child))


def test_a_wrapper_is_not_taken_for_another_process(bench):
    """Its number may be in use again: the start time tells, and nothing is signalled."""
    handle = bench.start("exit 0")
    bench.finish(handle)
    (bench.folder(handle) / "exit").unlink()
    bench.rewrite_wrapper(handle, pid=os.getpid())
    assert bench.runner.status([handle])[handle].cause is CauseKind.HOST_LOST
    bench.runner.stop(handle, 0.0)
    bench.runner.remove(handle)


@pytest.mark.parametrize("started", ["", '{"pid": 1, "start_time": "5", "boot_id": "x", "pid_namespace": "y"}'])
def test_the_run_of_another_boot_is_lost(bench, started):
    """After a restart, or with a record that a power cut emptied, the job has ended and nobody knows how."""
    handle = bench.start("exit 0")
    bench.finish(handle)
    (bench.folder(handle) / "exit").unlink()
    (bench.folder(handle) / "started").write_text(started)
    status = bench.runner.status([handle])[handle]
    assert (status.phase, status.cause) == (Phase.ENDED, CauseKind.HOST_LOST)
    assert "the machine was restarted" in status.message


def test_another_containers_job_is_seen_by_its_lock(bench):
    """Where process numbers mean something else, the lock on ``started`` tells whether the wrapper lives."""
    handle = bench.start("trap '' TERM; echo $$; while :; do sleep 0.05; done")
    read_pid(bench, handle)
    own = bench.wrapper(handle)
    with (bench.folder(handle) / "started").open("r+") as file:  # in place: the lock is on the file, not its name
        file.write(json.dumps({**own, "pid": 1, "pid_namespace": "pid:[1]"}))
        file.truncate()
    assert bench.runner.status([handle])[handle].phase is Phase.RUNNING
    assert not bench.runner.wait(handle, 0.1).is_final
    bench.runner.stop(handle, 0.0)
    assert bench.finish(handle).signal == signal.SIGKILL


# --- what jobs leave behind ------------------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("hide", ["setsid sh -c", "sh -c"])
def test_what_an_ended_job_leaves_behind_is_killed(bench, hide):
    """A daemon that outlives its job has a second, then the run ends with it, log complete."""
    handle = bench.start(f"{hide} 'echo $$; trap \"\" TERM; while :; do sleep 0.05; done' & sleep 0.3; exit 5")
    daemon = read_pid(bench, handle)
    assert bench.finish(handle).exit_code == 5
    assert not is_alive(daemon)


@linux_only
def test_stop_finds_processes_that_hide(bench):
    """A descendant in a session of its own, orphaned twice over, is killed at the end of the grace time."""
    hidden = "setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.05; done' &"
    handle = bench.start(f"trap '' TERM; ( ( {hidden} ) & ); while :; do sleep 0.05; done")
    daemon = read_pid(bench, handle)
    bench.runner.stop(handle, 0.3)
    status = bench.finish(handle)
    assert status.signal == signal.SIGKILL
    assert "had not ended in its grace time" in status.message
    assert not is_alive(daemon)


def test_children_of_a_stopped_shell_have_their_grace_time(bench):
    """A shell that dies of SIGTERM does not cut short the program in it, which is saving its work."""
    saving = "trap 'sleep 0.3; echo saved; exit 0' TERM; echo $$; while :; do sleep 0.05; done"
    handle = bench.runner.submit(bench.plan("sh", "-c", f'sh -c "{saving.replace("$$", "1")}"; true'))
    read_pid(bench, handle)
    bench.runner.stop(handle, PATIENCE_S)
    assert bench.finish(handle).signal == signal.SIGTERM
    assert bench.stdout(handle) == "1\nsaved\n"


def test_remove_kills_and_deletes_whatever_there_is(bench):
    """A running job is killed, and a folder that it made inaccessible goes too."""
    handle = bench.start("mkdir -p a/b && chmod 0 a/b a && echo $$; sleep 600")
    job = read_pid(bench, handle)
    bench.runner.remove(handle)
    assert not is_alive(job)
    assert list((bench.home / "process").iterdir()) == []


# --- code and secrets ------------------------------------------------------------------------------------------------


def archive_of(path: Path, **fields) -> Path:
    """Write a code archive with one member of those fields."""
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(fields.pop("name"))
        for name, value in fields.items():
            setattr(member, name, value)
        archive.addfile(member, io.BytesIO())
    return path


@pytest.mark.parametrize(
    "member",
    [
        {"name": "../outside"},
        {"name": "a/../../outside"},
        {"name": "link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "link", "type": tarfile.SYMTYPE, "linkname": "../../stdout"},
        {"name": "hard", "type": tarfile.LNKTYPE, "linkname": "../started"},
        {"name": "device", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    ],
)
def test_code_stays_in_its_folder(bench, tmp_path, member):
    """An archive that reaches out is refused, and nothing of it is started or left."""
    plan = bench.plan("true", code=archive_of(tmp_path / "code.tar.gz", **member))
    with pytest.raises(PermanentError, match=r"the job's code \(code.tar.gz\) cannot be unpacked"):
        bench.runner.submit(plan)
    assert list((bench.home / "process").iterdir()) == []


@pytest.mark.parametrize("keep", [0, 40, -30])
def test_a_damaged_archive_is_never_run(bench, tmp_path, keep):
    """Half an archive is an error, not half a program."""
    code = tar_of({"run.sh": ("echo no\n" * 9999, 0o755), "z": (os.urandom(9999).hex(), 0o644)}, tmp_path)
    code.write_bytes(code.read_bytes()[:keep])
    with pytest.raises(PermanentError, match="cannot be unpacked"):
        bench.runner.submit(bench.plan("./run.sh", code=code))
    assert bench.runner.find() == {}


def test_secrets_are_only_in_the_jobs_environment(bench):
    """Neither in a file of the run folder nor in any argument list."""
    handle = bench.start("echo $$; sleep 600", secret_env={"KEY": "s3cr3t-value"})
    read_pid(bench, handle)
    files = [path for path in bench.folder(handle).rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if b"s3cr3t-value" in path.read_bytes()]
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert handle in listing, "the wrapper is among them"
    assert "s3cr3t-value" not in listing
    assert bench.folder(handle).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("handle", ["..", "../../outside", "/etc", "", "launch-0a0a0a0a-../x-1", ".", "launch-x"])
def test_a_handle_is_no_path(bench, tmp_path, handle):
    """A handle that leads elsewhere is unknown, and nothing is deleted there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    bench.runner.find()
    bench.runner.stop(handle, 0.0)
    bench.runner.remove(handle)
    assert bench.runner.status([handle]) == {handle: Status(Phase.GONE)}
    assert outside.is_dir()


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "command", "workdir", "exit_code", "message"),
    [
        ({}, "no-such", "", 127, "cannot run 'no-such': there is no such command; looked in /"),
        ({}, "./no-such.sh", "", 127, "cannot run './no-such.sh': there is no such file in the job's code"),
        (
            {"a.sh": ("#!/no/sh\n", 0o755)},
            "./a.sh",
            "",
            127,
            "the interpreter that its first line names does not exist",
        ),
        ({"a.sh": ("#!/bin/sh\n", 0o644)}, "./a.sh", "", 126, "the file is not executable (chmod +x it"),
        ({"a.sh": ("echo\n", 0o755)}, "./a.sh", "", 126, "neither a program nor a script"),
        ({"a.sh": ("", 0o755)}, "true", "src", 126, "workdir: 'src' is no folder of the job's code"),
    ],
)
def test_why_a_job_did_not_start(bench, tmp_path, files, command, workdir, exit_code, message):
    """The user is told what to mend."""
    plan = bench.plan(command, options=ProcessOptions(workdir=workdir), code=tar_of(files, tmp_path))
    status = bench.finish(bench.runner.submit(plan))
    assert (status.exit_code, status.cause) == (exit_code, CauseKind.CONFIG)
    assert message in status.message


def test_workdir_is_below_the_code(bench, tmp_path):
    """The command runs in the folder that the options name."""
    code = tar_of({"src/deep/note": ("here", 0o644)}, tmp_path)
    plan = bench.plan("cat", "note", options=ProcessOptions(workdir="src/deep"), code=code)
    assert bench.finish(bench.runner.submit(plan)).exit_code == 0
    assert bench.stdout(plan.name) == "here"


def test_a_job_starts_with_nothing_of_the_wrappers(bench):
    """Signals as in a shell, no open file but its own three, its own process group."""
    script = (
        "import os, signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, os.getpgid(0) == os.getpid())"
    )
    fds = "; print(sorted(int(fd) for fd in os.listdir('/dev/fd'))[:4])"
    plan = bench.plan(sys.executable, "-S", "-c", script + fds)
    bench.finish(bench.runner.submit(plan))
    first, second = bench.stdout(plan.name).splitlines()
    assert first == "True True"
    assert second == "[0, 1, 2, 3]", "3 is the listing itself"


def test_a_silent_job_gives_signs_of_life(bench):
    """A reader of the log gets empty text, so that it can do something else meanwhile."""
    handle = bench.start("sleep 600")
    began = time.monotonic()
    chunk = next(bench.runner.logs(handle, "0:0"))
    assert (chunk.text, chunk.cursor) == ("", "0:0")
    assert 0.4 < time.monotonic() - began < 5
