"""The wandb SDK's wire format, in and out: what its requests mean and what our answers look like. No I/O here.

Source: core/api/graphql/*.graphql, core/internal/filestream and core/internal/runupserter of github.com/wandb/wandb;
tried with the SDKs 0.17.9, 0.21.4, 0.25.1 and 0.31.0.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

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


def viewer(entity: str) -> dict[str, Any]:
    """Answer ``Viewer``."""
    user = {
        "id": "VXNlcjox",
        "entity": entity,
        "username": entity,
        "name": entity,
        "email": "",
        "admin": False,
        "flags": "{}",
        "teams": {"edges": [{"node": {"name": entity}}]},
    }
    return {"viewer": user}


def upserted(query: Query, run_id: str, *, first_row: int) -> dict[str, Any]:
    """Answer ``UpsertBucket``. The SDK takes names from it, and numbers its history rows from ``first_row``."""
    bucket = {
        "id": storage_id(run_id),
        "name": run_id,
        "displayName": query.text_of("displayName") or run_id,
        "description": None,
        "config": None,
        "sweepName": None,
        "project": _project(query.text_of("project", "modelName"), query.text_of("entity", "entityName")),
        "historyLineCount": first_row,
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": True}}


def _project(name: str, entity: str) -> dict[str, Any]:
    return {
        "id": storage_id(name, kind="Project"),
        "name": name or "uncategorized",
        "entity": {"id": storage_id(entity, kind="Entity"), "name": entity or "local"},
    }


def resume_status(query: Query, run_id: str, state: Mapping[str, Any], *, is_known: bool) -> dict[str, Any]:
    """Answer ``RunResumeStatus`` with what earlier attempts left behind."""
    bucket = {
        "id": storage_id(run_id),
        "name": run_id,
        "displayName": run_id,
        "summaryMetrics": json.dumps(state["summary"]),
        "config": wrapped_config(state["config"]),
        "historyLineCount": state["rows"],
        "historyTail": json.dumps([json.dumps(state["last"])] if state["last"] else []),
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "logLineCount": 0,
        "tags": [],
        "notes": None,
        # The SDK takes a run for begun when its telemetry, "t", is there.
        "wandbConfig": json.dumps({"t": {"value": 1}}),
    }
    model = {**_project(query.text_of("project", "model"), query.text_of("entity")), "bucket": None}
    return {"model": {**model, "bucket": bucket} if is_known else model}


def file_uploads(
    names: Sequence[str], *, run_id: str, headers: Sequence[str], url: Callable[[str], str]
) -> dict[str, Any]:
    """Answer ``CreateRunFiles``: where each file is to be put."""
    files = [{"name": name, "uploadUrl": url(name)} for name in names]
    return {"createRunFiles": {"runID": storage_id(run_id), "uploadHeaders": list(headers), "files": files}}


def old_file_uploads(
    names: Sequence[str], *, run_id: str, headers: Sequence[str], url: Callable[[str], str]
) -> dict[str, Any]:
    """Answer ``RunUploadUrls``, which SDKs before 0.18 ask instead."""
    edges = [{"node": {"name": name, "url": url(name), "updatedAt": None}} for name in names]
    run = {"id": storage_id(run_id), "files": {"uploadHeaders": list(headers), "edges": edges}}
    return {"model": {"bucket": run}}


def storage_id(name: str, kind: str = "Run") -> str:
    """Return an opaque id as W&B makes them: the SDK decodes them from base64."""
    return base64.b64encode(f"{kind}:v1:{name}".encode()).decode()


def name_of(identifier: str, kind: str) -> str | None:
    """Return what :func:`storage_id` was made of; none if it is no id of that kind."""
    try:
        found = base64.b64decode(identifier, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return found.removeprefix(f"{kind}:v1:") if found.startswith(f"{kind}:v1:") else None


def path_url(base: str, *parts: str) -> str:
    """Return a URL below ``base``; the last part may hold slashes, the others not."""
    quoted = [quote(part, safe="") for part in parts[:-1]]
    return "/".join([base.rstrip("/"), *quoted, quote(parts[-1], safe="/")])
