"""The contract of :class:`launch.plugins.Runner` as tests: what an agent relies on at every target.

Jobs here are POSIX ``sh`` scripts, so that an image needs nothing but a shell, ``sleep``, ``cat`` and ``printenv``.
"""

from __future__ import annotations

import io
import json
import secrets
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from launch.errors import ConfigError, PermanentError
from launch.models import CauseKind, new_run_id
from launch.plugins import Attempt, LogChunk, Phase, Plan, Runner, Status

MakeRunner = Callable[[str], Runner]
UNICODE_LINE = "zeile {i} äöü € 😀"


@dataclass(frozen=True)
class Bench:
    """A runner with what its target needs to start something."""

    runner: Runner
    make_runner: MakeRunner
    image: str | None
    options: Any
    patience_s: float

    def another(self) -> Runner:
        """Return a fresh runner of the same installation: the agent that adopts."""
        return self.make_runner(self.runner.context.installation)

    def attempt(self, *command: str, **fields: Any) -> Attempt:
        """Return the first attempt of a new run of this installation."""
        chosen = {"run_id": new_run_id(), "number": 1, "installation": self.runner.context.installation, **fields}
        return Attempt(command=command, **chosen)

    def plan(self, *command: str, **fields: Any) -> Plan:
        """Return the plan of a new attempt."""
        return self.runner.plan(self.attempt(*command, **fields), self.image, self.options)

    def start(self, script: str, **fields: Any) -> str:
        """Start a shell script and return its handle."""
        return self.runner.submit(self.plan("sh", "-c", script, **fields))

    def finish(self, handle: str) -> Status:
        """Wait for the end, and fail when there is none."""
        status = self.runner.wait(handle, self.patience_s)
        assert status.is_final, f"still {status} after {self.patience_s} s"
        return status

    def run(self, script: str, **fields: Any) -> dict[str, str]:
        """Run a shell script to its end and return ``{stream: text}``."""
        handle = self.start(script, **fields)
        self.finish(handle)
        return read_streams(self.runner.logs(handle))


def read_streams(chunks: Iterable[LogChunk]) -> dict[str, str]:
    """Return ``{"stdout": text, "stderr": text}`` of a log read to its end."""
    texts = {"stdout": "", "stderr": ""}
    for chunk in chunks:
        texts[chunk.stream] += chunk.text
    return texts


def tar_of(files: Mapping[str, tuple[str, int]], where: Path) -> Path:
    """Write a gzip tar of ``{path: (text, mode)}`` into the folder ``where`` and return its path."""
    path = where / "code.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, (text, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), mode
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def processes_with(marker: str) -> list[str]:
    """Return the command lines on this machine that contain the marker; containers' are among them on Linux."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if marker in line]


class RunnerContract:
    """Subclass as ``TestXxxRunner`` and override ``make_runner``, ``image`` and ``options``.

    Every test has an installation id of its own, and removes what it started.
    """

    patience_s: ClassVar[float] = 60.0
    """How long the target may take to run something that takes no time itself."""

    suicide: ClassVar[tuple[str, ...]] = ("sh", "-c", "kill -9 $$; exit 99")
    """A command that is killed by signal 9."""

    @pytest.fixture
    def make_runner(self) -> MakeRunner:
        """Return a function from an installation id to a fresh runner of one and the same target."""
        raise NotImplementedError("override the make_runner fixture")

    @pytest.fixture
    def image(self) -> str | None:
        """What the builder would have made: something with ``sh``, ``sleep``, ``cat`` and ``printenv``."""
        return None

    @pytest.fixture
    def options(self) -> Any:
        """An instance of the runner's ``Options``."""
        raise NotImplementedError("override the options fixture")

    @pytest.fixture
    def bench(self, make_runner: MakeRunner, image: str | None, options: Any) -> Iterator[Bench]:
        """A runner of a new installation; what it started is gone afterwards."""
        runner = make_runner(secrets.token_hex(4))
        yield Bench(runner, make_runner, image, options, self.patience_s)
        self.clear(runner)

    def clear(self, runner: Runner) -> None:
        """Stop and remove all of an installation's attempts."""
        handles = runner.find().values()
        for handle in handles:
            runner.stop(handle, 0.0)
        for handle in handles:
            runner.wait(handle, self.patience_s)
            runner.remove(handle)

    # --- plan ---------------------------------------------------------------------------------------------------------

    def test_plan_is_pure(self, bench: Bench) -> None:
        """The same attempt gives the same plan, with nothing sent to the target."""
        attempt = bench.attempt("sh", "-c", "exit 0", env={"A": "1"})
        first, second = (r.plan(attempt, bench.image, bench.options) for r in (bench.runner, bench.another()))
        assert first == second
        assert first.name == attempt.name
        assert bench.runner.find() == {}

    def test_plan_view_is_json_without_secrets(self, bench: Bench) -> None:
        """What ``--dry-run`` prints is JSON, and shows no secret."""
        plan = bench.plan("sh", "-c", "exit 0", env={"PLAIN": "in-sight"}, secret_env={"HIDDEN": "s3cr3t-value"})
        shown = json.dumps(plan.view())
        assert "s3cr3t-value" not in shown
        assert "in-sight" in shown
        assert "s3cr3t-value" in plan.secrets

    def test_plan_knows_the_secrets_in_its_options(self, bench: Bench) -> None:
        """Values that the agent has put into the options are masked wherever they stand."""
        plan = bench.plan("sh", "-c", "exit 0", env={"A": "x-0pti0n-x"}, secrets=frozenset({"0pti0n", ""}))
        assert "0pti0n" in plan.secrets
        assert "0pti0n" not in json.dumps(plan.view())

    # --- ends ---------------------------------------------------------------------------------------------------------

    def test_a_job_that_ends_well(self, bench: Bench) -> None:
        """Exit code 0 is reported as such."""
        handle = bench.start("exit 0")
        status = bench.finish(handle)
        assert (status.phase, status.exit_code, status.cause) == (Phase.ENDED, 0, None)
        assert bench.runner.status([handle])[handle] == status

    def test_a_job_that_fails(self, bench: Bench) -> None:
        """The exit code is the job's own."""
        status = bench.finish(bench.start("exit 3"))
        assert (status.phase, status.exit_code, status.signal) == (Phase.ENDED, 3, None)

    def test_a_job_killed_by_a_signal(self, bench: Bench) -> None:
        """A signal is told apart from an exit code, or given as a shell would: 128 more."""
        status = bench.finish(bench.runner.submit(bench.plan(*self.suicide)))
        assert status.phase is Phase.ENDED
        assert status.signal == 9 or status.exit_code == 137

    def test_a_command_that_does_not_exist(self, bench: Bench) -> None:
        """The user is told that it was the command, by name: in the status, or as an error that is not tried again."""
        plan = bench.plan("no-such-command-here", "-x")
        try:
            handle = bench.runner.submit(plan)
        except (ConfigError, PermanentError) as exc:
            assert "no-such-command-here" in str(exc)  # noqa: PT017  (either way is right)
            return
        status = bench.finish(handle)
        assert status.phase is Phase.ENDED
        assert status.exit_code in (127, None)
        assert status.cause is CauseKind.CONFIG
        assert "no-such-command-here" in status.message

    # --- what reaches the job -----------------------------------------------------------------------------------------

    def test_env_and_secrets_arrive(self, bench: Bench) -> None:
        """Both kinds of variables are in the job's environment, byte for byte."""
        value, secret = "a b=ü'\"$HOME", "s3cr3t $PATH"
        logs = bench.run("printenv PLAIN; printenv HIDDEN", env={"PLAIN": value}, secret_env={"HIDDEN": secret})
        assert logs["stdout"] == f"{value}\n{secret}\n"

    def test_arguments_arrive_unchanged(self, bench: Bench) -> None:
        """No shell of ours looks at a command's arguments."""
        odd = ["", "two words", "$HOME", "`id`", "*", "ä;|&"]
        handle = bench.runner.submit(bench.plan("sh", "-c", "printf '<%s>' \"$@\"", "sh", *odd))
        bench.finish(handle)
        assert read_streams(bench.runner.logs(handle))["stdout"] == "".join(f"<{word}>" for word in odd)

    def test_code_is_where_the_command_runs(self, bench: Bench, tmp_path: Path) -> None:
        """Files, folders and permissions of the job's code are in the command's working directory."""
        files = {"run.sh": ("#!/bin/sh\ncat data/deep/note.txt\n", 0o755), "data/deep/note.txt": ("grüße\n", 0o644)}
        code = tar_of(files, tmp_path)
        handle = bench.runner.submit(bench.plan("./run.sh", code=code))
        assert bench.finish(handle).exit_code == 0
        assert read_streams(bench.runner.logs(handle))["stdout"] == "grüße\n"
        assert bench.run("test ! -x data/deep/note.txt && echo plain", code=code)["stdout"] == "plain\n"

    def test_a_job_may_write_in_its_scratch_folder(self, bench: Bench) -> None:
        """The folder that the runner names can be written by the job, and goes with the attempt."""
        run_id = new_run_id()
        folder = bench.runner.scratch_dir(bench.attempt("sh", run_id=run_id).name) or "/tmp"  # noqa: S108
        script = 'echo kept > "$SCRATCH/file" && cat "$SCRATCH/file"'
        assert bench.run(script, run_id=run_id, env={"SCRATCH": folder})["stdout"] == "kept\n"
        bench.runner.remove(bench.runner.find().popitem()[1])
        assert not Path(folder, "file").exists()

    # --- logs ---------------------------------------------------------------------------------------------------------

    def test_streams_are_apart_and_complete(self, bench: Bench) -> None:
        """10,000 lines on each stream, not ASCII, come complete and in order."""
        line = UNICODE_LINE.format(i="$i")
        script = f'i=0; while [ $i -lt 10000 ]; do echo "{line}"; echo "err $i" >&2; i=$((i+1)); done'
        logs = bench.run(script)
        assert logs["stdout"] == "".join(UNICODE_LINE.format(i=i) + "\n" for i in range(10_000))
        assert logs["stderr"] == "".join(f"err {i}\n" for i in range(10_000))

    def test_bars_and_unfinished_lines_come_raw(self, bench: Bench) -> None:
        r"""``\r`` bars are not folded here, and a last line needs no newline."""
        logs = bench.run(r"printf ' 10%%\r 50%%\r100%%\nno newline'; printf 'x\ry' >&2")
        assert logs == {"stdout": " 10%\r 50%\r100%\nno newline", "stderr": "x\ry"}

    def test_a_silent_job_has_an_empty_log(self, bench: Bench) -> None:
        """A log of nothing ends."""
        assert bench.run("exit 0") == {"stdout": "", "stderr": ""}

    def test_logs_go_on_from_any_cursor(self, bench: Bench) -> None:
        """Another agent that is given any chunk's cursor gets the rest: no gap, no repeat."""
        script = 'i=0; while [ $i -lt 4000 ]; do echo "zeile $i €"; echo "fehler $i ß" >&2; i=$((i+1)); done'
        handle = bench.start(script)
        chunks = list(bench.runner.logs(handle))
        whole = read_streams(chunks)
        assert whole["stdout"].count("\n") == whole["stderr"].count("\n") == 4000
        for index in sorted({0, len(chunks) // 3, len(chunks) // 2, len(chunks) - 1}):
            before = read_streams(chunks[: index + 1])
            after = read_streams(bench.another().logs(handle, chunks[index].cursor))
            assert {name: before[name] + after[name] for name in whole} == whole

    def test_logs_arrive_live_and_end_with_the_job(self, bench: Bench) -> None:
        """What a running job writes is seen while it runs, and the iterator ends when the job does."""
        handle = bench.start("trap 'echo bye; exit 0' TERM; echo one; while :; do sleep 0.1; done")
        stream = bench.runner.logs(handle)
        seen = _read_until(stream, "one\n")
        assert not bench.runner.status([handle])[handle].is_final
        bench.runner.stop(handle, self.patience_s)
        assert seen + read_streams(stream)["stdout"] == "one\nbye\n"
        assert bench.finish(handle).exit_code == 0

    def test_a_reader_may_leave(self, bench: Bench) -> None:
        """Closing the iterator of a running job's log returns, and another reader gets everything."""
        handle = bench.start("trap 'exit 0' TERM; echo one; while :; do sleep 0.1; done")
        stream = bench.runner.logs(handle)
        _read_until(stream, "one\n")
        stream.close()  # type: ignore[attr-defined]  # logs() are generators
        assert _read_until(bench.another().logs(handle), "one\n") == "one\n"

    # --- once ---------------------------------------------------------------------------------------------------------

    def test_submitting_again_starts_nothing(self, bench: Bench) -> None:
        """Submitted by two agents, running and ended: one start, one handle."""
        plan = bench.plan("sh", "-c", "echo started; sleep 1")
        handle = bench.runner.submit(plan)
        assert bench.another().submit(plan) == handle
        bench.finish(handle)
        assert bench.another().submit(plan) == handle
        bench.finish(handle)
        assert read_streams(bench.runner.logs(handle))["stdout"] == "started\n"

    def test_another_agent_finds_and_follows_it(self, bench: Bench) -> None:
        """An agent that comes later finds the attempt by its name and sees its end."""
        plan = bench.plan("sh", "-c", "echo here; exit 5")
        handle = bench.runner.submit(plan)
        adopter = bench.another()
        assert adopter.find() == {plan.name: handle}
        assert adopter.wait(handle, self.patience_s).exit_code == 5
        assert read_streams(adopter.logs(handle))["stdout"] == "here\n"
        assert adopter.find() == {plan.name: handle}, "an ended attempt is found until it is removed"

    def test_installations_do_not_see_each_other(self, bench: Bench) -> None:
        """Two installations can share a target: each finds its own attempts only, even of one run id."""
        other = bench.make_runner(secrets.token_hex(4))
        run_id = new_run_id()
        mine = bench.start("exit 0", run_id=run_id)
        attempt = bench.attempt("sh", "-c", "exit 4", run_id=run_id, installation=other.context.installation)
        theirs = other.submit(other.plan(attempt, bench.image, bench.options))
        try:
            assert list(bench.runner.find().values()) == [mine]
            assert list(other.find().values()) == [theirs]
            assert [bench.finish(handle).exit_code for handle in (mine, theirs)] == [0, 4]
        finally:
            self.clear(other)

    # --- status and wait ----------------------------------------------------------------------------------------------

    def test_status_answers_for_many(self, bench: Bench) -> None:
        """One call answers for running, ended and unknown handles."""
        ended, running = bench.start("exit 0"), bench.start("sleep 600")
        bench.finish(ended)
        found = bench.runner.status([ended, running, "no-such-handle"])
        assert list(found) == [ended, running, "no-such-handle"]
        phases = [status.phase for status in found.values()]
        assert phases[0] is Phase.ENDED
        assert phases[1] in (Phase.STARTING, Phase.RUNNING)
        assert phases[2] is Phase.GONE
        assert bench.runner.status([]) == {}

    def test_wait_returns_promptly_at_the_end(self, bench: Bench) -> None:
        """The end is seen long before the timeout."""
        handle = bench.start("sleep 0.5")
        began = time.monotonic()
        assert bench.runner.wait(handle, 600).is_final
        assert time.monotonic() - began < 10

    def test_wait_returns_at_the_timeout(self, bench: Bench) -> None:
        """A job that still runs is reported as such, not waited for."""
        handle = bench.start("sleep 600")
        began = time.monotonic()
        assert not bench.runner.wait(handle, 0.3).is_final
        assert 0.2 < time.monotonic() - began < 10

    def test_an_unknown_handle_harms_nobody(self, bench: Bench) -> None:
        """Nothing raises or waits for what the target does not know."""
        assert bench.runner.wait("no-such-handle", 600).phase is Phase.GONE
        assert list(bench.runner.logs("no-such-handle")) == []
        bench.runner.stop("no-such-handle", 1.0)
        bench.runner.remove("no-such-handle")

    # --- stop and remove ----------------------------------------------------------------------------------------------

    def test_stop_lets_a_job_end_itself(self, bench: Bench) -> None:
        """A job that handles SIGTERM ends in its own way within the grace time."""
        handle = bench.start("trap 'echo saved; exit 7' TERM; echo ready; while :; do sleep 0.1; done")
        _read_until(bench.runner.logs(handle), "ready\n")
        bench.runner.stop(handle, self.patience_s)
        assert bench.finish(handle).exit_code == 7
        assert read_streams(bench.runner.logs(handle))["stdout"] == "ready\nsaved\n"

    def test_stop_kills_what_does_not_listen(self, bench: Bench) -> None:
        """A job that ignores SIGTERM and has children is gone, children too, within grace + 2 s."""
        marker = f"3600.{secrets.randbelow(10**9):09d}"
        script = f"trap '' TERM; sleep {marker} & (sleep {marker}; sleep {marker}) & echo ready; wait; wait"
        handle = bench.start(script)
        _read_until(bench.runner.logs(handle), "ready\n")
        began = time.monotonic()
        bench.runner.stop(handle, 1.0)
        assert time.monotonic() - began < 0.9, "stop waits for nothing"
        assert not bench.runner.wait(handle, 0.2).is_final, "it has its grace time"
        assert bench.runner.wait(handle, 2.8).is_final
        assert processes_with(marker) == []

    def test_stop_may_be_repeated(self, bench: Bench) -> None:
        """Stop asks again at no cost, shortens the grace time, and does nothing to an ended job."""
        handle = bench.start("trap '' TERM; echo ready; while :; do sleep 0.1; done")
        _read_until(bench.runner.logs(handle), "ready\n")
        bench.runner.stop(handle, 600.0)
        bench.another().stop(handle, 0.0)
        status = bench.finish(handle)
        bench.runner.stop(handle, 0.0)
        assert bench.runner.status([handle])[handle] == status

    def test_remove_leaves_nothing(self, bench: Bench) -> None:
        """A removed attempt is gone, however often it is removed."""
        handle = bench.start("exit 0")
        bench.finish(handle)
        bench.runner.remove(handle)
        bench.runner.remove(handle)
        assert bench.runner.status([handle])[handle].phase is Phase.GONE
        assert bench.runner.find() == {}

    # --- the target ---------------------------------------------------------------------------------------------------

    def test_a_ready_target_has_no_problems(self, bench: Bench) -> None:
        """``check`` finds nothing where all of this works, and ``locality`` is the target's, not the instance's."""
        assert bench.runner.check() == []
        assert bench.runner.locality == bench.another().locality != ""


def _read_until(stream: Iterator[LogChunk], text: str) -> str:
    """Return stdout as far as the chunk with which ``text`` is in it."""
    seen = ""
    for chunk in stream:
        seen += chunk.text if chunk.stream == "stdout" else ""
        if text in seen:
            return seen
    raise AssertionError(f"the log ended without {text!r}: {seen!r}")
