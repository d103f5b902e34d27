"""What a running job may write of its own record, and the environment that makes the wandb SDK write it here.

A job never sees Redis: it holds a key of 40 hex digits, made for one attempt, that the tracking server looks up. Every
write is one Lua script (``launch/scripts/tracking_*.lua``) that asks first whether that attempt is still the run's.

A run's history is that of its last attempt, unless the script resumes (``wandb.init(resume="allow")``): then the rows
go on behind those of the attempts before. Several processes may write one run, and one may call ``wandb.init`` twice:
each gets its own range of row numbers, :data:`WRITER_SPAN` apart, and all rows end up in one history as they come.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch.errors import LostClaimError
from launch.inputs import CONFIG_ENV, FILES_ENV, REPORT
from launch.models import GitSource, ImageSource, LaunchSpec
from launch.scripted import P, Scripted

log = logging.getLogger(__name__)

WRITER_SPAN = 1 << 32
"""Row numbers of writer n start at n times this; the SDK is told so when it starts, and numbers its rows from there."""

MAX_HISTORY_BYTES = 512 << 20
_SYSTEM_ROWS = 5000
_SYSTEM_COMPARE = 64
_MERGE_TRIES = 50
_MAX_DECLARED_BYTES = 256 << 10


class TrackingStore(Scripted):
    """The part of a run's record that belongs to its script.

    Every write returns whether the attempt is still the run's; false means its key is dead.
    """

    preludes = ("prelude", "tracking_guard")

    # --- keys ---------------------------------------------------------------------------------------------------------

    def issue_key(self, run_id: str, attempt: int, key: str | None = None) -> str:
        """Return a key of 40 hex digits that may write an attempt until the run ends: a new one if none is given.

        Raises:
            LostClaimError: the attempt is over or superseded.
        """
        key = key or secrets.token_hex(20)
        if not self._run("tracking_issue", run_id, attempt, _digest(key)):
            raise LostClaimError(f"run {run_id}: attempt {attempt} is over, it gets no key")
        return key

    def attempt_for_key(self, key: str) -> tuple[str, int] | None:
        """Return the ``(run id, attempt)`` that a key may write; none for an unknown or revoked one."""
        run_id, attempt = self.redis.hmget(f"{P}token:{_digest(key)}", "run", "attempt")
        return (run_id, int(attempt)) if run_id else None

    # --- writes -------------------------------------------------------------------------------------------------------

    def start(self, run_id: str, attempt: int, *, config: Mapping[str, Any] | None = None) -> bool:
        """Note that ``wandb.init`` was called, and what ``wandb.config`` is now (``None``: leave it)."""
        return self.begin(run_id, attempt, config=config) is not None

    def begin(self, run_id: str, attempt: int, *, config: Mapping[str, Any] | None = None) -> int | None:
        """Do as :meth:`start`, and return the number of the caller's first history row; none when refused."""
        text = "" if config is None else _compact(config)
        writer = self._run("tracking_start", run_id, attempt, text)
        return None if writer < 0 else writer * WRITER_SPAN

    def add_history(self, run_id: str, attempt: int, offset: int, rows: Sequence[str]) -> bool:
        """Add rows to the history; those already there are dropped, so a repeated post is safe.

        Args:
            run_id: the run.
            attempt: whose key it is.
            offset: number of the first row, counted from what :meth:`begin` returned.
            rows: JSON objects; an empty string is a row that was refused: counted, not kept.
        """
        writer, first = divmod(offset, WRITER_SPAN)
        left_out = self._run("tracking_rows", run_id, attempt, writer, first, MAX_HISTORY_BYTES, *rows)
        if left_out > 0:
            log.warning("run %s: its history has %d bytes, %d rows are left out", run_id, MAX_HISTORY_BYTES, left_out)
        return bool(left_out >= 0)

    def add_system(self, run_id: str, attempt: int, offset: int, rows: Sequence[str]) -> bool:
        """Add rows of system metrics, of which the newest 5000 or so are kept.

        ``offset`` is the SDK's number of the first row; rows are told apart by their time stamps instead, since two
        processes number theirs alike.
        """
        del offset
        return bool(self._run("tracking_system", run_id, attempt, _SYSTEM_ROWS, _SYSTEM_COMPARE, *rows) >= 0)

    def set_summary(self, run_id: str, attempt: int, summary: Mapping[str, Any]) -> bool:
        """Merge a summary into the run's, key by key: another process of the job may have reported others."""
        for _ in range(_MERGE_TRIES):
            held = self.redis.hget(f"{P}run:{run_id}", "summary") or ""
            merged = {**json.loads(held or "{}"), **summary}
            answer = self._run("tracking_set", run_id, attempt, "summary", held, _compact(merged))
            if answer:
                return bool(answer > 0)
        raise AssertionError(f"run {run_id}: its summary changed {_MERGE_TRIES} times under one write")

    def declare(self, run_id: str, attempt: int, add: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> bool | None:
        """Keep what the script declares of its job's inputs; ``add`` returns what is known with it. None: too much."""
        for _ in range(_MERGE_TRIES):
            held = self.redis.hget(f"{P}run:{run_id}", "declared") or ""
            text = _compact(add(json.loads(held or "{}")))
            if len(text) > _MAX_DECLARED_BYTES:
                return None
            answer = self._run("tracking_set", run_id, attempt, "declared", held, text)
            if answer:
                return bool(answer > 0)
        raise AssertionError(f"run {run_id}: its declarations changed {_MERGE_TRIES} times under one write")

    def declared(self, run_id: str) -> dict[str, Any]:
        """Return what the script has declared of its job's inputs: see :mod:`launch.job_types`."""
        return dict(json.loads(self.redis.hget(f"{P}run:{run_id}", "declared") or "{}"))

    def exit(self, run_id: str, attempt: int, exit_code: int) -> bool:
        """Note the exit code that the SDK reports. The run's end is its target's to tell, not the script's."""
        held = self.redis.hget(f"{P}run:{run_id}", "reported_exit") or ""
        return bool(self._run("tracking_set", run_id, attempt, "reported_exit", held, exit_code) >= 0)

    def resume(self, run_id: str, attempt: int) -> bool:
        """Keep the history of the attempts before, as the script asked."""
        held = self.redis.hget(f"{P}run:{run_id}", "resumed") or ""
        return bool(self._run("tracking_set", run_id, attempt, "resumed", held, attempt) >= 0)

    def reserve_file(self, run_id: str, attempt: int, size_bytes: int, *, cap_bytes: int) -> bool | None:
        """Count a file against the run's cap; a negative size gives back. None: it does not fit."""
        answer = self._run("tracking_reserve", run_id, attempt, size_bytes, cap_bytes)
        return None if answer == 0 else answer > 0

    # --- reads --------------------------------------------------------------------------------------------------------

    def is_stop_requested(self, run_id: str) -> bool:
        """Whether somebody wants the run to end."""
        return bool(self.redis.hexists(f"{P}run:{run_id}", "stop"))

    def is_current(self, run_id: str, attempt: int) -> bool:
        """Whether the attempt is the run's, and under way."""
        held, state = self.redis.hmget(f"{P}run:{run_id}", "attempt", "state")
        return held == str(attempt) and state in ("building", "starting", "running")

    def read_system(self, run_id: str) -> list[dict[str, Any]]:
        """Return the system metrics that are kept, oldest first."""
        return [json.loads(fields["r"]) for _, fields in self.redis.xrange(f"{P}run:{run_id}:system")]

    def read_state(self, run_id: str) -> dict[str, Any]:
        """Return what a resuming script needs: ``config``, ``summary``, ``rows`` (how many), ``last`` (a row)."""
        config, summary = self.redis.hmget(f"{P}run:{run_id}", "config", "summary")
        stream = f"{P}run:{run_id}:history"
        last = self.redis.xrevrange(stream, count=1)
        return {
            "config": json.loads(config or "{}"),
            "summary": json.loads(summary or "{}"),
            "rows": int(self.redis.xlen(stream)),
            "last": json.loads(last[0][1]["r"]) if last else None,
        }


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _compact(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="replace").decode()  # half a character, which JSON can hold and UTF-8 cannot


# --- where a job reaches the server -----------------------------------------------------------------------------------


def job_url(host: str, server_urls: Sequence[str]) -> str:
    """Return where a job reaches the server that listens at some URLs, all of one port.

    Args:
        host: this machine's address as the job sees it, from the runner's ``tracking_host``.
        server_urls: at least one.
    """
    port = server_urls[0].rpartition(":")[2].strip("/")
    return f"http://{host}:{port}"


def is_heard_at(host: str, server_urls: Sequence[str]) -> bool:
    """Whether a server that listens at these URLs hears a job that sees this machine as ``host``."""
    # A name that a virtual machine gives its host leads to loopback there.
    return host.endswith(".internal") or job_url(host, server_urls) in server_urls


# --- the job's environment --------------------------------------------------------------------------------------------

CHUNK_CHARS = 32670
"""Longest value that W&B Launch puts into one variable; the SDK joins ``WANDB_CONFIG_0`` and so on."""

_RETRY_WAIT_MAX_S = 15
_GRAPHQL_SHARE = 3
_TIMEOUTS_S = {"file_stream": 20, "graphql": 20, "file_transfer": 3600}


def launch_env(spec: LaunchSpec, attempt: int, *, chunk_chars: int = CHUNK_CHARS) -> dict[str, str]:
    """Return the variables that tell a script of its launch, whether or not it can report to a server.

    Args:
        spec: the launch.
        attempt: the try it is.
        chunk_chars: the longest value of one variable; W&B's own limit is 512 for SageMaker.

    Source: W&B's test_get_env_vars_dict
    """
    env = {
        "WANDB_LAUNCH": "True",
        "WANDB_PROJECT": spec.project.lower(),
        "WANDB_ENTITY": spec.entity,
        "WANDB_RUN_ID": spec.run_id,
        "WANDB_LAUNCH_QUEUE_NAME": spec.queue,
        "WANDB_LAUNCH_QUEUE_ENTITY": spec.entity,
        "WANDB_LAUNCH_TRACE_ID": f"{spec.run_id}-{attempt}",
        # No `_wandb_job` in it: naming one makes wandb.init ask an artifact registry for it.
        "WANDB_ARTIFACTS": "{}",
        **_chunked(CONFIG_ENV, json.dumps(spec.config), chunk_chars),
        **_chunked(FILES_ENV, json.dumps(spec.files), chunk_chars),
    }
    if spec.name:
        env["WANDB_NAME"] = spec.name
    if spec.author:
        # It becomes an HTTP header, which may hold no line break.
        env["WANDB_USERNAME"] = "".join(character for character in spec.author if character.isprintable())
    if isinstance(spec.job.source, ImageSource):
        env["WANDB_DOCKER"] = spec.job.source.image
    if isinstance(spec.job.source, GitSource):
        # The job's folder is no work tree, so the SDK could not find this out.
        env["WANDB_GIT_COMMIT"], env["WANDB_GIT_REMOTE_URL"] = spec.job.source.commit, spec.job.source.remote
    return env


def inputs_report_env(spec: LaunchSpec) -> dict[str, str]:
    """Return the variables that make the SDK tell what its script declares of the job's inputs.

    It does so by a job artifact at the run's end, which it makes when it knows of an image; any name does.
    """
    image = spec.job.source.image if isinstance(spec.job.source, ImageSource) else spec.job_ref or REPORT
    return {
        "WANDB_DISABLE_JOB_CREATION": "false",
        "WANDB_JOB_SOURCE": "image",
        "WANDB_JOB_NAME": REPORT,
        "WANDB_DOCKER": image,
    }


def tracking_env(
    spec: LaunchSpec,
    attempt: int,
    *,
    base_url: str,
    wandb_dir: str | None,
    give_up_after_s: float = 720.0,
    chunk_chars: int = CHUNK_CHARS,
    reports_inputs: bool = False,
) -> dict[str, str]:
    """Return the variables that make a script's ``wandb.init`` report to our server, ``WANDB_API_KEY`` excepted.

    Args:
        spec: the launch.
        attempt: the try it is.
        base_url: the server as the job reaches it, ``http://127.0.0.1:23456``.
        wandb_dir: where the SDK keeps its files at the target; none: its own default, for targets that are thrown away.
        give_up_after_s: how long about the SDK tries to reach a server that is gone before the script goes on without
            it. A restarted server is found again within 15 s.
        chunk_chars: see :func:`launch_env`.
        reports_inputs: whether it is to tell what its script declares of the job's inputs.

    Source: wandb/sdk/wandb_settings.py
    """
    env = {
        **launch_env(spec, attempt, chunk_chars=chunk_chars),
        "WANDB_BASE_URL": base_url,
        "WANDB_MODE": "online",
        # The agent owns the log, from the first byte and with its streams apart: the SDK need not send it again.
        "WANDB_CONSOLE": "off",
        # A private installation reports nothing to W&B's error tracker.
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_INIT_TIMEOUT": "120",
        **_settings(give_up_after_s),
        **(inputs_report_env(spec) if reports_inputs else {}),
    }
    if wandb_dir is not None:
        env["WANDB_DIR"] = wandb_dir
        env |= {f"WANDB_{what}_DIR": f"{wandb_dir}/.wandb-{what.lower()}" for what in ("CACHE", "CONFIG", "DATA")}
    return env


def _chunked(name: str, text: str, chars: int) -> dict[str, str]:
    if len(text) <= chars:
        return {name: text}
    starts = range(0, len(text), chars)
    return {f"{name}_{number}": text[start : start + chars] for number, start in enumerate(starts)}


def _settings(give_up_after_s: float) -> dict[str, str]:
    """Return the SDK's private settings, in the spelling of every version (``WANDB__X`` before 0.19, then also
    ``WANDB_X_X``).

    finish() first updates the run (GraphQL), then uploads files, then ends the stream, each with tries of its own: the
    stream's began when the server went, the others start there, so theirs are shorter.
    """
    graphql_s = give_up_after_s / _GRAPHQL_SHARE
    settings = {
        "file_stream_transmit_interval": 1,
        **_retries("file_stream", give_up_after_s),
        **_retries("graphql", graphql_s),
        **_retries("file_transfer", graphql_s),
        "disable_update_check": "true",
    }
    return {f"WANDB{prefix}_{name.upper()}": str(value) for name, value in settings.items() for prefix in ("_", "_X")}


def _retries(channel: str, give_up_after_s: float) -> dict[str, int]:
    wait_max_s = max(1, min(_RETRY_WAIT_MAX_S, int(give_up_after_s / 4)))
    # The waits double from one second to the longest: 1 + 2 + 4 + 8 + 15 + 15 ...
    waits, total = 0, 0.0
    while total < give_up_after_s:
        total += min(2**waits, wait_max_s)
        waits += 1
    return {
        f"{channel}_retry_max": waits,
        f"{channel}_retry_wait_min_seconds": 1,
        f"{channel}_retry_wait_max_seconds": wait_max_s,
        # For one try, which a network that swallows packets would otherwise stretch to minutes.
        f"{channel}_timeout_seconds": _TIMEOUTS_S[channel],
    }
