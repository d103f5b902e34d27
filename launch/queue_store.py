"""Queues in Redis: their settings, how much is in them, and the messages that Celery carries for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from launch.broker import encode_bell, encode_request, message_lists
from launch.checking import did_you_mean
from launch.errors import ConflictError, NotFoundError
from launch.models import SCHEMA_VERSION, QueueSpec
from launch.records import QueueCounts
from launch.scripted import P, Scripted

WAKE_CHANNEL = f"{P}wake"
_SETS = ("waiting", "held", "delayed", "active")
_PAGE = 500


class QueueStore(Scripted):
    """Queues; a part of :class:`launch.store.RunStore`."""

    def create_queue(self, spec: QueueSpec) -> QueueSpec:
        """Make a queue; making the same one again changes nothing.

        Raises:
            ConflictError: there is one of that name with other settings.
        """
        if self._run("create_queue", spec.name, spec.model_dump_json(exclude={"paused"}), *_queue_fields(spec)) == "OK":
            return spec
        existing = self.queue(spec.name)
        if existing.model_copy(update={"paused": spec.paused}) != spec:
            raise ConflictError(f"queue {spec.name!r} exists with other settings; see `launch queue show {spec.name}`")
        return existing

    def update_queue(self, spec: QueueSpec) -> QueueSpec:
        """Give a queue new settings; queued runs keep the resource config they were enqueued with.

        Args:
            spec: the settings, with the version they were read with. A changed ``config``, template variable or
                override rule makes it the next version.

        Raises:
            NotFoundError: there is no such queue.
            ConflictError: somebody else changed it meanwhile, or the target resource would be another.
        """
        before = self.queue(spec.name)
        if spec.resource != before.resource:
            raise ConflictError(
                f"queue {spec.name!r} is of resource {before.resource!r} and stays so; make another queue for "
                f"{spec.resource!r}"
            )
        version = before.version + (_versioned(spec) != _versioned(before))
        after = spec.model_copy(update={"version": version, "paused": before.paused})
        fields = _queue_fields(after)
        text = after.model_dump_json(exclude={"paused"})
        if self._run("update_queue", spec.name, spec.version, text, *fields) != "OK":
            raise ConflictError(f"queue {spec.name!r} was changed by somebody else at this moment; try again")
        return after

    def delete_queue(self, name: str) -> None:
        """Delete a queue that holds no runs.

        Raises:
            NotFoundError: there is no such queue.
            ConflictError: there are runs in it.
        """
        self.queue(name)
        answer, _, inside = self._run("delete_queue", name).partition(" ")
        if answer == "INUSE":
            raise ConflictError(f"queue {name!r} holds {inside} run(s); `launch stop --queue {name} --all` stops them")

    def queue(self, name: str) -> QueueSpec:
        """Return a queue's settings.

        Raises:
            NotFoundError: there is none of that name; the message lists those there are.
        """
        raw = self.redis.hmget(f"{P}queue:{name}", "spec", "paused")
        if raw[0] is None:
            known = sorted(self.redis.smembers(f"{P}queues"))
            hint = did_you_mean(name, known) or "; there are none yet: `launch queue create NAME --resource process`"
            raise NotFoundError(f"no queue {name!r}{hint}")
        return QueueSpec.model_validate_json(raw[0]).model_copy(update={"paused": raw[1] == "1"})

    def queues(self) -> list[QueueSpec]:
        """Return all queues, by name."""
        names = sorted(self.redis.smembers(f"{P}queues"))
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(f"{P}queue:{name}", "spec", "paused")
            found = pipe.execute()
        return [
            QueueSpec.model_validate_json(spec).model_copy(update={"paused": paused == "1"})
            for spec, paused in found
            if spec
        ]

    def queue_config(self, name: str, version: int) -> dict[str, Any]:
        """Return the resource config a queue had at a version.

        Raises:
            NotFoundError: it never had that version.
        """
        raw = self.redis.hget(f"{P}queue:{name}", f"config:{version}")
        if raw is None:
            raise NotFoundError(f"queue {name!r} has no config version {version}")
        return dict(json.loads(raw))

    def queue_at(self, name: str, version: int) -> QueueSpec:
        """Return a queue with the resource config, template variables and override rule it had at a version."""
        config = self.queue_config(name, version)
        kept = self.redis.hmget(f"{P}queue:{name}", f"overrides:{version}", f"template_variables:{version}")
        rule, variables = (json.loads(text) if text else None for text in kept)
        then = {"config": config, "overrides": rule or "safe", "template_variables": variables or {}}
        return QueueSpec.model_validate({**self.queue(name).model_dump(), **then})

    def set_paused(self, name: str, paused: bool) -> None:
        """Let a queue give out no more runs, or let it again.

        Raises:
            NotFoundError: there is none of that name.
        """
        self.queue(name)
        self.redis.hset(f"{P}queue:{name}", "paused", "1" if paused else "0")
        self.redis.publish(WAKE_CHANNEL, f"queue {name}")

    def gives_out(self, queue: str) -> bool:
        """Return whether a claim would not be blocked now."""
        paused, limit = self.redis.hmget(f"{P}queue:{queue}", "paused", "max_concurrent")
        if paused == "1" or (limit and self.redis.zcard(f"{P}queue:{queue}:active") >= int(limit)):
            return False
        return not self.has_newer_head(queue)

    def has_newer_head(self, queue: str) -> bool:
        """Return whether the next run of a queue was written by a later version of openlaunch."""
        head = self.redis.zrange(f"{P}queue:{queue}:waiting", 0, 0)
        return bool(head) and int(self.redis.hget(f"{P}run:{head[0]}", "schema") or 1) > SCHEMA_VERSION

    def counts(self, names: Iterable[str]) -> dict[str, QueueCounts]:
        """Return ``{queue: QueueCounts}``."""
        names = list(names)
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                for kind in _SETS:
                    pipe.zcard(f"{P}queue:{name}:{kind}")
            sizes = pipe.execute()
        return {name: QueueCounts(*sizes[i * 4 : i * 4 + 4]) for i, name in enumerate(names)}

    def oldest(self, names: Iterable[str]) -> dict[str, float]:
        """Return ``{queue: Unix time}`` at which the run that is next in each was enqueued; none for an empty queue."""
        names = list(names)
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.zrange(f"{P}queue:{name}:waiting", 0, 0)
            heads = {name: head[0] for name, head in zip(names, pipe.execute(), strict=True) if head}
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in heads.values():
                pipe.hget(f"{P}run:{run_id}", "created_at")
            found = pipe.execute()
        return {name: float(at) for name, at in zip(heads, found, strict=True) if at is not None}

    # --- messages and waiting runs, compared -------------------------------------------------------------------------

    def messages(self, queue: str) -> tuple[int, int]:
        """Return how many messages a queue's lists hold, and how many runs wait: the same, but for a moment."""
        # No transaction: a Redis that is full refuses even reads in one, and a moment's difference does no harm.
        with self.redis.pipeline(transaction=False) as pipe:
            for name in message_lists(queue):
                pipe.llen(name)
            pipe.zcard(f"{P}queue:{queue}:waiting")
            *lengths, waiting = pipe.execute()
        return sum(lengths), waiting

    def ring_missing(self, queue: str) -> int:
        """Add the messages a queue is short of; returns how many."""
        messages, waiting = self.messages(queue)
        if messages >= waiting:
            return 0
        # Whose messages they are does not matter: receiving one means claiming the head.
        heads = self.redis.zrange(f"{P}queue:{queue}:waiting", 0, min(waiting - messages, _PAGE) - 1)
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in heads:
                pipe.hget(f"{P}run:{run_id}", "spec")
            specs = pipe.execute()
        bells = [encode_bell(run_id, queue, spec) for run_id, spec in zip(heads, specs, strict=True) if spec]
        return int(self._run("ring", queue, *bells))

    def peek(self, queue: str, limit: int = 20_000) -> Iterator[tuple[str, str]]:
        """Yield ``(list, message)`` of what waits in a queue's lists, the next to be received first."""
        for name in message_lists(queue):
            for start in range(1, limit + 1, _PAGE):
                page = self.redis.lrange(name, -(start + _PAGE - 1), -start)
                yield from ((name, message) for message in reversed(page))
                if len(page) < _PAGE:
                    break

    def put_back(self, queue: str, spec: Any, *, task_id: str | None) -> None:
        """Put a request that was received back as the next to be received."""
        self.redis.rpush(message_lists(queue)[0], encode_request(task_id, queue, spec))

    def take_message(self, name: str, message: str) -> bool:
        """Remove one message from a list; false when it is no longer there."""
        return bool(self.redis.lrem(name, -1, message))

    def waiting_among(self, queue: str, run_ids: Sequence[str]) -> set[str]:
        """Return those of the runs that wait in the queue."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.zscore(f"{P}queue:{queue}:waiting", run_id)
            return {run_id for run_id, score in zip(run_ids, pipe.execute(), strict=True) if score is not None}


def _versioned(spec: QueueSpec) -> tuple[Any, ...]:
    """Return what a queued run keeps as it was."""
    return (spec.config, spec.template_variables, spec.overrides)


def _queue_fields(spec: QueueSpec) -> list[Any]:
    fields = {
        "version": spec.version,
        f"config:{spec.version}": json.dumps(spec.config, sort_keys=True),
        f"overrides:{spec.version}": json.dumps(spec.overrides),
        f"template_variables:{spec.version}": _variables_text(spec),
        "max_concurrent": spec.max_concurrent or "",
    }
    return [item for pair in fields.items() for item in pair]


def _variables_text(spec: QueueSpec) -> str:
    """Return the template variables as JSON; none: an empty text, which keeps no field."""
    variables = {
        name: item.model_dump(mode="json", exclude_defaults=True) for name, item in spec.template_variables.items()
    }
    return json.dumps(variables) if variables else ""
