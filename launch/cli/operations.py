"""``launch stop``, ``wait``, ``hold``, ``release``, ``edit``, ``rerun`` and ``retry``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import (
    DURATION,
    PRIORITIES,
    SET_FILE,
    SET_VAR,
    as_json_option,
    client,
    read_config,
    read_file_values,
    read_mapping,
    read_variables,
)
from launch.errors import ConfigError, ConflictError

if TYPE_CHECKING:
    from launch.models import RunRecord
    from launch.watch import Run

CAUSES = (
    "exit_code",
    "signal",
    "oom",
    "timeout",
    "build",
    "pull",
    "config",
    "preempted",
    "host_lost",
    "untracked",
    "stopped",
    "internal",
)
_MOST_NAMED = 20


# --- an end -----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("run", nargs=-1)
@click.option("-q", "--queue", help="With --all: the queue whose runs are stopped.")
@click.option("--all", "all_", is_flag=True, help="Stop all runs of --queue, queued and at work.")
@click.option(
    "--grace", type=click.FloatRange(min=0), metavar="SECONDS", help="How long a running job may take to end."
)
@as_json_option
def stop(run: tuple[str, ...], queue: str | None, all_: bool, grace: float | None, as_json: bool) -> None:
    """Stop runs.

    A queued one ends at once, a running one when its job has ended or its grace is over. One that has ended stays as it
    is.
    """
    from launch.cli.output import print_json, run_as_json

    if (queue is not None) != all_ or bool(run) == all_:
        raise ConfigError("give runs, or --queue QUEUE --all")
    made = client()
    if queue is not None:
        before: dict[str, RunRecord] = {}
        stopped = made.stop_all(queue, grace)
    else:
        found = [made.run(run_id) for run_id in dict.fromkeys(run)]
        before = {item.id: item.record for item in found}
        stopped = [item.stop(grace) for item in found]
    records = [item.record for item in stopped]
    if as_json:
        print_json([run_as_json(record) for record in records])
        return
    for record in records:
        click.echo(_stopped(record, before.get(record.id)))
    if not records:
        click.echo(f"queue {queue} has no runs to stop")


def _stopped(record: RunRecord, before: RunRecord | None) -> str:
    if before is not None and before.state.is_final:
        return f"run {record.id} has ended already: {before.state}"
    if record.state.is_final:
        return f"run {record.id} is {record.state}"
    grace = f"{record.stop.grace_s:g} s" if record.stop else "a moment"
    again = "was asked to end before" if before is not None and before.stop is not None else "is asked to end"
    return f"run {record.id} {again}, and has {grace} for it; `launch logs -f {record.id}` follows it"


@click.command()
@click.argument("run", nargs=-1, required=True)
@click.option("--timeout", type=DURATION, help="How long at most: 90s, 30m, 2h, 7d.")
@click.option("--any", "any_", is_flag=True, help="Only until the first of them has ended.")
@as_json_option
def wait(run: tuple[str, ...], timeout: float | None, any_: bool, as_json: bool) -> None:
    """Wait until runs have ended.

    The exit code is 0 if those that ended have all finished, and 1 if one has failed, was stopped or crashed, or if the
    time is over first; the runs go on then.
    """
    from launch.cli.output import print_json, run_as_json, styled_state
    from launch.watch import as_they_end

    made = client()
    ended: list[RunRecord] = []
    is_late = False
    try:
        for found in as_they_end([made.run(run_id) for run_id in run], timeout):
            ended.append(found.record)
            if not as_json:
                cause = found.cause
                why = f": {cause.message}" if cause and found.state != "finished" else ""
                click.echo(f"run {found.id} {styled_state(found.state)}{why}")
            if any_:
                break
    except TimeoutError as exc:
        click.echo(f"{exc}", err=True)
        is_late = True
    if as_json:
        print_json([run_as_json(record) for record in ended])
    if is_late or any(record.state != "finished" for record in ended):
        click.get_current_context().exit(1)


# --- the order of a queue ---------------------------------------------------------------------------------------------


@click.command()
@click.argument("run", nargs=-1, required=True)
def hold(run: tuple[str, ...]) -> None:
    """Hold queued runs until they are released.

    They stand out of their queue's order meanwhile, and get their old places back.
    """
    made = client()
    for run_id in run:
        made.hold(run_id)
        click.echo(f"run {run_id} is held; `launch release {run_id}` lets it wait again, at its old place")


@click.command()
@click.argument("run", nargs=-1, required=True)
def release(run: tuple[str, ...]) -> None:
    """Let held runs wait again, each at its old place."""
    made = client()
    for run_id in run:
        position = made.store.position(made.release(run_id).id)
        click.echo(f"run {run_id} waits again{f', place {position}' if position is not None else ''}")


_CONFIG = click.option(
    "-c",
    "--config",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override of wandb.config, merged into those it has; null takes one away.",
)
_RESOURCE_ARGS = click.option(
    "-R", "--resource-args", metavar="JSON", help="Override of the queue's resource config, instead of the one it has."
)
_PRIORITY = click.option("--priority", type=click.Choice(PRIORITIES), help="Another priority.")
_NAME = click.option("--name", help="Another name.")
_RUN_LIMIT = click.option("--run-limit", type=DURATION, help="Another limit of its time at its target: 90s, 30m, 2h.")


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    changes = {
        **options,
        "config": read_config(options["config"]) or None,
        "files": read_file_values(options["files"]) or None,
        "template_variables": read_variables(options["template_variables"]) or None,
        "resource_args": read_mapping(options["resource_args"], option="--resource-args"),
    }
    return {key: value for key, value in changes.items() if value is not None}


@click.command()
@click.argument("run")
@_PRIORITY
@_CONFIG
@SET_FILE
@SET_VAR
@_RESOURCE_ARGS
@_NAME
@_RUN_LIMIT
@as_json_option
def edit(run: str, as_json: bool, **options: Any) -> None:
    """Change the launch of the queued RUN.

    It keeps its place, within the class of a new priority.
    """
    from launch.cli.output import print_json, run_as_json

    changes = _changes(options)
    if not changes:
        raise ConfigError("give at least one thing to change; `launch edit --help` lists them")
    made = client()
    record = made.edit(run, **changes).record
    position = made.store.position(run)
    if as_json:
        print_json(run_as_json(record, position))
        return
    place = f", place {position}" if position is not None else ""
    click.echo(f"run {run} is changed{place}; `launch show {run} --config` shows what it will run with")


# --- another go -------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("run")
@click.option("-q", "--queue", help="Another queue.")
@_PRIORITY
@_CONFIG
@SET_FILE
@SET_VAR
@_RESOURCE_ARGS
@_NAME
@_RUN_LIMIT
@as_json_option
def rerun(run: str, queue: str | None, as_json: bool, **options: Any) -> None:
    """Enqueue a new run with RUN's job and settings.

    The job is of the same version; the queue's settings are those of now.
    """
    from launch.cli.output import print_json, run_as_json

    made = client()
    new = made.rerun(run, queue, **_changes(options))
    position = made.store.position(new.id)
    if as_json:
        print_json(run_as_json(new.record, position))
        return
    place = f", place {position}" if position is not None else ""
    click.echo(f"enqueued run {click.style(new.id, bold=True)}, a rerun of {run}, in {new.spec.queue}{place}")
    click.echo(f"To follow it: `launch logs -f {new.id}`, to see it: `launch show {new.id}`")


@click.command()
@click.option("--cause", required=True, type=click.Choice(CAUSES), help="Why the runs ended.")
@click.option("--since", type=DURATION, default="1d", show_default=True, help="How long ago they ended at most.")
@click.option("-q", "--queue", help="Only runs of this queue.")
@click.option("--dry-run", is_flag=True, help="Say which runs these are, and enqueue nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@as_json_option
def retry(cause: str, since: float, queue: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Enqueue once more the runs that ended by a cause.

    One that has been retried already is left out: doing it twice doubles nothing.
    """
    from launch.cli.output import print_json

    made = client()
    found, done = made.ended_by(cause, since_s=since, queue=queue)
    if not as_json:
        _print_found(found, len(done), cause)
    new: list[tuple[RunRecord, Run]] = []
    if found and not dry_run:
        _confirm(len(found), yes=yes or as_json)
        new = [(record, made.retry(record)) for record in found]
    if as_json:
        print_json(
            {
                "found": [record.id for record in found],
                "retried_before": [record.id for record in done],
                "enqueued": [{"id": run.id, "rerun_of": record.id} for record, run in new],
            }
        )
        return
    for record, run in new:
        click.echo(f"enqueued run {run.id}, a rerun of {record.id}, in {run.spec.queue}")


def _print_found(found: list[RunRecord], done: int, cause: str) -> None:
    from launch.cli.output import one_line

    for record in found[:_MOST_NAMED]:
        why = one_line(record.cause.message, 80) if record.cause else ""
        click.echo(f"{record.id}  {record.spec.queue}  {one_line(record.spec.title, 40)}  {why}")
    if len(found) > _MOST_NAMED:
        click.echo(f"... and {len(found) - _MOST_NAMED} more")
    before = f"; {done} more were retried before" if done else ""
    click.echo(f"{len(found) or 'no'} run(s) ended by {cause}{before}")


def _confirm(many: int, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConflictError(f"{many} run(s) would be enqueued: say --yes to do it, or --dry-run to look only")
    click.confirm(f"Enqueue {many} run(s)?", abort=True)
