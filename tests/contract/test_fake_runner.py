"""The fake runner keeps the contract too, as far as a target that runs nothing can."""

from __future__ import annotations

import time
from typing import Any

import pytest

from launch.errors import TemporaryError
from launch.models import CauseKind
from launch.plugins import BuildRequest, Phase, TargetContext
from launch.testing import Bench, FakeBuilder, FakeOptions, FakeRunner, FakeTarget, RunnerContract, read_streams


def play(runner: FakeRunner, handle: str) -> None:
    """Do at once what the contract's short scripts would do; the others run until they are stopped."""
    command = runner.attempt_of(handle).plan.request["command"]
    script = command[-1]
    if command[0] == "no-such-command-here":
        runner.end(handle, 127, cause=CauseKind.CONFIG, message="no such file: no-such-command-here")
    elif "kill -9" in script:
        runner.end(handle, 137, signal=9)
    elif "echo" in script:
        runner.write(handle, script.split("echo ")[1].split(";")[0] + "\n")
    if script.startswith("exit ") or "; exit " in script:
        runner.end(handle, int(script.split("exit ")[1]))
    elif script.endswith("; sleep 1"):
        runner.end(handle, 0)


class TestFakeRunner(RunnerContract):
    """Everything but what needs a real shell."""

    @pytest.fixture
    def make_runner(self, tmp_path):
        target = FakeTarget(on_start=play)
        return lambda installation: FakeRunner(TargetContext(installation, tmp_path), target)

    @pytest.fixture
    def options(self) -> Any:
        return FakeOptions()

    def test_wait_returns_promptly_at_the_end(self, bench: Bench) -> None:
        """It wakes up when the test ends the attempt."""
        handle = bench.start("sleep 600")
        bench.runner.end(handle, 2)
        assert bench.runner.wait(handle, 600).exit_code == 2

    def test_logs_go_on_from_any_cursor(self, bench: Bench) -> None:
        """Every chunk's cursor gives what follows it."""
        handle = bench.start("sleep 600")
        for index in range(5):
            bench.runner.write(handle, f"{index}\n", "stdout" if index % 2 else "stderr")
        bench.runner.end(handle)
        chunks = list(bench.runner.logs(handle))
        assert read_streams(chunks) == {"stdout": "1\n3\n", "stderr": "0\n2\n4\n"}
        assert [list(bench.another().logs(handle, chunk.cursor)) for chunk in chunks] == [
            chunks[index + 1 :] for index in range(5)
        ]

    def test_stop_kills_what_does_not_listen(self, bench: Bench) -> None:
        """An attempt that ignores stop is the test's to end."""
        handle = bench.start("sleep 600")
        bench.runner.ends_when_stopped = False
        bench.runner.stop(handle, 1.5)
        assert bench.runner.status([handle])[handle].phase is Phase.RUNNING
        assert bench.runner.attempt_of(handle).stops == [1.5]
        bench.runner.end(handle, 137)

    test_env_and_secrets_arrive = None
    test_arguments_arrive_unchanged = None
    test_code_is_where_the_command_runs = None
    test_a_job_may_write_in_its_scratch_folder = None
    test_streams_are_apart_and_complete = None
    test_bars_and_unfinished_lines_come_raw = None
    test_logs_arrive_live_and_end_with_the_job = None
    test_stop_lets_a_job_end_itself = None
    test_stop_may_be_repeated = None


def test_a_hook_fails_a_step() -> None:
    """What a hook raises is what the step raises, and nothing was started."""
    runner = FakeRunner()
    runner.before["submit"] = lambda plan: _raise(TemporaryError("the engine is away"))
    bench = Bench(runner, lambda _: runner, None, FakeOptions(), 1)
    with pytest.raises(TemporaryError, match="engine is away"):
        bench.start("exit 0", run_id="r1")
    assert runner.submitted == []
    del runner.before["submit"]
    bench.start("exit 0", run_id="r1")
    assert runner.submitted == ["r1"]
    assert runner.wait_until_submitted("r1") == runner.attempt_of("r1").plan.name


def test_builder_reuses_and_can_be_cancelled() -> None:
    """The same request is built once; a held build gives up when it is cancelled."""
    builder = FakeBuilder()
    request = BuildRequest(None, "numpy\n", None)
    first, second = (builder.build(request, lambda _: None, lambda: False) for _ in range(2))
    assert (first.reused, second.reused, first.image) == (False, True, second.image)
    builder.may_finish.clear()
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        builder.build(request, lambda _: None, lambda: time.monotonic() > began + 0.1)


def _raise(exc: Exception) -> None:
    raise exc
