"""What a job needs installed: the text of its requirements file, complete in itself.

The environment is built from this text alone, in another place than the job's code: so other requirements files are
put in, and what points into the code's folder is refused here rather than failing in a build.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.errors import ConfigError

_KNOWN_FILES = ("requirements.txt", "pyproject.toml", "uv.lock", "requirements.frozen.txt")
_MAX_BYTES = 16 << 20
_INCLUDE = re.compile(r"^(-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(\S.*)$")
_EDITABLE = re.compile(r"^(-e|--editable)(\s|=)")
_LOCAL = re.compile(r"^(\.{1,2}(/|\[|\s|$)|/|~|file:)|@\s*(file:|\.{0,2}/)", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s:@]+:(?!\$\{)[^/\s@]+@")


def find_requirements(
    root: Path, explicit: Path | None = None, *, inside: Path | None = None
) -> tuple[str | None, list[str]]:
    """Return what the code in a folder needs, as the text of a requirements file, and notes for the user.

    The first of these that there is: the explicit file, ``requirements.txt``, the dependencies in ``pyproject.toml``,
    ``uv.lock``, ``requirements.frozen.txt``. A ``uv.lock`` that fits the ``pyproject.toml`` beside it is what these
    dependencies mean, so its pinned versions are taken.

    Args:
        root: the code's folder.
        explicit: a requirements file, ``pyproject.toml`` or ``uv.lock`` to read instead, which must be there.
        inside: a folder that no file may lead out of, unless it is the explicit one; none: they may.

    Raises:
        ConfigError: a file is missing or malformed, or something in it cannot travel: it names the file and line.
    """
    for file in [explicit] if explicit is not None else [root / name for name in _KNOWN_FILES]:
        if explicit is None and not file.is_file():
            continue
        found = _read(file, None if explicit is not None else inside)
        if found is not None:
            return found
    return None, []


def _read(file: Path, inside: Path | None) -> tuple[str | None, list[str]] | None:
    """Return a file's requirements and notes; none: it says nothing of them."""
    if file.name not in ("pyproject.toml", "uv.lock"):
        return read_requirements(file.parent, file, inside=inside), []
    _check_inside(file, inside, "")
    from launch import lockfile, pyproject  # packaging takes 20 ms, and most jobs have a requirements.txt

    if file.name == "uv.lock":
        return lockfile.read_lock(file)
    return pyproject.read_dependencies(file)


def read_requirements(path: Path, explicit: Path | None = None, *, inside: Path | None = None) -> str | None:
    """Return the requirements of the code in a folder, ``-r`` files put in; none: nothing to install.

    Args:
        path: the code's folder, whose ``requirements.txt`` counts if it has one.
        explicit: a requirements file to read instead, which must be there.
        inside: a folder that no file may lead out of; none: they may.

    Raises:
        ConfigError: a file is missing or not text, or a line cannot travel: it names the file and line.
    """
    file = explicit or path / "requirements.txt"
    if explicit is None and not file.is_file():
        return None
    lines = list(_lines(file, (), inside))
    return "\n".join([*lines, ""]) if any(_content(line) for line in lines) else None


def requirement_notes(text: str | None, *, needs_wandb: bool) -> list[str]:
    """Return what the user should know about a job's requirements, a sentence each."""
    notes = []
    if needs_wandb and not re.search(r"(?im)^[^#]*\bwandb\b(?!-)", text or ""):
        notes.append(
            "the requirements do not name wandb, and a run that never calls wandb.init counts as failed; add it to "
            "requirements.txt, or use tracking 'optional'"
        )
    if text and _PASSWORD.search(text):
        notes.append(
            "the requirements hold a password in a URL: everybody who can read the job's artifacts can read it"
        )
    return notes


def package_lines(text: str) -> list[str]:
    """Return what a requirements text installs, a line each: no comments, no options, no hashes."""
    lines = (re.sub(r"\s+--hash=\S+", "", _content(line)) for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def _lines(file: Path, including: tuple[Path, ...], inside: Path | None) -> Iterator[str]:
    file = file.absolute()
    if file in including:
        raise ConfigError(f"requirements: {file} includes itself, through {including[-1]}")
    by = f", which {including[-1]} includes" if including else ""
    _check_inside(file, inside, by)
    for number, line in enumerate(read_text(file, by).splitlines(), start=1):
        where, content = f"{file}, line {number}", _content(line)
        include = _INCLUDE.match(content)
        if include is None:
            check_line(content, where)
            yield line.rstrip()
            continue
        yield f"# {content}"
        yield from _lines(_included(file, include, where), (*including, file), inside)


def _content(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def _included(file: Path, include: re.Match[str], where: str) -> Path:
    option, target = include[1], include[2].strip()
    if option in ("-c", "--constraint"):
        raise ConfigError(
            f"requirements: {where}: {include[0]!r}: constraints cannot travel with a job; write the versions into the "
            "requirements themselves (pip freeze, or pip-compile)"
        )
    if "://" in target:
        raise ConfigError(
            f"requirements: {where}: {include[0]!r}: a file on another machine may change between two runs of one job; "
            "save it beside this one and include that"
        )
    return file.parent / target


def check_line(content: str, where: str) -> None:
    """Raise a ConfigError for a requirement that means a folder of this machine."""
    editable = _EDITABLE.match(content)
    target = content[editable.end() :].strip() if editable else content
    if _LOCAL.search(target) or (editable and "://" not in target):
        raise ConfigError(
            f"requirements: {where}: {content!r}: the environment is built without the job's code, so it cannot "
            "install from a folder in it; leave the line out and import from the code's folder, or publish the package"
        )


def _check_inside(file: Path, inside: Path | None, by: str) -> None:
    if inside is not None and not file.resolve().is_relative_to(inside.resolve()):
        raise ConfigError(f"requirements: {file}{by}, leads out of the job's code, to {file.resolve()}")


def read_text(file: Path, by: str = "") -> str:
    """Return a text file.

    Args:
        file: where it is.
        by: who wants it, for the message: ``", which a.txt includes"``.

    Raises:
        ConfigError: it cannot be read, is too large or no text.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"requirements: {file}{by}, cannot be read: {exc.strerror}") from exc
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"requirements: {file}{by}, has more than {_MAX_BYTES >> 20} MiB: it is no requirements file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"requirements: {file}{by}, is not UTF-8 text: {exc}") from exc


def read_toml(file: Path) -> dict[str, Any]:
    """Return a TOML file's content, or raise a ConfigError."""
    try:
        return tomllib.loads(read_text(file))
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"requirements: {file}: is not TOML: {exc}") from exc
