"""What an agent does besides carrying runs: its heart beats, and it sees to its duties.

The heart has a thread of its own and does nothing else, so that a target that does not answer never makes the agent
look dead. The duties (stops, orphans, targets that come back, messages, leftovers) have another: each round does all of
them once, and a message on the wake channel makes the one it names happen at once, so that the round is the fallback.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from launch.archive import archive_old_runs
from launch.errors import LaunchError, NotFoundError, TemporaryError
from workers.agent import Agent
from workers.reconcile import reconcile

log = logging.getLogger(__name__)

_AWAY_S = 0.5
_SWEEP_S = 30.0
_LEFTOVER_AFTER_S = 60.0


class Supervisor:
    """Beats an agent's heart and sees to its duties until stopped."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._ended = threading.Event()
        self._next_reconcile = 0.0
        self._next_sweep = time.monotonic() + _SWEEP_S
        self._unknown: set[str] = set()
        self.pulse = time.monotonic()
        """When the heart last tried to beat, for whoever watches it."""

    def start(self) -> None:
        """Begin, with a first beat."""
        for name, work in (("heart", self._beat), ("duties", self._see_to_duties)):
            threading.Thread(target=self._keep_up, args=(work,), name=name, daemon=True).start()

    def stop(self) -> None:
        """End with the step under way."""
        self._ended.set()

    def _keep_up(self, work: Callable[[], None]) -> None:
        while not self._ended.is_set():
            try:
                work()
            except TemporaryError as exc:
                log.warning("%s", exc)
            except Exception:
                log.exception("the supervisor stumbled, and goes on")
            self._ended.wait(_AWAY_S)

    def _beat(self) -> None:
        """Beat until Redis goes away or the agent ends."""
        while not self._ended.is_set():
            self.pulse = time.monotonic()
            self._agent.beat()
            self._ended.wait(self._agent.settings.heartbeat_s)

    def _see_to_duties(self) -> None:
        """Go round until Redis goes away or the agent ends."""
        pubsub = self._agent.store.subscribe()
        try:
            while not self._ended.is_set():
                started = time.monotonic()
                self._go_round()
                self._hear(pubsub, until=started + self._agent.settings.heartbeat_s)
        finally:
            pubsub.close()

    def _go_round(self) -> None:
        agent = self._agent
        for run_id, grace_s in agent.store.stops(list(agent.claims)).items():
            agent.request_stop(run_id, grace_s)
        agent.heed_wishes()
        self._adopt_orphans()
        agent.look_for_targets()
        for queue in list(agent.silent):
            self._listen_again(queue)
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP_S
            self.sweep()
            self._archive()

    def _archive(self) -> None:
        agent = self._agent
        for queue in agent.resources:
            with agent.store.turn(f"archive:{queue}", agent.id, for_s=_SWEEP_S) as mine:
                if mine:
                    older_than_s = agent.settings.retention_s
                    archive_old_runs(agent.store, agent.tools.artifacts, queue, older_than_s=older_than_s)

    def _hear(self, pubsub: Any, until: float) -> None:
        """Act on wake messages as they come, and compare messages with waiting runs every now and then."""
        while not self._ended.is_set():
            now = time.monotonic()
            if now >= self._next_reconcile:
                self._next_reconcile = now + self._agent.settings.reconcile_s
                self._reconcile()
            pause = min(until, self._next_reconcile) - time.monotonic()
            if now >= until:
                return
            message = pubsub.get_message(ignore_subscribe_messages=True, timeout=max(0.001, min(pause, 1.0)))
            if message:
                self._act(*str(message["data"]).partition(" ")[::2])

    def _act(self, what: str, name: str) -> None:
        agent = self._agent
        if what == "stop" and name in agent.claims:
            for run_id, grace_s in agent.store.stops([name]).items():
                agent.request_stop(run_id, grace_s)
        elif what == "queue" and name in agent.silent:
            self._listen_again(name)
        elif what == "agent" and name == agent.id:
            agent.heed_wishes()
        elif what == "orphan":
            run_id, _, released_by = name.partition(" ")
            # What this agent let go of itself, because it stumbled, it takes up again with the next beat, not at once.
            if released_by != agent.id:
                self._adopt(run_id)

    def _listen_again(self, queue: str) -> None:
        if self._agent.store.gives_out(queue):
            self._agent.listen_again(queue)

    def _reconcile(self) -> None:
        for queue in self._agent.resources:
            self._agent.store.promote(queue)
            reconcile(self._agent.store, self._agent.intake, queue, self._agent.id)

    # --- orphans and leftovers ----------------------------------------------------------------------------------------

    def _adopt_orphans(self) -> None:
        agent = self._agent
        if agent.is_draining:
            return
        living: set[str] | None = None
        unknown = set()
        for queue in agent.resources:
            for run_id, owner in agent.store.owners(queue).items():
                if run_id in agent.claims:
                    continue
                if owner == agent.id:
                    # The answer to a claim may be on its way; two beats later it was lost.
                    unknown.add(run_id)
                    if run_id not in self._unknown:
                        continue
                elif owner is not None:
                    living = living or agent.store.living(dead_after_s=agent.settings.dead_after_s)
                    if owner in living:
                        continue
                self._adopt(run_id)
        self._unknown = unknown

    def _adopt(self, run_id: str) -> None:
        try:
            if not self._agent.is_draining:
                self._agent.adopt(run_id)
        except NotFoundError:
            log.info("run %s: is no more", run_id)

    def sweep(self) -> None:
        """Remove what ended runs of this installation have left at the targets."""
        for runner in self._agent.runners.values():
            try:
                found = runner.find()
            except LaunchError as exc:
                log.info("target %s: not swept: %s", runner.name, exc)
                continue
            for name, handle in found.items():
                run_id, _, attempt = name.removeprefix(f"launch-{self._agent.installation}-").rpartition("-")
                if self._is_leftover(run_id, attempt):
                    log.info("target %s: removing %s, whose run has ended", runner.name, name)
                    runner.stop(handle, 0)
                    runner.remove(handle)

    def _is_leftover(self, run_id: str, attempt: str) -> bool:
        agent = self._agent
        records = agent.store.records([run_id])
        if run_id in agent.claims or not agent.lease.is_valid:
            return False
        if not records:
            return True
        ended_at = records[0].ended_at
        is_old = attempt.isdigit() and int(attempt) < records[0].attempt
        return is_old or (ended_at is not None and agent.store.now() - ended_at > _LEFTOVER_AFTER_S)
