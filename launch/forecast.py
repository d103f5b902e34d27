"""When a waiting run may start, from how long earlier runs of the same jobs took. Pure.

A model of what agents do: each takes the heads of its queues in turn whenever it has a slot free. A run takes as long
as earlier finished ones of its job in its queue; without enough of them nobody knows, and the answer says so.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.models import ImageSource, LaunchSpec

MIN_BASIS = 3
"""Fewer finished runs of a job than this say nothing."""

JobKey = tuple[str, str]
"""A queue, and a job's name whatever its version."""


def job_key(spec: LaunchSpec) -> JobKey:
    """Return what makes two launches runs of the same job at the same target."""
    if spec.job_ref is not None:
        return spec.queue, spec.job_ref.rpartition(":v")[0]
    words = " ".join(spec.job.entrypoint)
    image = f"{spec.job.source.image} " if isinstance(spec.job.source, ImageSource) else ""
    return spec.queue, f"{spec.project}: {image}{words}"


@dataclass(frozen=True)
class Busy:
    """A run in a slot."""

    key: JobKey
    elapsed_s: float
    """Since its claim."""


@dataclass(frozen=True)
class Slots:
    """An agent's slots."""

    queues: tuple[str, ...]
    """Those it takes runs of; none: it only carries those it has."""
    max_jobs: int
    busy: tuple[Busy, ...] = ()


@dataclass(frozen=True)
class Line:
    """A queue that gives out runs."""

    waiting: tuple[tuple[str, JobKey], ...]
    """``(run id, its job)``, the next first."""
    limit: int | None = None
    """The most of it at once."""


@dataclass(frozen=True)
class Expected:
    """When a run may start; no times: nobody knows."""

    median_s: float | None
    """From now, if every run takes its job's median time."""
    p90_s: float | None
    """From now, if every run takes its job's 90th percentile."""
    basis: int
    """How many finished runs of the job itself this rests on."""
    unknown: tuple[str, ...] = ()
    """Jobs among those before it of which too few have finished: they were taken to never end, so it may be sooner."""


def expected_start(
    run_id: str,
    key: JobKey,
    agents: Sequence[Slots],
    lines: Mapping[str, Line],
    seconds: Mapping[JobKey, Sequence[float]],
) -> Expected:
    """Return when a run may start.

    Args:
        run_id: the run; it stands in one of the lines.
        key: its job.
        agents: those that serve its queue, and those that carry runs of a queue with a limit.
        lines: ``{queue}`` of every queue that these agents serve and that gives out runs.
        seconds: ``{job: how long each of its finished runs took, claim to end}``.
    """
    median = _Model(agents, lines, seconds, 0.5)
    median_s = median.start_of(run_id)
    p90_s = _Model(agents, lines, seconds, 0.9).start_of(run_id)
    return Expected(median_s, p90_s, len(seconds.get(key, ())), tuple(sorted(median.unknown)))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the values do not exceed, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass
class _Agent:
    """What the model knows of an agent."""

    queues: list[str]
    free: int


@dataclass
class _Model:
    """Plays what will happen, if every run takes a quantile of its job's times."""

    agents: Sequence[Slots]
    lines: Mapping[str, Line]
    seconds: Mapping[JobKey, Sequence[float]]
    share: float
    unknown: set[str] = field(default_factory=set)

    def start_of(self, run_id: str) -> float | None:
        ends: list[tuple[float, int, int, str]] = []
        number = itertools.count()
        at_work = dict.fromkeys(self.lines, 0)
        next_place = dict.fromkeys(self.lines, 0)
        agents = [_Agent(list(agent.queues), agent.max_jobs - len(agent.busy)) for agent in self.agents]

        def work(key: JobKey, agent: int, now: float, elapsed_s: float = 0.0) -> None:
            at_work[key[0]] = at_work.get(key[0], 0) + 1
            heapq.heappush(ends, (now + self._left(key, elapsed_s), next(number), agent, key[0]))

        for place, slots in enumerate(self.agents):
            for busy in slots.busy:
                work(busy.key, place, 0.0, busy.elapsed_s)

        now = 0.0
        while True:
            for place, agent in enumerate(agents):
                while agent.free > 0 and (queue := self._next_queue(agent, at_work, next_place)) is not None:
                    run, key = self.lines[queue].waiting[next_place[queue]]
                    if run == run_id:
                        return now
                    next_place[queue] += 1
                    agent.free -= 1
                    work(key, place, now)
            if not ends or math.isinf(ends[0][0]):
                return None
            now, _, place, queue = heapq.heappop(ends)
            agents[place].free += 1
            at_work[queue] -= 1

    def _next_queue(self, agent: _Agent, at_work: Mapping[str, int], next_place: Mapping[str, int]) -> str | None:
        """Return the queue an agent takes its next run from, and put it last in its turn."""
        for queue in agent.queues:
            line = self.lines.get(queue)
            if line is None or next_place[queue] >= len(line.waiting):
                continue
            if line.limit is None or at_work[queue] < line.limit:
                agent.queues.remove(queue)
                agent.queues.append(queue)
                return queue
        return None

    def _left(self, key: JobKey, elapsed_s: float) -> float:
        """Return how long a run of a job still takes: as those did that took longer than it has already."""
        known = self.seconds.get(key, ())
        longer = [seconds - elapsed_s for seconds in known if seconds > elapsed_s]
        if len(known) < MIN_BASIS or not longer:
            self.unknown.add(key[1])
            return math.inf
        return quantile(longer, self.share)
