"""``launch chaos``: the proof of what openlaunch promises, on the user's own machine."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import click

from launch.cli.options import as_json_option

FAILED = 1


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="What is done to whom and when; the same again.")
@click.option("--runs", type=click.IntRange(1), default=500, show_default=True, help="How many runs, at least.")
@click.option("--agent-kills", type=click.IntRange(0), default=200, show_default=True, help="How many kills of agents.")
@click.option("--redis-kills", type=click.IntRange(0), default=20, show_default=True, help="How many kills of Redis.")
@click.option("--docker-kills", type=click.IntRange(0), default=10, show_default=True, help="Of the Docker engine.")
@click.option("--minutes", type=float, help="How long faults are spread over; none: as long as the counts need.")
@click.option("--no-docker", is_flag=True, help="Leave containers out.")
@click.option(
    "--private-docker", is_flag=True, help="Start a Docker engine even beside another, which loses its default bridge."
)
@click.option(
    "--fsync",
    type=click.Choice(["always", "everysec"]),
    default="always",
    show_default=True,
    help="Redis' appendfsync; with everysec the last second may be lost with the machine.",
)
@click.option("--keep", is_flag=True, help="Keep the world's folder, with all logs; a breach keeps it too.")
@as_json_option
def chaos(no_docker: bool, private_docker: bool, keep: bool, as_json: bool, **counts: object) -> None:
    """Kill everything under real runs, and see what is lost.

    Again and again, by a seed, so that it can be replayed; nothing may be lost, doubled or reordered. Starts a Redis,
    agents and, where it can, a Docker engine of its own in a temporary folder; nothing of yours is touched. Ends with a
    table, and exit code 1 if a promise was broken.
    """
    from launch.chaos.plan import ChaosOptions
    from launch.chaos.play import play
    from launch.chaos.report import as_json as outcome_as_json
    from launch.chaos.world import World, find_engine
    from launch.cli.output import print_json

    def say(text: str) -> None:
        click.echo(text, err=True)

    # Told to end, it ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    options = ChaosOptions(docker=not no_docker, **counts)  # type: ignore[arg-type]
    folder = Path(tempfile.mkdtemp(prefix="launch-chaos-"))
    engine = None
    if options.docker:
        engine, which = find_engine(folder, os.environ, private=private_docker)
        say(f"containers: {which}" if engine else f"no containers: {which}")
    world = World(folder, options, engine)
    is_kept = True
    try:
        world.begin()
        outcome = play(world, say)
        is_kept = keep or bool(outcome.breaches)
    finally:
        world.end()
        if is_kept:
            say(f"everything is kept in {folder}")
        else:
            world.delete()
    print_json(outcome_as_json(outcome)) if as_json else _print(outcome)
    if outcome.breaches:
        click.get_current_context().exit(FAILED)


def _print(outcome: object) -> None:
    from launch.chaos.play import Outcome
    from launch.chaos.report import as_rows
    from launch.cli.output import print_table

    assert isinstance(outcome, Outcome)
    for text in outcome.stories:
        click.echo(f"{text}\n")
    print_table(("", "what", "count"), as_rows(outcome))
    for breach in outcome.breaches:
        click.secho(str(breach), fg="red")
    verdict = "every promise was kept" if not outcome.breaches else f"{len(outcome.breaches)} breaches"
    click.echo(f"seed {outcome.options.seed}, {outcome.seconds:.0f} s: {verdict}")
