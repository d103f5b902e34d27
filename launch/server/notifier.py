"""Tells hooks of ended runs and of queues without an agent: a thread of the tracking server.

How far each hook has been told is kept in Redis (``launch:notified:<hook>``), so that a restart loses none, and several
servers take turns. A hook is told at least once, in the order runs ended; one that does not answer holds up nobody
else, and is tried again with growing pauses until what it has missed is a day old.
"""

from __future__ import annotations

import http.client
import json
import logging
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launch.errors import LaunchError
from launch.models import RunRecord
from launch.notify import Hook, Notice, body_of, headers_of, no_agent, run_ended
from launch.scripted import P
from launch.store import RunStore

log = logging.getLogger(__name__)

ROUND_S = 2.0
NO_AGENT_AFTER_S = 120.0
_TIMEOUT_S = 10.0
_TURN_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 900.0
_TOO_OLD_S = 86_400.0


@dataclass
class _Progress:
    """How far a hook has been told, as Redis keeps it."""

    until: float
    """Runs that ended before are done with."""
    told: list[str] = field(default_factory=list)
    """Those that ended at that very moment and were told."""
    lonely: list[str] = field(default_factory=list)
    """Queues without an agent that were told of."""


class Notifier:
    """Tells the hooks until stopped.

    Args:
        store: the runs.
        hooks: whom to tell.
        no_agent_after_s: how long a queue with waiting runs may be without an agent.
    """

    def __init__(self, store: RunStore, hooks: Sequence[Hook], *, no_agent_after_s: float = NO_AGENT_AFTER_S) -> None:
        self._store = store
        self._hooks = hooks
        self._me = secrets.token_hex(8)
        self._no_agent_after_s = no_agent_after_s
        self._lonely_since: dict[str, float] = {}
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._serve, args=(hook,), daemon=True) for hook in hooks]

    def start(self) -> None:
        """Begin, each hook in a thread of its own."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End with the next step; nobody waits for a hook that does not answer."""
        self._ended.set()

    def _serve(self, hook: Hook) -> None:
        pause_s = ROUND_S
        while not self._ended.wait(pause_s):
            try:
                is_told = self._go_round(hook)
            except LaunchError as exc:
                log.warning("hook %s: %s", hook.name, exc)
                continue
            except Exception:
                log.exception("hook %s", hook.name)
                continue
            pause_s = ROUND_S if is_told else min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, pause_s * 2))

    def _go_round(self, hook: Hook) -> bool:
        """Tell a hook what is new; whether it could be told all of it."""
        with self._store.turn(f"notify:{hook.name}", self._me, for_s=_TURN_S) as mine:
            return self._tell_news(hook) if mine else True

    def _tell_news(self, hook: Hook) -> bool:
        progress = self._read(hook)
        turn_ends = time.monotonic() + _TURN_S / 2
        for record in self._news(hook, progress):
            assert record.ended_at is not None
            if hook.wants(record.state, record.spec.queue) and not self._send(hook, run_ended(record)):
                return False
            if record.ended_at > progress.until:
                progress.until, progress.told = record.ended_at, []
            progress.told.append(record.id)
            self._write(hook, progress)
            if time.monotonic() > turn_ends or self._ended.is_set():
                return True
        return self._tell_of_lonely(hook, progress)

    def _news(self, hook: Hook, progress: _Progress) -> Iterator[RunRecord]:
        """Yield the runs that have ended since, of all queues in the order of their ends."""
        names = hook.queues or [queue.name for queue in self._store.queues()]
        since = max(progress.until, self._store.now() - _TOO_OLD_S)
        found = [record for name in names for record in self._store.ended_since(name, since)]
        found.sort(key=lambda record: record.ended_at or 0.0)
        yield from (record for record in found if record.id not in progress.told)

    def _tell_of_lonely(self, hook: Hook, progress: _Progress) -> bool:
        lonely = self._lonely()
        for queue, waiting in lonely.items():
            if queue not in progress.lonely and hook.wants("no_agent", queue):
                if not self._send(hook, no_agent(queue, waiting)):
                    return False
                progress.lonely.append(queue)
                self._write(hook, progress)
        if any(queue not in lonely for queue in progress.lonely):
            progress.lonely = [queue for queue in progress.lonely if queue in lonely]
            self._write(hook, progress)
        return True

    def _lonely(self) -> dict[str, int]:
        """Return ``{queue: waiting runs}`` of those that have been without an agent for long enough."""
        served = {queue for agent in self._store.agents() if agent.is_alive for queue in agent.queues}
        names = [queue.name for queue in self._store.queues() if queue.name not in served and not queue.paused]
        waiting = {name: counts.waiting for name, counts in self._store.counts(names).items() if counts.waiting}
        now = time.monotonic()
        self._lonely_since = {name: self._lonely_since.get(name, now) for name in waiting}
        since = self._lonely_since
        return {name: count for name, count in waiting.items() if now - since[name] >= self._no_agent_after_s}

    # --- one message --------------------------------------------------------------------------------------------------

    def _send(self, hook: Hook, notice: Notice) -> bool:
        """Send a message; whether the hook is done with it. One that is refused for good is not sent again."""
        body = body_of(hook, notice)
        request = urllib.request.Request(hook.url, data=body, headers=headers_of(hook, body), method="POST")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310  # only http(s), see Hook
                return True
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code < 500 and exc.code not in (408, 425, 429):
                log.error("hook %s: refused a message for good: %d %s", hook.name, exc.code, exc.reason)
                return True
            log.warning("hook %s: %d %s; it is told again later", hook.name, exc.code, exc.reason)
        except (OSError, http.client.HTTPException) as exc:
            log.warning("hook %s: %s; it is told again later", hook.name, exc)
        return False

    def _read(self, hook: Hook) -> _Progress:
        raw = self._store.redis.get(f"{P}notified:{hook.name}")
        if raw is not None:
            return _Progress(**json.loads(raw))
        # A new hook hears of what happens from now on.
        progress = _Progress(until=self._store.now())
        self._write(hook, progress)
        return progress

    def _write(self, hook: Hook, progress: _Progress) -> None:
        self._store.redis.set(f"{P}notified:{hook.name}", json.dumps(vars(progress)))
