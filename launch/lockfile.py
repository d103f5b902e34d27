"""A ``uv.lock`` as the text of a requirements file: every package pinned, with its hashes where all have them.

What is reached from the root project by its dependencies, and by the extras they ask for: no dependency groups, no
extras of the root. A package's marker says when one of the ways to it is open: the edges of a way are joined by
``and``, the ways by ``or``.

Source: the lock's format is uv's own, version 1; compared with what ``uv export --no-dev --no-emit-project`` writes.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qs, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field

from launch.checking import parse
from launch.errors import ConfigError
from launch.requirements import read_toml

_SOURCES = {"git", "url", "path", "directory", "editable", "virtual"}
_Way = frozenset[str]
_MAX_WAYS = 32
"""Ways to one package that are told apart; with more, only what all of them have in common counts."""


def changed_since(lock: Path, project: str, wanted: Iterable[Requirement]) -> str | None:
    """Return in what a lock does not fit the dependencies of its project; none: it does.

    Raises:
        ConfigError: the lock is malformed.
    """
    locked = _Locked.read(lock)
    root = locked.own(project)
    if root is None:
        return f"it is not of the project {project!r}"
    now, then = _by_name(map(_asked, wanted)), _by_name(locked.asked_by(root))
    changed = [name for name in sorted({*now, *then}) if not _fits(now.get(name), then.get(name))]
    return f"{', '.join(changed)} changed" if changed else None


def read_lock(file: Path, *, declared: frozenset[str] = frozenset()) -> tuple[str | None, list[str]]:
    """Return a lock's packages as requirements, and notes for the user.

    Args:
        file: the ``uv.lock``.
        declared: URLs of the indexes that the project names itself. The index that most packages are from is the
            agent's own if it is not among them.

    Raises:
        ConfigError: it is malformed, or a package cannot travel.
    """
    locked = _Locked.read(file)
    reached = _reached(locked, locked.root())
    pinned = sorted((_pinned(locked, at, ways) for at, ways in reached.items()), key=lambda one: one.line)
    is_hashed = all(one.hashes for one in pinned)  # pip takes hashes for all or for none
    lines = [*_index_lines(pinned, declared), *(one.text(with_hashes=is_hashed) for one in pinned)]
    return "".join(f"{line}\n" for line in lines) or None, []


# --- the file --------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    # uv adds keys without a new version of the format.
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=lambda name: name.replace("_", "-"))


class _Edge(_Part):
    """A dependency; version and source are there if several packages have the name."""

    name: str
    version: str | None = None
    source: dict[str, Any] | None = None
    marker: str = ""
    extra: tuple[str, ...] = ()


class _AskedFor(_Part):
    model_config = ConfigDict(extra="allow")
    name: str
    specifier: str = ""
    marker: str = ""
    extras: tuple[str, ...] = ()


class _Metadata(_Part):
    requires_dist: tuple[_AskedFor, ...] = ()


class _File(_Part):
    hash: str = ""


class _Package(_Part):
    name: str
    version: str | None = None
    source: dict[str, Any]
    dependencies: tuple[_Edge, ...] = ()
    optional_dependencies: dict[str, tuple[_Edge, ...]] = {}
    metadata: _Metadata = _Metadata()
    sdist: _File | None = None
    wheels: tuple[_File, ...] = ()

    @property
    def is_root(self) -> bool:
        """Whether it is the project that the lock lies beside."""
        return self.source in ({"virtual": "."}, {"editable": "."}, {"directory": "."})

    def is_meant_by(self, edge: _Edge) -> bool:
        """Whether it is what an edge of its name leads to."""
        return edge.version in (None, self.version) and edge.source in (None, self.source)


class _Content(_Part):
    version: int
    packages: tuple[_Package, ...] = Field((), alias="package")


@dataclass(frozen=True)
class _Locked:
    file: Path
    packages: Sequence[_Package]

    @classmethod
    def read(cls, file: Path) -> _Locked:
        data = read_toml(file)
        locked = cls(file, ())
        if data.get("version") != 1:
            locked.fail(f"version: is {data.get('version')!r}, and only 1 is known")
        return cls(file, parse(_Content, data, where=f"requirements: {file}").packages)

    def fail(self, why: str) -> NoReturn:
        raise ConfigError(
            f"requirements: {self.file}: {why}; `uv export --no-dev --no-emit-project -o requirements.txt` writes a "
            "file that is used instead"
        )

    @cached_property
    def by_name(self) -> Mapping[str, list[int]]:
        """``{normal name: places of the packages that have it}``"""
        found: dict[str, list[int]] = {}
        for at, package in enumerate(self.packages):
            found.setdefault(canonicalize_name(package.name), []).append(at)
        return found

    def own(self, name: str) -> int | None:
        """Return the place of the project that the lock lies beside, if it has that name."""
        here = self.by_name.get(canonicalize_name(name), [])
        return next((at for at in here if self.packages[at].is_root), None)

    def root(self) -> int:
        roots = [at for at, package in enumerate(self.packages) if package.is_root]
        if len(roots) != 1:
            self.fail("it has no project of its own folder, so what this job needs of it is not known")
        return roots[0]

    def found(self, edge: _Edge) -> int:
        """Return the place of the package that an edge leads to."""
        named = self.by_name.get(canonicalize_name(edge.name), [])
        meant = [at for at in named if self.packages[at].is_meant_by(edge)]
        if len(meant) != 1:
            self.fail(f"package {edge.name!r} is there {len(meant)} times, so what is meant is not known")
        return meant[0]

    def asked_by(self, root: int) -> Iterator[_Asked]:
        """Yield what the project asked for when it was locked."""
        for one in self.packages[root].metadata.requires_dist:
            if "extra ==" in one.marker:
                continue
            try:
                versions = None if _SOURCES & {*(one.model_extra or ())} else SpecifierSet(one.specifier)
            except InvalidSpecifier:
                self.fail(f"package {one.name!r}: {one.specifier!r} is no version specifier")
            yield _Asked(canonicalize_name(one.name), frozenset(map(canonicalize_name, one.extras)), versions)


# --- whether it fits its project -------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """What a project says of one dependency."""

    name: str
    extras: frozenset[str]
    versions: SpecifierSet | None
    """None: it is from a source of its own."""


def _asked(requirement: Requirement) -> _Asked:
    versions = None if requirement.url else requirement.specifier
    return _Asked(canonicalize_name(requirement.name), frozenset(map(canonicalize_name, requirement.extras)), versions)


def _by_name(asked: Iterable[_Asked]) -> dict[str, set[_Asked]]:
    found: dict[str, set[_Asked]] = {}
    for one in asked:
        found.setdefault(one.name, set()).add(one)
    return found


def _fits(now: set[_Asked] | None, then: set[_Asked] | None) -> bool:
    # Of a package with a source of its own uv does not keep the versions.
    return bool(now and then and (now == then or any(one.versions is None for one in then)))


# --- what is needed, and when ----------------------------------------------------------------------------------------


def _reached(locked: _Locked, root: int) -> dict[int, set[_Way]]:
    """Return ``{place of a package: the ways to it}``, without the root; an empty way is always open."""
    ways: dict[tuple[int, str], set[_Way]] = {(root, ""): {frozenset()}}
    waiting = deque(ways)
    while waiting:
        at, extra = waiting.popleft()
        package = locked.packages[at]
        for edge in package.optional_dependencies.get(extra, ()) if extra else package.dependencies:
            through = {way | ({edge.marker} if edge.marker else set()) for way in ways[at, extra]}
            for name in ("", *edge.extra):
                node = (locked.found(edge), name)
                before = ways.get(node)
                ways[node] = _shortest((before or set()) | through)
                if ways[node] != before:
                    waiting.append(node)
    found: dict[int, set[_Way]] = {}
    for (at, _), open_by in ways.items():
        found[at] = _shortest(found.get(at, set()) | open_by)
    del found[root]
    return found


def _shortest(ways: set[_Way]) -> set[_Way]:
    """Return the ways without those that are open only when another one is."""
    kept = {way for way in ways if not any(other < way for other in ways)}
    return kept if len(kept) <= _MAX_WAYS else {frozenset.intersection(*kept)}


def _marker(ways: set[_Way]) -> str:
    if frozenset() in ways:
        return ""
    alternatives = sorted(" and ".join(_grouped(edge) for edge in sorted(way)) for way in ways)
    return " or ".join(f"({one})" if len(alternatives) > 1 and " and " in one else one for one in alternatives)


def _grouped(marker: str) -> str:
    return f"({marker})" if " or " in marker else marker


# --- the lines -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pinned:
    line: str
    hashes: tuple[str, ...]
    index: str | None

    def text(self, *, with_hashes: bool) -> str:
        return " \\\n    ".join([self.line, *(f"--hash={one}" for one in self.hashes if with_hashes)])


def _pinned(locked: _Locked, at: int, ways: set[_Way]) -> _Pinned:
    package, marker = locked.packages[at], _marker(ways)
    line = _target(locked, package) + (f" ; {marker}" if marker else "")
    try:
        Requirement(line)
    except InvalidRequirement as exc:
        locked.fail(f"package {package.name!r}: {line!r} is no requirement: {exc}")
    files = [*([package.sdist] if package.sdist else ()), *package.wheels] if "git" not in package.source else []
    hashes = sorted({one.hash for one in files if re.fullmatch("sha256:[0-9a-f]{64}", one.hash)})
    return _Pinned(line, tuple(hashes), str(package.source.get("registry", "")).rstrip("/") or None)


def _target(locked: _Locked, package: _Package) -> str:
    source = package.source
    if "://" in str(source.get("registry", "")):
        return f"{package.name}=={package.version}"
    if "url" in source:
        return f"{package.name} @ {source['url']}"
    if "git" in source:
        return f"{package.name} @ {_git(str(source['git']))}"
    kind, where = next(iter(source.items()), ("source", None))
    raise ConfigError(
        f"requirements: {locked.file}: package {package.name!r} is from {kind} {where!r}: the environment is built "
        "without the job's code, so it cannot install from a folder; leave the dependency out and import from the "
        "code's folder, or publish the package"
    )


def _git(source: str) -> str:
    parts = urlsplit(source)
    subdirectory = parse_qs(parts.query).get("subdirectory", [None])[0]
    return git_url(parts._replace(query="", fragment="").geturl(), parts.fragment, subdirectory)


def git_url(remote: str, revision: str, subdirectory: str | None) -> str:
    """Return a repository as pip names it: ``git+https://host/path@revision#subdirectory=…``."""
    remote = remote.removeprefix("git+")
    if not urlsplit(remote).scheme and ":" in remote:  # user@host:path, which pip does not know
        remote = "ssh://" + remote.replace(":", "/", 1)
    at = f"@{revision}" if revision else ""
    return f"git+{remote}{at}" + (f"#subdirectory={subdirectory}" if subdirectory else "")


def _index_lines(pinned: Sequence[_Pinned], declared: frozenset[str]) -> list[str]:
    counted = Counter(one.index for one in pinned if one.index)
    indexes = [index for index, _ in counted.most_common()]
    main = [f"--index-url {index}" for index in indexes[:1] if index in declared]
    return [*main, *(f"--extra-index-url {index}" for index in sorted(indexes[1:]))]
