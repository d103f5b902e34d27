"""Whether the broker keeps what openlaunch promises: persistence, memory, answers in time. Reads only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import ResponseError

from launch.connection import masked
from launch.durations import duration
from launch.errors import LaunchError
from launch.findings import Check, Finding
from launch.forecast import quantile
from launch.servers import MINIMUM
from launch.store import RunStore

_PINGS = 100
_SLOW_S = 0.05
_FULL = 0.85
_CLOCK_S = 2.0
_IN_CONF = "and write the same into its configuration file, or it is forgotten with the next restart"


@dataclass(frozen=True)
class BrokerFacts:
    """What a Redis says of itself."""

    url: str
    """Without its password."""
    info: Mapping[str, Any]
    """``INFO``"""
    config: Mapping[str, str] = field(default_factory=dict)
    """``CONFIG GET``; empty where it is not allowed, as with most hosted ones."""
    pings_s: tuple[float, ...] = ()
    clock_ahead_s: float = 0.0
    """How far its clock is ahead of this machine's."""

    @property
    def name(self) -> str:
        """``redis 7.2.4``"""
        valkey = self.info.get("valkey_version")
        return f"valkey {valkey}" if valkey else f"redis {self.info.get('redis_version', '?')}"

    @property
    def version(self) -> tuple[int, ...]:
        """The Redis version whose commands it understands."""
        digits = [part for part in str(self.info.get("redis_version", "0")).split(".")[:2] if part.isdigit()]
        return tuple(int(part) for part in digits)

    @property
    def has_aof(self) -> bool:
        """Whether every write is written to disk."""
        return bool(int(self.info.get("aof_enabled", 0)))

    @property
    def fsync(self) -> str | None:
        """``always``, ``everysec`` or ``no``; none: not known."""
        return self.config.get("appendfsync")


def broker_warnings(store: RunStore) -> list[str]:
    """Return what makes this Redis break a promise, for whoever begins to rely on it; a sentence or two each.

    Never fails: a Redis that will not say gets no warning here, and one that is away is somebody else's to report.
    """
    try:
        facts = _said(store)
    except LaunchError:
        return []
    return [str(finding) for finding in broker_findings(facts) if finding.voids_promise]


def read_broker(store: RunStore) -> BrokerFacts:
    """Return what a Redis says of itself, and how fast it answers."""
    pings = [_timed_ping(store) for _ in range(_PINGS)]
    sent = time.time()
    theirs = store.now()
    ahead = theirs - (sent + time.time()) / 2
    said = _said(store)
    return BrokerFacts(said.url, said.info, said.config, tuple(pings), ahead)


def _timed_ping(store: RunStore) -> float:
    sent = time.perf_counter()
    store.redis.ping()
    return time.perf_counter() - sent


def _said(store: RunStore) -> BrokerFacts:
    info = dict(store.redis.info())
    try:
        config = {key: str(value) for key, value in store.redis.config_get("append*", "save").items()}
    except (LaunchError, ResponseError):  # not allowed, renamed away or unknown
        config = {}
    return BrokerFacts(masked(store.redis.launch_url), info, config)


# --- judging ----------------------------------------------------------------------------------------------------------


def check_broker(facts: BrokerFacts) -> Check:
    """Return what there is to say of a broker."""
    p99 = f", p99 of {len(facts.pings_s)} pings {quantile(facts.pings_s, 0.99) * 1000:.1f} ms" if facts.pings_s else ""
    said = f"{facts.name} at {facts.url}{p99}; {_promise(facts)}"
    return Check("broker", said, tuple(broker_findings(facts)))


def _promise(facts: BrokerFacts) -> str:
    if not facts.has_aof:
        return "writes are not kept one by one"
    kept = {
        "always": "appendfsync always: nothing is lost, not even with the machine's power",
        "everysec": "appendfsync everysec: its death loses nothing, a power cut up to the last second or two",
        "no": "appendfsync no: its death loses nothing, a power cut up to half a minute",
    }
    return kept.get(facts.fsync or "", "append-only file on (it does not say how often that is synced)")


def broker_findings(facts: BrokerFacts) -> list[Finding]:
    """Return what is wrong with a broker."""
    return [*_kind(facts), *_persistence(facts), *_memory(facts), *_answers(facts)]


def _kind(facts: BrokerFacts) -> list[Finding]:
    found = []
    needed = ".".join(map(str, MINIMUM))
    if facts.version < MINIMUM:
        found.append(
            Finding(
                f"The broker is {facts.name}.",
                f"The scripts need version {needed} or newer: older ones refuse some of them.",
                f"install Redis or Valkey {needed} or newer, and name it in LAUNCH_BROKER_URL",
            )
        )
    if facts.info.get("role") == "slave":
        found.append(
            Finding(
                "The broker is a replica.",
                "It takes no writes, so nothing can be enqueued.",
                f"name its primary in LAUNCH_BROKER_URL: {facts.info.get('master_host')}:"
                f"{facts.info.get('master_port')}",
                voids_promise=True,
            )
        )
    if int(facts.info.get("cluster_enabled", 0)):
        found.append(
            Finding(
                "The broker is a Redis Cluster.",
                "One script touches keys that a cluster keeps on several machines, and is refused there.",
                "name a Redis without cluster mode in LAUNCH_BROKER_URL",
            )
        )
    return found


def _persistence(facts: BrokerFacts) -> list[Finding]:
    found = []
    if not facts.has_aof:
        saves = facts.config.get("save")
        what = "nothing is kept on disk" if saves == "" else "only a snapshot is kept on disk, now and then"
        lost = "everything since the start" if saves == "" else "all since the last snapshot"
        found.append(
            Finding(
                f"Redis has no append-only file: {what}.",
                f"When it restarts, {lost} is lost, runs in the queue too, and jobs that run are forgotten.",
                f"{_cli(facts.url)} CONFIG SET appendonly yes, {_IN_CONF}",
                voids_promise=True,
            )
        )
    elif facts.fsync == "no":
        found.append(
            Finding(
                "Redis leaves it to the system when its append-only file reaches the disk (appendfsync no).",
                "A power cut may lose the last half minute: runs enqueued, started and ended in it.",
                f"{_cli(facts.url)} CONFIG SET appendfsync everysec, {_IN_CONF}",
                voids_promise=True,
            )
        )
    for field_name, what in (
        ("aof_last_write_status", "the append-only file"),
        ("aof_last_bgrewrite_status", "the new append-only file"),
        ("rdb_last_bgsave_status", "the last snapshot"),
    ):
        if facts.info.get(field_name, "ok") != "ok":
            found.append(
                Finding(
                    f"Redis could not write {what} ({field_name}: {facts.info[field_name]}).",
                    "Until it can, it may refuse every write, and lose what is not on disk.",
                    "make room on the disk of its data folder (df -h), and look into its log",
                )
            )
    return found


def _memory(facts: BrokerFacts) -> list[Finding]:
    info, found = facts.info, []
    limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "noeviction"))
    if limit and policy != "noeviction":
        what = "agents' records" if policy.startswith("volatile") else "waiting runs, records and logs"
        found.append(
            Finding(
                f"Redis throws keys away when it is full (maxmemory-policy {policy}).",
                f"It would delete {what} without a word.",
                f"{_cli(facts.url)} CONFIG SET maxmemory-policy noeviction, {_IN_CONF}",
                voids_promise=True,
            )
        )
    whole = limit or int(info.get("total_system_memory", 0))
    used = int(info.get("used_memory", 0))
    if whole and used > _FULL * whole:
        what = "maxmemory" if limit else "the machine's memory"
        found.append(
            Finding(
                f"Redis uses {used / 1e6:,.0f} MB, {used / whole:.0%} of {what}.",
                "When it is full it refuses to enqueue; runs at work go on, yet cannot be recorded.",
                f"{_cli(facts.url)} CONFIG SET maxmemory {2 * whole}, or let ended runs leave it sooner "
                "(LAUNCH_RETENTION_S)"
                if limit
                else "let ended runs leave it sooner (LAUNCH_RETENTION_S), or give the machine more",
            )
        )
    return found


def _answers(facts: BrokerFacts) -> list[Finding]:
    found = []
    if facts.pings_s and (p99 := quantile(facts.pings_s, 0.99)) > _SLOW_S:
        found.append(
            Finding(
                f"Redis answers slowly: the 99th percentile of {len(facts.pings_s)} pings is {p99 * 1000:.0f} ms.",
                "Each step of a run asks it several times, and heartbeats may come late.",
                f"{_cli(facts.url)} --latency, {_cli(facts.url)} SLOWLOG GET 5; or bring the two nearer to each other",
            )
        )
    if abs(facts.clock_ahead_s) > _CLOCK_S:
        which = "ahead of" if facts.clock_ahead_s > 0 else "behind"
        found.append(
            Finding(
                f"Redis' clock is {duration(abs(facts.clock_ahead_s))} {which} this machine's.",
                "No decision depends on it, but times in a job's own log do not match those of the run.",
                "timedatectl set-ntp true, on both machines",
            )
        )
    return found


def _cli(url: str) -> str:
    """Return the command that reaches the same Redis by hand."""
    parts = urlsplit(url)
    if parts.scheme in ("redis+socket", "unix", "socket"):
        return f"redis-cli -s {parts.path}"
    return f"redis-cli -u {url}" if parts.scheme in ("redis", "rediss") else "redis-cli"
