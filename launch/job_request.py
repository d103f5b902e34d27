"""What may be asked for when a job is registered: the keywords, and how they are checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from launch.job_inputs import read_inputs
from launch.models import JobInputs, RetryPolicy, Tracking
from launch.queue_spec import retry_policy
from launch.request import as_tracking

_FOR_CODE = ("build_context", "dockerfile", "python_version", "requirements", "base_image", "apt")


class JobChoices(TypedDict, total=False):
    """Keywords of :meth:`launch.client.Client.create_job` and ``create_git_job``."""

    entrypoint: Sequence[str] | str | None
    """What to run, a list or text. None: ``python main.py``, if there is a ``main.py``; an image's own command."""
    aliases: Iterable[str]
    """Further names of the version, taken from the one that had them."""
    build_context: str | None
    """The folder in the code that is the job's root; none: all of it."""
    dockerfile: str | None
    """The Dockerfile that makes the image, relative to the job's root; none: ``Dockerfile.launch`` or
    ``Dockerfile.wandb`` beside the script, or else one is generated."""
    python_version: str | None
    """``"3.11"``; none: what ``runtime.txt`` or ``.python-version`` says, or else the builder's default."""
    requirements: str | Path | None
    """A file on this machine, read instead of the code's ``requirements.txt``, ``pyproject.toml`` or ``uv.lock``."""
    base_image: str | None
    """What a generated image starts from."""
    apt: Iterable[str]
    """Debian packages that a generated image has installed."""
    tracking: Tracking | str
    """``"optional"``: its runs may finish without calling ``wandb.init``."""
    retry: Mapping[str, Any] | RetryPolicy | None
    """When a failed attempt is followed by another, instead of what the queue says."""
    schema: Any
    """What may be set at launch: a JSON Schema or pydantic model of ``wandb.config``, or of it and of config files,
    ``{"@wandb.config": schema, "files": {path: schema}}``."""


@dataclass(frozen=True)
class AskedJob:
    """:class:`JobChoices`, checked as far as nothing need be read for it."""

    entrypoint: Sequence[str] | str | None
    aliases: Iterable[str]
    tracking: Tracking
    retry: RetryPolicy | None
    inputs: JobInputs | None
    code: Mapping[str, Any]
    """What was given of what is for code alone, as :class:`launch.job_files.CodeChoices` takes it."""

    @classmethod
    def of(cls, choices: JobChoices) -> AskedJob:
        """Return what the keywords ask for.

        Raises:
            TypeError: a keyword is none of them.
            RequestError: a value is wrong.
        """
        for unknown in choices.keys() - JobChoices.__annotations__.keys():
            raise TypeError(f"a job has no {unknown!r}; it has: {', '.join(JobChoices.__annotations__)}")
        given: dict[str, Any] = {**choices, "apt": tuple(choices.get("apt", ())) or None}
        code = {key: given[key] for key in _FOR_CODE if given.get(key) is not None}
        if "requirements" in code:
            code["requirements"] = Path(code["requirements"])
        return cls(
            entrypoint=choices.get("entrypoint"),
            aliases=choices.get("aliases", ()),
            tracking=as_tracking(choices.get("tracking", Tracking.REQUIRED)),
            retry=retry_policy(choices.get("retry"), where="retry"),
            inputs=read_inputs(choices.get("schema")),
            code=code,
        )

    def for_code(self) -> dict[str, Any]:
        """Return the keywords for what makes a job of code."""
        own = ("entrypoint", "aliases", "tracking", "retry", "inputs")
        return {**{key: getattr(self, key) for key in own}, **self.code}
