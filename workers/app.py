"""The agent as a Celery worker: ``celery -A workers.app worker -P threads -Q launch.gpu-box``, or ``launch agent``.

The task is a doorbell that takes milliseconds: it claims a run and hands it to a thread of the agent. Three things
join the agent to the worker: a step makes it and lets it go, a step puts its slots before the broker's ``BRPOP``, and a
signal takes the slot at the moment a message arrives, before the next one can.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from celery import Celery, bootsteps, signals
from celery.worker.consumer.tasks import Tasks

from launch.broker import RECORDED, TASK_NAME, celery_queue, launch_queue, make_app
from launch.chaos.fault_points import fault_points
from launch.embedded import broker_url
from launch.errors import ConfigError, LaunchError
from launch.models import parse
from launch.settings import settings
from launch.store import RunStore
from workers.agent import Agent
from workers.config import ENV_CONFIG, AgentConfig
from workers.supervise import Supervisor

log = logging.getLogger(__name__)


class CeleryDoorbells:
    """Steers the worker's consumer from any thread, through its event loop."""

    def __init__(self) -> None:
        self._consumer: Any = None
        self.ticked_at = time.monotonic()
        """When the event loop last went round."""

    def attach(self, consumer: Any) -> None:
        """Follow a consumer; there is a new one after each reconnection."""
        self._consumer = consumer
        consumer.hub.on_tick.add(self._tick)

    def _tick(self) -> None:
        self.ticked_at = time.monotonic()

    def listen(self, queue: str) -> None:
        """Take messages of the queue."""
        self._call(lambda: self._consumer.add_task_queue(celery_queue(queue)))

    def silence(self, queue: str) -> None:
        """Take none of its messages for now."""
        self._call(lambda: self._consumer.cancel_task_queue(celery_queue(queue)))

    def wake(self) -> None:
        """Look again whether a slot is free: the loop would notice at its next turn only, up to a second later."""
        self._call(lambda: None)

    def _call(self, call: Any) -> None:
        if self._consumer is not None and self._consumer.hub is not None:
            self._consumer.hub.call_soon(call)


class AgentStep(bootsteps.StartStopStep):
    """Makes the agent with the worker, and lets it go with it."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        worker.agent = None
        self._supervisor: Supervisor | None = None

    def create(self, worker: Any) -> None:
        """Make the agent; what is wrong with its configuration ends the worker."""
        try:
            agent = self._make(worker)
        except LaunchError as exc:
            raise SystemExit(f"error: {exc}") from exc
        agent.doorbells = CeleryDoorbells()
        worker.agent = worker.app.agent = agent

    def _make(self, worker: Any) -> Agent:
        store = RunStore.connect(worker.app.launch_url, timeout_s=settings().connect_timeout_s)
        raw = os.environ.get(ENV_CONFIG)
        if raw:
            config, id = AgentConfig.model_validate_json(raw), worker.hostname.partition("@")[0]
        else:
            config, id = _config_from_options(worker), None
        return Agent(config, settings(), store, id=id, at_step=fault_points(os.environ) or _at_step)

    def start(self, worker: Any) -> None:
        """Let the agent's heart beat."""
        self._supervisor = worker.agent_supervisor = Supervisor(worker.agent)
        self._supervisor.start()

    def stop(self, worker: Any) -> None:
        """Let go of the runs; their jobs go on."""
        if self._supervisor is not None:
            self._supervisor.stop()
            worker.agent.detach()

    def terminate(self, worker: Any) -> None:
        """The same when the worker is in a hurry."""
        self.stop(worker)


class SlotGate(bootsteps.StartStopStep):
    """Puts the agent's slots before each ``BRPOP``; anew after each reconnection, since the channel is a new one."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        """Join the consumer to the agent."""
        agent: Agent = consumer.controller.agent
        assert isinstance(agent.doorbells, CeleryDoorbells)
        agent.doorbells.attach(consumer)
        consumer.task_consumer.channel.qos.can_consume = lambda: agent.has_room
        for queue in agent.silent:
            consumer.cancel_task_queue(celery_queue(queue))


def _config_from_options(worker: Any) -> AgentConfig:
    queues = [launch_queue(name) for name in worker.app.amqp.queues.consume_from]
    if None in queues:
        raise ConfigError(f"-Q: name launch queues, as in -Q {celery_queue('local')}")
    return parse(AgentConfig, {"queues": queues, "max_jobs": worker.concurrency}, where="worker")


def _at_step(step: str, run_id: str) -> None:
    log.debug("run %s: %s", run_id, step)


def _take_slot(sender: Any = None, **_: Any) -> None:
    agent = getattr(sender.controller, "agent", None)
    if agent is not None:
        agent.slots.take()


signals.task_received.connect(_take_slot, weak=False)


def build_app(url: str) -> Celery:
    """Return the Celery app of an agent."""
    celery: Any = make_app(url)
    # Not `conf.broker_url`, which is what kombu makes of it.
    celery.launch_url = url
    celery.steps["worker"].add(AgentStep)
    celery.steps["consumer"].add(SlotGate)

    @celery.task(name=TASK_NAME, bind=True, ignore_result=True)  # type: ignore[untyped-decorator]
    def run(task: Any, /, spec: Any = None, **_: Any) -> None:
        request = task.request
        agent: Agent = task.app.agent
        queue = launch_queue(request.delivery_info["routing_key"])
        agent.ring(queue or "", spec, task_id=request.id, is_recorded=bool(getattr(request, RECORDED, None)))

    return celery  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    """Make ``app`` when Celery asks for it: to import this module starts and connects nothing."""
    if name == "app":
        return build_app(broker_url(settings()))
    raise AttributeError(name)
