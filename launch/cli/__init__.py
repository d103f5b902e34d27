"""The command ``launch``: parse, call the client, print. A module is loaded when a command of it runs."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from launch import __version__
from launch.errors import LaunchError

# {command: (module below launch.cli, object in it)}, in the order help shows them.
COMMANDS = {
    "up": ("installation", "up"),
    "down": ("installation", "down"),
    "status": ("status", "status"),
    "run": ("enqueue", "run"),
    "enqueue": ("enqueue", "enqueue"),
    "runs": ("runs", "runs"),
    "show": ("runs", "show"),
    "logs": ("runs", "logs"),
    "explain": ("explain", "explain"),
    "wait": ("operations", "wait"),
    "stop": ("operations", "stop"),
    "hold": ("operations", "hold"),
    "release": ("operations", "release"),
    "edit": ("operations", "edit"),
    "rerun": ("operations", "rerun"),
    "retry": ("operations", "retry"),
    "queue": ("queues", "queue"),
    "job": ("jobs", "job"),
    "artifacts": ("artifacts", "artifacts"),
    "agents": ("agents", "agents"),
    "server": ("agents", "server"),
    "doctor": ("doctor", "doctor"),
    "chaos": ("chaos", "chaos"),
}
PLUGIN_GROUP = "launch.commands"

INTERRUPTED = 130


class Failure(click.ClickException):
    """A LaunchError on its way out: the message on stderr, its own exit code, no traceback."""

    def __init__(self, error: LaunchError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: Any = None) -> None:
        """Print the message; what it says to do next is part of it."""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.format_message()}", err=True, file=file)


class LaunchGroup(click.Group):
    """The root: loads commands when they are named, and turns what they raise into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return our own commands, then those of other packages."""
        return [*COMMANDS, *sorted(set(_plugins()) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command, its module imported just now."""
        if cmd_name in COMMANDS:
            module, name = COMMANDS[cmd_name]
            loaded = getattr(import_module(f"launch.cli.{module}"), name)
        else:
            point = _plugins().get(cmd_name)
            loaded = point.load() if point is not None else None
        assert loaded is None or isinstance(loaded, click.Command)
        return loaded

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Like click's, with the command that was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            from launch.checking import closest

            near = closest(args[0], self.list_commands(ctx)) if args else None
            if near is None or "did you mean" in exc.message.lower():
                raise
            raise click.UsageError(f"{exc.message} Did you mean {near!r}?", ctx) from exc

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except LaunchError as exc:
            raise Failure(exc) from exc
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _plugins() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=PLUGIN_GROUP)}


@click.group(cls=LaunchGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="launch", message="%(prog)s %(version)s")
def cli() -> None:
    """Launch ML jobs into queues and run them on any target.

    Start with `launch run PATH`, which starts all it needs on this machine.
    """


def main() -> None:
    """Run the command line; the entry point of the script ``launch``."""
    for stream in (sys.stdout, sys.stderr):
        # A job may print what the terminal's encoding has no letter for.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    cli(prog_name="launch")
