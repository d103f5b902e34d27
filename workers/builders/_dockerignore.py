"""What a ``.dockerignore`` leaves out of a build context. Pure.

The engine's classic API does not apply it to a context that is sent as a tar, and the SDK's own matcher takes ``Data``
for ``data``.

Source: https://docs.docker.com/build/concepts/context/#dockerignore-files
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable


def ignore_matcher(lines: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a path, relative to the build context, is left out.

    The last line that matches a path, or a folder above it, decides; ``!`` before a pattern takes it in again.
    """
    rules = [rule for line in lines if (rule := _rule(line)) is not None]

    def is_ignored(path: str) -> bool:
        ignored = False
        for leaves_out, pattern in rules:
            if leaves_out is not ignored and pattern.fullmatch(path):
                ignored = leaves_out
        return ignored

    return is_ignored


def _rule(line: str) -> tuple[bool, re.Pattern[str]] | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    leaves_out = not text.startswith("!")
    # "/a", "./a", "a/" and "b/../a" all mean "a".
    pattern = posixpath.normpath("/" + text.removeprefix("!").strip()).lstrip("/")
    return (leaves_out, re.compile(_regex(pattern) + "(/.*)?", re.DOTALL)) if pattern else None


def _regex(pattern: str) -> str:
    parts = re.findall(r"\*\*/|\*\*|\*|\?|\[\^?[^\]]+\]|\\.|.", pattern, re.DOTALL)
    return "".join(map(_part, parts))


def _part(part: str) -> str:
    special = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if part in special:
        return special[part]
    if len(part) > 2 and part.startswith("["):
        return part.replace("\\", "\\\\") if "\\" in part else part
    return re.escape(part[-1])
