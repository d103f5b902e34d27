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
from launch.errors import NewerVersionError, NotFoundError, TemporaryError
from launch.fleet_store import Wakes
from launch.models import RunRecord
from launch.plugins import Runner
from workers.agent import Agent
from workers.caches import tidy_code, tidy_venvs
from workers.logs import run_of_log
from workers.reconcile import reconcile

log = logging.getLogger(__name__)

_AWAY_S = 0.5
_LAST_BEAT_S = 0.5


class Supervisor:
    """Beats an agent's heart and sees to its duties until stopped."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._ended = threading.Event()
        self._next_reconcile = 0.0
        self._next_sweep = time.monotonic() + agent.settings.sweep_s
        self._unknown: set[str] = set()
        self._newer: set[str] = set()
        self._threads = [
            threading.Thread(target=self._keep_up, args=(work,), name=name, daemon=True)
            for name, work in (("heart", self._beat), ("duties", self._see_to_duties))
        ]
        self.pulse = time.monotonic()
        """When the heart last tried to beat, for whoever watches it."""

    def start(self) -> None:
        """Begin, with a first beat."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End with the step under way. The heart ends first, so that no late beat brings the agent back."""
        self._ended.set()
        self._threads[0].join(_LAST_BEAT_S)

    def _keep_up(self, work: Callable[[], None]) -> None:
        while not self._ended.is_set():
            _attempt(work)
            self._ended.wait(_AWAY_S)

    def _beat(self) -> None:
        """Beat until Redis goes away or the agent ends."""
        while not self._ended.is_set():
            self.pulse = time.monotonic()
            self._agent.beat()
            self._ended.wait(self._agent.settings.heartbeat_s)

    def _see_to_duties(self) -> None:
        """Go round until Redis goes away or the agent ends."""
        wakes = self._agent.store.subscribe()
        try:
            while not self._ended.is_set():
                started = time.monotonic()
                self._go_round()
                self._hear(wakes, until=started + self._agent.settings.heartbeat_s)
        finally:
            wakes.close()

    def _go_round(self) -> None:
        """Do each duty once; one that fails keeps none of the others from being done."""
        agent = self._agent
        for duty in (
            self._pass_on_stops,
            agent.let_go_of_lost,
            agent.heed_wishes,
            self._adopt_orphans,
            agent.settle,
            agent.targets.look_for_lost,
            agent.listen_again,
        ):
            _attempt(duty)
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + agent.settings.sweep_s
            _attempt(self.sweep)
            _attempt(self._tidy_caches)
            _attempt(self._archive)

    def _pass_on_stops(self) -> None:
        for run_id, grace_s in self._agent.store.stops(list(self._agent.claims)).items():
            self._agent.request_stop(run_id, grace_s)

    def _archive(self) -> None:
        agent = self._agent
        for queue in agent.resources:
            with agent.store.turn(f"archive:{queue}", agent.id, for_s=agent.settings.sweep_s) as mine:
                if mine:
                    older_than_s = agent.settings.retention_s
                    archive_old_runs(agent.store, agent.tools.artifacts, queue, older_than_s=older_than_s)

    def _hear(self, wakes: Wakes, until: float) -> None:
        """Act on wake messages as they come, and compare messages with waiting runs every now and then."""
        while not self._ended.is_set():
            now = time.monotonic()
            if now >= self._next_reconcile:
                self._next_reconcile = now + self._agent.settings.reconcile_s
                self._reconcile()
            pause = min(until, self._next_reconcile) - time.monotonic()
            if now >= until:
                return
            said = wakes.hear(max(0.001, min(pause, 1.0)))
            if said:
                what, _, name = said.partition(" ")
                _attempt(self._act, what, name)

    def _act(self, what: str, name: str) -> None:
        agent = self._agent
        if what == "stop" and name in agent.claims:
            self._pass_on_stops()
        elif what == "queue" and name in agent.silent:
            agent.listen_again()
        elif what == "agent" and name == agent.id:
            agent.heed_wishes()
        elif what == "orphan":
            run_id, _, released_by = name.partition(" ")
            # What this agent let go of itself, because it stumbled, it takes up again with the next beat, not at once.
            if released_by != agent.id:
                self._adopt(run_id)

    def _reconcile(self) -> None:
        for queue in self._agent.resources:
            _attempt(self._reconcile_one, queue)

    def _reconcile_one(self, queue: str) -> None:
        self._agent.store.promote(queue)
        reconcile(self._agent.store, self._agent.intake, queue, self._agent.id)

    # --- orphans and leftovers ----------------------------------------------------------------------------------------

    def _adopt_orphans(self) -> None:
        agent = self._agent
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
            self._agent.adopt(run_id)
        except NotFoundError:
            log.info("run %s: is no more", run_id)
        except NewerVersionError as exc:
            # Each round meets it again.
            if run_id not in self._newer:
                self._newer.add(run_id)
                log.warning("not adopted: %s", exc)

    def sweep(self) -> None:
        """Remove what ended runs of this installation have left at the targets and in the launch home."""
        for runner in self._agent.targets.runners():
            _attempt(self._sweep_target, runner)
        for path in (self._agent.settings.home / "logs").glob("*.jsonl"):
            for record in self._agent.store.records([run_of_log(path)]):
                if self._is_over(record) and record.log_archive is not None:
                    path.unlink(missing_ok=True)

    def _tidy_caches(self) -> None:
        settings = self._agent.settings
        unused_s = settings.cache_days * 86_400
        code = tidy_code(settings.home / "cache" / "code", max_bytes=settings.cache_gb * 1e9, unused_s=unused_s)
        venvs = tidy_venvs(settings.home / "venvs", unused_s=unused_s, in_use=self._agent.store.images_in_use)
        if code or venvs:
            log.info("removed what was unused for long: %d snapshots, %d environments", len(code), len(venvs))

    def _sweep_target(self, runner: Runner) -> None:
        for name, handle in runner.find().items():
            run_id, _, attempt = name.removeprefix(f"launch-{self._agent.tools.installation}-").rpartition("-")
            if self._is_leftover(run_id, attempt, runner, handle):
                log.info("target %s: removing %s, whose run has ended", runner.name, name)
                runner.stop(handle, 0)
                runner.remove(handle)

    def _is_leftover(self, run_id: str, attempt: str, runner: Runner, handle: str) -> bool:
        agent = self._agent
        try:
            record = agent.store.record(run_id)
        except NotFoundError:
            record = None
        except NewerVersionError:
            return False
        if run_id in agent.claims or not agent.lease.is_valid:
            return False
        if record is not None:
            is_old = attempt.isdigit() and int(attempt) < record.attempt
            return is_old or self._is_over(record)
        # Nothing is known of its run: it may have ended long ago, or Redis may have lost what it knew. A job that runs
        # is never ended on such a suspicion.
        return runner.status([handle])[handle].is_final

    def _is_over(self, record: RunRecord) -> bool:
        """Whether a run ended a while ago."""
        ended_at = record.ended_at
        return ended_at is not None and self._agent.store.now() - ended_at > self._agent.settings.leftover_s


def _attempt(duty: Callable[..., None], *args: Any) -> None:
    try:
        duty(*args)
    except TemporaryError as exc:
        log.warning("%s", exc)
    except Exception:
        log.exception("the supervisor stumbled, and goes on")
