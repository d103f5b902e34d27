"""What the commands that register a job have in common: their options, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launch.cli.options import SCHEMA, TRACKINGS, as_json_option, read_mapping

if TYPE_CHECKING:
    from launch.models import JobVersion

Function = TypeVar("Function", bound=Callable[..., Any])

ALIAS = click.option("-a", "--alias", "aliases", multiple=True, help="Another name of this version; repeatable.")


def code_options(where: str) -> Callable[[Function], Function]:
    """Add the options of a job that has code.

    Args:
        where: where the code is, for people: ``PATH``.
    """
    return _added(
        click.option("-b", "--build-context", metavar="DIR", help=f"The folder in {where} that is the job's root."),
        click.option(
            "-D", "--dockerfile", metavar="FILE", help="The Dockerfile that makes the image, relative to that root."
        ),
        click.option(
            "-r",
            "--runtime",
            "--python",
            "python_version",
            metavar="3.N",
            help="The Python version; default: what runtime.txt or .python-version says, else the builder's.",
        ),
        click.option("-B", "--base-image", metavar="IMAGE", help="What a generated image starts from."),
        click.option(
            "--apt", multiple=True, metavar="PACKAGE", help="A Debian package that a generated image has; repeatable."
        ),
        click.option(
            "--requirements",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help=f"A file here, read instead of {where}'s requirements.txt, pyproject.toml or uv.lock.",
        ),
    )


def job_options(function: Function) -> Function:
    """Add the options of any job."""
    return _added(
        click.option(
            "--tracking",
            type=click.Choice(TRACKINGS),
            default="required",
            show_default=True,
            help="Whether its runs must call wandb.init to count as finished.",
        ),
        click.option(
            "--retry",
            metavar="JSON",
            help="When a failed attempt is followed by another, instead of what the queue says: "
            '{"preempted": 5, "oom": {"times": 1, "memory": "x1.5"}, "error": 2}.',
        ),
        SCHEMA,
        as_json_option,
    )(function)


def _added(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def register(create: Callable[..., JobVersion], name: str, as_json: bool, options: dict[str, Any]) -> None:
    """Register a job as its options say, and print the version that was made, or found.

    Args:
        create: ``create_job`` or ``create_git_job`` of a client.
        name: its first argument.
        as_json: whether a program reads along.
        options: the rest of its arguments, as they were typed.
    """
    from launch.cli.output import print_json

    read = {key: read_mapping(options[key], option=f"--{key}") for key in ("retry", "schema")}
    version = create(name, **{**options, **read})
    if as_json:
        print_json({"ref": version.ref, **version.model_dump(mode="json")})
        return
    click.echo(f"job {click.style(version.ref, bold=True)} is ready")
    click.echo(f"To launch it: `launch enqueue {version.name} -q QUEUE`")
