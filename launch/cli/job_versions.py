"""``launch job show | diff | alias``: what a version is, what differs between two, and what else one is called."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from launch.cli.options import as_json_option, client
from launch.errors import ConfigError

if TYPE_CHECKING:
    from launch.client import Client
    from launch.job_diff import JobDiff
    from launch.models import CodeOrigin, Job, JobVersion

_MAX_DIRTY_SHOWN = 10
_MAX_PACKAGES_SHOWN = 8


@click.command()
@click.argument("job")
@click.option("--diff", "with_diff", is_flag=True, help="Print how its code differs from the commit it was taken at.")
@as_json_option
def show(job: str, with_diff: bool, as_json: bool) -> None:
    """Show a job: digits, digits:v3, digits:best."""
    from launch.cli.output import print_facts, print_json

    made = client()
    version = made.registry.get(job)
    if with_diff and not as_json:
        click.echo(_diff_of(made, version), nl=False)
        return
    versions = [other.version for other in made.registry.versions(version.name)]
    aliases = made.registry.aliases(version.name)
    if not as_json:
        print_facts(_facts(made, version, versions, aliases))
        return
    data = {"ref": version.ref, **version.model_dump(mode="json"), "versions": versions, "aliases": aliases}
    if with_diff:
        data["diff"] = _diff_of(made, version).decode("utf-8", "replace")
    print_json(data)


def _facts(made: Client, version: JobVersion, versions: Sequence[int], aliases: Mapping[str, int]) -> dict[str, object]:
    from launch.cli.output import retry_lines
    from launch.durations import ago
    from launch.inputs_form import form, form_lines, types_lines

    job = version.job
    return {
        "job": version.ref,
        "source": _source_line(job),
        **_origin_facts(job),
        "entrypoint": shlex.join(job.entrypoint) or "the image's own",
        "python": job.python_version,
        "requirements": _packages(made, job),
        "Dockerfile": job.dockerfile,
        "build context": job.context,
        "base image": job.base_image,
        "apt packages": ", ".join(job.apt),
        "tracking": job.tracking,
        "retry": "\n".join(retry_lines(job.retry)) or "never" if job.retry else "as the queue says",
        "inputs": "\n".join(form_lines(form(version))) or "anything; a first run fills in what it takes",
        "outputs": "\n".join(types_lines(version.types.summary)) if version.types else None,
        "made": ago(made.store.now() - version.created_at),
        "versions": ", ".join(f"v{number}" for number in versions),
        "aliases": ", ".join(f"{alias} = v{number}" for alias, number in aliases.items()),
    }


def _source_line(job: Job) -> str:
    """Return what a job is made of, for people."""
    source = job.source
    if source.kind == "image":
        return source.image
    if source.kind == "code":
        return f"code, {source.files:,} files, {source.archive_bytes / 1e6:,.2f} MB packed"
    if source.kind == "git":
        folder = f", folder {source.subdirectory}" if source.subdirectory else ""
        return f"git, {source.remote} at {source.commit}{f' ({source.ref})' if source.ref else ''}{folder}"
    return source.kind


def _origin_facts(job: Job) -> dict[str, object]:
    origin = _origin(job)
    if origin is None:
        return {}
    at = f"{origin.commit or 'nothing committed yet'}{f' ({origin.branch})' if origin.branch else ''}"
    more = len(origin.dirty) + origin.more_dirty - _MAX_DIRTY_SHOWN
    dirty = [*origin.dirty[:_MAX_DIRTY_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return {"remote": origin.remote, "base commit": at, "changed since": "\n".join(dirty) or "nothing"}


def _origin(job: Job) -> CodeOrigin | None:
    return job.source.origin if job.source.kind == "code" else None


def _packages(made: Client, job: Job) -> str | None:
    """Return how many packages a job needs, and the first of them."""
    from launch.errors import LaunchError
    from launch.requirements import package_lines

    if job.requirements is None:
        return None
    try:
        lines = package_lines(made.artifacts.get_bytes(job.requirements).decode("utf-8", "replace"))
    except LaunchError as exc:
        return f"cannot be read: {exc}"
    more = len(lines) - _MAX_PACKAGES_SHOWN
    return "\n".join([*lines[:_MAX_PACKAGES_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _diff_of(made: Client, version: JobVersion) -> bytes:
    origin = _origin(version.job)
    if origin is None:
        raise ConfigError(f"job {version.ref}: its code was in no git work tree, so there is no commit to compare with")
    return made.artifacts.get_bytes(origin.diff) if origin.diff else b""


@click.command()
@click.argument("name")
@click.argument("before")
@click.argument("after", default="latest")
@as_json_option
def diff(name: str, before: str, after: str, as_json: bool) -> None:
    """Show what differs between versions of the job NAME: settings, requirements, files.

    BEFORE and AFTER are numbers or aliases: v3, best; without AFTER it is the latest one.
    """
    from dataclasses import asdict

    from launch.cli.output import print_json
    from launch.job_diff import job_diff

    made = client()
    old, new = (made.registry.get(f"{name}:{which}") for which in (before, after))
    found = job_diff(made.artifacts, old, new)
    if as_json:
        print_json({"before": old.ref, "after": new.ref, **asdict(found)})
        return
    for line in _diff_lines(found):
        click.echo(line)
    if found.is_empty:
        click.echo(f"{old.ref} and {new.ref} are the same" if old != new else f"both are {new.ref}")


def _diff_lines(found: JobDiff) -> list[str]:
    lines = [f"{name}: {_said(before)} -> {_said(after)}" for name, (before, after) in found.fields.items()]
    lines += _coloured(found.requirements)
    lines += [click.style(f"removed: {name}", fg="red") for name in found.removed]
    lines += [click.style(f"added: {name}", fg="green") for name in found.added]
    for name, diff_lines in found.changed.items():
        lines += _coloured(diff_lines) or [f"changed: {name}"]
    return lines


def _said(value: Any) -> str:
    if value is None:
        return "none"
    is_command = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return shlex.join(value) if is_command else str(value)


def _coloured(lines: Sequence[str]) -> list[str]:
    colours = {"-": "red", "+": "green", "@": "cyan"}
    return [click.style(line, fg=colours.get(line[:1])) if line[:1] in colours else line for line in lines]


@click.command()
@click.argument("job")
@click.argument("alias")
def alias(job: str, alias: str) -> None:
    """Give the version JOB (digits:v3) the further name ALIAS, taken from the version that had it."""
    version = client().alias_job(job, alias)
    click.echo(f"{version.name}:{alias} is {version.ref} now")
