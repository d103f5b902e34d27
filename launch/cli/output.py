"""How things look on a terminal, and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from launch.models import RetryPolicy, RunRecord, RunState

_COLOURS = {
    "queued": "yellow",
    "building": "blue",
    "starting": "blue",
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "stopped": "magenta",
    "crashed": "red",
}


def print_json(value: Any) -> None:
    """Print a value as JSON; numbers that JSON has not become text, as in W&B's own files."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_finite(item) for item in value]
    return value


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns; a cell may hold colours."""
    for line in table_lines(headers, rows):
        click.echo(line)


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return aligned columns, the headers first; a cell may hold colours."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(click.unstyle(cell)) for cell in column) for column in zip(headers, *texts, strict=True)]
    lines = []
    for row in ([click.style(header, dim=True) for header in headers], *texts):
        cells = [cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def print_facts(facts: Mapping[str, object]) -> None:
    """Print ``name  value`` lines, those without a value left out."""
    for line in fact_lines(facts):
        click.echo(line)


def fact_lines(facts: Mapping[str, object]) -> list[str]:
    """Return ``name  value`` lines, those without a value left out."""
    shown = {name: str(value) for name, value in facts.items() if value not in (None, "", {}, [], ())}
    width = max((len(name) for name in shown), default=0)
    lines = []
    for name, text in shown.items():
        first, *rest = text.splitlines() or [""]
        lines.append(f"{click.style(name.ljust(width), dim=True)}  {first}")
        lines += [" " * (width + 2) + line for line in rest]
    return lines


def one_line(text: str, most: int = 60) -> str:
    """Return a text as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def styled_state(state: RunState | str) -> str:
    """Return a state in its colour."""
    return click.style(str(state), fg=_COLOURS.get(str(state)), bold=True)


def metric(value: object) -> str:
    """Return a metric's value for people: six significant digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value if isinstance(value, str) else json.dumps(_finite(value), ensure_ascii=False, default=str)
    return f"{value:.6g}"


def own_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script itself logged: the SDK's own keys begin with an underscore."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return ``{dotted key: value}``, as ``-c`` takes it."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{above}{key}.")
        else:
            result[f"{above}{key}"] = value
    return result


def retry_lines(policy: RetryPolicy) -> list[str]:
    """Return a retry policy for people: a line for each cause that is followed by another attempt."""
    from launch.queue_file import shown_retry

    lines = []
    for cause, rule in shown_retry(policy).items():
        times, memory = (rule["times"], rule["memory"]) if isinstance(rule, dict) else (rule, None)
        if cause in ("backoff_s", "max_backoff_s") or not times:
            continue
        lines.append(f"{cause}: {times} time{'s' if times > 1 else ''}{f', memory {memory}' if memory else ''}")
    return lines


def run_seconds(record: RunRecord, now: float) -> float | None:
    """Return how long a run has been at work, from its claim on; none if it has not begun."""
    if record.claimed_at is None:
        return None
    return (record.ended_at or now) - record.claimed_at


def run_as_json(record: RunRecord, position: int | None = None) -> dict[str, Any]:
    """Return a run for programs; the keys are part of the command line's interface."""
    from launch.queue_file import shown_limits, shown_retry

    spec = record.spec
    return {
        "id": record.id,
        "state": str(record.state),
        "queue": spec.queue,
        "resource": spec.resource,
        "job": spec.job_ref,
        "title": spec.title,
        "source": spec.job.source.kind,
        "command": list(spec.command),
        "image": record.image,
        "image_digest": record.image_digest,
        "name": spec.name,
        "project": spec.project,
        "entity": spec.entity,
        "author": spec.author,
        "priority": spec.priority.label,
        "position": position,
        "attempt": record.attempt,
        "attempts": [attempt.model_dump(mode="json") for attempt in record.attempts],
        "rerun_of": spec.rerun_of,
        "retry": shown_retry(spec.retry),
        "limits": shown_limits(spec.limits),
        "held_by": record.held_by,
        "due_at": record.due_at,
        "agent": record.agent,
        "handle": record.handle,
        "note": record.note,
        "stop": record.stop.model_dump(mode="json") if record.stop else None,
        "cause": record.cause.model_dump(mode="json") if record.cause else None,
        "tracked": record.tracked,
        "config": record.config if record.tracked else spec.config,
        "overrides": spec.config,
        "files": spec.files,
        "template_variables": spec.template_variables,
        "summary": record.summary,
        "resource_config": spec.resource_config,
        "times": {
            "created": record.created_at,
            "claimed": record.claimed_at,
            "started": record.started_at,
            "ended": record.ended_at,
        },
    }
