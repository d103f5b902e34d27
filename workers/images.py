"""``launch images gc``: removes images that builds have made and that nobody has used for long."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from launch.checking import parse
from launch.durations import ago
from launch.settings import settings
from workers.builders._cleanup import Cleanup
from workers.config import load_config
from workers.docker_engine import Engine
from workers.docker_images import OwnImage
from workers.docker_settings import EngineSettings

_ASKED = ("host", "timeout_s", "max_images_gb")


@click.group()
def command() -> None:
    """See to the images that builds have made on a Docker engine."""


@command.command()
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option(
    "--keep-gb",
    type=click.FloatRange(min=0),
    metavar="N",
    help="How much may stay, in 10^9 bytes; default: the agent config's max_images_gb.",
)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="An agent configuration file (YAML), which names the engine; default: DOCKER_HOST.",
)
def gc(dry_run: bool, keep_gb: float | None, config: Path | None) -> None:
    """Remove images made here until the rest takes up no more than it may, the longest unused first.

    An image that a container uses stays, whatever its age, and so does every image that was not made here.
    """
    read = load_config(config)
    given = {**read.targets.get("docker", {}), **read.builders.get("docker", {})}
    engine = parse(EngineSettings, {key: given[key] for key in _ASKED if key in given}, where="docker")
    limit_gb = keep_gb if keep_gb is not None else engine.max_images_gb
    cleanup = Cleanup(Engine(engine), settings().home)
    images, chosen = cleanup.plan(limit_gb if limit_gb is not None else float("inf"))
    gone = chosen if dry_run else cleanup.remove(chosen)
    for image in gone:
        click.echo(f"{'would remove' if dry_run else 'removed'} {_line(image)}")
    for image in chosen:
        if image not in gone:
            click.echo(f"{image.title} stays: something needs it just now", err=True)
    left = [image for image in images if image not in gone]
    click.echo(f"{_total(gone)} {'would be removed' if dry_run else 'removed'}, {_total(left)} left")


def _line(image: OwnImage) -> str:
    return f"{image.title}  {image.own_bytes / 1e9:.2f} GB, last used {ago(time.time() - image.used_at)}"


def _total(images: Sequence[OwnImage]) -> str:
    return f"{len(images)} image{'s' * (len(images) != 1)}, {sum(image.own_bytes for image in images) / 1e9:.2f} GB"
