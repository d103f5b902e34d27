"""What happens when: a schedule of faults from a seed. No I/O here.

The same options and seed give the same schedule and the same load. How the processes interleave is the machine's, so a
seed that found a defect finds it again often, not always.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from launch.chaos.fault_points import STEPS


class FaultKind(StrEnum):
    """What can be done to a world."""

    KILL_WORKER = "agent's worker killed"
    KILL_PARENT = "agent's parent killed"
    KILL_BOTH = "agent's worker and parent killed"
    KILL_AT_STEP = "agent killed at a step"
    FREEZE_AGENT = "agent stopped past its heartbeat, and continued"
    RESTART_AGENT = "agent ended by SIGTERM and restarted"
    KILL_REDIS = "Redis killed and restarted"
    FREEZE_REDIS = "Redis stopped for a while"
    CUT_CONNECTIONS = "all connections to Redis cut"
    KILL_DOCKER = "Docker engine killed and restarted"
    KILL_JOB = "a job's wrapper or container killed"
    REMOVE_JOB = "a container removed"
    FILL_DISK = "artifact store full for a while"
    COPY_BELLS = "doorbells duplicated"
    SWALLOW_BELLS = "doorbells swallowed"
    STOP_RUN = "a run stopped by its user"


AGENT_KILLS = (FaultKind.KILL_WORKER, FaultKind.KILL_PARENT, FaultKind.KILL_BOTH, FaultKind.KILL_AT_STEP)
NEEDS_DOCKER = (FaultKind.KILL_DOCKER, FaultKind.REMOVE_JOB)

_LAST_S: Mapping[FaultKind, tuple[float, float]] = {
    FaultKind.FREEZE_AGENT: (3.0, 9.0),
    FaultKind.KILL_REDIS: (0.1, 4.0),
    FaultKind.FREEZE_REDIS: (0.5, 6.0),
    FaultKind.KILL_DOCKER: (0.1, 4.0),
    FaultKind.FILL_DISK: (2.0, 8.0),
}
"""How long a fault lasts, at least and at most, in seconds; the others are over at once."""


@dataclass(frozen=True)
class ChaosOptions:
    """How much of everything."""

    seed: int = 1
    runs: int = 500
    agent_kills: int = 200
    redis_kills: int = 20
    docker_kills: int = 10
    minutes: float | None = None
    """How long faults are spread over; none: as long as the counts need."""
    docker: bool = True
    fsync: str = "always"
    """Redis' ``appendfsync``: what is acknowledged survives a kill with ``always``."""

    @property
    def seconds(self) -> float:
        """How long faults are spread over."""
        if self.minutes is not None:
            return self.minutes * 60
        return max(30.0, self.runs * 0.6, self.agent_kills * 3.0, self.redis_kills * 15.0, self.docker_kills * 20.0)

    def counts(self) -> dict[FaultKind, int]:
        """Return ``{kind: how often}``."""
        kills = self.agent_kills
        at_step = kills if 0 < kills <= len(STEPS) else max(kills * 2 // 5, min(kills, len(STEPS)))
        parents = (kills - at_step) // 4
        both = (kills - at_step) // 3
        small = max(1, self.redis_kills // 2)
        found = {
            FaultKind.KILL_WORKER: kills - at_step - parents - both,
            FaultKind.KILL_PARENT: parents,
            FaultKind.KILL_BOTH: both,
            FaultKind.KILL_AT_STEP: at_step,
            FaultKind.FREEZE_AGENT: max(1, kills // 10),
            FaultKind.RESTART_AGENT: max(1, kills // 10),
            FaultKind.KILL_REDIS: self.redis_kills,
            FaultKind.FREEZE_REDIS: small,
            FaultKind.CUT_CONNECTIONS: small,
            FaultKind.KILL_DOCKER: self.docker_kills,
            FaultKind.KILL_JOB: max(2, self.runs // 40),
            FaultKind.REMOVE_JOB: max(1, self.runs // 80),
            FaultKind.FILL_DISK: max(1, small // 2),
            FaultKind.COPY_BELLS: max(2, self.runs // 25),
            FaultKind.SWALLOW_BELLS: max(2, self.runs // 25),
            FaultKind.STOP_RUN: max(2, self.runs // 12),
        }
        return {kind: count for kind, count in found.items() if self.docker or kind not in NEEDS_DOCKER}


@dataclass(frozen=True, order=True)
class Fault:
    """One thing done to the world."""

    at_s: float
    """When, in seconds from the beginning."""
    kind: FaultKind = field(compare=False)
    lasts_s: float = field(compare=False)
    luck: float = field(compare=False)
    """Of [0, 1): chooses the victim among those there are."""
    step: str | None = field(compare=False, default=None)
    """The step of ``workers.execute`` at which a worker dies, for :attr:`FaultKind.KILL_AT_STEP`."""


def schedule(options: ChaosOptions) -> list[Fault]:
    """Return all faults in order of time; the last tenth of the time is left quieter, so that armed steps are met."""
    dice = random.Random(options.seed)  # noqa: S311
    faults = []
    for kind, count in options.counts().items():
        for number in range(count):
            at_s = dice.uniform(2.0, max(3.0, options.seconds * 0.9))
            lasts_s = dice.uniform(*_LAST_S[kind]) if kind in _LAST_S else 0.0
            step = STEPS[number % len(STEPS)] if kind is FaultKind.KILL_AT_STEP else None
            faults.append(Fault(round(at_s, 3), kind, round(lasts_s, 3), dice.random(), step))
    return sorted(faults)
