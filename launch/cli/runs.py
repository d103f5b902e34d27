"""``launch runs``, ``show`` and ``logs``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import as_json_option, client

if TYPE_CHECKING:
    from launch.client import Client
    from launch.models import AttemptRecord, LaunchSpec, RunRecord

STATES = ("queued", "building", "starting", "running", "finished", "failed", "stopped", "crashed")


@click.command()
@click.option("-q", "--queue", help="Only runs of this queue.")
@click.option("-s", "--state", multiple=True, type=click.Choice(STATES), help="Only runs in this state; repeatable.")
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many at most.")
@as_json_option
def runs(queue: str | None, state: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List runs, the newest first."""
    from launch.cli.output import one_line, print_json, print_table, run_as_json, run_seconds, styled_state
    from launch.durations import ago, duration
    from launch.situation import reasons

    made = client()
    records = [run.record for run in made.runs(queue, state or None, limit)]
    if as_json:
        print_json([run_as_json(record) for record in records])
        return
    if not records:
        click.echo("no runs" if queue or state else "no runs yet: `launch run PATH` starts one")
        return
    now = made.store.now()
    waiting = reasons(made.store, records, dead_after_s=made.settings.dead_after_s)
    rows = [
        (
            record.id,
            styled_state(record.state),
            record.spec.queue,
            one_line(record.spec.title),
            one_line(record.spec.name or "", 30),
            "" if record.state == "queued" else duration(run_seconds(record, now)),
            ago(now - record.created_at),
            *([one_line(waiting[record.id].short, 40) if record.id in waiting else ""] if waiting else []),
        )
        for record in records
    ]
    headers = ("run", "state", "queue", "job", "name", "took", "enqueued", *(["waits for"] if waiting else []))
    print_table(headers, rows)


@click.command()
@click.argument("run")
@click.option("--config", "with_config", is_flag=True, help="Show the configs in effect, and where each value is from.")
@as_json_option
def show(run: str, with_config: bool, as_json: bool) -> None:
    """Show all that is known of a run."""
    from launch.cli.output import print_json, run_as_json

    made = client()
    record = made.run(run).record
    configs = _configs(made, record) if with_config else None
    if as_json:
        shown = run_as_json(record, made.store.position(run))
        print_json(shown if configs is None else {**shown, "provenance": configs})
        return
    if configs is None:
        _print_run(record, made.store.position(run), made.store.now())
        return
    _print_configs(record, configs)
    return


def _print_run(record: RunRecord, position: int | None, now: float) -> None:
    from launch.cli.output import (
        flat,
        metric,
        one_line,
        own_metrics,
        print_facts,
        retry_lines,
        run_seconds,
        styled_state,
    )
    from launch.cli.queue_settings import shown
    from launch.durations import ago, duration
    from launch.queue_file import shown_limits

    spec, cause = record.spec, record.cause
    metrics = flat(own_metrics(record.summary))
    overrides = flat(spec.config)
    ended = record.ended_at
    print_facts(
        {
            "run": record.id,
            "name": spec.name,
            "state": f"{styled_state(record.state)}{f'  {record.note}' if record.note else ''}",
            "cause": cause.message if cause else None,
            "stop": f"requested by {record.stop.by}" if record.stop and not record.state.is_final else None,
            "queue": f"{spec.queue} (resource: {spec.resource}){f', place {position}' if position else ''}",
            "job": one_line(spec.title),
            "command": shlex.join(spec.command),
            "project": f"{spec.entity}/{spec.project}",
            "priority": spec.priority.label if spec.priority.label != "medium" else None,
            "attempt": record.attempt or None,
            "before": "\n".join(_attempt_line(record.id, attempt) for attempt in record.attempts),
            "retry": "\n".join(retry_lines(spec.retry)),
            "limits": ", ".join(
                f"{key.replace('_', ' ')} {shown(key, value)}"
                for key, value in shown_limits(spec.limits).items()
                if value is not None
            ),
            "held": f"by {record.held_by}" if record.held_by else None,
            "rerun of": spec.rerun_of,
            "agent": record.agent,
            "image": record.image,
            "digest": record.image_digest,
            "enqueued": f"{ago(now - record.created_at)}{f' by {spec.author}' if spec.author else ''}",
            "took": duration(run_seconds(record, now)),
            "ended": ago(now - ended) if ended else None,
            "overrides": "\n".join(f"{key} = {metric(value)}" for key, value in overrides.items()),
            "files": "\n".join(f"{key} = {metric(value)}" for key, value in _file_values(spec).items()),
            "variables": "\n".join(f"{key} = {metric(value)}" for key, value in spec.template_variables.items()),
            "metrics": "\n".join(f"{key} = {metric(value)}" for key, value in metrics.items()),
            "log": f"launch logs {record.id}",
            "log ends": "\n".join(cause.log_tail) if cause and record.state in ("failed", "crashed") else None,
        }
    )


def _file_values(spec: LaunchSpec) -> dict[str, Any]:
    """Return ``{"config.yaml: model.layers": 50}``: what the launch overrides in config files."""
    from launch.cli.output import flat

    return {f"{path}: {key}": value for path, values in spec.files.items() for key, value in flat(values).items()}


def _attempt_line(run_id: str, attempt: AttemptRecord) -> str:
    from launch.durations import duration

    took = ""
    if attempt.started_at is not None:
        took = f" after {duration(attempt.ended_at - attempt.started_at)}"
    log = f" (launch logs {run_id} --attempt {attempt.number})" if attempt.log_archive else ""
    by = f" on {attempt.agent}" if attempt.agent else ""
    return f"attempt {attempt.number}{by}: {attempt.cause.kind}{took}: {attempt.cause.message}{log}"


def _configs(made: Client, record: RunRecord) -> dict[str, Any]:
    """Return ``{"config": {key: origin}, "resource_config": {path: origin}}``."""
    from launch.cli.output import flat
    from launch.plugins import runner_class
    from launch.resolve import canonical, provenance

    spec = record.spec
    runner = runner_class(spec.resource)
    default = canonical(runner, made.store.queue_config(spec.queue, spec.queue_version), where=f"queue {spec.queue!r}")
    override = canonical(runner, spec.resource_args, where="resource_args")
    overridden = flat(spec.config)
    config = flat(record.config if record.tracked else spec.config)
    return {
        "config": {key: "launch" if key in overridden else "script" for key in config},
        "resource_config": provenance(default, override),
    }


def _print_configs(record: RunRecord, configs: dict[str, Any]) -> None:
    from launch.cli.output import flat, metric

    sections = {
        "wandb.config": (flat(record.config if record.tracked else record.spec.config), configs["config"]),
        f"resource config ({record.spec.resource})": (
            flat(record.spec.resource_config),
            {path.replace("/", "."): origin for path, origin in configs["resource_config"].items()},
        ),
    }
    for title, (values, origins) in sections.items():
        click.echo(click.style(title, bold=True) + ("" if values else ": empty"))
        width = max((len(key) for key in values), default=0)
        for key, value in values.items():
            origin = click.style(f"({origins.get(key, 'queue')})", dim=True)
            click.echo(f"  {key.ljust(width)}  {metric(value)}  {origin}")
    if not record.tracked:
        click.echo("The script has not called wandb.init, so its own defaults are not known.")


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option(
    "--raw", is_flag=True, help="Just what was written: progress bars not folded, pieces not joined to lines."
)
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="The log of this attempt; default: the last.")
def logs(run: str, follow: bool, raw: bool, attempt: int | None) -> None:
    """Print a run's log, from its first build line."""
    found = client().run(run)
    printed = False
    try:
        for text in found.logs(follow, raw=raw, attempt=attempt):
            click.echo(text, nl=not raw)
            printed = True
    except KeyboardInterrupt:
        click.echo(f"\nNo longer following; run {run} goes on.", err=True)
        click.get_current_context().exit(130)
    if not printed and not found.state.is_final:
        click.echo(f"run {run} is {found.state} and has no log yet; `launch logs -f {run}` waits for it", err=True)
