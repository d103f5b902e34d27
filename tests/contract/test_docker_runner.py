"""The Docker runner keeps the contract of every runner, over a real engine, and a few promises of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launch.checking import parse
from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.models import CauseKind
from launch.plugins import Phase, TargetContext
from launch.testing import Bench, RunnerContract, read_streams, tar_of
from workers.runners.docker import DockerRunner
from workers.runners.docker_options import DockerOptions

pytestmark = pytest.mark.docker


def options_of(**config: Any) -> DockerOptions:
    return parse(DockerOptions, DockerRunner.canonical(config), where="test")


class TestDockerRunner(RunnerContract):
    """Everything an agent relies on."""

    @pytest.fixture
    def make_runner(self, docker_host: str, tmp_path: Path) -> Any:
        """Runners of the test session's own engine."""

        def make(installation: str) -> DockerRunner:
            return DockerRunner(TargetContext(installation, tmp_path, {"host": docker_host}))

        return make

    @pytest.fixture
    def image(self, base_image: str) -> str:
        """Debian with Python."""
        return base_image

    @pytest.fixture
    def options(self) -> DockerOptions:
        """No limits, and no network, which takes time to make."""
        return options_of(network="none")

    # --- promises of this runner alone --------------------------------------------------------------------------------

    def test_a_container_created_but_not_started_is_made_anew(self, bench: Bench, api: Any) -> None:
        """An agent that died between create and start leaves nothing that counts as started."""
        plan = bench.plan("sh", "-c", "echo once")
        left = api.create_container_from_config(dict(plan.request), plan.name)["Id"]
        handle = bench.another().submit(plan)
        assert handle != left
        assert bench.finish(handle).exit_code == 0
        assert read_streams(bench.runner.logs(handle))["stdout"] == "once\n"
        assert bench.runner.status([left])[left].phase is Phase.GONE

    def test_many_submit_at_once_and_one_starts(self, bench: Bench, tmp_path: Path) -> None:
        """Agents that all believe the attempt is theirs: one job runs, and who lost says so or has its handle."""
        plan = bench.plan("sh", "-c", "cat note; sleep 1", code=tar_of({"note": ("started\n", 0o644)}, tmp_path))

        def submit(_: int) -> str | None:
            try:
                return bench.another().submit(plan)
            except TemporaryError:
                return None

        with ThreadPoolExecutor(6) as pool:
            handles = {handle for handle in pool.map(submit, range(6)) if handle}
        assert handles == set(bench.runner.find().values())
        (handle,) = handles
        assert bench.finish(handle).exit_code == 0
        assert read_streams(bench.runner.logs(handle))["stdout"] == "started\n"

    def test_memory_is_a_real_limit(self, bench: Bench) -> None:
        """A job that takes more is killed, and told which limit it was."""
        plan = bench.runner.plan(
            bench.attempt("python", "-c", "x = bytearray(400_000_000)"), bench.image, options_of(memory="64m")
        )
        status = bench.finish(bench.runner.submit(plan))
        assert status.cause is CauseKind.OOM
        assert "memory limit of 64m" in status.message

    def test_options_reach_the_container(self, bench: Bench) -> None:
        """Limits and variables are what the job sees."""
        options = options_of(
            shm_size="32m", ulimit="nofile=123:456", env={"A": 1}, hostname="box", user=1234, network="none"
        )
        script = (
            "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; ulimit -Sn; ulimit -Hn; echo $A; hostname; id -u"
        )
        handle = bench.runner.submit(bench.runner.plan(bench.attempt("sh", "-c", script), bench.image, options))
        bench.finish(handle)
        assert read_streams(bench.runner.logs(handle))["stdout"].split() == ["32768", "123", "456", "1", "box", "1234"]

    def test_the_containers_user_owns_code_and_home(self, bench: Bench, tmp_path: Path) -> None:
        """A user that the image knows, and one that it does not, write beside the code and at home."""
        code = tar_of(
            {"pkg/run.sh": ("#!/bin/sh\ntouch made pkg/made ~/made && id -u && id -g && pwd\n", 0o755)}, tmp_path
        )
        for user, expected in {"games": "5\n60\n", "4321:99": "4321\n99\n", "4321": "4321\n0\n"}.items():
            attempt = bench.attempt("./pkg/run.sh", code=code)
            plan = bench.runner.plan(attempt, bench.image, options_of(user=user, network="none"))
            handle = bench.runner.submit(plan)
            assert bench.finish(handle).exit_code == 0, read_streams(bench.runner.logs(handle))
            assert read_streams(bench.runner.logs(handle))["stdout"] == f"{expected}/launch/code\n"

    def test_links_and_long_names_survive(self, bench: Bench, tmp_path: Path) -> None:
        """Symlinks, hard links, names over 100 characters and not ASCII arrive."""
        root, name = tmp_path / "job", "ü" * 60 + "/" + "n" * 200
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("found")
        (root / "soft").symlink_to(name)
        (root / "hard").hardlink_to(root / name)
        code = tmp_path / "code.tar.gz"
        with tarfile.open(code, "w:gz") as archive:
            archive.add(root, arcname=".")
        assert bench.run(f"cat soft hard '{name}'", code=code)["stdout"] == "found" * 3

    def test_a_line_of_many_parts_stays_whole(self, bench: Bench) -> None:
        """Lines longer than the engine's 16 KiB parts, with characters cut in two, lose nothing, at any cursor."""
        script = (
            "import sys, time\n"
            "for _ in range(2):\n"
            "    print('a' + 'é' * 30000); print('b' * 16384); print('€' * 16384, file=sys.stderr, flush=True)\n"
            "sys.stdout.write('x' * 20000); sys.stdout.flush(); print('mid', file=sys.stderr, flush=True)\n"
            "time.sleep(0.2); sys.stdout.write('y' * 20000 + '€ end')\n"
        )
        handle = bench.runner.submit(bench.plan("python", "-c", script))
        live = list(bench.runner.logs(handle))
        whole = read_streams(live)
        assert whole["stdout"] == f"a{'é' * 30000}\n{'b' * 16384}\n" * 2 + "x" * 20000 + "y" * 20000 + "€ end"
        assert whole["stderr"] == f"{'€' * 16384}\n" * 2 + "mid\n"
        for index, chunk in enumerate(live):
            before = read_streams(live[: index + 1])
            after = read_streams(bench.another().logs(handle, chunk.cursor))
            assert {name: before[name] + after[name] for name in whole} == whole

    def test_a_silent_job_lets_its_reader_look_up(self, bench: Bench) -> None:
        """Empty text comes while nothing is written, so that an agent can see a stop request."""
        handle = bench.start("sleep 600")
        stream = bench.runner.logs(handle)
        began = time.monotonic()
        assert [next(stream).text, next(stream).text] == ["", ""]
        assert time.monotonic() - began < 5
        stream.close()

    def test_a_stop_outlives_its_agent(self, bench: Bench, docker_host: str, tmp_path: Path) -> None:
        """The engine counts the grace time: a job is killed though the agent that asked was killed first."""
        handle = bench.start("trap '' TERM; echo ready; while :; do sleep 0.1; done")
        for chunk in bench.runner.logs(handle):
            if "ready" in chunk.text:
                break
        script = (
            "import os, sys, time; from pathlib import Path\n"
            "from launch.plugins import TargetContext; from workers.runners.docker import DockerRunner\n"
            f"context = TargetContext({bench.runner.context.installation!r}, Path('.'), {{'host': {docker_host!r}}})\n"
            "runner = DockerRunner(context)\n"
            f"runner.stop({handle!r}, 2.0); time.sleep(1); os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path)
        assert done.returncode == -9
        assert not bench.runner.wait(handle, 0.1).is_final
        status = bench.runner.wait(handle, 10)
        assert (status.phase, status.signal) == (Phase.ENDED, 9)

    def test_an_image_jobs_own_command(self, bench: Bench) -> None:
        """Without a command the image's own runs, here Python with nothing to read."""
        handle = bench.runner.submit(bench.plan())
        assert bench.finish(handle).exit_code == 0

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"volume": "/no/such/folder/x:/data", "runtime": "no-such-runtime"}, "no-such-runtime"),
            ({"cpus": 10_000}, "CPUs"),
            ({"network": "no-such-network"}, "no-such-network"),
        ],
    )
    def test_what_the_engine_refuses_is_the_users_to_mend(self, bench: Bench, config: Any, words: str) -> None:
        """The engine's own words come through, and no container is left."""
        plan = bench.runner.plan(bench.attempt("true"), bench.image, options_of(**config))
        with pytest.raises(ConfigError, match=words):
            bench.runner.submit(plan)
        assert bench.runner.find() == {}

    def test_an_image_that_vanished(self, bench: Bench) -> None:
        """An image removed since it was made is named."""
        plan = bench.runner.plan(bench.attempt("true"), "no-such-image:1", bench.options)
        with pytest.raises(PermanentError, match="no-such-image:1"):
            bench.runner.submit(plan)

    def test_an_adopted_attempt_needs_its_image_no_more(self, bench: Bench, api: Any) -> None:
        """Somebody removed the image behind our back: the container is followed to its end all the same."""
        image = f"launch-test-removed-{bench.runner.context.installation}:1"
        api.tag(bench.image, *image.split(":"))
        plan = bench.runner.plan(bench.attempt("sh", "-c", "echo one; sleep 1; echo two"), image, bench.options)
        handle = bench.runner.submit(plan)
        api.remove_image(image, force=True)
        heir = bench.another()
        assert heir.submit(plan) == handle, "asked again, it is found, and not made anew"
        assert read_streams(heir.logs(handle))["stdout"] == "one\ntwo\n"
        assert heir.wait(handle, 30).exit_code == 0

    def test_an_adopted_attempt_whose_container_is_gone_is_gone(self, bench: Bench, api: Any) -> None:
        """It was removed behind our back while nobody followed it: no error, and no log, but the truth."""
        handle = bench.start("sleep 600")
        api.remove_container(handle, force=True)
        heir = bench.another()
        assert heir.status([handle])[handle].phase is Phase.GONE
        assert heir.wait(handle, 30).phase is Phase.GONE
        assert [chunk for chunk in heir.logs(handle) if chunk.text] == []
        heir.stop(handle, 1)
        heir.remove(handle)

    def test_a_job_reaches_this_machine(self, bench: Bench) -> None:
        """``tracking_host`` is where a server of this machine answers a container; none without a network."""
        assert bench.runner.tracking_host(options_of(network="none")) is None
        for options in (options_of(), options_of(network="host")):
            host = bench.runner.tracking_host(options)
            assert host is not None
            with socket.create_server((host, 0)) as server:
                script = f"import socket; socket.create_connection(({host!r}, {server.getsockname()[1]}), 10)"
                plan = bench.runner.plan(bench.attempt("python", "-c", script), bench.image, options)
                assert bench.finish(bench.runner.submit(plan)).exit_code == 0

    def test_agents_of_one_engine_share_its_runs(self, bench: Bench) -> None:
        """The locality names the engine."""
        assert bench.runner.locality == bench.another().locality
        assert bench.runner.locality.startswith("docker:")


@pytest.fixture
def api(docker_host: str) -> Iterator[Any]:
    """The engine itself."""
    import docker

    with contextlib.closing(docker.APIClient(base_url=docker_host)) as client:
        yield client
