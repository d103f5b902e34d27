"""The target resources an agent serves, and which of them are away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launch.errors import ConfigError, TemporaryError
from launch.plugins import Builder, Problem, Runner, TargetContext, builder_class, runner_class
from launch.secrets import references
from workers.config import AgentConfig
from workers.secret_sources import Secrets

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A target resource: what runs there, and what makes what runs there."""

    runner: Runner
    builder: Builder

    def problems(self) -> list[Problem]:
        """Return what keeps it from working now; a check that fails itself is one."""
        try:
            return [*self.runner.check(), *self.builder.check()]
        except Exception as exc:
            log.exception("target %s: its check failed", self.runner.name)
            return [
                Problem(f"{self.runner.name}: its check failed: {type(exc).__name__}: {exc}", "see the agent's log")
            ]


def make_targets(
    resources: Iterable[str], installation: str, home: Path, config: AgentConfig, secrets: Secrets
) -> dict[str, Target]:
    """Return ``{resource: Target}``.

    Raises:
        ConfigError: there is no such target, its plugin does not load, or its settings are wrong.
        TemporaryError: a source of the secrets in them is away.
    """

    def plugin(kind: Callable[[TargetContext], T], settings: dict[str, Any]) -> T:
        filled, used = secrets.render(settings)
        try:
            return kind(TargetContext(installation, home, filled, frozenset(used)))
        except ConfigError:
            if not used:
                raise
            # Its message may quote a secret. What is wrong with the settings themselves is said without.
            kind(TargetContext(installation, home, settings))
            names = ", ".join(sorted(references(settings)))
            raise ConfigError(
                f"agent config: a value among these secrets does not fit where it stands: {names}"
            ) from None

    def make(resource: str) -> Target:
        runner_type = runner_class(resource)
        builder_type = builder_class(runner_type.builder)
        at_target = config.targets.get(runner_type.name, {})
        # What reaches the target reaches it for the builder too: both must mean the same engine.
        for_builder = {**at_target, **config.builders.get(builder_type.name, {})}
        return Target(plugin(runner_type, at_target), plugin(builder_type, for_builder))

    return {resource: make(resource) for resource in resources}


class Targets:
    """An agent's targets by resource."""

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = dict(targets)
        self._localities: dict[str, str] = {}
        self.away: dict[str, str] = {}
        """``{resource: problem}`` of those that are away."""

    def __contains__(self, resource: str) -> bool:
        return resource in self._targets

    def __getitem__(self, resource: str) -> Target:
        if resource not in self._targets:
            raise ConfigError(f"this agent serves no target of resource {resource!r}")
        return self._targets[resource]

    def runners(self) -> list[Runner]:
        """Return every target's runner."""
        return [target.runner for target in self._targets.values()]

    def problems(self) -> list[Problem]:
        """Return what keeps any of them from working now, each problem once."""
        return list(dict.fromkeys(problem for target in self._targets.values() for problem in target.problems()))

    def locality_of(self, resource: str) -> str | None:
        """Return which runs at a target can be followed from here; none while it is away and has not said it."""
        if resource not in self._localities:
            try:
                self._localities[resource] = self._targets[resource].runner.locality
            except TemporaryError as exc:
                self.is_away(resource, str(exc))
        return self._localities.get(resource)

    def localities(self) -> list[str]:
        """Return the localities known."""
        return sorted(self._localities.values())

    def is_away(self, resource: str, problem: str) -> None:
        """Note that a target is away."""
        log.warning("target %s is away, its queues wait: %s", resource, problem)
        self.away[resource] = problem

    def look_for_lost(self) -> None:
        """See which of those that were away are back."""
        for resource in list(self.away):
            problems = self._targets[resource].problems()
            if problems:
                self.away[resource] = problems[0].what
                continue
            log.info("target %s is back", resource)
            # It may be another one now: an engine with a new data folder has another id.
            self._localities.pop(resource, None)
            del self.away[resource]
