"""What the wandb SDK's GraphQL operations are answered: the shapes it reads, made of what the store knows. No I/O here.

Source: core/api/graphql/*.graphql and core/internal/runupserter, runbranch of github.com/wandb/wandb.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from launch.server.wandb_api import Query, wrapped_config


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


def artifact_input_fields() -> dict[str, Any]:
    """Answer ``InputFields`` of ``CreateArtifactInput``: SDKs around 0.21 log no artifact without it."""
    names = (
        "entityName", "projectName", "runName", "description", "digest", "digestAlgorithm", "artifactTypeName",
        "artifactCollectionName", "artifactCollectionNames", "aliases", "metadata", "clientID", "sequenceClientID",
        "historyStep", "enableDigestDeduplication", "distributedID",
    )  # fmt: skip
    return {"TypeInfo": {"inputFields": [{"name": name} for name in names]}}


def known_artifact(collection: str, digest: str) -> dict[str, Any]:
    """Answer ``CreateArtifact`` for one that need not be uploaded."""
    artifact = {
        "id": storage_id(f"{collection}/{digest}", "Artifact"),
        "digest": digest,
        "state": "COMMITTED",
        "aliases": [],
        "artifactSequence": {"id": storage_id(collection, "Sequence"), "latestArtifact": None},
    }
    return {"createArtifact": {"artifact": artifact}}


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
