"""What the engine says of a container, as a :class:`~launch.plugins.Status`. No I/O, no SDK here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from launch.models import CauseKind
from launch.plugins import Phase, Status

GONE = Status(Phase.GONE, message="the engine has no such container")

_NEVER = "0001-01-01"
_NOT_EXECUTED = (126, 127)
_INIT_FAILED = re.compile(r"\[FATAL tini|failed to exec pid1|exec .* failed")


def was_started(inspected: Mapping[str, Any]) -> bool:
    """Whether the container's job has ever begun."""
    state = inspected["State"]
    return state["Status"] != "created" and not str(state.get("StartedAt", _NEVER)).startswith(_NEVER)


def listed_status(listed: Mapping[str, Any]) -> Status | None:
    """Return the status that a container list tells; none: it has to be looked at."""
    state = listed["State"]
    if state in ("running", "paused", "restarting"):
        return Status(Phase.RUNNING)
    return None


def status_of(inspected: Mapping[str, Any], last_words: Callable[[], str]) -> Status:
    """Return an inspected container's status.

    Args:
        inspected: the engine's answer to ``GET /containers/{id}/json``.
        last_words: gives the last line on stderr; asked only when the command seems not to have been found.
    """
    state = inspected["State"]
    if state["Status"] in ("running", "paused", "restarting"):
        return Status(Phase.RUNNING)
    if state["Status"] == "created":
        return _created(state)
    return _ended(inspected, state, last_words)


def _created(state: Mapping[str, Any]) -> Status:
    if not state.get("Error"):
        return Status(Phase.STARTING)
    return Status(Phase.ENDED, cause=CauseKind.CONFIG, message=f"the container cannot start: {state['Error']}")


def _ended(inspected: Mapping[str, Any], state: Mapping[str, Any], last_words: Callable[[], str]) -> Status:
    code = int(state["ExitCode"])
    signal = code - 128 if 128 < code <= 128 + 64 else None
    if state.get("OOMKilled") and code != 0:
        return Status(Phase.ENDED, code, signal, CauseKind.OOM, _out_of_memory(inspected))
    if code in _NOT_EXECUTED and _INIT_FAILED.search(words := last_words()):
        return Status(Phase.ENDED, code, None, CauseKind.CONFIG, f"the command cannot be started: {words}")
    return Status(Phase.ENDED, code, signal, message=str(state.get("Error") or ""))


def _out_of_memory(inspected: Mapping[str, Any]) -> str:
    limit = int(inspected.get("HostConfig", {}).get("Memory") or 0)
    if not limit:
        return "the machine ran out of memory, and a process of the job was killed"
    return f"the job used more than its memory limit of {_size(limit)}, and was killed; raise 'memory'"


def _size(count: int) -> str:
    for unit, factor in (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.4g}{unit}"
    return f"{count} bytes"
