"""An installation for chaos alone, below one folder: Redis, launch home, artifact store, agents, Docker engine.

::

    redis/ home/ artifacts/ docker/    what their names say; the artifact store is a small file system where possible
    ledger/ledger                      what jobs write, see launch.chaos.ledger
    armed/                             steps at which the next agent to come dies, see launch.chaos.fault_points
    gates/                             files that let the jobs of the slot probe end
    <agent>.log  faults.log  load.log  what agents said, what was done to them, and what was enqueued, with times
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.chaos.agents import AgentProcess
from launch.chaos.engine import IMAGE, Engine, PrivateEngine, why_no_private_engine
from launch.chaos.fault_points import ENV_FAULT
from launch.chaos.ledger import ENV_LEDGER
from launch.chaos.plan import ChaosOptions
from launch.chaos.redis_server import RedisServer
from launch.client import Client
from launch.errors import LaunchError
from launch.models import RetryPolicy, RetryRule
from launch.queue_spec import queue_spec
from launch.settings import read_settings
from launch.store import RunStore

QUICK = {
    "LAUNCH_HEARTBEAT_S": "0.5",
    "LAUNCH_DEAD_AFTER_S": "2.5",
    "LAUNCH_RECONCILE_S": "1",
    "LAUNCH_CONNECT_TIMEOUT_S": "3",
    "LAUNCH_SWEEP_S": "5",
    "LAUNCH_LEFTOVER_S": "10",
}
"""Short lives, so that it all fits in minutes; the code is the same."""

_STORE_BYTES = "48m"


@dataclass(frozen=True)
class QueuePlan:
    """A queue of the world."""

    name: str
    resource: str
    priorities: bool = False
    max_concurrent: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)


_AT_ONCE = RetryPolicy(host_lost=RetryRule(times=2), error=RetryRule(times=1), backoff_s=0.0)
_AFTER_A_PAUSE = RetryPolicy(host_lost=RetryRule(times=2), error=RetryRule(times=1), backoff_s=1.5)

PROCESS_QUEUES = (
    QueuePlan("fifo", "process"),
    QueuePlan("classes", "process", priorities=True, retry=_AT_ONCE),
    QueuePlan("narrow", "process", max_concurrent=3),
)
DOCKER_QUEUES = (
    QueuePlan("boxes", "docker", priorities=True, retry=_AT_ONCE),
    QueuePlan("few-boxes", "docker", max_concurrent=2, retry=_AFTER_A_PAUSE),
)

AGENTS = {
    "ada": (("fifo", "classes"), 3),
    "bob": (("fifo", "narrow"), 3),
    "cyd": (("classes", "narrow"), 2),
    "dan": (("boxes", "fifo"), 3),
    "eve": (("boxes", "few-boxes"), 2),
    "fay": (("few-boxes", "classes"), 2),
}
"""``{agent: (queues, slots)}``; each has a queue of its own besides, for the slot probe."""


def probe_queue(agent: str) -> str:
    """Return the queue that only one agent serves."""
    return f"only-{agent}"


class World:
    """Everything that chaos starts, and ends again."""

    def __init__(self, folder: Path, options: ChaosOptions, engine: Engine | None) -> None:
        self.folder = folder
        self.options = options
        self.engine = engine
        for name in ("ledger", "armed", "gates", "artifacts"):
            (folder / name).mkdir(mode=0o700)
        self.ledger = folder / "ledger" / "ledger"
        self.ledger.touch()
        self.redis = RedisServer(folder / "redis", fsync=options.fsync)
        self.store_is_small = False
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LAUNCH_", "CELERY_"))},
            **QUICK,
            "LAUNCH_HOME": str(folder / "home"),
            "LAUNCH_BROKER_URL": self.redis.url,
            "LAUNCH_ARTIFACTS": f"file://{folder}/artifacts",
            ENV_FAULT: f"armed:{folder}/armed",
            **({"DOCKER_HOST": engine.host} if engine else {}),
        }
        self.client = Client(settings=read_settings(self.environment))
        self.agents: list[AgentProcess] = []
        self.engine_kills: list[float] = []
        """When the Docker engine was killed, in seconds since the machine started, as in the ledger."""

    @property
    def store(self) -> RunStore:
        """The records."""
        return self.client.store

    @property
    def queues(self) -> list[QueuePlan]:
        """Those that get a load."""
        return [*PROCESS_QUEUES, *(DOCKER_QUEUES if self.engine else ())]

    def begin(self) -> None:
        """Start everything but the agents, and make the queues."""
        self.store_is_small = _mount_small(self.folder / "artifacts")
        self.redis.start()
        self.redis.wait_until_ready()
        if self.engine is not None:
            self.engine.start()
            self.engine.wait_until_ready()
            self.engine.load_image()
        for queue in self.queues:
            self._create(queue)
        for name, (queues, max_jobs) in AGENTS.items():
            served = [queue.name for queue in self.queues if queue.name in queues]
            if served:
                self._create(QueuePlan(probe_queue(name), "process"))
                self.agents.append(self._agent(name, [*served, probe_queue(name)], max_jobs))

    def _agent(self, name: str, queues: list[str], max_jobs: int) -> AgentProcess:
        return AgentProcess(name, queues, max_jobs, self.environment, self.folder / f"{name}.log")

    def _create(self, queue: QueuePlan) -> None:
        folder = self.ledger.parent
        config: dict[str, object] = {"env": {ENV_LEDGER: str(self.ledger)}}
        if queue.resource == "docker":
            config = {
                "env": [f"{ENV_LEDGER}=/ledger/{self.ledger.name}"],
                "volume": [f"{folder}:/ledger"],
                "network": "host",
                "pull": "never",
            }
        spec = queue_spec(
            queue.name,
            queue.resource,
            config=config,
            overrides="safe",
            priorities=queue.priorities,
            max_concurrent=queue.max_concurrent,
        )
        self.store.create_queue(spec.model_copy(update={"retry": queue.retry}))

    @property
    def image(self) -> str:
        """What container jobs run in."""
        return IMAGE

    def keep_alive(self) -> None:
        """Start again what has ended by itself or been killed: agents, and the Docker engine."""
        for agent in self.agents:
            agent.keep_alive()
        if self.engine is not None:
            self.engine.keep_alive()

    def fill_store(self) -> bool:
        """Leave no byte free in the artifact store; false where it is no file system of its own."""
        if not self.store_is_small:
            return False
        with (self.folder / "artifacts" / "ballast").open("wb") as ballast:
            try:
                while True:
                    ballast.write(b"\0" * 65536)
                    ballast.flush()
            except OSError:
                return True

    def free_store(self) -> None:
        """Give the room back."""
        (self.folder / "artifacts" / "ballast").unlink(missing_ok=True)

    def end(self) -> None:
        """End everything that was started."""
        self.redis.thaw()
        for agent in self.agents:
            agent.end()
        self.client.close()
        if self.engine is not None:
            self.engine.end()
        self.redis.stop()
        if self.store_is_small:
            subprocess.run(["umount", self.folder / "artifacts"], capture_output=True, check=False)

    def delete(self) -> None:
        """Delete its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def find_engine(folder: Path, environ: Mapping[str, str], *, private: bool = False) -> tuple[Engine | None, str]:
    """Return the engine for a world and a sentence on which it is; none with the reason.

    Args:
        folder: where a private one may live.
        environ: ``DOCKER_HOST`` names an existing one, which is never killed.
        private: start a private one even if this machine runs another.
    """
    if environ.get("DOCKER_HOST") and not private:
        try:
            engine = Engine(environ["DOCKER_HOST"])
        except LaunchError as exc:
            return None, str(exc)
        if not engine.answers():
            return None, f"the Docker engine at {engine.host} does not answer"
        return engine, f"Docker engine at {engine.host}, which is not ours to kill"
    reason = why_no_private_engine(beside_another=private)
    if reason is not None:
        return None, reason
    return PrivateEngine(folder / "docker"), "a Docker engine of its own"


def _mount_small(folder: Path) -> bool:
    """Put a small file system there, so that it can be full; false where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    words = ["mount", "-t", "tmpfs", "-o", f"size={_STORE_BYTES},mode=0700", "openlaunch-chaos", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
