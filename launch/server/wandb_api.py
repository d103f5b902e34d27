"""The wandb SDK's wire format, in and out: what its requests mean and what our answers look like. No I/O here.

Source: core/api/graphql/*.graphql, core/internal/filestream and core/internal/runupserter of github.com/wandb/wandb;
tried with the SDKs 0.17.9, 0.21.4, 0.25.1 and 0.31.0.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_ROW_BYTES = 1 << 20
MAX_OBJECT_BYTES = 1 << 20
"""Of the config and of the summary, as JSON."""

# Broken JSON, half a character, or brackets nested without end.
_UNREADABLE = (ValueError, RecursionError)
_HISTORY = "wandb-history.jsonl"
_SYSTEM = "wandb-events.jsonl"
_SUMMARY = "wandb-summary.json"
_OPERATION = re.compile(r"\b(?:query|mutation)\s+([A-Za-z_]\w*)")
_FIRST_FIELD = re.compile(r"\{\s*([A-Za-z_]\w*)")


class BadPostError(ValueError):
    """The request is not what any SDK sends; the text says in what."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one of the SDK's files."""

    offset: int
    rows: tuple[str, ...]
    """JSON objects; an empty string stands for a refused row."""


@dataclass(frozen=True)
class Post:
    """What one ``file_stream`` request reports."""

    history: Rows | None = None
    system: Rows | None = None
    summary: Mapping[str, Any] | None = None
    exit_code: int | None = None
    """Once the script has ended."""
    refused: tuple[str, ...] = ()
    """Why something of it is not kept, for the log."""


def read_post(body: bytes) -> Post:
    """Return what a ``file_stream`` body says; the console's lines are left out, since the agent has the log.

    Raises:
        BadPostError: it is not the JSON an SDK sends.
    """
    data = _json_object(body, "the body")
    files = data.get("files") or {}
    if not isinstance(files, dict):
        raise BadPostError("files: should be an object")
    refused: list[str] = []
    return Post(
        history=_rows(files.get(_HISTORY), _HISTORY, refused),
        system=_rows(files.get(_SYSTEM), _SYSTEM, refused),
        summary=_summary(files.get(_SUMMARY), refused),
        exit_code=_exit_code(data),
        refused=tuple(refused),
    )


def _exit_code(data: Mapping[str, Any]) -> int | None:
    code = data.get("exitcode") or 0
    if not isinstance(code, int):
        raise BadPostError(f"exitcode: should be a number, not {code!r}")
    return code if data.get("complete") else None


def _rows(chunk: Any, name: str, refused: list[str]) -> Rows | None:
    if chunk is None:
        return None
    offset, lines = _chunk(chunk, name)
    kept = [_checked_row(line, f"{name} row {offset + number}", refused) for number, line in enumerate(lines)]
    return Rows(offset, tuple(kept))


def _chunk(chunk: Any, name: str) -> tuple[int, list[str]]:
    if not isinstance(chunk, dict) or not isinstance(chunk.get("content"), list):
        raise BadPostError(f"files/{name}: should have an offset and a list of lines")
    offset, lines = chunk.get("offset") or 0, chunk["content"]
    if not isinstance(offset, int) or offset < 0 or not all(isinstance(line, str) for line in lines):
        raise BadPostError(f"files/{name}: should have an offset and a list of lines")
    return offset, lines


def _checked_row(line: str, where: str, refused: list[str]) -> str:
    try:
        size = len(line.encode())
        if size > MAX_ROW_BYTES:
            refused.append(f"{where}: of {size} bytes, more than {MAX_ROW_BYTES}; log large values as files")
            return ""
        if isinstance(_loads(line), dict):
            return _finite(line)
    except _UNREADABLE:
        pass
    refused.append(f"{where}: is not a JSON object")
    return ""


def _summary(chunk: Any, refused: list[str]) -> Mapping[str, Any] | None:
    if chunk is None:
        return None
    _, lines = _chunk(chunk, _SUMMARY)
    if not lines:
        return None
    # Older SDKs append a line for each summary: the last one is the whole of it.
    return plain_summary(lines[-1], refused)


def plain_summary(text: str, refused: list[str]) -> dict[str, Any] | None:
    """Return a summary without the SDK's own ``_wandb``; none if it is not one.

    What is left out is named in ``refused``: the largest values of one that is too long.
    """
    return _object_within_limit(text, "the summary", refused)


def plain_config(text: str, refused: list[str]) -> dict[str, Any] | None:
    """Return ``{"lr": {"value": 0.5}, "_wandb": …}`` as ``{"lr": 0.5}``; else like :func:`plain_summary`."""
    wrapped = _object_within_limit(text, "the config", refused)
    if wrapped is None:
        return None
    return {key: item["value"] if isinstance(item, dict) and "value" in item else item for key, item in wrapped.items()}


def wrapped_config(config: Mapping[str, Any]) -> str:
    """Return a plain config as the SDK reads it back."""
    return json.dumps({key: {"value": value, "desc": None} for key, value in config.items()})


def _object_within_limit(text: str, what: str, refused: list[str]) -> dict[str, Any] | None:
    try:
        size, value = len(text.encode()), _loads(text)
    except _UNREADABLE:
        size, value = 0, None
    if not isinstance(value, dict):
        refused.append(f"{what}: is not a JSON object")
        return None
    value.pop("_wandb", None)
    return value if size <= MAX_OBJECT_BYTES else _trimmed(value, what, refused)


def _trimmed(value: dict[str, Any], what: str, refused: list[str]) -> dict[str, Any]:
    sizes = {key: len(json.dumps({key: item}).encode()) for key, item in value.items()}
    total = sum(sizes.values())
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if total <= MAX_OBJECT_BYTES:
            break
        refused.append(f"{what}/{key}: of {sizes[key]} bytes, and {what} may have {MAX_OBJECT_BYTES} in all")
        total -= sizes[key]
        value.pop(key)
    return value


def _loads(text: str) -> Any:
    # The SDK writes NaN and the infinities bare, which is not JSON; W&B keeps them as strings too.
    return json.loads(text, parse_constant=str)


def _finite(line: str) -> str:
    if "NaN" not in line and "Infinity" not in line:
        return line
    return json.dumps(_loads(line), separators=(",", ":"), ensure_ascii=False)


def _json_object(body: bytes, what: str) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except _UNREADABLE as exc:
        raise BadPostError(f"{what} is not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise BadPostError(f"{what} should be a JSON object")
    return data


# --- authorization ----------------------------------------------------------------------------------------------------


def key_of(authorization: str | None) -> str | None:
    """Return the API key of an ``Authorization: Basic`` header, whatever its user name; none without one."""
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None


def upload_headers(key: str) -> list[str]:
    """Return the headers, as ``"Name:value"``, that an upload is to carry: the SDK sends it without its own."""
    return ["Authorization:Basic " + base64.b64encode(f"api:{key}".encode()).decode()]


# --- GraphQL ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """One GraphQL request."""

    operation: str
    """``UpsertBucket``; for a query without a name, its first field, such as ``viewer``."""
    variables: Mapping[str, Any]

    def text_of(self, *names: str) -> str:
        """Return the first of the variables that is a string and not empty; none: ``""``."""
        values = (self.variables.get(name) for name in names)
        return next((value for value in values if isinstance(value, str) and value), "")


def read_query(body: bytes) -> Query:
    """Return the operation that a GraphQL request asks for.

    Raises:
        BadPostError: it is not a GraphQL request.
    """
    data = _json_object(body, "the body")
    text, variables = data.get("query"), data.get("variables") or {}
    if isinstance(variables, str):
        variables = _json_object(variables.encode(), "variables")
    if not isinstance(text, str) or not isinstance(variables, dict):
        raise BadPostError("the body should have a query and variables")
    # Some SDKs give an operation's fields one by one, others as one input: here they are the same.
    fields = variables.get("input")
    named, found = data.get("operationName"), _OPERATION.search(text) or _FIRST_FIELD.search(text)
    return Query(
        operation=named if isinstance(named, str) and named else found.group(1) if found else "",
        variables={**fields, **variables} if isinstance(fields, dict) else variables,
    )
