"""Whom to tell of ended runs and of queues without an agent, and in which words. Pure but for reading the file.

A file of hooks, which the tracking server reads (``LAUNCH_NOTIFY``)::

    hooks:
      - name: team
        url: "${secret:SLACK_URL}"
        format: slack
        events: [failed, crashed, no_agent]

A secret is a variable of the server's own environment.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, field_validator

from launch.checking import Model, parse
from launch.durations import duration
from launch.errors import ConfigError
from launch.models import Name, QueueName, RunRecord
from launch.secrets import render

Occasion = Literal["finished", "failed", "stopped", "crashed", "no_agent"]
SIGNATURE_HEADER = "X-Launch-Signature"

_LOG_LINES = 5


class Hook(Model):
    """Somewhere to send messages to."""

    name: Name
    """What its progress is kept under: a hook that is renamed begins anew, with what happens from then on."""
    url: str = Field(repr=False)
    """Where to POST: the address itself is often a secret, ``${secret:NAME}``."""
    format: Literal["webhook", "slack"] = "webhook"
    """``webhook``: all fields, as JSON. ``slack``: a text, as Slack and what imitates it take it."""
    events: tuple[Occasion, ...] = ("failed", "crashed", "no_agent")
    queues: tuple[QueueName, ...] | None = None
    """None: all."""
    key: str | None = Field(None, repr=False)
    """Signs each body with HMAC-SHA256, hexadecimal, in the header ``X-Launch-Signature: sha256=…``."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            # Not quoted: whoever has the URL can post there.
            raise ValueError("should be an http:// or https:// URL")
        return url

    def wants(self, occasion: str, queue: str) -> bool:
        """Whether it is to be told."""
        return occasion in self.events and (self.queues is None or queue in self.queues)


class Hooks(Model):
    """The file."""

    hooks: tuple[Hook, ...] = ()

    @field_validator("hooks")
    @classmethod
    def _have_their_own_names(cls, hooks: tuple[Hook, ...]) -> tuple[Hook, ...]:
        names = [hook.name for hook in hooks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two hooks are called {twice!r}; each needs a name of its own")
        return hooks


def read_hooks(path: Path, environ: Mapping[str, str]) -> tuple[Hook, ...]:
    """Return the hooks of a file, secrets filled in.

    Raises:
        ConfigError: it is not there, no YAML, or something in it is wrong; the message names the place.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"LAUNCH_NOTIFY: {path} cannot be read: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"LAUNCH_NOTIFY: {path} is no YAML: {exc}") from exc

    def secret(name: str) -> str:
        if not environ.get(name):
            raise ConfigError(f"{path}: the secret {name} is no variable of the server's environment")
        return environ[name]

    filled, _ = render(raw or {}, secret)
    return parse(Hooks, filled, where=str(path)).hooks


@dataclass(frozen=True)
class Notice:
    """Something that happened."""

    occasion: Occasion
    queue: str
    text: str
    """A sentence or two for people."""
    fields: Mapping[str, Any]
    """The same for programs, JSON types."""


def run_ended(record: RunRecord) -> Notice:
    """Return what there is to say of a run that has ended."""
    spec, cause = record.spec, record.cause
    took = ""
    if record.started_at is not None and record.ended_at is not None:
        took = f" after {duration(record.ended_at - record.started_at)}"
    why = "" if record.state == "finished" or cause is None else f": {cause.message}"
    text = f"Run {record.id} ({spec.title}) in queue {spec.queue} {_VERBS[record.state]}{took}{why}"
    tail = cause.log_tail[-_LOG_LINES:] if cause is not None and record.state in ("failed", "crashed") else ()
    fields = {
        "run": record.id,
        "name": spec.name,
        "job": spec.title,
        "project": spec.project,
        "author": spec.author,
        "state": str(record.state),
        "cause": None if cause is None else {"kind": str(cause.kind), "message": cause.message},
        "attempt": record.attempt,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "summary": record.summary,
        "log_tail": list(tail),
    }
    return Notice(record.state.value, spec.queue, text, fields)  # type: ignore[arg-type]  # an ended one's state


_VERBS = {"finished": "finished", "failed": "failed", "stopped": "was stopped", "crashed": "crashed"}


def no_agent(queue: str, waiting: int) -> Notice:
    """Return what there is to say of a queue that nobody serves."""
    runs = "1 run waits" if waiting == 1 else f"{waiting} runs wait"
    text = f"{runs} in queue {queue}, and no living agent serves it. To start one: launch agent -q {queue}"
    return Notice("no_agent", queue, text, {"waiting": waiting})


def body_of(hook: Hook, notice: Notice) -> bytes:
    """Return what is sent to a hook, JSON."""
    if hook.format == "slack":
        text = _escaped(notice.text)
        if notice.fields.get("log_tail"):
            text += "\n```" + _escaped("\n".join(notice.fields["log_tail"])) + "```"
        return json.dumps({"text": text}).encode()
    said = {"event": notice.occasion, "queue": notice.queue, "text": notice.text, **notice.fields}
    return json.dumps(said).encode()


def _escaped(text: str) -> str:
    # Source: https://docs.slack.dev/messaging/formatting-message-text#escaping
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")


def headers_of(hook: Hook, body: bytes) -> dict[str, str]:
    """Return the headers that go with a body."""
    headers = {"Content-Type": "application/json", "User-Agent": "openlaunch"}
    if hook.key is not None:
        headers[SIGNATURE_HEADER] = "sha256=" + hmac.new(hook.key.encode(), body, hashlib.sha256).hexdigest()
    return headers
