"""What a job needs installed: the text of its requirements file, complete in itself.

The environment is built from this text alone, in another place than the job's code: so other requirements files are
put in, and what points into the code's folder is refused here rather than failing in a build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from launch.errors import ConfigError

_INCLUDE = re.compile(r"^(-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(\S.*)$")
_EDITABLE = re.compile(r"^(-e|--editable)(\s|=)")
_LOCAL = re.compile(r"^(\.{1,2}(/|\[|\s|$)|/|~|file:)|@\s*(file:|\.{0,2}/)", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s:@]+:(?!\$\{)[^/\s@]+@")


def read_requirements(path: Path, explicit: Path | None = None) -> str | None:
    """Return the requirements of the code in a folder, ``-r`` files put in; none: nothing to install.

    Args:
        path: the code's folder, whose ``requirements.txt`` counts if it has one.
        explicit: a requirements file to read instead, which must be there.

    Raises:
        ConfigError: a file is missing or not text, or a line cannot travel: it names the file and line.
    """
    file = explicit or path / "requirements.txt"
    if explicit is None and not file.is_file():
        return None
    lines = list(_lines(file, ()))
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


def _lines(file: Path, including: tuple[Path, ...]) -> Iterator[str]:
    file = file.absolute()
    if file in including:
        raise ConfigError(f"requirements: {file} includes itself, through {including[-1]}")
    for number, line in enumerate(_text(file, including).splitlines(), start=1):
        where, content = f"{file}, line {number}", _content(line)
        include = _INCLUDE.match(content)
        if include is None:
            _check(content, where)
            yield line.rstrip()
            continue
        yield f"# {content}"
        yield from _lines(_included(file, include, where), (*including, file))


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


def _check(content: str, where: str) -> None:
    editable = _EDITABLE.match(content)
    target = content[editable.end() :].strip() if editable else content
    if _LOCAL.search(target) or (editable and "://" not in target):
        raise ConfigError(
            f"requirements: {where}: {content!r}: the environment is built without the job's code, so it cannot "
            "install from a folder in it; leave the line out and import from the code's folder, or publish the package"
        )


def _text(file: Path, including: tuple[Path, ...]) -> str:
    by = f", which {including[-1]} includes" if including else ""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise ConfigError(f"requirements: {file}{by}, cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"requirements: {file}{by}, is not UTF-8 text: {exc}") from exc
