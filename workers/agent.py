"""An agent: the runs it carries, the messages it answers, and how it comes and goes.

It holds nothing that is not in the record or at the target. Its Celery worker (``workers.app``) rings it for each
message, its supervisor (``workers.supervise``) tells it of stops and orphans; each run is carried by a thread of its
own (``workers.execute``).
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import launch
from launch.artifacts import ArtifactStore
from launch.errors import ConfigError, LaunchError, TemporaryError
from launch.home import make_home
from launch.intake import SpecBuilder
from launch.jobs import JobRegistry
from launch.models import LaunchSpec, RunRecord
from launch.plugins import Problem, Runner, TargetContext, builder_class, runner_class
from launch.resolve import resolve
from launch.settings import Settings
from launch.store import Blocked, Claimed, RunStore
from launch.tracking import TrackingStore
from workers.claim import Claim, Lease
from workers.config import AgentConfig
from workers.execute import Target, Tools, execute, give_up
from workers.reconcile import Intake, reconcile
from workers.slots import SlotTable

log = logging.getLogger(__name__)

_TURN_PAUSE_S = 0.2
"""How long a message from outside is let lie while another agent takes such messages in."""

_GOODBYE_S = 1.5
"""How long a leaving agent tries to release its runs; those it cannot are adopted once its heartbeat has run out."""


class Doorbells(Protocol):
    """The Celery worker, as far as the agent steers it. Called from any thread."""

    def listen(self, queue: str) -> None:
        """Take messages of the queue."""

    def silence(self, queue: str) -> None:
        """Take none of its messages for now."""

    def wake(self) -> None:
        """Look again whether a slot is free."""


def new_agent_id(name: str) -> str:
    """Return the name of an agent's next incarnation."""
    return f"{name}-{secrets.token_hex(3)}"


class Agent:
    """One incarnation of an agent."""

    def __init__(
        self,
        config: AgentConfig,
        settings: Settings,
        store: RunStore,
        *,
        id: str | None = None,
        targets: dict[str, Target] | None = None,
        at_step: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self.config = config
        self.settings = settings
        self.store = store
        self.id = id or new_agent_id(config.name)
        make_home(settings.home)
        self.started_at = store.now()
        self.installation = store.installation()
        self.slots = SlotTable(config.max_jobs, on_free=self._wake)
        # Half of what others wait before they take this agent for dead: time enough for an effect begun within it.
        self.lease = Lease(settings.dead_after_s / 2)
        self.claims: dict[str, Claim] = {}
        self.away: dict[str, str] = {}
        """Targets that are away: ``{resource: problem}``; their queues are silent."""
        self.silent: set[str] = set()
        """Queues that gave out nothing (paused, at their limit) or whose target is away."""
        self.is_draining = False
        self.doorbells: Doorbells | None = None
        self.resources = {name: store.queue(name).resource for name in config.queues}
        artifacts = ArtifactStore(settings.artifacts_url)
        self.intake = Intake(store, SpecBuilder(store, JobRegistry(store.redis, artifacts)))
        self._targets = targets if targets is not None else self._make_targets(set(self.resources.values()))
        self._localities: dict[str, str] = {}
        self._lock = threading.Lock()
        limits = [limit for limit in (config.max_run_seconds, settings.max_run_seconds) if limit is not None]
        self.tools = Tools(
            installation=self.installation,
            home=settings.home,
            artifacts=artifacts,
            tracking=_Tracking(store, config.tracking_url),
            target_for=self.target_for,
            recheck=self._recheck,
            log_cap_chars=settings.log_cap_chars,
            max_run_seconds=min(limits, default=None),
            at_step=at_step,
        )

    # --- targets ------------------------------------------------------------------------------------------------------

    def _make_targets(self, resources: set[str]) -> dict[str, Target]:
        return {resource: self._make_target(resource) for resource in resources}

    def _make_target(self, resource: str) -> Target:
        runner_type = runner_class(resource)
        builder_type = builder_class(runner_type.builder)

        def context(settings: dict[str, Any]) -> TargetContext:
            return TargetContext(self.installation, self.settings.home, settings)

        at_target = self.config.targets.get(runner_type.name, {})
        # What reaches the target reaches it for the builder too: both must mean the same engine.
        for_builder = {**at_target, **self.config.builders.get(builder_type.name, {})}
        return Target(runner_type(context(at_target)), builder_type(context(for_builder)))

    def target_for(self, resource: str) -> Target:
        """Return a target resource this agent serves.

        Raises:
            ConfigError: it serves no such target.
        """
        if resource not in self._targets:
            raise ConfigError(f"agent {self.config.name!r} serves no target of resource {resource!r}")
        return self._targets[resource]

    @property
    def runners(self) -> dict[str, Runner]:
        """``{resource: runner}``"""
        return {resource: target.runner for resource, target in self._targets.items()}

    def locality_of(self, resource: str) -> str | None:
        """Return which runs at a target this agent can follow; none while the target is away and has not said it."""
        if resource not in self._localities:
            try:
                self._localities[resource] = self._targets[resource].runner.locality
            except TemporaryError as exc:
                self.target_is_away(resource, str(exc))
        return self._localities.get(resource)

    def check(self) -> list[Problem]:
        """Return what keeps this agent from serving its queues, each with its fix."""
        problems = []
        for target in self._targets.values():
            problems += [*target.runner.check(), *target.builder.check()]
        if not self.config.tracking_url and not self.store.server_urls():
            problems.append(
                Problem("no tracking server is up, so tracked jobs cannot start", "launch server, or launch up")
            )
        return problems

    def _recheck(self, spec: LaunchSpec) -> None:
        """Refuse a launch whose effective config is not what its queue and its override give."""
        queue = self.store.queue(spec.queue)
        then = queue.model_copy(update={"config": self.store.queue_config(spec.queue, spec.queue_version)})
        if resolve(then, type(self.target_for(spec.resource).runner), spec.resource_args) != spec.resource_config:
            raise ConfigError(f"resource config: is not what queue {spec.queue!r} allows; enqueue it again")

    # --- messages -----------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another message may be taken."""
        return self.slots.free > 0 and not self.is_draining

    def ring(self, queue: str, spec: Any, *, task_id: str | None, is_recorded: bool) -> None:
        """Answer a message: claim the head of its queue. The caller has taken a slot for it, which this gives back."""
        claimed = None
        try:
            if not is_recorded:
                # Back to the front, and from there taken in like the others that wait behind it: in their order.
                self.store.put_back(queue, spec, task_id=task_id)
                if not reconcile(self.store, self.intake, queue, self.id):
                    time.sleep(_TURN_PAUSE_S)
            claimed = self._claim(queue)
        except TemporaryError as exc:
            log.warning("queue %s: a message could not be answered: %s", queue, exc)
        finally:
            if claimed is None:
                self.slots.give_back()
        if claimed is not None:
            self._carry(claimed)

    def _claim(self, queue: str) -> Claimed | None:
        resource = self.resources[queue]
        if self.is_draining or resource in self.away or (locality := self.locality_of(resource)) is None:
            self._silence(queue)
            return None
        answer = self.store.claim(queue, self.id, locality=locality)
        if isinstance(answer, Blocked):
            log.info("queue %s: gives out no run now (%s)", queue, answer.reason)
            self._silence(queue)
            return None
        return answer

    def _silence(self, queue: str) -> None:
        """Take no more messages of a queue, and put back the one in hand."""
        self.silent.add(queue)
        if self.doorbells:
            self.doorbells.silence(queue)
        self.store.ring_missing(queue)

    def listen_again(self, queue: str) -> None:
        """Take messages of a queue again."""
        if queue in self.silent and self.resources[queue] not in self.away and not self.is_draining:
            self.silent.discard(queue)
            if self.doorbells:
                self.doorbells.listen(queue)

    def _wake(self) -> None:
        if self.doorbells:
            self.doorbells.wake()

    # --- runs ---------------------------------------------------------------------------------------------------------

    def adopt(self, run_id: str) -> bool:
        """Take over a run without a living owner, even above the limit; returns whether it is ours now."""
        record = self.store.record(run_id)
        resource = record.spec.resource
        if resource not in self._targets or not record.state.is_claimed or run_id in self.claims:
            return False
        locality = self.locality_of(resource)
        if locality is None:
            return False
        # Before its submit a run is nowhere yet; from then on it can be followed only from where its target is.
        is_elsewhere = record.state != "building" and record.locality not in (None, locality)
        if is_elsewhere and not self._is_lost(record):
            return False
        claimed = self.store.adopt(record, self.id, locality=locality, dead_after_s=self.settings.dead_after_s)
        if claimed is None:
            return False
        if is_elsewhere:
            give_up(Claim(claimed, self.store, self.lease))
            return False
        log.info("run %s: adopted (%s)", run_id, record.state)
        self.slots.take()
        self._carry(claimed)
        return True

    def _is_lost(self, record: RunRecord) -> bool:
        """Whether a run of another machine has been without a living agent for too long."""
        since = record.released_at if record.agent is None else self.store.last_seen(record.agent)
        since = since or record.claimed_at or record.created_at
        return self.store.now() - since > record.spec.limits.orphan_s

    def request_stop(self, run_id: str, grace_s: float) -> None:
        """Stop a run this agent carries; another's is none of its business."""
        claim = self.claims.get(run_id)
        if claim is not None:
            # In a thread of its own: a target that is away must not keep the supervisor's heart from beating.
            threading.Thread(target=_quietly, args=(claim.request_stop, grace_s), daemon=True).start()

    def _carry(self, claimed: Claimed) -> None:
        claim = Claim(claimed, self.store, self.lease)
        with self._lock:
            self.claims[claim.id] = claim
        threading.Thread(target=self._work, args=(claim,), name=f"run-{claim.id}", daemon=True).start()

    def _work(self, claim: Claim) -> None:
        log.info("run %s: attempt %d of %s", claim.id, claim.record.attempt, claim.spec.title)
        try:
            execute(claim, self.tools)
        except TemporaryError as exc:
            self.target_is_away(claim.spec.resource, str(exc))
        except Exception:
            # The job goes on at its target; the run is adopted anew with the next heartbeat.
            log.exception("run %s: lost the thread", claim.id)
            claim.release()
        finally:
            with self._lock:
                # A run that was taken anew meanwhile has another claim there.
                if self.claims.get(claim.id) is claim:
                    del self.claims[claim.id]
            self.slots.give_back()

    def target_is_away(self, resource: str, problem: str) -> None:
        """Take no runs for a target until it is back."""
        log.warning("target %s is away, its queues wait: %s", resource, problem)
        self.away[resource] = problem
        for queue in self._queues_of(resource):
            _quietly(self._silence, queue)

    def look_for_targets(self) -> None:
        """See which targets that were away are back."""
        for resource in list(self.away):
            target = self._targets[resource]
            problems = [*target.runner.check(), *target.builder.check()]
            if problems:
                self.away[resource] = problems[0].what
                continue
            log.info("target %s is back", resource)
            # It may be another one now: an engine with a new data folder has another id.
            self._localities.pop(resource, None)
            del self.away[resource]

    def _queues_of(self, resource: str) -> Iterable[str]:
        return [queue for queue, its in self.resources.items() if its == resource]

    # --- coming and going ---------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that this agent lives, and what it does."""
        sent_at = time.monotonic()
        self.store.heartbeat(self.id, self._description(), gap_s=2 * self.settings.heartbeat_s)
        self.lease.renew(sent_at)

    def _description(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "host": platform.node(),
            "pid": os.getpid(),
            "version": launch.__version__,
            "queues": list(self.resources),
            "localities": sorted(self._localities.values()),
            "max_jobs": self.slots.max_jobs,
            "runs": sorted(self.claims),
            "state": "draining" if self.is_draining else "blocked" if self.away else "serving",
            "problems": [f"{resource}: {problem}" for resource, problem in self.away.items()],
            "started_at": self.started_at,
        }

    def heed_wishes(self) -> None:
        """Do what somebody has asked of this agent: another number of slots, or to end when its runs have."""
        wishes = self.store.wishes(self.id)
        if wishes.max_jobs is not None and wishes.max_jobs != self.slots.max_jobs:
            log.info("from now on up to %d runs at once", wishes.max_jobs)
            self.slots.max_jobs = wishes.max_jobs
        if wishes.drain and not self.is_draining:
            log.info("takes no more runs, and ends when those in hand have ended")
            self.is_draining = True
        if wishes.drain and not self.claims:
            os.kill(os.getpid(), signal.SIGTERM)

    def drain(self) -> None:
        """Take no more runs, and return when those in hand have ended."""
        self.is_draining = True
        while self.claims:
            time.sleep(0.2)

    def detach(self) -> None:
        """Let go of every run, at once; the jobs go on, and the next agent follows them."""
        self.is_draining = True
        with self._lock:
            claims = list(self.claims.values())
        for claim in claims:
            claim.detach()
        # Redis may be away just now, and nobody should wait for that.
        goodbye = threading.Thread(target=_quietly, args=(self._say_goodbye, claims), daemon=True)
        goodbye.start()
        goodbye.join(_GOODBYE_S)

    def _say_goodbye(self, claims: list[Claim]) -> None:
        for claim in claims:
            claim.release()
            log.info("run %s: released, its job goes on", claim.id)
        self.store.forget_agent(self.id)


class _Tracking:
    """The tracking server, as this agent's jobs reach it."""

    def __init__(self, store: RunStore, url: str | None) -> None:
        self._store = store
        self._url = url
        self._keys = TrackingStore(store.redis)

    def issue_key(self, run_id: str, attempt: int) -> str:
        return self._keys.issue_key(run_id, attempt)

    def url_for(self, runner: Runner, options: Any) -> str | None:
        host = runner.tracking_host(options)
        if host is None or self._url:
            return self._url if host is not None else None
        urls = self._store.server_urls()
        if not urls:
            raise TemporaryError("no tracking server is up; start one with `launch server` or `launch up`")
        port = urls[0].rpartition(":")[2].strip("/")
        url = f"http://{host}:{port}"
        if url not in urls and not host.endswith(".internal"):
            raise TemporaryError(
                f"the tracking server does not listen on {host}, where jobs of {runner.name} would reach it; "
                f"start it with `launch server --host {host}`"
            )
        return url


def _quietly(call: Callable[..., object], *args: Any) -> None:
    try:
        call(*args)
    except LaunchError as exc:
        log.warning("%s", exc)
    except Exception:
        log.exception("unexpected")
