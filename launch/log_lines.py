"""How an agent and the server log: lines for people on a terminal, JSON for programs otherwise.

Every line says what it is about: run, attempt, queue, agent. A thread that works on a run says so once, with
:func:`about`; threads that it starts by :func:`thread_about` go on saying so.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

from launch.errors import ConfigError

FORMATS = ("auto", "text", "json")
_TEXT = "%(asctime)s %(levelname)-7s %(message)s"

_about: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("about", default=MappingProxyType({}))
_always: dict[str, Any] = {}


@contextmanager
def about(**what: Any) -> Iterator[None]:
    """Have every line of a block say what it is about, besides what it says already."""
    token = _about.set({**_about.get(), **what})
    try:
        yield
    finally:
        _about.reset(token)


def thread_about(target: Callable[..., object], *args: Any, name: str | None = None) -> threading.Thread:
    """Return a daemon thread, not started, whose lines are about what those of this thread are."""
    context = contextvars.copy_context()
    return threading.Thread(target=context.run, args=(target, *args), name=name, daemon=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, logger, message, what it is about, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        line |= {**_always, **_about.get()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_logging(wanted: str = "auto", *, stream: TextIO | None = None, **always: Any) -> None:
    """Send this process's log to a stream, standard error by default.

    Args:
        wanted: ``text``, ``json``, or ``auto``: text if the stream is a terminal.
        stream: where to.
        always: what every line is about: ``agent="gpu-box-1a2b3c"``.

    Raises:
        ConfigError: there is no such format.
    """
    if wanted not in FORMATS:
        raise ConfigError(f"LAUNCH_LOG_FORMAT: should be one of {', '.join(FORMATS)}, not {wanted!r}")
    out = stream or sys.stderr
    is_text = wanted == "text" or (wanted == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter(_TEXT) if is_text else JsonFormatter())
    _always.clear()
    _always.update(always)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
