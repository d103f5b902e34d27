"""``launch job create code | create image | list | show``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import TRACKINGS, as_json_option, client, read_mapping

if TYPE_CHECKING:
    from launch.models import JobVersion

_ALIAS_HELP = "Another name of this version; repeatable."
_RETRY_HELP = (
    "When a failed attempt is followed by another, instead of what the queue says: "
    '{"preempted": 5, "oom": {"times": 1, "memory": "x1.5"}, "error": 2}.'
)
_TRACKING_HELP = "Whether its runs must call wandb.init to count as finished."


@click.group()
def job() -> None:
    """Register and look at jobs: what to run."""


@job.group()
def create() -> None:
    """Register a job, or a new version of it."""


@create.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-n", "--name", required=True, help="The job's name.")
@click.option("-E", "--entrypoint", help="What to run in PATH, such as 'python train.py'; default: python main.py.")
@click.option("-a", "--alias", multiple=True, help=_ALIAS_HELP)
@click.option("-r", "--python", "python_version", metavar="3.N", help="The Python version; default: the builder's.")
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read instead of PATH's requirements.txt.",
)
@click.option("--tracking", type=click.Choice(TRACKINGS), default="required", show_default=True, help=_TRACKING_HELP)
@click.option("--retry", metavar="JSON", help=_RETRY_HELP)
@as_json_option
def code(name: str, alias: tuple[str, ...], retry: str | None, as_json: bool, **options: Any) -> None:
    """Take a snapshot of the directory PATH."""
    policy = read_mapping(retry, option="--retry")
    _print_version(client().create_job(name, aliases=alias, retry=policy, **options), as_json)


@create.command()
@click.argument("image")
@click.option("-n", "--name", required=True, help="The job's name.")
@click.option("-E", "--entrypoint", help="What to run in the image; default: its own command.")
@click.option("-a", "--alias", multiple=True, help=_ALIAS_HELP)
@click.option("--tracking", type=click.Choice(TRACKINGS), default="required", show_default=True, help=_TRACKING_HELP)
@click.option("--retry", metavar="JSON", help=_RETRY_HELP)
@as_json_option
def image(name: str, alias: tuple[str, ...], retry: str | None, as_json: bool, **options: Any) -> None:
    """Name the container image IMAGE, which holds everything."""
    policy = read_mapping(retry, option="--retry")
    _print_version(client().create_job(name, aliases=alias, retry=policy, **options), as_json)


def _print_version(version: JobVersion, as_json: bool) -> None:
    from launch.cli.output import print_json

    if as_json:
        print_json({"ref": version.ref, **version.model_dump(mode="json")})
        return
    click.echo(f"job {click.style(version.ref, bold=True)} is ready")
    click.echo(f"To launch it: `launch enqueue {version.name} -q QUEUE`")


@job.command("list")
@as_json_option
def list_jobs(as_json: bool) -> None:
    """List the jobs, with the latest version of each."""
    from launch.cli.output import print_json, print_table
    from launch.durations import ago

    made = client()
    versions = made.jobs()
    if as_json:
        print_json([{"ref": version.ref, **version.model_dump(mode="json")} for version in versions])
        return
    if not versions:
        click.echo("no jobs yet: `launch job create code PATH --name NAME` makes one")
        return
    now = made.store.now()
    rows = [
        (
            version.name,
            f"v{version.version}",
            version.job.source.kind,
            shlex.join(version.job.entrypoint),
            ago(now - version.created_at),
        )
        for version in versions
    ]
    print_table(("job", "latest", "source", "entrypoint", "made"), rows)


@job.command()
@click.argument("job")
@as_json_option
def show(job: str, as_json: bool) -> None:
    """Show a job: digits, digits:v3, digits:best."""
    from launch.cli.output import print_facts, print_json, retry_lines
    from launch.durations import ago

    made = client()
    version = made.registry.get(job)
    versions = [other.version for other in made.registry.versions(version.name)]
    aliases = made.registry.aliases(version.name)
    if as_json:
        data = {"ref": version.ref, **version.model_dump(mode="json"), "versions": versions, "aliases": aliases}
        print_json(data)
        return
    source = version.job.source
    print_facts(
        {
            "job": version.ref,
            "source": getattr(source, "image", None) or f"{source.kind}, {getattr(source, 'files', 0)} files",
            "entrypoint": shlex.join(version.job.entrypoint) or "the image's own",
            "python": version.job.python_version,
            "requirements": "yes" if version.job.requirements else None,
            "tracking": version.job.tracking,
            "retry": "\n".join(retry_lines(version.job.retry)) or "never" if version.job.retry else "as the queue says",
            "made": ago(made.store.now() - version.created_at),
            "versions": ", ".join(f"v{number}" for number in versions),
            "aliases": ", ".join(f"{alias} = v{number}" for alias, number in aliases.items()),
        }
    )
