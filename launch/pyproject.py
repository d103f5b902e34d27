"""The dependencies a ``pyproject.toml`` names, as the text of a requirements file.

``[project] dependencies`` only: extras and dependency groups are for people who work on the code. Where uv is told to
take a package from (``[tool.uv.sources]``) is kept, since the package of that name in an index may be another.

Source: https://packaging.python.org/en/latest/specifications/pyproject-toml/,
https://docs.astral.sh/uv/concepts/projects/dependencies/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.markers import InvalidMarker, Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from launch import lockfile
from launch.errors import ConfigError
from launch.requirements import check_line, read_toml

Table = Mapping[str, Any]
_COMPUTED = (
    "the dependencies in pyproject.toml are computed when the project is built, so nothing is installed; write them "
    "into requirements.txt"
)


def read_dependencies(file: Path) -> tuple[str | None, list[str]] | None:
    """Return the dependencies and notes for the user; none: the file says nothing of them.

    Pinned, when there is a ``uv.lock`` beside the file that fits it.

    Raises:
        ConfigError: it is malformed, or a dependency cannot travel.
    """
    data = read_toml(file)
    project = _table(data, "project", file)
    lock, needed = file.with_name("uv.lock"), project.get("dependencies")
    if needed is None:
        is_computed = "dependencies" in project.get("dynamic", ())
        return (None, [_COMPUTED]) if is_computed and not _has_more(file) else None
    if not isinstance(needed, list):
        raise ConfigError(f"requirements: {file}: project/dependencies: should be a list, not {needed!r}")
    wanted = [_requirement(text, file) for text in needed]
    uv = _table(_table(data, "tool", file), "uv", file)
    if not lock.is_file():
        return _as_text(_lines(wanted, uv, file)), []
    changed = lockfile.changed_since(lock, str(project.get("name", "")), wanted)
    if changed is None:
        return lockfile.read_lock(lock, declared=_declared(uv))
    note = f"uv.lock does not fit {file.name} ({changed}), so its versions are not used; `uv lock` mends that"
    return _as_text(_lines(wanted, uv, file)), [note]


def _has_more(file: Path) -> bool:
    return any(file.with_name(name).is_file() for name in ("uv.lock", "requirements.frozen.txt"))


def _as_text(lines: Iterator[str]) -> str | None:
    return "".join(f"{line}\n" for line in lines) or None


def _table(data: Table, name: str, file: Path) -> Table:
    found = data.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"requirements: {file}: {name}: should be a table, not {found!r}")
    return found


def _requirement(text: Any, file: Path) -> Requirement:
    where = f"{file}: project/dependencies"
    try:
        found = Requirement(text)
    except (InvalidRequirement, TypeError) as exc:
        raise ConfigError(f"requirements: {where}: {text!r} is no requirement: {exc}") from exc
    check_line(str(found), where)
    return found


# --- what uv is told of where packages come from ---------------------------------------------------------------------


def _lines(wanted: list[Requirement], uv: Table, file: Path) -> Iterator[str]:
    sources = {canonicalize_name(name): source for name, source in _table(uv, "sources", file).items()}
    for index in _indexes(uv):
        yield f"{'--index-url' if index.get('default') else '--extra-index-url'} {index['url']}"
    for requirement in wanted:
        source = sources.get(canonicalize_name(requirement.name), {})
        for one in source if isinstance(source, list) else [source]:
            yield str(_from_source(requirement, one, file))


def _indexes(uv: Table) -> list[Table]:
    """Return the indexes that are URLs, in uv's new and its old spelling."""
    old = [{"url": uv.get("index-url"), "default": True}, *({"url": url} for url in uv.get("extra-index-url", ()))]
    found = [*uv.get("index", ()), *old]
    return [index for index in found if isinstance(index, dict) and "://" in str(index.get("url"))]


def _declared(uv: Table) -> frozenset[str]:
    return frozenset(index["url"].rstrip("/") for index in _indexes(uv))


def _from_source(requirement: Requirement, source: Any, file: Path) -> Requirement:
    where = f"{file}: tool/uv/sources/{requirement.name}"
    if not isinstance(source, dict):
        raise ConfigError(f"requirements: {where}: should be a table, not {source!r}")
    if local := [key for key in ("path", "workspace") if source.get(key)]:
        raise ConfigError(
            f"requirements: {where}: {local[0]} = {source[local[0]]!r}: the environment is built without the job's "
            "code, so it cannot install from a folder; leave the dependency out and import from the code's folder, or "
            "publish the package"
        )
    made = Requirement(str(requirement))
    try:
        if "marker" in source:
            both = f"({requirement.marker}) and ({source['marker']})" if requirement.marker else source["marker"]
            made.marker = Marker(both)
    except (InvalidMarker, TypeError) as exc:
        raise ConfigError(f"requirements: {where}: {source['marker']!r} is no marker: {exc}") from exc
    if url := _url(source):
        check_line(f"x @ {url}", where)
        made.url, made.specifier = url, type(made.specifier)()
    return made


def _url(source: Table) -> str | None:
    if "git" not in source:
        return source.get("url")
    revision = next((str(source[key]) for key in ("rev", "tag", "branch") if key in source), "")
    return lockfile.git_url(str(source["git"]), revision, source.get("subdirectory"))
