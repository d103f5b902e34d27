"""Who is there: the installation, its agents, the tracking server, and whose turn it is at a shared duty."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from launch.metrics import STATS, Series, read_stats
from launch.queue_store import WAKE_CHANNEL
from launch.records import AgentRecord, Wishes, agent_from_hash
from launch.run_events import worker_event
from launch.scripted import P, Scripted

_SERVER_TTL_S = 10


class Wakes:
    """A subscription to what agents are told at once; what it misses is seen at their next round."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._pubsub = self._redis.pubsub()
        with self._redis.translated():
            self._pubsub.subscribe(WAKE_CHANNEL)

    def hear(self, timeout_s: float) -> str | None:
        """Return the next message, or none when there is none in that time.

        Raises:
            BrokerAwayError: Redis is away.
        """
        with self._redis.translated():
            message = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=timeout_s)
        return str(message["data"]) if message else None

    def close(self) -> None:
        """End it."""
        self._pubsub.close()


class FleetStore(Scripted):
    """Agents and the server; a part of :class:`launch.store.RunStore`."""

    def installation(self) -> str:
        """Return eight hex digits, made once, that tell this installation's things at a target from another's."""
        return self._made_once(f"{P}installation", secrets.token_hex(4))

    def artifact_key(self) -> str:
        """Return what the server asks of whoever reads or writes blobs: made once, and never shown to a job."""
        return self._made_once(f"{P}artifact-key", secrets.token_hex(32))

    def _made_once(self, key: str, value: str) -> str:
        # Read first: whoever may only read gets it too.
        if not self.redis.exists(key):
            self.redis.set(key, value, nx=True)
        return str(self.redis.get(key))

    def now(self) -> float:
        """Return Redis' time in Unix seconds: the only clock that counts."""
        seconds, micros = self.redis.time()
        return float(seconds + micros / 1e6)

    def subscribe(self) -> Wakes:
        """Return a subscription to the wake channel: ``stop <run>``, ``queue <name>``, ``orphan <run> <agent>``."""
        return Wakes(self.redis)

    @contextmanager
    def turn(self, duty: str, agent: str, for_s: float) -> Iterator[bool]:
        """Give one agent at a time the turn at a duty, for so long at most: yields whether it is this one's."""
        key = f"{P}turn:{duty}"
        mine = bool(self.redis.set(key, agent, nx=True, px=int(for_s * 1000)))
        try:
            yield mine
        finally:
            if mine and self.redis.get(key) == agent:
                self.redis.delete(key)

    def heartbeat(self, agent: str, fields: Mapping[str, Any], *, gap_s: float, event: str | None = None) -> None:
        """Say that an agent lives. A longer gap than ``gap_s`` between two makes it wait before it adopts again.

        Args:
            agent: its id.
            fields: what it says of itself.
            gap_s: in seconds.
            event: what is told to whoever listens, see :func:`launch.run_events.worker_event`.
        """
        flat = [item for name, value in fields.items() for item in (name, json.dumps(value))]
        self._run("heartbeat", agent, gap_s, event or worker_event(), *flat)

    def forget_agent(self, agent: str) -> None:
        """Take an agent that went of its own will off the list."""
        self._run("forget_agent", agent)

    def wish(self, agent: str, *, max_jobs: int | None = None, drain: bool = False) -> None:
        """Ask a living agent for another number of slots, or to end when its runs have; it hears of it at once."""
        fields = {"wished_max_jobs": max_jobs, "wished_drain": int(drain) or None}
        self.redis.hset(f"{P}agent:{agent}", mapping={key: value for key, value in fields.items() if value is not None})
        self.redis.publish(WAKE_CHANNEL, f"agent {agent}")

    def wishes(self, agent: str) -> Wishes:
        """Return what an agent has been asked for."""
        max_jobs, drain = self.redis.hmget(f"{P}agent:{agent}", "wished_max_jobs", "wished_drain")
        return Wishes(int(max_jobs) if max_jobs else None, drain == "1")

    def last_seen(self, agent: str) -> float | None:
        """Return when an agent's heart last beat, in Redis' time."""
        beat = self.redis.zscore(f"{P}agents", agent)
        return None if beat is None else float(beat)

    def living(self, *, dead_after_s: float) -> set[str]:
        """Return the agents that have been seen within so many seconds."""
        return set(self.redis.zrange(f"{P}agents", self.now() - dead_after_s, "+inf", byscore=True))

    def agents(self, *, dead_after_s: float = 10.0) -> list[AgentRecord]:
        """Return the agents that have been seen, the living first, then by name."""
        beats = self.redis.zrange(f"{P}agents", 0, -1, withscores=True)
        with self.redis.pipeline(transaction=False) as pipe:
            for agent, _ in beats:
                pipe.hgetall(f"{P}agent:{agent}")
            hashes = pipe.execute()
        now = self.now()
        found = [
            agent_from_hash(agent, raw, beat, is_alive=now - beat < dead_after_s)
            for (agent, beat), raw in zip(beats, hashes, strict=True)
            if raw.get("name")
        ]
        living = Counter(agent.name for agent in found if agent.is_alive)
        found = [replace(agent, has_namesake=agent.is_alive and living[agent.name] > 1) for agent in found]
        return sorted(found, key=lambda agent: (not agent.is_alive, agent.name, -agent.heartbeat_at))

    def stats(self) -> dict[str, list[Series]]:
        """Return what has been counted since the installation was made, see :mod:`launch.metrics`."""
        return read_stats(self.redis.hgetall(STATS))

    def announce_server(self, urls: Sequence[str]) -> None:
        """Say where the tracking server listens; to be said again every three seconds."""
        self.redis.set(f"{P}server", json.dumps(list(urls)), ex=_SERVER_TTL_S)

    def withdraw_server(self) -> None:
        """Say that the tracking server ends."""
        self.redis.delete(f"{P}server")

    def server_urls(self) -> list[str]:
        """Return where the tracking server listens; empty when none is up."""
        raw = self.redis.get(f"{P}server")
        return list(json.loads(raw)) if raw else []
