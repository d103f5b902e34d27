"""What may be asked for: the keywords of a launch and their outer form. What they mean, :mod:`launch.intake` knows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

from pydantic import field_validator

from launch.checking import Model, parse
from launch.errors import ConfigError
from launch.models import ImageSource, Job, Tracking
from launch.resolve import as_json


class Launch(TypedDict, total=False):
    """The keywords of :func:`launch.enqueue`."""

    queue: Required[str]
    """The queue's name; its target resource decides what else is needed."""
    job: str | None
    """A registered job: ``"digits"``, ``"digits:v3"``, ``"digits:latest"``."""
    image: str | None
    """A container image that holds everything."""
    command: Sequence[str] | str | None
    """A list, or text that is split as a shell would; with ``image``, what to run in it."""
    path: str | Path | None
    """A directory of code, snapshot now."""
    entrypoint: Sequence[str] | str | None
    """What to run in ``path``, or instead of a job's own entrypoint."""
    args: Sequence[str]
    """Appended to the entrypoint."""
    config: Mapping[str, Any] | None
    """Overrides of the script's ``wandb.config``; JSON types only."""
    files: Mapping[str, Mapping[str, Any]] | None
    """Overrides of the config files that the script manages: ``{"config.yaml": {"model": {"layers": 50}}}``."""
    template_variables: Mapping[str, Any] | None
    """Values for the ``{{name}}`` in the queue's config; a number may be given as text."""
    dockerfile: str | None
    """The Dockerfile that makes the image of a job of code, instead of the job's own: a path in its code."""
    resource_args: Mapping[str, Any] | None
    """Override of the queue's resource config, as far as the queue allows it: mappings merge, lists and scalars
    replace, ``None`` deletes. W&B's form ``{"local-container": {...}}`` is accepted."""
    resource: str | None
    """Checked against the queue's own; only for requests that name one."""
    priority: str | int | None
    """``"critical"``, ``"high"``, ``"medium"`` or ``"low"``, in a queue created with priorities."""
    name: str | None
    """What people call the run; need not be unique."""
    project: str | None
    """``"uncategorized"`` if none is given."""
    entity: str | None
    """``"local"`` if none is given."""
    author: str | None
    """Who launches it; none: the user of this process."""
    run_id: str | None
    """1 to 40 of ``a-z0-9-``; the same launch with the same id again is the run there is."""
    tracking: Tracking | str | None
    """``"optional"``: the run may finish without calling ``wandb.init``."""
    run_limit: str | float | None
    """How long it may take at its target: ``"90m"``, or a number of seconds; no longer than the queue allows."""


class Request(Model):
    """A :class:`Launch` with its keywords and outer types checked, the rest where its meaning is known."""

    queue: str
    job: str | None = None
    image: str | None = None
    command: tuple[str, ...] | None = None
    path: Path | None = None
    entrypoint: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()
    config: Any = None
    files: Any = None
    template_variables: Any = None
    dockerfile: Any = None
    resource_args: Any = None
    resource: str | None = None
    priority: Any = None
    name: Any = None
    project: Any = None
    entity: Any = None
    author: Any = None
    run_id: Any = None
    tracking: Any = None
    run_limit: Any = None

    @field_validator("command", mode="before")
    @classmethod
    def _split_command(cls, value: Any) -> Any:
        return split_command(value) if isinstance(value, str) else value

    @field_validator("entrypoint", mode="before")
    @classmethod
    def _split_entrypoint(cls, value: Any) -> Any:
        from launch.jobs import parse_entrypoint

        return parse_entrypoint(value) if isinstance(value, str) else value

    @field_validator("command", "entrypoint", "args")
    @classmethod
    def _has_no_zeros(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for word in words or ():
            if "\0" in word:
                raise ValueError(f"{word!r} has a zero character in it, which no command may have")
        return words


def image_job(image: str, command: Sequence[str] | str | None, tracking: Tracking | str) -> Job:
    """Return the job that an image is.

    Raises:
        ConfigError: the image reference or the command is malformed.
    """
    from launch.jobs import check_image

    words = split_command(command) if isinstance(command, str) else tuple(command or ())
    source = ImageSource(image=check_image(image))
    return parse(Job, {"source": source, "entrypoint": words, "tracking": as_tracking(tracking)}, where="job")


def as_tracking(value: Tracking | str) -> Tracking:
    """Return the tracking of that name, or raise a ConfigError."""
    try:
        return Tracking(value)
    except ValueError:
        raise ConfigError(f"tracking: should be one of {', '.join(Tracking)}, not {value!r}") from None


def split_command(text: str) -> tuple[str, ...]:
    """Return a command's words, quotes understood as a shell would; nothing else of a shell is.

    Raises:
        ConfigError: unbalanced quotes, or nothing in it.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as exc:
        raise ConfigError(f"command: {text!r} has unbalanced quotes or a stray backslash: {exc}") from exc
    if not words:
        raise ConfigError(f"command: {text!r} is empty: there is nothing to run")
    return words


def check_one_source(asked: Request, where: str) -> None:
    """Raise a ConfigError unless exactly one thing is to be run."""
    named = [key for key in ("job", "image", "path") if getattr(asked, key) is not None]
    command = asked.command is not None
    if len(named) > 1:
        raise ConfigError(f"{where}: give one of job, image and path, not {' and '.join(named)}")
    if not named and not command and asked.entrypoint is not None:
        raise ConfigError(f"{where}: an entrypoint needs a job, image or path; what runs alone is a command")
    if not named and not command:
        raise ConfigError(f"{where}: give one of job, image and command: there is nothing to run")
    if named == ["job"] and command:
        raise ConfigError(f"{where}: give one of job and command; args are appended to the job's own entrypoint")
    if command and asked.entrypoint is not None:
        raise ConfigError(f"{where}: give one of command and entrypoint")
    if command and not asked.command:
        raise ConfigError(f"{where}/command: is empty: there is nothing to run")


def json_mapping(value: Any, where: str) -> dict[str, Any]:
    """Return a mapping of JSON types, empty for none, or raise a ConfigError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: should be a mapping, such as {{'epochs': 3}}, not {str(value)[:80]!r}")
    return dict(as_json(value, where))
