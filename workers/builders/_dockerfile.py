"""Dockerfiles as text: the one that is generated, and what is changed in a user's own. No I/O, no SDK here.

**How settings reach a build without staying in its image.** The engine's classic build API has no secrets, but it has
build arguments that it keeps out of an image's history and configuration, and of its cache: the predefined ones for
proxies. Build arguments and pip settings travel in one of these as shell text (``workers.builders._build_settings``),
and every ``RUN`` begins by carrying that text out.

Source: https://docs.docker.com/reference/dockerfile/#predefined-args
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from launch.errors import BuildError
from launch.models import APT_PATTERN
from launch.references import parse_reference
from workers.docker_images import BUILD_LABEL

CHANNELS = ("ftp_proxy", "FTP_PROXY")
"""Predefined build arguments that may carry the settings: no tool of today speaks FTP by a proxy."""
PREDEFINED = frozenset({"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
"""Those that are given to the engine as they are."""

_SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh", "ksh"})
_REFERENCE = r"\$(?:\{%s\b|%s\b)"


def prelude(channel: str) -> str:
    """Return what a ``RUN`` begins with."""
    return f'eval "${{{channel}-}}"; '


# --- a generated one --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What an environment image is made of."""

    base: str
    has_requirements: bool = False
    apt: tuple[str, ...] = ()
    """Debian packages."""
    brings_python: bool = True
    """Whether the base surely has Python with pip; if not, it is installed where it is missing."""
    python_version: str | None = None
    """Which one then, ``"3.11"``; none: Debian's own."""


def environment_dockerfile(recipe: Recipe) -> str:
    """Return the Dockerfile of an environment image.

    What changes seldom comes first, so that other requirements use the layers of Debian packages again.

    Raises:
        ConfigError: the base image or a package is no name of one.
    """
    parse_reference(recipe.base, where="base image")
    start = prelude(CHANNELS[0])
    lines = [
        f"FROM {recipe.base}",
        f"LABEL {BUILD_LABEL}=environment",
        "ENV PYTHONUNBUFFERED=1",
        "USER root",
        *([] if recipe.brings_python else [f"RUN {start}{_python_step(recipe.python_version)}"]),
        "RUN grep -q ':x:1000:' /etc/passwd || useradd --create-home --uid 1000 launch || adduser -D -u 1000 launch",
        *([f"RUN {start}{_apt_step(recipe.apt)}"] if recipe.apt else []),
    ]
    if recipe.has_requirements:
        # Debian's own Python refuses to install beside apt; in an image of ours there is nothing to protect.
        # pip's cache would only make the image larger.
        quiet = "PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1"
        lines += [
            "COPY requirements.txt /launch/requirements.txt",
            f"RUN {start}{quiet} python -m pip install --no-cache-dir -r /launch/requirements.txt",
        ]
    return "\n".join([*lines, "USER 1000", ""])


def _apt_step(packages: Iterable[str]) -> str:
    names = list(packages)
    for name in names:
        if not re.fullmatch(APT_PATTERN, name):
            raise BuildError(f"apt: {name!r} is no name of a Debian package")
    return (
        "command -v apt-get >/dev/null || { echo 'the base image has no apt-get, so it takes no Debian packages: "
        "choose a Debian or Ubuntu one' >&2; exit 1; }; "
        f"export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -yq --no-install-recommends "
        f"{shlex.join(names)} && rm -rf /var/lib/apt/lists/*"
    )


def _python_step(version: str | None) -> str:
    """Return a step that makes sure of ``python`` with pip, of that version where Debian has it."""
    common = "python3-pip python3-venv ca-certificates"
    install = "apt-get install -yq --no-install-recommends"
    plain = f"{install} python3 {common}"
    wanted = plain
    if version is not None:
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", version), version
        short = ".".join(version.split(".")[:2])
        wanted = f"{{ {install} python{short} python{short}-venv {common} || {plain}; }}"
    found = "$(ls /usr/bin/python{} 2>/dev/null || command -v python3)".format(
        ".".join(version.split(".")[:2]) if version else "3"
    )
    steps = [
        "if ! python -m pip --version >/dev/null 2>&1; then",
        "if ! python3 -m pip --version >/dev/null 2>&1; then",
        "command -v apt-get >/dev/null || { echo 'the base image has neither Python with pip nor apt-get to install "
        "it: choose another' >&2; exit 1; };",
        f"export DEBIAN_FRONTEND=noninteractive; apt-get update -q && {wanted} && rm -rf /var/lib/apt/lists/*"
        " || exit 1; fi;",
        f'mkdir -p /usr/local/bin && ln -sf "{found}" /usr/local/bin/python; fi;',
        "python --version",
    ]
    return " ".join(steps)


# --- a user's own -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile."""

    word: str
    """In capitals: ``"RUN"``."""
    rest: str
    """All that follows, continued lines joined, without comments."""
    line: int
    """The line it begins in, from 0."""
    last_line: int


def instructions(text: str) -> list[Instruction]:
    """Return what a Dockerfile says, in order."""
    lines = text.splitlines()
    escape = _escape_character(lines)
    found = []
    number = 0
    while number < len(lines):
        first = number
        parts: list[str] = []
        goes_on = True
        while goes_on and number < len(lines):
            line = lines[number].strip()
            number += 1
            if not line or line.startswith("#"):
                goes_on = bool(parts)
                continue
            goes_on = line.endswith(escape)
            if not parts:
                first = number - 1
            parts.append(line[:-1] if goes_on else line)
        word, *rest = " ".join(parts).split(None, 1) or [""]
        if word:
            found.append(Instruction(word.upper(), "".join(rest).strip(), first, number - 1))
    return found


def _escape_character(lines: Iterable[str]) -> str:
    for line in lines:
        directive = re.fullmatch(r"#\s*(\w+)\s*=\s*(\S+)\s*", line.strip())
        if directive is None:
            break
        if directive[1].lower() == "escape":
            return directive[2]
    return "\\"


def base_images(text: str, arguments: Mapping[str, str]) -> list[str]:
    """Return the images that a Dockerfile starts from and copies from, its own stages left out.

    Args:
        text: the Dockerfile.
        arguments: build arguments, which may name them. A name that stays unknown is left out.
    """
    known = dict(arguments)
    stages: set[str] = set()
    found: list[str] = []
    for item in instructions(text):
        if item.word == "ARG" and not found:
            name, equals, default = item.rest.partition("=")
            if equals:
                known.setdefault(name.strip(), default.strip().strip("\"'"))
        if item.word == "FROM":
            words = [word for word in item.rest.split() if not word.startswith("--")]
            if words and words[0].lower() not in stages:
                found.append(_filled_in(words[0], known))
            if len(words) == 3 and words[1].upper() == "AS":
                stages.add(words[2].lower())
        source = re.match(r"--from=(\S+)", item.rest) if item.word in ("COPY", "ADD") else None
        if source and not source[1].isdigit() and source[1].lower() not in stages:
            found.append(source[1])
    return list(dict.fromkeys(image for image in found if image != "scratch" and "$" not in image))


def _filled_in(word: str, known: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        return known.get(name) or (default if default is not None else match[0])

    return re.sub(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))", value, word)


@dataclass(frozen=True)
class Adapted:
    """A user's Dockerfile as it is sent."""

    text: str
    channel: str | None
    """The build argument that carries the settings; none: its commands cannot take them."""
    visible: frozenset[str]
    """Build arguments that the Dockerfile uses outside of ``RUN``, which therefore have to be Docker's own."""


def adapted(text: str, names: Iterable[str]) -> Adapted:
    """Return a user's Dockerfile with every ``RUN`` taking the settings, and its layers labelled as ours.

    ``RUN`` in exec form (``["pip", …]``) and shells other than sh's family are left as they are.

    Args:
        text: the Dockerfile.
        names: the build arguments there are.
    """
    parsed = instructions(text)
    channel = _channel(parsed)
    lines = text.splitlines()
    for item in parsed:
        if item.word == "FROM":
            lines[item.last_line] += f"\nLABEL {BUILD_LABEL}=dockerfile"
        elif item.word == "RUN" and channel is not None and not item.rest.startswith(("[", "--")):
            lines[item.line] = re.sub(r"(?i)^\s*RUN\b\s*", f"RUN {prelude(channel)}", lines[item.line], count=1)
    others = [item.rest for item in parsed if item.word not in ("RUN", "ARG")]
    defaults = [item.rest.partition("=")[2] for item in parsed if item.word == "ARG"]
    visible = {name for name in names if any(_uses(rest, name) for rest in [*others, *defaults])}
    return Adapted("\n".join([*lines, ""]), channel, frozenset(visible))


def _uses(rest: str, name: str) -> bool:
    return re.search(_REFERENCE % (name, name), rest) is not None


def _channel(parsed: Iterable[Instruction]) -> str | None:
    items = list(parsed)
    shells = [item.rest for item in items if item.word == "SHELL"]
    if not all(_is_like_sh(rest) for rest in shells):
        return None
    declared = set(_declared(items))
    return next((name for name in CHANNELS if name not in declared), None)


def _declared(parsed: Iterable[Instruction]) -> Iterator[str]:
    for item in parsed:
        if item.word == "ARG":
            yield from (word.partition("=")[0] for word in item.rest.split())


def _is_like_sh(rest: str) -> bool:
    try:
        words = json.loads(rest)
    except ValueError:
        return False
    return bool(words) and str(words[0]).rpartition("/")[2] in _SHELLS
