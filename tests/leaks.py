"""Looks for a secret, in whatever form and in pieces, wherever an installation writes something down."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from workers.redact import Redactor

PIECE_CHARS = 10


def holds(text: str, secret: str) -> bool:
    """Whether a text holds a secret in some form, or so much of it that it counts."""
    pieces = (secret[start : start + PIECE_CHARS] for start in range(len(secret) - PIECE_CHARS + 1))
    return Redactor([secret]).mask(text) != text or any(piece in text for piece in pieces)


def in_redis(redis: Any, secret: str) -> list[str]:
    """Return the keys whose value, of whatever type, holds a secret; bodies of Celery's messages are unpacked."""
    return [key for key in redis.scan_iter() if any(holds(text, secret) for text in _unpacked(str(_value(redis, key))))]


def _value(redis: Any, key: str) -> Any:
    read = {
        "string": lambda: redis.get(key),
        "hash": lambda: redis.hgetall(key),
        "list": lambda: redis.lrange(key, 0, -1),
        "set": lambda: redis.smembers(key),
        "zset": lambda: redis.zrange(key, 0, -1),
        "stream": lambda: redis.xrange(key),
    }
    value = read[redis.type(key)]()
    return [key, value, [_body(item) for item in value]] if isinstance(value, list) else [key, value]


def _body(item: Any) -> str:
    try:
        return base64.b64decode(json.loads(item)["body"]).decode()
    except (ValueError, TypeError, KeyError):
        return ""


def _unpacked(text: str) -> Iterator[str]:
    yield text
    yield text.encode().decode("unicode_escape", "replace") if "\\" in text else ""


def in_files(folder: Path, secret: str, *, but: Iterable[Path] = ()) -> list[str]:
    """Return the files below a folder that hold a secret, compressed ones unpacked."""
    left_out = tuple(but)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [
        str(path)
        for path in paths
        if not any(path.is_relative_to(other) for other in left_out) and holds(_text(path), secret)
    ]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:
        return ""  # gone meanwhile
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace")


def cmdlines(secret: str) -> list[str]:
    """Return the command lines of this machine's processes that hold a secret."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue  # it has ended
    return [line for line in lines if holds(line, secret)]
