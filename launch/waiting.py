"""What a queued run waits for, from its queue and the agents that serve it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from launch.checking import listed
from launch.durations import duration
from launch.models import QueueSpec, RunRecord
from launch.records import AgentRecord

_MOST_NAMED = 8


class WaitsFor(StrEnum):
    """Why a queued run does not start at once."""

    RELEASE = "release"
    """Somebody holds it."""
    PAUSE = "pause"
    """Its pause before another attempt has not ended."""
    RESUME = "resume"
    """Its queue is paused."""
    AGENT = "agent"
    """No living agent serves its queue, or those that do take no more runs."""
    TARGET = "target"
    """The target is away for every agent that serves its queue."""
    LIMIT = "limit"
    """As many runs of its queue as may be at once are at work."""
    SLOT = "slot"
    """The agents that serve its queue have no slot free."""
    TURN = "turn"
    """Nothing but those before it."""


@dataclass(frozen=True)
class QueueView:
    """A queue as its runs meet it."""

    spec: QueueSpec
    active: tuple[str, ...]
    """Ids of its claimed runs, the longest claimed first."""
    agents: tuple[AgentRecord, ...]
    """The living agents that serve it."""

    @property
    def takers(self) -> tuple[AgentRecord, ...]:
        """Those of the agents that take runs of it now, be there a slot free or not."""
        return tuple(
            agent
            for agent in self.agents
            if agent.state != "draining" and not self.problems_of(agent) and agent not in self.outdated
        )

    @property
    def outdated(self) -> tuple[AgentRecord, ...]:
        """Those of the agents that are too old for its next run."""
        return tuple(agent for agent in self.agents if self.spec.name in agent.outdated)

    def problems_of(self, agent: AgentRecord) -> list[str]:
        """Return what keeps an agent from this queue's target."""
        return [problem for problem in agent.problems if problem.startswith(f"{self.spec.resource}: ")]


@dataclass(frozen=True)
class Waiting:
    """What a run waits for."""

    kind: WaitsFor
    short: str
    """A few words, for a column."""
    sentence: str
    command: str | None = None
    """What would end the waiting, to be typed."""


def waits_for(record: RunRecord, view: QueueView, position: int | None, now: float) -> Waiting:
    """Return what a queued run waits for.

    Args:
        record: the run, queued.
        view: its queue.
        position: its place in it, 1 for the next; none: it is out of the order.
        now: Redis' time.
    """
    return _by_itself(record, now) or _by_its_queue(view) or _by_its_agents(view) or _by_its_place(view, position)


def _by_itself(record: RunRecord, now: float) -> Waiting | None:
    if record.held_by is not None:
        return Waiting(
            WaitsFor.RELEASE,
            f"held by {record.held_by}",
            f"It is held by {record.held_by}.",
            f"launch release {record.id}",
        )
    if record.due_at is not None:
        left = duration(max(0.0, record.due_at - now))
        return Waiting(
            WaitsFor.PAUSE,
            f"another attempt in {left}",
            f"It is in its pause before attempt {record.attempt + 1}, for {left} more; then it waits at its old place.",
        )
    return None


def _by_its_queue(view: QueueView) -> Waiting | None:
    name = view.spec.name
    if view.spec.paused:
        return Waiting(WaitsFor.RESUME, "queue paused", f"Queue {name} is paused.", f"launch queue resume {name}")
    if not view.agents:
        return Waiting(WaitsFor.AGENT, "no agent", f"No living agent serves queue {name}.", f"launch agent -q {name}")
    return None


def _by_its_agents(view: QueueView) -> Waiting | None:
    if view.takers:
        return None
    name, resource = view.spec.name, view.spec.resource
    problems = [f"{agent.label}: {problem}" for agent in view.agents for problem in view.problems_of(agent)]
    if problems:
        said = "; ".join(problems)
        return Waiting(
            WaitsFor.TARGET,
            f"{resource} away",
            f"Its target is away, and the agents take no runs until it is back: {said}",
            "launch doctor",
        )
    if view.outdated:
        named = ", ".join(f"{agent.label} on {agent.host} ({agent.version})" for agent in view.outdated)
        return Waiting(
            WaitsFor.AGENT,
            "agents outdated",
            f"The next run of queue {name} was written by a later version of openlaunch than its agents have; update "
            f"these: {named}.",
            f"launch agent -q {name}",
        )
    named = ", ".join(agent.label for agent in view.agents)
    return Waiting(
        WaitsFor.AGENT,
        "agents leave",
        f"The agents that serve queue {name} take no more runs and end when those in hand have: {named}.",
        f"launch agent -q {name}",
    )


def _by_its_place(view: QueueView, position: int | None) -> Waiting:
    name, limit = view.spec.name, view.spec.max_concurrent
    place = f"place {position}, " if position is not None and position > 1 else ""
    if limit is not None and len(view.active) >= limit:
        return Waiting(
            WaitsFor.LIMIT,
            f"{place}limit {limit}",
            f"Queue {name} gives out at most {limit} at once, and these are at work: {_named(view.active)}.",
            f"launch queue update {name} --max-concurrent {limit + 1}",
        )
    if all(len(agent.runs) >= agent.max_jobs for agent in view.takers):
        slots = "; ".join(
            f"{agent.label} ({len(agent.runs)} of {agent.max_jobs}: {_named(agent.runs)})" for agent in view.takers
        )
        return Waiting(
            WaitsFor.SLOT,
            f"{place}agents full",
            f"The agents that serve queue {name} have no slot free: {slots}.",
            f"launch agents set {view.takers[0].label} --max-jobs {view.takers[0].max_jobs + 1}",
        )
    before = f"It waits for the {position - 1} before it." if position is not None and position > 1 else "It is next."
    return Waiting(WaitsFor.TURN, f"{place}its turn" if place else "next", f"A slot is free. {before}")


def _named(run_ids: Sequence[str]) -> str:
    return listed(run_ids, _MOST_NAMED)
