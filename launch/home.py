"""The launch home: the one folder of this machine that openlaunch writes to."""

from __future__ import annotations

from pathlib import Path

from launch.errors import ConfigError


def make_home(home: Path) -> Path:
    """Make the launch home, if it is not there, for this user only, and return it.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = home / ".gitignore"
        if not marker.exists():
            # A home inside a folder of code must never become part of a snapshot of it.
            marker.write_text("# openlaunch's own files\n*\n")
    except OSError as exc:
        raise ConfigError(f"LAUNCH_HOME: {exc.filename} cannot be made: {exc.strerror}") from exc
    return home
