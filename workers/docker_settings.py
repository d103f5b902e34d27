"""What an agent's config says of a Docker engine, for its runner and its builder alike. No I/O, no SDK here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from launch.checking import Model, matching, readable_by
from launch.references import parse_destination

Variable = Annotated[str, matching("[A-Za-z_][A-Za-z0-9_]*", "a variable's name, of letters, digits and '_'")]


def _one_line(value: str) -> str:
    if any(character in value for character in "\r\n\0"):
        raise ValueError("should be one line")
    return value


def _address(value: str) -> str:
    parts = urlsplit(_one_line(value))
    if parts.scheme not in ("http", "https", "file") or " " in value:
        # It may hold a password, so it is not repeated.
        raise ValueError("should be a URL like 'https://host/simple'")
    return value


Address = Annotated[str, AfterValidator(_address)]
Line = Annotated[str, AfterValidator(_one_line)]
Destination = Annotated[str, readable_by(parse_destination, said_by_path="destination: ")]


class PipSettings(Model):
    """``pip`` in an agent's config: where builds install from."""

    index_url: Address | None = None
    """The package index; it may hold a user and a password. None: pip's own default."""

    extra_index_urls: tuple[Address, ...] = ()
    """Further indexes."""

    trusted_hosts: tuple[Line, ...] = ()
    """``host`` or ``host:port`` that is trusted without a valid certificate."""

    cert: Path | None = None
    """A PEM file on the agent's machine: authorities to trust besides those of the image."""


class RegistryLogin(Model):
    """``registries/<host:port>`` in an agent's config."""

    username: str
    """Who logs in."""

    password: str
    """Its password or token."""


class EngineSettings(Model):
    """``targets/docker`` and ``builders/docker`` in an agent's config: runner and builder know the same settings."""

    host: str | None = None
    """``unix:///path``, ``tcp://host:port`` or ``ssh://user@host``. None: ``DOCKER_HOST``, then the current context."""

    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """How long one request to the engine may take."""

    pass_env: tuple[str, ...] = ()
    """Names that a resource config's ``env`` may take from the agent's own environment."""

    tracking_host: str | None = None
    """Where containers reach this machine. None: the gateway of the container's network."""

    min_free_gb: Annotated[float, Field(ge=0)] = 1.0
    """The agent takes no run while the engine's disk has less than this; images not used lately are deleted before."""

    max_images_gb: Annotated[float, Field(gt=0)] | None = 100.0
    """What the images made here may take up together, in 10^9 bytes. Above it the longest unused go. None: no limit."""

    python_version: str | None = None
    """For jobs that name none: ``"3.12"``. None: the agent's own."""

    base_image: str = "python:{python_version}-slim"
    """What environment images start from, unless the job or the resource config says otherwise."""

    build_limit_s: Annotated[float, Field(gt=0)] | None = 7200.0
    """How long one build may take, pulls and pushes included. None: no limit."""

    build_args: dict[Variable, Line] = {}
    """Variables of the commands that builds run, such as ``HTTPS_PROXY``. They do not stay in the image."""

    pip: PipSettings = PipSettings()
    """Where builds install from. It does not stay in the image."""

    destination: Destination | None = None
    """``host:5000/team/repo``: where built images are pushed to, and looked for before one is built. None: nowhere."""

    registries: dict[str, RegistryLogin] = {}
    """Logins by registry, ``host:5000``. One that is not here is looked for in Docker's own config."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_text(cls, data: Any) -> Any:
        args = data.get("build_args") if isinstance(data, dict) else None
        if not isinstance(args, dict):
            return data
        return {**data, "build_args": {name: str(arg) if isinstance(arg, int) else arg for name, arg in args.items()}}
