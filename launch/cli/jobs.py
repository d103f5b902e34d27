"""``launch job create code | create image | list | delete``, with those of their own modules below them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from launch.cli.job_options import ALIAS, code_options, job_options, register
from launch.cli.job_versions import alias, diff, show
from launch.cli.options import as_json_option, client


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
@ALIAS
@code_options("PATH")
@job_options
def code(name: str, as_json: bool, **options: Any) -> None:
    """Take a snapshot of the directory PATH."""
    register(client().create_job, name, as_json, options)


@create.command()
@click.argument("image")
@click.option("-n", "--name", required=True, help="The job's name.")
@click.option("-E", "--entrypoint", help="What to run in the image; default: its own command.")
@ALIAS
@job_options
def image(name: str, as_json: bool, **options: Any) -> None:
    """Name the container image IMAGE, which holds everything."""
    register(client().create_job, name, as_json, options)


@create.command()
@click.argument("url")
@click.option("-n", "--name", help="The job's name; default: job- and the repository's.")
@click.option("--ref", help="A branch, a tag or a commit's 40 digits; default: main, else master.")
@click.option("-E", "--entrypoint", help="What to run, such as 'python train.py'; default: python main.py.")
@ALIAS
@code_options("the repository")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(("http", "file")),
    help="Allow http:// or file:// for this job; agents must allow it too. Repeatable.",
)
@job_options
def git(url: str, as_json: bool, **options: Any) -> None:
    """Pin a commit of the git repository URL: https://host/path, ssh://user@host/path or user@host:path."""
    register(client().create_git_job, url, as_json, options)


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
