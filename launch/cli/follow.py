"""Following a run on a terminal: one line for everything that happens, and a summary at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from launch.cli.output import flat, metric, one_line, own_metrics, print_facts, styled_state
from launch.durations import duration

if TYPE_CHECKING:
    from launch.models import RunRecord
    from launch.watch import News, Note, Run

MOST_ROWS_AT_ONCE = 10
MOST_METRICS = 12


def follow(run: Run, *, kept_in: str) -> int:
    """Print a run's life until it ends, then its summary.

    Args:
        run: the run.
        kept_in: where full logs are, for the summary.

    Returns:
        The command's exit code: 0 if the run finished, 1 if not, 130 if the user stopped following.
    """
    try:
        print_news(run.news())
    except KeyboardInterrupt:
        click.echo(
            f"\nNo longer following; run {run.id} goes on. To follow it again: `launch logs -f {run.id}`, "
            f"to end it: `launch stop {run.id}`"
        )
        return 130
    print_summary(run.record, kept_in)
    return 0 if run.record.state == "finished" else 1


def print_news(news: Iterable[News]) -> None:
    """Print what happens as it comes."""
    from launch.loglines import LogLine
    from launch.watch import Metrics

    for item in news:
        if isinstance(item, LogLine):
            click.echo(f"{click.style('|', dim=True)} {item.text}")
        elif isinstance(item, Metrics):
            print_metrics(item.rows)
        else:
            print_note(item)


def print_note(note: Note) -> None:
    """Print that a run moved on; how it ended is the summary's to say."""
    text = "" if note.state.is_final or note.text.lower() == note.state else note.text
    click.echo(f"{styled_state(note.state)}{' ' * max(1, 10 - len(note.state))}{text}".rstrip())


def print_metrics(rows: tuple[dict[str, Any], ...]) -> None:
    """Print rows of metrics; of very many that came together, the last ones."""
    hidden = len(rows) - MOST_ROWS_AT_ONCE
    if hidden > 0:
        click.echo(click.style(f"* ... {hidden} more rows", dim=True))
    for row in rows[-MOST_ROWS_AT_ONCE:]:
        values = metrics_line(row)
        if values:
            step = f"step {row['_step']}  " if "_step" in row else ""
            click.echo(f"{click.style('*', fg='cyan')} {click.style(step, dim=True)}{values}")


def metrics_line(row: Mapping[str, Any]) -> str:
    """Return ``loss 0.25  accuracy 0.9``; structured values (images, tables) are named only."""
    shown = flat(own_metrics(row))
    words = [f"{key} {metric(value)}" for key, value in list(shown.items())[:MOST_METRICS]]
    return "  ".join([*words, *(["..."] if len(shown) > MOST_METRICS else [])])


def print_summary(record: RunRecord, kept_in: str) -> None:
    """Print how a run ended, what came out of it, where its log is and what to type next."""
    ended, began = record.ended_at, record.started_at or record.claimed_at
    took = f" in {duration(ended - began)}" if ended is not None and began is not None else ""
    click.echo()
    click.echo(f"{styled_state(record.state)}{took}  run {record.id} ({one_line(record.spec.title)})")
    metrics = flat(own_metrics(record.summary))
    facts: dict[str, object] = {
        "cause": record.cause.message if record.cause and record.state != "finished" else None,
        "metrics": _columns(metrics),
        "overrides": "\n".join(f"{key} = {metric(value)}" for key, value in flat(record.spec.config).items()),
        "log": f"launch logs {record.id}    (kept in {kept_in})",
        "next": _next(record),
    }
    print_facts(facts)


def _columns(values: Mapping[str, Any]) -> str:
    shown = sorted(values.items())[: 2 * MOST_METRICS]
    width = max((len(key) for key, _ in shown), default=0)
    lines = [f"{key.ljust(width)}  {metric(value)}" for key, value in shown]
    return "\n".join([*lines, *(["..."] if len(values) > len(shown) else [])])


def _next(record: RunRecord) -> str:
    if record.state == "finished":
        return f"launch show {record.id}    (all of it; --config: what it ran with)"
    return f"launch show {record.id} --config    (what it ran with)"
