"""``launch job create code | create image | list | delete``, with those of their own modules below them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.cli.git_jobs import git
from launch.cli.job_versions import alias, diff, show
from launch.cli.options import SCHEMA, TRACKINGS, as_json_option, client, read_mapping

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
@click.option("-b", "--build-context", metavar="DIR", help="The folder in PATH that is the job's root.")
@click.option("-D", "--dockerfile", metavar="FILE", help="The Dockerfile that makes the image, relative to that root.")
@click.option(
    "-r",
    "--runtime",
    "--python",
    "python_version",
    metavar="3.N",
    help="The Python version; default: what runtime.txt or .python-version says, else the builder's.",
)
@click.option("-B", "--base-image", metavar="IMAGE", help="What a generated image starts from.")
@click.option(
    "--apt", multiple=True, metavar="PACKAGE", help="A Debian package that a generated image has; repeatable."
)
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read instead of PATH's requirements.txt, pyproject.toml or uv.lock.",
)
@click.option("--tracking", type=click.Choice(TRACKINGS), default="required", show_default=True, help=_TRACKING_HELP)
@click.option("--retry", metavar="JSON", help=_RETRY_HELP)
@SCHEMA
@as_json_option
def code(
    name: str, alias: tuple[str, ...], retry: str | None, schema: str | None, as_json: bool, **options: Any
) -> None:
    """Take a snapshot of the directory PATH."""
    options |= {"retry": read_mapping(retry, option="--retry"), "schema": read_mapping(schema, option="--schema")}
    print_version(client().create_job(name, aliases=alias, **options), as_json)


@create.command()
@click.argument("image")
@click.option("-n", "--name", required=True, help="The job's name.")
@click.option("-E", "--entrypoint", help="What to run in the image; default: its own command.")
@click.option("-a", "--alias", multiple=True, help=_ALIAS_HELP)
@click.option("--tracking", type=click.Choice(TRACKINGS), default="required", show_default=True, help=_TRACKING_HELP)
@click.option("--retry", metavar="JSON", help=_RETRY_HELP)
@SCHEMA
@as_json_option
def image(
    name: str, alias: tuple[str, ...], retry: str | None, schema: str | None, as_json: bool, **options: Any
) -> None:
    """Name the container image IMAGE, which holds everything."""
    options |= {"retry": read_mapping(retry, option="--retry"), "schema": read_mapping(schema, option="--schema")}
    print_version(client().create_job(name, aliases=alias, **options), as_json)


def print_version(version: JobVersion, as_json: bool) -> None:
    """Print a version that was made, or found."""
    from launch.cli.output import print_json

    if as_json:
        print_json({"ref": version.ref, **version.model_dump(mode="json")})
        return
    click.echo(f"job {click.style(version.ref, bold=True)} is ready")
    click.echo(f"To launch it: `launch enqueue {version.name} -q QUEUE`")


create.add_command(git)
for command in (show, diff, alias):
    job.add_command(command)


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
@click.option("--force", is_flag=True, help="Even if runs of it have not ended, or another alias means the version.")
def delete(job: str, force: bool) -> None:
    """Delete a job, digits, or one version of it: digits:v3, digits:best.

    What was enqueued runs all the same. `launch artifacts gc` frees the room its code takes.
    """
    for ref in client().delete_job(job, force=force):
        click.echo(f"{ref} is deleted")
