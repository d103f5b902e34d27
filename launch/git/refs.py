"""Branches and tags of a remote, and what to say when the one asked for is not there. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from launch.checking import did_you_mean
from launch.errors import ConfigError

_MAX_LISTED = 20


def read_refs(listed: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return ``({branch: commit}, {tag: commit})`` from what ``git ls-remote`` lists."""
    heads: dict[str, str] = {}
    tags: dict[str, str] = {}
    for line in listed.splitlines():
        oid, _, name = line.partition("\t")
        if name.startswith("refs/heads/"):
            heads[name.removeprefix("refs/heads/")] = oid
        elif name.startswith("refs/tags/"):
            # The commit that an annotated tag leads to follows the tag itself.
            tags[name.removeprefix("refs/tags/").removesuffix("^{}")] = oid
    return heads, tags


def no_default(url: str, heads: Mapping[str, str], tags: Mapping[str, str]) -> ConfigError:
    if not heads and not tags:
        return _empty(url)
    return ConfigError(f"ref: {url} has neither main nor master; name one of its branches: {_shown(heads)}")


def no_ref(url: str, ref: str, heads: Mapping[str, str], tags: Mapping[str, str]) -> ConfigError:
    if not heads and not tags:
        return _empty(url)
    if len(ref) >= 4 and all(character in "0123456789abcdef" for character in ref):
        whole = sorted({oid for oid in (*heads.values(), *tags.values()) if oid.startswith(ref)})
        meant = f"; did you mean {whole[0]!r}?" if whole else ""
        return ConfigError(f"ref: {url} has no branch or tag {ref!r}; a commit is named by all of its 40 digits{meant}")
    guess = did_you_mean(ref, sorted({*heads, *tags})) if len(heads) + len(tags) <= _MAX_LISTED else ""
    return ConfigError(f"ref: {url} has no branch or tag {ref!r}{guess or '; its branches: ' + _shown(heads)}")


def _empty(url: str) -> ConfigError:
    return ConfigError(f"git: {url} is empty: nothing was pushed to it yet")


def _shown(names: Mapping[str, str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _MAX_LISTED:,} more" if len(listed) > _MAX_LISTED else ""
    return ", ".join(listed[:_MAX_LISTED]) + more
