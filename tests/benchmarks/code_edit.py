"""How long it takes from an edit of the code to the job's first line, against a bare ``docker run`` of the same image.

    python tests/benchmarks/code_edit.py [ROUNDS]

Starts a Redis, a Docker engine, a tracking server and an agent of its own. Each round edits one file, runs it with
``launch run`` and with ``docker run``, in turn, and times both from the command to the first line of the job's output:
once for a training script, which imports scikit-learn before it says anything, and once for one that imports next to
nothing, so that all that is left is what launching adds. Prints every round, the medians and their ratio, and ends with
1 when the training script's is above the goal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from services import PrivateEngine, Shared, cache_dir, ensure_base_image  # noqa: E402

from launch.client import Client  # noqa: E402
from launch.embedded import broker_url, stop_broker  # noqa: E402
from launch.settings import read_settings  # noqa: E402
from tests.agents import wait_until  # noqa: E402

GOAL = 1.5
LAUNCH = [sys.executable, "-P", "-m", "launch"]


@contextlib.contextmanager
def an_engine() -> Iterator[str]:
    """Give the address of the tests' engine, with the base image."""
    folder = cache_dir() / "docker"
    engine = PrivateEngine(folder / "data")
    with Shared(folder).in_use(engine.answers, engine.start, engine.stop):
        ensure_base_image(engine.host)
        yield engine.host


@contextlib.contextmanager
def an_installation(home: Path, host: str) -> Iterator[dict[str, str]]:
    """Give the environment of commands of an installation with a served Docker queue."""
    env = {**os.environ, "LAUNCH_HOME": str(home), "DOCKER_HOST": host}
    env.pop("LAUNCH_BROKER_URL", None)
    env["LAUNCH_BROKER_URL"] = broker_url(read_settings(env), start=True)
    words = ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    gateway = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([*LAUNCH, "queue", "create", "gpu-box", "-r", "docker"], env=env, check=True, capture_output=True)
    with Client(settings=read_settings(env)) as client, contextlib.ExitStack() as after:
        after.callback(stop_broker, read_settings({"LAUNCH_HOME": str(home)}))
        for what, is_up in (
            (["server", "--host", gateway], client.store.server_urls),
            (["agent", "-q", "gpu-box"], client.agents),
        ):
            log = after.enter_context((home / f"{what[0]}.log").open("wb"))
            process = subprocess.Popen([*LAUNCH, *what], env=env, stdout=log, stderr=log)
            after.callback(process.wait, 30)
            after.callback(process.terminate)
            wait_until(is_up, what=f"the {what[0]}")
        yield env


def seconds_until(mark: str, argv: Sequence[str], env: dict[str, str]) -> float:
    """Run a command to its end and return after how many seconds it printed a line with the mark."""
    began, seen = time.perf_counter(), None
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if mark in line and seen is None:
                seen = time.perf_counter() - began
    assert process.returncode == 0, "".join(lines)
    assert seen is not None, "".join(lines)
    return seen


@dataclass(frozen=True)
class Case:
    """A job to measure."""

    name: str
    requirements: str
    imports: str


CASES = (
    Case("a training script", "scikit-learn>=1.3\n", "from sklearn.neural_network import MLPClassifier"),
    Case("next to nothing", "six==1.17.0\n", "import six"),
)


def main(rounds: int) -> int:
    """Measure, print and judge."""
    folder = Path(tempfile.mkdtemp(prefix="code-edit-"))
    home = folder / "home"
    home.mkdir()
    try:
        with an_engine() as host, an_installation(home, host) as env:
            ratios = [measured(case, rounds, folder / f"code-{place}", env) for place, case in enumerate(CASES)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if ratios[0] <= GOAL else 1


def measured(case: Case, rounds: int, code: Path, env: dict[str, str]) -> float:
    """Return the medians' ratio."""
    print(f"--- {case.name}: {case.imports}")
    code.mkdir()
    (code / "requirements.txt").write_text(case.requirements)
    launch = [*LAUNCH, "run", str(code), "-q", "gpu-box", "--tracking", "optional"]
    edit(code, case, "first")
    print(f"the first run, which may build the environment: {seconds_until('ready first', launch, env):.2f} s")
    image = newest_image(env)
    docker = ["docker", "run", "--rm", "-v", f"{code}:/launch/code", "-w", "/launch/code", image, "python", "main.py"]
    ours, bare = [], []
    for number in range(rounds):
        edit(code, case, f"a{number}")
        bare.append(seconds_until(f"ready a{number}", docker, env))
        edit(code, case, f"b{number}")
        ours.append(seconds_until(f"ready b{number}", launch, env))
        print(f"round {number + 1}: launch run {ours[-1]:.3f} s, docker run {bare[-1]:.3f} s", flush=True)
    ours_s, bare_s = statistics.median(ours), statistics.median(bare)
    print(f"median: launch run {ours_s:.3f} s, docker run {bare_s:.3f} s, {ours_s - bare_s:.3f} s more")
    print(f"ratio: {ours_s / bare_s:.2f}" + (f" (goal: {GOAL} or less)" if case is CASES[0] else ""), flush=True)
    return ours_s / bare_s


def newest_image(env: dict[str, str]) -> str:
    """Return the image of the newest run."""
    with Client(settings=read_settings(env)) as client:
        image = client.runs(limit=1)[0].record.image
    assert image is not None
    return image


def edit(code: Path, case: Case, mark: str) -> None:
    """Write another program."""
    (code / "main.py").write_text(f"{case.imports}\nprint('ready {mark}', flush=True)\n")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
