"""``launch explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launch.cli.options import as_json_option, client

if TYPE_CHECKING:
    from launch.explain import Explanation


@click.command()
@click.argument("run")
@as_json_option
def explain(run: str, as_json: bool) -> None:
    """Say why RUN is where it is.

    What it waits for and when it may start, what it does, or how it ended.
    """
    from launch.cli.output import print_json

    found = client().explain(run)
    if as_json:
        print_json(found.as_json())
        return
    _print(found)


def _print(found: Explanation) -> None:
    from launch.cli.output import print_table, styled_state
    from launch.durations import duration

    headline = found.headline.removeprefix(found.state)
    click.echo(f"run {click.style(found.run_id, bold=True)}: {styled_state(found.state)}{headline}")
    for line in found.lines:
        click.echo(f"  {line}")
    if found.attempts:
        click.echo()
        rows = [
            (
                attempt.number,
                attempt.agent or "",
                attempt.cause.kind,
                duration(attempt.ended_at - attempt.started_at) if attempt.started_at is not None else "not started",
                attempt.cause.message,
            )
            for attempt in found.attempts
        ]
        print_table(("attempt", "agent", "cause", "took", ""), rows)
    if found.log_tail:
        click.echo(click.style("\nits log ends with:", dim=True))
        for text in found.log_tail:
            click.echo(f"| {text}")
    if found.commands:
        click.echo("\nTo type next: " + ", or ".join(f"`{command}`" for command in found.commands))
