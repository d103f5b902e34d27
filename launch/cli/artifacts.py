"""``launch artifacts gc``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from launch.cli.options import as_json_option, client

if TYPE_CHECKING:
    from launch.artifacts_gc import Collected


@click.group()
def artifacts() -> None:
    """Look after the store of code, logs and old runs."""


@artifacts.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--older-than",
    metavar="TIME",
    default="1d",
    show_default=True,
    help="Leave what was put later than that: its run or job may be about to be recorded.",
)
@as_json_option
def gc(dry_run: bool, older_than: str, as_json: bool) -> None:
    """Remove code and logs that no job and no run, ended or archived, needs any more."""
    from launch.artifacts_gc import collect
    from launch.cli.output import print_json
    from launch.durations import parse_duration

    older_than_s = parse_duration(older_than, where="--older-than")
    made = client()
    found = collect(made.store, made.artifacts, older_than_s=older_than_s, is_dry_run=dry_run)
    if as_json:
        print_json(asdict(found))
        return
    click.echo(f"{made.artifacts.url}: {found.blobs} blobs, {_size(found.bytes)}")
    click.echo("\n".join(_lines(found, older_than)))


def _lines(found: Collected, older_than: str) -> list[str]:
    verb = "would be removed" if found.is_dry_run else "removed"
    lines = [f"{verb}: {found.removed} that nothing needs, {_size(found.removed_bytes)}"]
    if found.young:
        lines.append(f"left: {found.young} that nothing needs yet, put within {older_than}")
    if found.leftovers:
        lines.append(f"{verb}: {found.leftovers} unfinished uploads, {_size(found.leftover_bytes)}")
    return lines


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
