"""For tests only: an agent's worker that dies at a named step of a run, as if by ``kill -9`` between two lines.

``LAUNCH_FAULT`` says where, several separated by commas; unset, it costs one look at the environment per worker::

    submit:3           the third time this worker reaches the step "submit"
    submit:0.05:7      each time with probability 0.05, by a generator with seed 7
    armed:/folder      at any step for which the folder holds a file of its name: who takes the file away dies. Its
                       content says who dies with it: "worker" alone, or "both" the worker and its parent

Steps are those of ``workers.execute``.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from launch.errors import ConfigError

ENV_FAULT = "LAUNCH_FAULT"
STEPS = ("fetch", "build", "submit", "record", "follow", "conclude", "remove")

AtStep = Callable[[str, str], None]
Die = Callable[[bool], None]


def kill_worker(with_parent: bool) -> None:
    """SIGKILL this process, and its parent first if asked."""
    if with_parent:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def fault_points(environ: Mapping[str, str], die: Die = kill_worker) -> AtStep | None:
    """Return what to call at each step with its name and the run's id; none when no fault is asked for.

    Raises:
        ConfigError: ``LAUNCH_FAULT`` does not parse.
    """
    text = environ.get(ENV_FAULT)
    if not text:
        return None
    points = [_point(word, die) for word in text.split(",")]

    def at_step(step: str, run_id: str) -> None:
        for point in points:
            point(step, run_id)

    return at_step


def _point(word: str, die: Die) -> AtStep:
    step, _, rest = word.partition(":")
    if step == "armed" and rest:
        return _armed(Path(rest), die)
    try:
        if step not in STEPS:
            raise ValueError(step)
        return _counted(step, int(rest), die) if ":" not in rest else _random(step, *rest.split(":"), die=die)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{ENV_FAULT}: should be like submit:3, submit:0.05:7 or armed:/folder, the step one of "
            f"{', '.join(STEPS)}; not {word!r}"
        ) from None


def _counted(wanted: str, count: int, die: Die) -> AtStep:
    left = iter(range(count - 1, -1, -1))

    def at_step(step: str, run_id: str) -> None:  # noqa: ARG001
        if step == wanted and next(left, None) == 0:
            die(False)

    return at_step


def _random(wanted: str, probability: str, seed: str, *, die: Die) -> AtStep:
    chance, dice = float(probability), random.Random(int(seed))  # noqa: S311

    def at_step(step: str, run_id: str) -> None:  # noqa: ARG001
        if step == wanted and dice.random() < chance:
            die(False)

    return at_step


def _armed(folder: Path, die: Die) -> AtStep:
    def at_step(step: str, run_id: str) -> None:
        taken = folder / f"{step}.{os.getpid()}.{run_id}"
        try:
            (folder / step).rename(taken)
        except OSError:
            return
        die(taken.read_text().strip() == "both")

    return at_step
