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
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import launch
from launch.artifacts import ArtifactStore
from launch.broker import Message
from launch.errors import ConfigError, LaunchError, LostClaimError, TemporaryError
from launch.home import make_home
from launch.intake import SpecBuilder
from launch.jobs import JobRegistry
from launch.log_lines import about, thread_about
from launch.models import LaunchSpec, RunRecord
from launch.plugins import Problem
from launch.resolve import canonical, resolve
from launch.run_events import task_name
from launch.secrets import foreign_references
from launch.settings import Settings
from launch.store import Blocked, Claimed, RunStore
from workers.claim import Claim, DetachedError, Lease
from workers.config import AgentConfig
from workers.events import heartbeat_event
from workers.execute import Tools, execute, give_up
from workers.first_run import FirstRuns
from workers.reconcile import Intake, reconcile
from workers.redact import Redaction
from workers.secret_sources import Secrets
from workers.server_access import ServerAccess
from workers.slots import SlotTable
from workers.sources import agents_git
from workers.targets import Target, Targets, make_targets
from workers.traces import Traces, make_tracer

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_GOODBYE_S = 1.5
"""How long a leaving agent tries to release its runs; those it cannot are adopted once its heartbeat has run out."""

_MAX_STUMBLE_S = 300.0


class Doorbells(Protocol):
    """The Celery worker, as far as the agent steers it."""

    def look_again(self) -> None:
        """Listen to the queues that are not silent, and look for a free slot. Called from any thread."""


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
        nodename: str | None = None,
        targets: Mapping[str, Target] | None = None,
        at_step: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self.config = config
        self.settings = settings
        self.store = store
        self.id = id or new_agent_id(config.name)
        self.nodename = nodename or f"{self.id}@{platform.node()}"
        """What Celery and Flower call it."""
        self.carried: Counter[str] = Counter()
        """How many runs it has taken, by task name."""
        make_home(settings.home)
        self.started_at = store.now()
        ahead_s = self.started_at - time.time()
        self.slots = SlotTable(config.max_jobs, on_free=self._look_again)
        # Half of what others wait before they take this agent for dead: time enough for an effect begun within it.
        self.lease = Lease(settings.dead_after_s / 2)
        self.claims: dict[str, Claim] = {}
        self.resources = {name: store.queue(name).resource for name in config.queues}
        self.silent: set[str] = set()
        """Queues that gave out nothing (paused, at their limit) or whose target is away."""
        self.outdated: set[str] = set()
        """Those of them whose next run was written by a later version."""
        self.is_settled = False
        """Whether it has taken up the runs that were waiting for it; it takes no new ones before."""
        self.is_draining = False
        self.doorbells: Doorbells | None = None
        installation, artifacts = store.installation(), ArtifactStore(settings.artifacts_url, lambda: store)
        self.secrets = Secrets(config.secrets)
        self.redaction = Redaction(lambda: self.secrets.in_hand)
        """For what it says of itself; each run has one of its own."""
        made = targets or make_targets(set(self.resources.values()), installation, settings.home, config, self.secrets)
        self.targets = Targets(made)
        self.intake = Intake(store, SpecBuilder(store, JobRegistry(store.redis, artifacts)))
        self._server = ServerAccess(store, config.tracking_url, settings.home)
        self._stumbles: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        limits = [limit for limit in (config.max_run_seconds, settings.max_run_seconds) if limit is not None]
        self.traces = Traces(make_tracer(os.environ, self.id), now=lambda: time.time() + ahead_s)

        def note_step(step: str, run_id: str) -> None:
            self.traces.step(step, run_id)
            at_step(step, run_id)

        self.tools = Tools(
            installation=installation,
            home=settings.home,
            artifacts=artifacts,
            server=self._server,
            secrets=self.secrets,
            targets=self.targets,
            recheck=self._recheck,
            log_cap_chars=settings.log_cap_chars,
            max_run_seconds=min(limits, default=None),
            git=agents_git(settings.home, config, self.secrets),
            first_runs=FirstRuns(store, artifacts),
            at_step=note_step,
        )

    def check(self) -> list[Problem]:
        """Return what keeps this agent from serving its queues, each with its fix."""
        # A target that is away cannot say where its jobs would reach the server.
        return self.targets.problems() or self._server.problems(self.targets.runners())

    def _recheck(self, spec: LaunchSpec) -> None:
        """Refuse a launch whose effective config is not what its queue and its override give."""
        then = self.store.queue_at(spec.queue, spec.queue_version)
        runner = type(self.targets[spec.resource].runner)
        if resolve(then, runner, spec.resource_args, spec.template_variables) != spec.resource_config:
            raise ConfigError(f"resource config: is not what queue {spec.queue!r} allows; enqueue it again")
        own = canonical(runner, then.config, where=f"queue {spec.queue!r}/config")
        for name in sorted(foreign_references(own, spec.resource_config)):
            if not self.config.secrets.may_launch(name):
                raise ConfigError(
                    f"resource config: a launch may not name the secret {name!r}, since whoever launches could print "
                    f"it; put it into the config of queue {spec.queue!r}, or list it under secrets/launchable in the "
                    f"config of agent {self.config.name!r}"
                )

    # --- messages -----------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another message may be taken."""
        return self.is_settled and self.slots.free > 0 and not self.is_draining

    def settle(self) -> None:
        """Begin to take new runs."""
        if not self.is_settled:
            self.is_settled = True
            self._look_again()

    def ring(self, queue: str | None, message: Message, ack: Callable[[], object] = lambda: None) -> None:
        """Answer a message: claim the head of its queue.

        Args:
            queue: where it was; none if that is no launch queue.
            message: what it says. One from outside is put on record first.
            ack: called once nothing is lost if this process dies.

        The caller has taken a slot for it, which is given back here unless a run takes it over.
        """
        claimed = None
        try:
            if queue not in self.resources:
                log.error("dropped message %s from a queue this agent does not serve: %s", message.task_id, queue)
                return
            self.store.meter.count("bells", queue, "own" if message.is_recorded else "foreign")
            if not message.is_recorded:
                self._take_in(queue, message)
            ack()
            claimed = self._claim(queue)
        except TemporaryError as exc:
            log.warning("queue %s: a message could not be answered: %s", queue, exc)
        except Exception:
            log.exception("queue %s: message %s", queue, message.task_id)
        finally:
            if claimed is None:
                self.slots.give_back()
        if claimed is not None:
            self._carry(claimed)

    def _take_in(self, queue: str, message: Message) -> None:
        if message.problem:
            self.intake.take_in(queue, message)
            return
        # Back to the front, and from there taken in like the others that wait behind it: in their order.
        self.store.put_back(queue, message.spec, task_id=message.task_id)
        if not reconcile(self.store, self.intake, queue, self.id):
            # Another agent is at it. Not taking the message again at once leaves it the time.
            time.sleep(_PAUSE_S)

    def _claim(self, queue: str) -> Claimed | None:
        resource = self.resources[queue]
        locality = None
        if not self.is_draining and resource not in self.targets.away:
            locality = self.targets.locality_of(resource)
        if locality is None:
            self._silence(queue)
            return None
        answer = self.store.claim(queue, self.id, locality=locality)
        if isinstance(answer, Blocked):
            if answer.reason == "newer":
                self._note_outdated(queue)
            else:
                log.info("queue %s: gives out no run now (%s)", queue, answer.reason)
            self._silence(queue)
            return None
        return answer

    def _note_outdated(self, queue: str) -> None:
        self.outdated.add(queue)
        log.warning(
            "queue %s: its next run was written by a later version of openlaunch than this one (%s); it and those "
            "behind it wait for an agent that is updated, and nothing of them is touched",
            queue,
            launch.__version__,
        )

    def _silence(self, queue: str) -> None:
        """Take no more messages of a queue, and put back the one in hand."""
        self.silent.add(queue)
        self._look_again()
        self.store.ring_missing(queue)

    def listen_again(self) -> None:
        """Take messages of the silent queues again that now give out runs."""
        for queue in list(self.silent):
            if self.resources[queue] not in self.targets.away and not self.is_draining and self.store.gives_out(queue):
                self.silent.discard(queue)
                self.outdated.discard(queue)
                self._look_again()

    def _look_again(self) -> None:
        if self.doorbells:
            self.doorbells.look_again()

    # --- runs ---------------------------------------------------------------------------------------------------------

    def adopt(self, run_id: str) -> bool:
        """Take over a run without a living owner, even above the limit; returns whether it is ours now."""
        if self.is_draining or run_id in self.claims or self._stumbled_lately(run_id):
            return False
        record = self.store.record(run_id)
        resource = record.spec.resource
        if resource not in self.targets or not record.state.is_claimed:
            return False
        locality = self.targets.locality_of(resource)
        if locality is None:
            return False
        # Before its submit a run is nowhere yet; from then on it can be followed only from where its target is.
        is_elsewhere = record.state != "building" and record.locality not in (None, locality)
        if is_elsewhere and not self._is_lost(record):
            return False
        claimed = self.store.adopt(
            record,
            self.id,
            locality=locality,
            dead_after_s=self.settings.dead_after_s,
            gap_s=2 * self.settings.heartbeat_s,
        )
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
            # In a thread of its own: a target that is away must not hold up what else there is to do.
            with _about(claim):
                thread_about(_quietly, claim.request_stop, grace_s).start()

    def let_go_of_lost(self) -> None:
        """Let go of the claims that have passed to others while this agent did not notice."""
        claims = dict(self.claims)
        fences = self.store.fences(list(claims))
        for run_id, claim in claims.items():
            if fences.get(run_id) != claim.fence:
                log.warning("run %s: is no longer this agent's", run_id)
                claim.detach()
                self._forget(claim)

    def _carry(self, claimed: Claimed) -> None:
        """Carry a run in a thread of its own, in the slot that was taken for it."""
        claim = Claim(claimed, self.store, self.lease, Redaction(lambda: self.secrets.in_hand))
        with self._lock:
            self.claims[claim.id] = claim
            self.carried[task_name(claim.spec)] += 1
        try:
            with _about(claim):
                thread_about(self._work, claim, name=f"run-{claim.id}").start()
        except RuntimeError:
            log.exception("run %s: there is no room for another thread", claim.id)
            self._stumble(claim)
            self._forget(claim)
            self.slots.give_back()

    def _work(self, claim: Claim) -> None:
        log.info("run %s: attempt %d of %s", claim.id, claim.record.attempt, claim.spec.title)
        try:
            with self.traces.of(claim.record, lambda: self.store.record(claim.id)):
                execute(claim, self.tools)
            self._stumbles.pop(claim.id, None)
        except TemporaryError as exc:
            self._target_is_away(claim.spec.resource, str(exc))
        except Exception:
            log.exception("run %s: lost the thread", claim.id)
            self._stumble(claim)
        finally:
            self.tools.held_code.release(claim.id)
            self._forget(claim)
            self.slots.give_back()

    def _forget(self, claim: Claim) -> None:
        with self._lock:
            # A run that was taken anew meanwhile has another claim there.
            if self.claims.get(claim.id) is claim:
                del self.claims[claim.id]

    def _stumble(self, claim: Claim) -> None:
        """Let go of a run that this agent cannot carry just now; its job, if it has one, goes on at its target.

        It is adopted again, here or elsewhere, but here only after a pause that grows with each time.
        """
        count = self._stumbles.get(claim.id, (0, 0.0))[0] + 1
        pause_s = min(_MAX_STUMBLE_S, self.settings.heartbeat_s * 2.0**count)
        self._stumbles[claim.id] = (count, time.monotonic() + pause_s)
        claim.release()

    def _stumbled_lately(self, run_id: str) -> bool:
        return time.monotonic() < self._stumbles.get(run_id, (0, 0.0))[1]

    def _target_is_away(self, resource: str, problem: str) -> None:
        self.targets.is_away(resource, problem)
        for queue, its in self.resources.items():
            if its == resource:
                _quietly(self._silence, queue)

    # --- coming and going ---------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that this agent lives, and what it does."""
        renewed = self.lease.now()
        gap_s = 2 * self.settings.heartbeat_s
        self.store.heartbeat(self.id, self._description(), gap_s=gap_s, event=heartbeat_event(self))
        self.lease.renew(renewed)

    def _description(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "nodename": self.nodename,
            "host": platform.node(),
            "pid": os.getpid(),
            "version": launch.__version__,
            "queues": list(self.resources),
            "localities": self.targets.localities(),
            "max_jobs": self.slots.max_jobs,
            "runs": sorted(self.claims),
            "state": "draining" if self.is_draining else "blocked" if self.targets.away else "serving",
            "problems": [self.redaction.mask(f"{name}: {problem}") for name, problem in self.targets.away.items()],
            "started_at": self.started_at,
            "tracking_url": self.config.tracking_url,
            "outdated": sorted(self.outdated),
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
        self.traces.close()


def _about(claim: Claim) -> AbstractContextManager[None]:
    return about(run=claim.id, attempt=claim.record.attempt, queue=claim.spec.queue)


def _quietly(call: Callable[..., object], *args: Any) -> None:
    try:
        call(*args)
    except (LostClaimError, DetachedError):
        log.info("let go: %s", args)
    except LaunchError as exc:
        log.warning("%s", exc)
    except Exception:
        log.exception("unexpected")
