"""How long it takes to make a job of a folder, against ``tar`` and ``sha256sum`` of the same files.

    python tests/benchmarks/snapshot.py [FILES] [ROUNDS]

Makes a git work tree of 10,000 source files and times, in turn: ``tar -cz | sha256sum``; a snapshot; a job from the
folder for the first time, with all that is kept in the artifact store; and a job from it once more, unchanged. Prints
every round, the medians and their ratios to tar, and ends with 1 when one is above its goal. Without compression tar
takes a fraction of that; its time is printed too, for what reading alone costs.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from launch.artifacts import ArtifactStore
from launch.code_jobs import code_job
from launch.models import Tracking
from launch.snapshots import snapshot

GOALS = {"snapshot": 1.2, "job, first time": 1.2, "job, unchanged": 0.2}
SETTLED_S = 2.5
"""A file that changed later than two seconds ago is never taken for unchanged."""


def write_tree(root: Path, files: int) -> None:
    words = [f"{word}_{number}" for word in ("loss", "model", "layer", "batch", "epoch") for number in range(80)]
    for number in range(files):
        generator = random.Random(number)
        file = root / f"package_{number % 40}" / f"part_{number // 40 % 25}" / f"module_{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"    {generator.choice(words)} = {generator.choice(words)}({generator.random()})" for _ in range(60))
        file.write_text("\n".join(["def step():", *lines, ""]))
    (root / "main.py").write_text("import wandb\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "b"]):
        subprocess.run(["git", *command], cwd=root, check=True)


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def piped(root: Path, flags: str) -> Callable[[], object]:
    command = f"tar -C {root} --exclude=.git {flags} - . | sha256sum"
    return lambda: subprocess.run(command, shell=True, check=True, capture_output=True)


def take(root: Path) -> None:
    with snapshot(root):
        pass


def main(files: int = 10_000, rounds: int = 5) -> int:
    with tempfile.TemporaryDirectory(prefix="openlaunch-benchmark-") as place:
        root = Path(place) / "code"
        root.mkdir()
        write_tree(root, files)
        time.sleep(SETTLED_S)
        times: dict[str, list[float]] = {}
        for number in range(rounds):
            home = Path(place) / f"home{number}"
            home.mkdir()
            store = ArtifactStore(f"file://{home}/artifacts")

            def job(store: ArtifactStore = store, home: Path = home) -> None:
                code_job(store, root, home=home, tracking=Tracking.OPTIONAL)

            actions = {"tar": piped(root, "-cf"), "tar -z": piped(root, "-czf"), "snapshot": lambda: take(root)}
            actions |= {"job, first time": job, "job, unchanged": job}
            measured = {name: seconds(action) for name, action in actions.items()}
            print(f"round {number}: " + ", ".join(f"{name} {taken:.3f} s" for name, taken in measured.items()))
            for name, taken in measured.items():
                times.setdefault(name, []).append(taken)
    medians = {name: statistics.median(each) for name, each in times.items()}
    is_met = True
    for name, goal in GOALS.items():
        ratio = medians[name] / medians["tar -z"]
        is_met = is_met and ratio <= goal
        print(f"{name}: {medians[name]:.3f} s, {ratio:.2f} of tar -cz | sha256sum (goal: {goal})")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
