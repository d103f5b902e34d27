"""Does to a world what a schedule says, and undoes what is to last a while only."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from launch.broker import decode_message, message_lists
from launch.chaos.agents import AgentProcess, thaw
from launch.chaos.engine import Engine, PrivateEngine
from launch.chaos.load import Load
from launch.chaos.plan import Fault, FaultKind
from launch.chaos.world import World
from launch.errors import LaunchError, TemporaryError

_AGAIN_S = 0.5
"""When a fault that finds no victim is tried again."""


class Injector:
    """Carries out faults when they are due. One thread calls it, again and again.

    A fault that finds nothing to hurt just now (no agent alive, Redis down already) is tried again until it does.
    """

    def __init__(self, world: World, load: Load, faults: list[Fault]) -> None:
        self.done: Counter[FaultKind] = Counter()
        self.done_at_step: Counter[str] = Counter()
        self._world = world
        self._load = load
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], bool]]] = []
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._armed: Counter[str] = Counter()
        self._dice = random.Random(world.options.seed + 2)  # noqa: S311
        self._redis_is_away = False
        self.skipped: Counter[FaultKind] = Counter()
        """Faults this machine cannot have."""
        self._began = time.monotonic()
        self._log = (world.folder / "faults.log").open("a", buffering=1)
        for fault in faults:
            if fault.kind in self._impossible():
                self.skipped[fault.kind] += 1
            else:
                heapq.heappush(self._due, (fault.at_s, next(self._order), self._bound(fault)))

    def _impossible(self) -> set[FaultKind]:
        engine, found = self._world.engine, set()
        if engine is None:
            found |= {FaultKind.KILL_DOCKER, FaultKind.REMOVE_JOB}
        elif not engine.may_be_killed:
            found.add(FaultKind.KILL_DOCKER)
        if not self._world.store_is_small:
            found.add(FaultKind.FILL_DISK)
        return found

    def _bound(self, fault: Fault) -> Callable[[], bool]:
        return lambda: self._inject(fault)

    def step(self) -> None:
        """Do and undo what is due."""
        now = time.monotonic() - self._began
        while self._undo and self._undo[0][0] <= now:
            heapq.heappop(self._undo)[2]()
        for _ in range(len(self._due)):
            if not self._due or self._due[0][0] > now:
                break
            _, _, inject = heapq.heappop(self._due)
            if not inject():
                heapq.heappush(self._due, (now + _AGAIN_S, next(self._order), inject))
        self._count_armed()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, to undo, or to wait for."""
        return not (self._due or self._undo or any(self._armed.values()))

    @property
    def left(self) -> str:
        """What is still to come, for people."""
        waiting = [step for step, count in self._armed.items() for _ in range(count)]
        return f"{len(self._due)} faults to come, armed: {' '.join(waiting) or 'none'}"

    def close(self) -> None:
        """Undo everything that lasts, now, and give up what is left."""
        while self._undo:
            heapq.heappop(self._undo)[2]()
        for step in self._armed:
            (self._world.folder / "armed" / step).unlink(missing_ok=True)
        self._count_armed()
        self._due.clear()
        self._log.close()

    def note(self, text: str) -> None:
        """Write down what was done, and when."""
        if not self._log.closed:
            self._log.write(f"{time.time():.3f} {text}\n")

    # --- one fault ----------------------------------------------------------------------------------------------------

    def _inject(self, fault: Fault) -> bool:
        """Do it; false when it has to wait."""
        if self._redis_is_away and fault.kind in _NEEDS_REDIS:
            return False
        try:
            said = _DEEDS[fault.kind](self, fault)
        except (LaunchError, OSError) as exc:
            self.note(f"not now: {fault.kind}: {exc}")
            return False
        if said is None:
            return False
        if fault.kind is not FaultKind.KILL_AT_STEP:
            self.done[fault.kind] += 1
        self.note(f"{fault.kind}: {said}")
        return True

    def _later(self, seconds: float, note: str, undo: Callable[[], None]) -> None:
        def undo_and_note() -> None:
            undo()
            self.note(note)

        at_s = time.monotonic() - self._began + seconds
        heapq.heappush(self._undo, (at_s, next(self._order), undo_and_note))

    def _victim(self, luck: float) -> AgentProcess | None:
        with_worker = [agent for agent in self._world.agents if agent.worker is not None]
        return with_worker[int(luck * len(with_worker))] if with_worker else None

    def _kill_worker(self, fault: Fault) -> str | None:
        agent = self._victim(fault.luck)
        return agent.name if agent and agent.kill_worker() else None

    def _kill_parent(self, fault: Fault) -> str | None:
        agent = self._victim(fault.luck)
        return agent.name if agent and agent.kill_parent() else None

    def _kill_both(self, fault: Fault) -> str | None:
        agent = self._victim(fault.luck)
        return agent.name if agent and agent.kill_both() else None

    def _kill_at_step(self, fault: Fault) -> str | None:
        assert fault.step is not None
        path = self._world.folder / "armed" / fault.step
        if path.exists():
            return None
        self._count_armed()
        temporary = path.with_name(f".{fault.step}")
        temporary.write_text("both" if fault.luck < 0.4 else "worker")
        temporary.rename(path)
        self._armed[fault.step] += 1
        return f"armed: {fault.step}"

    def _count_armed(self) -> None:
        """See which armed steps have taken their victim."""
        for taken in (self._world.folder / "armed").glob("[a-z]*.*.*"):
            step, pid, run_id = taken.name.split(".")
            taken.unlink()
            self._armed[step] -= 1
            self.done[FaultKind.KILL_AT_STEP] += 1
            self.done_at_step[step] += 1
            self.note(f"{FaultKind.KILL_AT_STEP}: {step} of {run_id}, worker {pid}")

    def _freeze_agent(self, fault: Fault) -> str | None:
        agent = self._victim(fault.luck)
        pid = agent.freeze() if agent else None
        if agent is None or pid is None:
            return None
        self._later(fault.lasts_s, f"continued: {agent.name}", lambda: thaw(pid))
        return f"{agent.name} for {fault.lasts_s:g} s"

    def _restart_agent(self, fault: Fault) -> str | None:
        agent = self._victim(fault.luck)
        return agent.name if agent and agent.terminate() else None

    # --- Redis --------------------------------------------------------------------------------------------------------

    def _kill_redis(self, fault: Fault) -> str | None:
        redis = self._world.redis
        if not redis.answers():
            return None
        redis.kill()
        self._redis_is_away = True
        self._later(fault.lasts_s, "Redis started", lambda: self._bring_redis_back(redis.start))
        return f"for {fault.lasts_s:g} s"

    def _freeze_redis(self, fault: Fault) -> str | None:
        redis = self._world.redis
        if not redis.answers():
            return None
        redis.freeze()
        self._redis_is_away = True
        self._later(fault.lasts_s, "Redis continued", lambda: self._bring_redis_back(redis.thaw))
        return f"for {fault.lasts_s:g} s"

    def _bring_redis_back(self, how: Callable[[], None]) -> None:
        how()
        self._redis_is_away = False

    def _cut_connections(self, fault: Fault) -> str | None:  # noqa: ARG002
        cut = 0
        for kind in ("normal", "pubsub"):
            cut += int(self._world.store.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
        return f"{cut} of them"

    def _copy_bells(self, fault: Fault) -> str | None:
        found = self._bells()
        if not found:
            return None
        name, bell = found[int(fault.luck * len(found))]
        self._world.store.redis.lpush(name, bell, bell)
        return f"one of {name}, twice more"

    def _swallow_bells(self, fault: Fault) -> str | None:
        found = self._bells()
        first = int(fault.luck * len(found))
        swallowed = sum(int(self._world.store.redis.lrem(name, -1, bell)) for name, bell in found[first : first + 3])
        return f"{swallowed}" if swallowed else None

    def _bells(self) -> list[tuple[str, str]]:
        """Return ``[(list, message)]`` of our own that wait, up to twenty a queue."""
        names = [message_lists(queue.name)[0] for queue in self._world.queues]
        found = [(name, raw) for name in names for raw in self._world.store.redis.lrange(name, -20, -1)]
        return [(name, raw) for name, raw in found if _is_ours(raw)]

    # --- targets and users --------------------------------------------------------------------------------------------

    def _kill_docker(self, fault: Fault) -> str | None:
        engine = self._world.engine
        if not isinstance(engine, PrivateEngine) or not engine.answers():
            return None
        self._world.engine_kills.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        engine.kill()
        live_restore = fault.luck < 0.5
        self._later(fault.lasts_s, "Docker engine started", lambda: engine.start(live_restore=live_restore))
        return f"for {fault.lasts_s:g} s, then {'with' if live_restore else 'without'} live-restore"

    def _kill_job(self, fault: Fault) -> str | None:
        found: list[tuple[str, Callable[[], bool]]] = [
            (f"wrapper {pid} of {name}", _killer(pid)) for name, pid in wrappers(self._world.folder / "home")
        ]
        engine = self._world.engine
        if engine is not None:
            with suppress(OSError, TemporaryError):
                states = engine.containers(self._world.store.installation())
                running = [container for container, state in states.items() if state == "running"]
                found += [(f"container {item[:12]}", _container_killer(engine, item)) for item in running]
        return self._do_one(found, fault.luck)

    def _remove_job(self, fault: Fault) -> str | None:
        engine = self._world.engine
        if engine is None:
            return None
        containers = list(engine.containers(self._world.store.installation()))
        if not containers:
            return None
        victim = containers[int(fault.luck * len(containers))]
        return victim[:12] if engine.remove_container(victim) else None

    def _do_one(self, found: list[tuple[str, Callable[[], bool]]], luck: float) -> str | None:
        if not found:
            return None
        name, do = found[int(luck * len(found))]
        return name if do() else None

    def _fill_disk(self, fault: Fault) -> str | None:
        if not self._world.fill_store():
            return None
        self._later(fault.lasts_s, "artifact store freed", self._world.free_store)
        return f"for {fault.lasts_s:g} s"

    def _stop_run(self, fault: Fault) -> str | None:
        known = list(self._load.known.acknowledged)[-60:]
        records = {run.id: run for run in self._world.store.records(known)}
        open_runs = [run_id for run_id, run in records.items() if not run.state.is_final and run.stop is None]
        if not open_runs:
            return None
        run_id = open_runs[int(fault.luck * len(open_runs))]
        # Noted before it is asked for: the answer may be lost, and the stop not.
        self._load.known.stopped.add(run_id)
        self._world.store.request_stop(run_id, by="chaos", grace_s=self._dice.choice((0.5, 2.0)))
        return f"{run_id}, {records[run_id].state}"


def wrappers(home: Path) -> list[tuple[str, int]]:
    """Return ``[(attempt name, pid)]`` of the process target's wrappers that live, in order of name."""
    found = []
    for started in sorted(home.glob("process/launch-*/started")):
        with suppress(OSError, ValueError, KeyError):
            pid = int(json.loads(started.read_text())["pid"])
            if str(started.parent) in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                found.append((started.parent.name, pid))
    return found


def _killer(pid: int) -> Callable[[], bool]:
    def kill() -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    return kill


def _container_killer(engine: Engine, container: str) -> Callable[[], bool]:
    return lambda: engine.kill_container(container)


def _is_ours(raw: str) -> bool:
    message = decode_message(raw)
    return message is not None and message.is_recorded


_NEEDS_REDIS = frozenset(
    {
        FaultKind.CUT_CONNECTIONS,
        FaultKind.COPY_BELLS,
        FaultKind.SWALLOW_BELLS,
        FaultKind.KILL_JOB,
        FaultKind.REMOVE_JOB,
        FaultKind.STOP_RUN,
    }
)
"""To ask a Redis that does not answer would hold up the faults that are due, its own return among them."""

_DEEDS: dict[FaultKind, Callable[[Injector, Fault], str | None]] = {
    FaultKind.KILL_WORKER: Injector._kill_worker,
    FaultKind.KILL_PARENT: Injector._kill_parent,
    FaultKind.KILL_BOTH: Injector._kill_both,
    FaultKind.KILL_AT_STEP: Injector._kill_at_step,
    FaultKind.FREEZE_AGENT: Injector._freeze_agent,
    FaultKind.RESTART_AGENT: Injector._restart_agent,
    FaultKind.KILL_REDIS: Injector._kill_redis,
    FaultKind.FREEZE_REDIS: Injector._freeze_redis,
    FaultKind.CUT_CONNECTIONS: Injector._cut_connections,
    FaultKind.KILL_DOCKER: Injector._kill_docker,
    FaultKind.KILL_JOB: Injector._kill_job,
    FaultKind.REMOVE_JOB: Injector._remove_job,
    FaultKind.FILL_DISK: Injector._fill_disk,
    FaultKind.COPY_BELLS: Injector._copy_bells,
    FaultKind.SWALLOW_BELLS: Injector._swallow_bells,
    FaultKind.STOP_RUN: Injector._stop_run,
}
