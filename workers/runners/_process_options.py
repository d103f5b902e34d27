"""The resource config of ``process`` queues, and that target's section of the agent config. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, field_validator

from launch.checking import Model


class ProcessOptions(Model):
    """The resource config of a ``process`` queue."""

    env: dict[str, str | None] = Field(default_factory=dict)
    """Variables of the job: a mapping, or a list of ``K=V``. A ``K`` alone takes the agent's own value, if the agent
    config lists it in ``pass_env``."""

    workdir: str = ""
    """Where in the job's code the command runs."""

    @field_validator("env", mode="before")
    @classmethod
    def _read_env(cls, given: Any) -> dict[str, str | None]:
        pairs = given.items() if isinstance(given, Mapping) else [_pair(item) for item in _items(given)]
        env = {str(name): None if value is None else _text(name, value) for name, value in pairs}
        for name in env:
            if not name or "=" in name or "\0" in name:
                raise ValueError(f"{name!r} is no name of a variable; write NAME=value")
        return env

    @field_validator("workdir")
    @classmethod
    def _stays_in_the_code(cls, given: str) -> str:
        if PurePosixPath(given).is_absolute() or ".." in PurePosixPath(given).parts:
            raise ValueError(f"should be a folder of the job's code, such as 'src', not {given!r}")
        return given


def _items(given: Any) -> list[str]:
    if isinstance(given, list | tuple) and all(isinstance(item, str) for item in given):
        return list(given)
    raise ValueError(f"should be a mapping or a list of 'NAME=value', not {given!r}")


def _pair(item: str) -> tuple[str, str | None]:
    name, equals, value = item.partition("=")
    return name, value if equals else None


def _text(name: object, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"{name}: should be text or a number, not {value!r}")


class ProcessSettings(Model):
    """The ``process`` section of the agent config."""

    pass_env: tuple[str, ...] = ()
    """The agent's own variables that a queue or launch may pass to its jobs with a bare ``NAME`` in ``env``."""

    @field_validator("pass_env")
    @classmethod
    def _keeps_our_own(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name.upper().startswith("LAUNCH_"):
                raise ValueError(f"{name!r} is the agent's own and never given to jobs; take it off the list")
        return given
