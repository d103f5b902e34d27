"""``launch enqueue`` and ``launch run``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launch.cli.options import (
    DURATION,
    PRIORITIES,
    SET_FILE,
    SET_VAR,
    TRACKINGS,
    as_json_option,
    client,
    read_config,
    read_file_values,
    read_mapping,
    read_variables,
    warn_of_broker,
)
from launch.errors import ConfigError

if TYPE_CHECKING:
    from launch.client import Client
    from launch.watch import Run

Function = TypeVar("Function", bound=Callable[..., Any])


def _launch_options(function: Function) -> Function:
    """Add the options that say how a run is launched."""
    options = [
        click.option(
            "-c",
            "--config",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override of wandb.config: key=value (dots nest, the value may be JSON), a JSON object or a file.",
        ),
        click.option(
            "-R",
            "--resource-args",
            metavar="JSON",
            help="Override of the queue's resource config: a JSON object, or a JSON or YAML file.",
        ),
        SET_FILE,
        SET_VAR,
        click.option(
            "-D",
            "--dockerfile",
            metavar="PATH",
            help="The Dockerfile that makes the image, in the job's code, instead of the job's own.",
        ),
        click.option("--priority", type=click.Choice(PRIORITIES), help="In a queue created with --priorities."),
        click.option("--name", help="What people call the run."),
        click.option("-p", "--project", help="The run's project."),
        click.option("-e", "--entity", help="The run's entity."),
        click.option("--run-id", help="1 to 40 of a-z, 0-9 and '-'; the same again is the same run."),
        click.option(
            "--tracking",
            type=click.Choice(TRACKINGS),
            help="Whether the run must call wandb.init to count as finished.",
        ),
        click.option(
            "--run-limit",
            type=DURATION,
            help="How long it may take at its target: 90s, 30m, 2h; no longer than the queue allows.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _request(options: dict[str, Any]) -> dict[str, Any]:
    request = dict(options)
    request["config"] = read_config(options["config"])
    request["files"] = read_file_values(options["files"])
    request["template_variables"] = read_variables(options["template_variables"])
    request["resource_args"] = read_mapping(options["resource_args"], option="--resource-args")
    return {key: value for key, value in request.items() if value is not None}


class CommandWithWords(click.Command):
    """Takes everything after ``--`` as it is: a job's arguments, or a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set the words aside before options are looked for."""
        if "--" in args:
            place = args.index("--")
            ctx.meta["words"], args = tuple(args[place + 1 :]), args[:place]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show that words may follow."""
        return [*super().collect_usage_pieces(ctx), "[-- WORDS...]"]


def _words() -> tuple[str, ...]:
    words: tuple[str, ...] = click.get_current_context().meta.get("words", ())
    return words


@click.command(cls=CommandWithWords)
@click.argument("job", required=False)
@click.option("-q", "--queue", required=True, help="The queue.")
@click.option("--image", help="A container image that holds everything, instead of a job.")
@click.option("--command", help="What to run, instead of a job or in the image; or give it after --.")
@_launch_options
@click.option("-f", "--follow", is_flag=True, help="Follow the run to its end; exit with 1 if it failed.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent to the target, secrets masked; touch nothing.")
@as_json_option
def enqueue(
    job: str | None,
    queue: str,
    image: str | None,
    command: str | None,
    follow: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Enqueue a launch of JOB, or of an image or command.

    JOB is a registered job, such as digits or digits:v3.

    WORDS after -- are appended to the job's command; without a job they are the command.

    \b
    launch enqueue digits -q gpu-box -c epochs=3 --follow
    launch enqueue digits -q gpu-box -- --verbose
    launch enqueue --image python:3.11 -q gpu-box --tracking optional -- python -c "print(1)"
    """
    request = {**_request(options), "queue": queue, **_what(job, image, command, _words())}
    made = client()
    if dry_run:
        _print_plan(made, request)
    else:
        _enqueue(made, request, follow=follow, as_json=as_json)


def _what(job: str | None, image: str | None, command: str | None, words: tuple[str, ...]) -> dict[str, Any]:
    if job is not None:
        what: dict[str, Any] = {"job": job, "image": image, "command": command, "args": words}
    elif command is not None and words:
        raise ConfigError("--command: give the command there or after --, not both")
    else:
        what = {"image": image, "command": command if command is not None else words or None}
    return {key: value for key, value in what.items() if value is not None}


def _print_plan(made: Client, request: dict[str, Any]) -> None:
    from launch.cli.output import print_json
    from launch.preview import preview

    spec = made.build(**request)
    print_json(preview(spec, installation=made.store.installation(), home=made.settings.home))


def _enqueue(made: Client, request: dict[str, Any], *, follow: bool, as_json: bool) -> None:
    from launch.cli.output import one_line, print_json, run_as_json

    warn_of_broker(made.store)
    run = made.enqueue(**request)
    position = made.store.position(run.id)
    if not as_json:
        place = f", place {position}" if position is not None else ""
        click.echo(
            f"enqueued run {click.style(run.id, bold=True)} of {one_line(run.spec.title)} in {run.spec.queue}{place}"
        )
    if follow:
        _follow(made, run, quiet=as_json)
    if as_json:
        print_json(run_as_json(run.record, position))
    elif not follow:
        click.echo(f"To follow it: `launch logs -f {run.id}`, to see it: `launch show {run.id}`")
    if follow and as_json and run.state != "finished":
        click.get_current_context().exit(1)


def _follow(made: Client, run: Run, *, quiet: bool) -> None:
    from launch.cli.follow import follow

    if quiet:
        run.wait()
        return
    if not any(run.spec.queue in agent.queues for agent in made.agents() if agent.is_alive):
        click.echo(f"No agent serves {run.spec.queue} now; start one with `launch agent -q {run.spec.queue}`", err=True)
    click.get_current_context().exit(follow(run, kept_in=made.settings.artifacts_url.removeprefix("file://")))


@click.command(cls=CommandWithWords)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("-E", "--entrypoint", help="What to run in PATH; default: python and its main.py or train.py.")
@click.option("-q", "--queue", default="local", show_default=True, help="The queue.")
@_launch_options
@click.option("-d", "--detach", is_flag=True, help="Do not follow the run.")
@as_json_option
def run(path: Path, entrypoint: str | None, queue: str, detach: bool, as_json: bool, **options: Any) -> None:
    """Run the code in PATH on this machine, and follow it.

    PATH is a directory, or a Python file in it. Takes a snapshot of the directory, enqueues it, and starts first what
    does not run yet: broker, server and agent. Without --project, the run's project is the directory's name.
    WORDS after -- are appended to the entrypoint.

    \b
    launch run . -c epochs=3
    launch run experiments/train.py -c optimizer.lr=0.1 -- --verbose
    """
    from launch.local import Local
    from launch.settings import settings

    folder, command = _code(path, entrypoint)
    request = {**_request(options), "queue": queue, "path": folder, "entrypoint": command, "args": _words()}
    request["project"] = options["project"] or folder.resolve().name or None
    Local(settings()).up(lambda text: click.echo(text, err=True), queues=(queue,))
    _enqueue(client(), request, follow=not detach, as_json=as_json)


def _code(path: Path, entrypoint: str | None) -> tuple[Path, str | Sequence[str]]:
    """Return the directory to take a snapshot of, and what to run in it."""
    folder = path if path.is_dir() else path.parent
    if entrypoint is not None:
        return folder, entrypoint
    if path.is_file():
        return folder, ["python", path.name]
    found = [name for name in ("main.py", "train.py") if (path / name).is_file()]
    if len(found) != 1:
        there = "both main.py and train.py" if found else "neither a main.py nor a train.py"
        raise ConfigError(f"--entrypoint: {path} has {there}; say what to run, such as -E 'python train.py'")
    return folder, ["python", found[0]]
