"""``launch job create git``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from launch.cli.options import SCHEMA, TRACKINGS, as_json_option, client, read_mapping


@click.command()
@click.argument("url")
@click.option("-n", "--name", help="The job's name; default: job- and the repository's.")
@click.option("--ref", help="A branch, a tag or a commit's 40 digits; default: main, else master.")
@click.option("-E", "--entrypoint", help="What to run, such as 'python train.py'; default: python main.py.")
@click.option("-a", "--alias", multiple=True, help="Another name of this version; repeatable.")
@click.option("-b", "--build-context", metavar="DIR", help="The folder in the repository that is the job's root.")
@click.option("-D", "--dockerfile", metavar="FILE", help="The Dockerfile that makes the image, relative to that root.")
@click.option(
    "-r",
    "--runtime",
    "--python",
    "python_version",
    metavar="3.N",
    help="The Python version; default: what the repository says.",
)
@click.option("-B", "--base-image", metavar="IMAGE", help="What a generated image starts from.")
@click.option(
    "--apt", multiple=True, metavar="PACKAGE", help="A Debian package that a generated image has; repeatable."
)
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file on this machine, read instead of the repository's requirements.",
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(("http", "file")),
    help="Allow http:// or file:// for this job; agents must allow it too. Repeatable.",
)
@click.option(
    "--tracking",
    type=click.Choice(TRACKINGS),
    default="required",
    show_default=True,
    help="Whether its runs must call wandb.init to count as finished.",
)
@click.option("--retry", metavar="JSON", help="When a failed attempt is followed by another, as for code jobs.")
@SCHEMA
@as_json_option
def git(url: str, alias: tuple[str, ...], retry: str | None, schema: str | None, as_json: bool, **options: Any) -> None:
    """Pin a commit of the git repository URL: https://host/path, ssh://user@host/path or user@host:path."""
    from launch.cli.jobs import print_version

    options |= {"retry": read_mapping(retry, option="--retry"), "schema": read_mapping(schema, option="--schema")}
    print_version(client().create_git_job(url, aliases=alias, **options), as_json)
