"""Image references, ``host:5000/team/train:v1@sha256:…``, taken apart and checked. No I/O here.

Source: https://github.com/distribution/reference/blob/main/regexp.go
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from launch.errors import ConfigError

MAX_NAME = 255

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME = rf"(?:{_HOST}(?::[0-9]+)?/)?{_PATH}(?:/{_PATH})*"
_REFERENCE = re.compile(
    rf"(?P<name>{_NAME})(?::(?P<tag>[\w][\w.-]{{0,127}}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?",
    re.ASCII,
)
_SHA256 = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """An image reference in its parts."""

    name: str
    """Registry and repository, as an engine knows them: ``host:5000/team/train``."""
    tag: str | None
    digest: str | None
    """``sha256:…``"""

    @property
    def registry(self) -> str | None:
        """``host:5000``; none: the engine's default registry."""
        first, slash, _ = self.name.partition("/")
        return first if slash and (re.search("[.:]", first) or first == "localhost" or first != first.lower()) else None

    @property
    def repository(self) -> str:
        """The name within its registry: ``team/train``."""
        return self.name.removeprefix(f"{self.registry}/") if self.registry else self.name

    def at(self, digest: str) -> str:
        """Return the reference of exactly that image."""
        return f"{self.name}@{digest}"


def parse_reference(text: str, *, where: str = "image") -> Reference:
    """Return a reference's parts; whether there is such an image, its registry knows.

    Args:
        text: the reference.
        where: what it is, for messages.

    Raises:
        ConfigError: it is not well formed, with a guess at what is wrong.
    """
    found = _REFERENCE.fullmatch(text)
    if found and len(found["name"]) <= MAX_NAME:
        if found["digest"] and found["digest"].startswith("sha256:") and not _SHA256.fullmatch(found["digest"]):
            raise ConfigError(f"{where}: {text!r}: a digest should be 'sha256:' and 64 of 0-9 and a-f")
        return Reference(found["name"], found["tag"], found["digest"])
    why = ""
    if found:
        why = f": its name is over {MAX_NAME} characters"
    elif re.search(r"\s", text):
        why = ": it has white space in it"
    elif _REFERENCE.fullmatch(text.lower()):
        why = f": its name should be lower-case; did you mean {text.lower()!r}?"
    raise ConfigError(f"{where}: should be like 'python:3.12-slim' or 'host:5000/team/train:v1', not {text!r}{why}")


def parse_destination(text: str, *, where: str = "destination") -> Reference:
    """Return the registry and repository that images are pushed to.

    Raises:
        ConfigError: it names no registry, or a tag or digest as well.
    """
    found = parse_reference(text, where=where)
    if found.tag or found.digest:
        raise ConfigError(f"{where}: should have no tag or digest, since every image gets its own, not {text!r}")
    if found.registry is None:
        raise ConfigError(f"{where}: should begin with a registry's address, as in 'host:5000/team/repo', not {text!r}")
    return found
