"""The agent as a Celery worker: ``celery -A workers.app worker -P threads -Q launch.gpu-box``, or ``launch agent``.

A message is a doorbell: the worker acknowledges it and the agent claims the head of its queue. Three things join the
agent to the worker: a step makes it and lets it go, a step puts its slots before the broker's ``BRPOP``, and the task's
strategy answers each message as it arrives. Celery's pool has nothing to do.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any

from celery import Celery, bootsteps
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker.consumer.tasks import Tasks

import workers.control  # noqa: F401 - its commands take the place of Celery's
from launch.broker import TASK_NAME, celery_queue, launch_queue, make_app, read_message
from launch.chaos.fault_points import fault_points
from launch.checking import parse
from launch.embedded import broker_url
from launch.errors import ConfigError, LaunchError
from launch.settings import settings
from launch.store import RunStore
from workers.agent import Agent
from workers.config import ENV_CONFIG, AgentConfig
from workers.dashboard import set_up_flower
from workers.redact import redact_logging
from workers.supervise import Supervisor

log = logging.getLogger(__name__)


class CeleryDoorbells:
    """Steers the worker's consumer from any thread, through its event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._consumer: Any = None
        self.ticked_at = time.monotonic()
        """When the event loop last went round."""

    def attach(self, consumer: Any) -> None:
        """Follow a consumer; there is a new one after each reconnection."""
        self._consumer = consumer
        consumer.hub.on_tick.add(self._tick)
        self._match()

    def _tick(self) -> None:
        self.ticked_at = time.monotonic()

    def look_again(self) -> None:
        """Listen to the queues that are not silent, and look for a free slot: at once, not at the loop's next turn."""
        hub = getattr(self._consumer, "hub", None)
        if hub is not None:
            hub.call_soon(self._match)

    def _match(self) -> None:
        """Make the consumer's queues those the agent wants now; saying so twice, or in any order, comes to the same."""
        for queue in self._agent.resources:
            name = celery_queue(queue)
            listens = self._consumer.task_consumer.consuming_from(name)
            if listens and queue in self._agent.silent:
                self._consumer.cancel_task_queue(name)
            elif not listens and queue not in self._agent.silent:
                self._consumer.add_task_queue(name)


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
            if not issubclass(worker.pool_cls, ThreadPool):
                raise ConfigError("-P: should be threads; the agent carries its runs in this process")
            worker.agent = self._make(worker)
        except LaunchError as exc:
            print(f"error: {exc}", file=sys.stderr)
            raise SystemExit(exc.exit_code) from exc
        worker.agent.doorbells = CeleryDoorbells(worker.agent)
        redact_logging(worker.agent.redaction)
        # The agent's own heartbeat says what Celery's would, and knows the runs; agents know each other by the record.
        worker.options.update(without_heartbeat=True, without_gossip=True, without_mingle=True)

    def _make(self, worker: Any) -> Agent:
        store = RunStore.connect(worker.app.launch_url, timeout_s=settings().connect_timeout_s)
        raw = os.environ.get(ENV_CONFIG)
        if raw:
            config, id = AgentConfig.model_validate_json(raw), worker.hostname.partition("@")[0]
        else:
            config, id = _config_from_options(worker), None
        return Agent(
            config, settings(), store, id=id, nodename=worker.hostname, at_step=fault_points(os.environ) or _at_step
        )

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
    """Joins each consumer to the agent; there is a new one, with a new channel, after each reconnection."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        """Put the agent's slots before each ``BRPOP``, and keep what is no message from ending the worker."""
        agent: Agent = consumer.controller.agent
        assert isinstance(agent.doorbells, CeleryDoorbells)
        channel = consumer.task_consumer.channel
        channel.qos.can_consume = lambda: agent.has_room
        channel.handlers["BRPOP"] = _dropping_junk(channel.handlers["BRPOP"])
        channel.connection._deliver = _addressed(channel.connection._deliver)
        agent.doorbells.attach(consumer)


def _dropping_junk(read: Any) -> Any:
    def read_or_drop() -> Any:
        try:
            return read()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            log.warning("dropped what is no Celery message from a queue: %s: %s", type(exc).__name__, exc)
            return None

    return read_or_drop


def _addressed(deliver: Any) -> Any:
    """Note on each message the queue it was received from: what its sender wrote there may be anything."""

    def deliver_addressed(message: Any, queue: str) -> Any:
        message["properties"]["delivery_info"] = {"exchange": "", "routing_key": queue}
        return deliver(message, queue)

    return deliver_addressed


def _doorbell(_task: Any, _app: Any, consumer: Any) -> Any:
    """Answer messages here instead of in Celery's pool, whatever eta, expiry or arguments they have.

    This is a Celery strategy: what it returns is called in the event loop with each message.
    """
    agent: Agent = consumer.controller.agent

    def on_message(message: Any, *_: Any) -> None:
        # Taken before the loop's next BRPOP, so that the next message stays where it is when this was the last slot.
        agent.slots.take()
        queue = launch_queue(message.delivery_info["routing_key"])
        said = read_message(message.headers, message.body, message.content_type)

        def ack() -> None:
            message.ack_log_error(log, consumer.connection_errors)

        if said.is_recorded:
            ack()
        # What comes from outside is acknowledged once it is on record, in the event loop, whose the channel is.
        ack_later = (lambda: None) if said.is_recorded else (lambda: consumer.hub.call_soon(ack))
        threading.Thread(target=agent.ring, args=(queue, said, ack_later), name="doorbell", daemon=True).start()

    return on_message


def _config_from_options(worker: Any) -> AgentConfig:
    queues = [launch_queue(name) for name in worker.app.amqp.queues.consume_from]
    if None in queues:
        raise ConfigError(f"-Q: name launch queues, as in -Q {celery_queue('local')}")
    return parse(AgentConfig, {"queues": queues, "max_jobs": worker.concurrency}, where="worker")


def _at_step(step: str, run_id: str) -> None:
    log.debug("run %s: %s", run_id, step)


def build_app(url: str) -> Celery:
    """Return the Celery app of an agent."""
    celery: Any = make_app(url)
    # Not `conf.broker_url`, which is what kombu makes of it.
    celery.launch_url = url
    celery.steps["worker"].add(AgentStep)
    celery.steps["consumer"].add(SlotGate)
    set_up_flower(celery)

    @celery.task(name=TASK_NAME, Strategy=staticmethod(_doorbell), ignore_result=True)  # type: ignore[untyped-decorator]
    def run(*_: Any, **__: Any) -> None:
        """Nothing: its strategy answers before Celery would call it."""

    return celery  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    """Make ``app`` when Celery asks for it: to import this module starts and connects nothing."""
    if name == "app":
        return build_app(broker_url(settings()))
    raise AttributeError(name)
