"""What a job's last image was made from, so that people hear why one is built, and when an image was last used.

Below the launch home: ``builds/<digest of the job's name>.json``, the inputs of its last build; ``images/<content>``,
an empty file whose time stamp is when that image was last built or reused. Both may be deleted: what is said of the
next build is shorter then, and an image counts as used when it was made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.checking import listed
from launch.requirements import package_lines

_MANY = 6
_FIRST = {"environment": "this base image", "dockerfile": "this Dockerfile"}


@dataclass(frozen=True)
class Inputs:
    """What an image is made from, in words that people know."""

    kind: str
    """``"environment"`` or ``"dockerfile"``."""
    base: str
    """Its base image, or all of them."""
    base_id: str
    requirements: str = ""
    """The text of the requirements file."""
    apt: tuple[str, ...] = ()
    dockerfile: str = ""
    """The text it is made by."""
    context: str = ""
    """A digest of the files a Dockerfile build sees."""
    platform: str = ""
    arguments: tuple[str, ...] = ()
    """Names of build arguments."""

    @property
    def content(self) -> str:
        """A digest of all of it, which names the image."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def recall(home: Path, job: str) -> Inputs | None:
    """Return what the job's last image was made from, if that is known; of a job without a name nothing is."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        data = json.loads(_path(home, job).read_text())
        return Inputs(**{**data, "apt": tuple(data["apt"]), "arguments": tuple(data["arguments"])})
    return None


def remember(home: Path, job: str, inputs: Inputs) -> None:
    """Keep what the job's image is made from, unless the disk says no: nothing but a sentence hangs on it."""
    if not job:
        return
    path = _path(home, job)
    text = json.dumps(asdict(inputs))
    with contextlib.suppress(OSError):
        if path.exists() and path.read_text() == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temporary.write_text(text)
        temporary.replace(path)


def _path(home: Path, job: str) -> Path:
    return home / "builds" / f"{hashlib.sha256(job.encode()).hexdigest()[:24]}.json"


def mark_used(home: Path, content: str) -> None:
    """Note that an image was used just now."""
    with contextlib.suppress(OSError):
        path = home / "images" / content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path)


def last_used(home: Path, content: str) -> float | None:
    """Return when an image was last used here, in Unix seconds; none: that is not known."""
    with contextlib.suppress(OSError):
        return (home / "images" / content).stat().st_mtime
    return None


def differences(before: Inputs | None, after: Inputs) -> str:
    """Return what has changed since the job's last build: ``requirements changed (+numpy 2.1)``."""
    if before is None:
        return f"first run with {'these requirements' if after.requirements else _FIRST[after.kind]}"
    if before.kind != after.kind:
        return "made by a Dockerfile now" if after.kind == "dockerfile" else "no Dockerfile any more"
    said = []
    if before.base != after.base:
        said.append(f"base image {after.base} instead of {before.base}")
    elif before.base_id != after.base_id:
        said.append(f"base image {after.base} moved")
    if before.requirements != after.requirements:
        said.append(f"requirements changed ({_changed_requirements(before.requirements, after.requirements)})")
    if before.apt != after.apt:
        said.append(f"Debian packages changed ({listed(_signed(set(before.apt), set(after.apt)), _MANY)})")
    if before.context != after.context:
        said.append("files of the build context changed")
    if before.platform != after.platform:
        own = "the engine's"
        said.append(f"platform {after.platform or own} instead of {before.platform or own}")
    if before.arguments != after.arguments:
        said.append("names of build arguments changed")
    if not said and before.dockerfile != after.dockerfile:
        said.append("the Dockerfile changed" if after.kind == "dockerfile" else "made in another way by this version")
    elif before.dockerfile != after.dockerfile and after.kind == "dockerfile":
        said.append("the Dockerfile changed")
    return ", ".join(said) or "the image was no longer on the engine"


def _changed_requirements(before: str, after: str) -> str:
    old, new = _packages(before), _packages(after)
    both = old.keys() & new.keys()
    said = [f"+{name} {new[name]}".strip() for name in new if name not in old]
    said += [f"-{name}" for name in old if name not in new]
    said += [
        f"{name} {old[name] or 'any'} -> {new[name] or 'any'}"
        for name in new
        if name in both and old[name] != new[name]
    ]
    return listed(said, _MANY) or "order, comments or options"


def _packages(text: str) -> dict[str, str]:
    """Return ``{name: what is asked of it}`` of the packages in a requirements file."""
    found: dict[str, str] = {}
    for line in package_lines(text):
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*(?:\[[^\]]*\])?)\s*(.*)", line)
        if match:
            found[match[1].lower().replace("_", "-")] = re.sub(r"^==+\s*", "", match[2]).strip()
    return found


def _signed(before: set[str], after: set[str]) -> list[str]:
    return [*(f"+{name}" for name in sorted(after - before)), *(f"-{name}" for name in sorted(before - after))]


def job_of(labels: Mapping[str, str]) -> str:
    """Return the name of the job that a build is for."""
    return labels.get("org.opencontainers.image.title", "")
