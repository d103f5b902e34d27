"""What the tracking server does with a request: whose it is, and what of the run it may read and write.

The calls block; each runs in a thread of the web application. A refusal is an ``HTTPException`` whose text the SDK
shows in the job's log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from launch.errors import ConfigError
from launch.inputs import REPORT
from launch.job_types import with_declaration, with_job_metadata
from launch.server import answers, wandb_api
from launch.server.artifacts import Artifacts
from launch.server.files import Limits
from launch.server.wandb_api import Query
from launch.tracking import TrackingStore

log = logging.getLogger(__name__)

_UNKNOWN_KEY = (
    "This API key is unknown, or its run has ended. A job gets its key from openlaunch in WANDB_API_KEY; "
    "a script that sets another one (wandb.login(key=...)) cannot report here."
)


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    run_id: str
    attempt: int
    key: str


class Tracker:
    """The runs' side of every request."""

    def __init__(self, store: TrackingStore, home: Path, limits: Limits) -> None:
        self.store = store
        self.home = home
        self.limits = limits

    def caller(self, authorization: str | None, run_id: str | None = None) -> Caller:
        """Return whose request it is; 401 without a living key, 403 if it is about another run than the key's."""
        key = wandb_api.key_of(authorization)
        owner = self.store.attempt_for_key(key) if key else None
        if key is None or owner is None:
            raise HTTPException(401, _UNKNOWN_KEY)
        if run_id is not None and run_id != owner[0]:
            raise HTTPException(403, _foreign(owner[0], run_id))
        return Caller(*owner, key)

    def file_stream(self, caller: Caller, body: bytes) -> dict[str, Any]:
        """Take one post of the SDK's stream; the answer tells the script whether to stop."""
        post = wandb_api.read_post(body)
        run = (caller.run_id, caller.attempt)
        if not self._record(run, post):
            raise _over(caller)
        for reason in post.refused:
            log.warning("run %s, attempt %d: not kept: %s", *run, reason)
        return {"stopped": True} if self.store.is_stop_requested(caller.run_id) else {}

    def _record(self, run: tuple[str, int], post: wandb_api.Post) -> bool:
        store = self.store
        is_current = True
        if post.history and post.history.rows:
            is_current = store.add_history(*run, post.history.offset, post.history.rows)
        if post.system and post.system.rows:
            rows = [row for row in post.system.rows if row]
            is_current = is_current and store.add_system(*run, post.system.offset, rows)
        if post.summary is not None:
            is_current = is_current and store.set_summary(*run, post.summary)
        if post.exit_code is not None:
            is_current = is_current and store.exit(*run, post.exit_code)
        return is_current

    def graphql(self, caller: Caller, body: bytes, base: str) -> dict[str, Any]:
        """Answer one GraphQL request; ``base`` is the server's URL as the caller writes it."""
        query = wandb_api.read_query(body)
        # Older SDKs ask about the schema first: an empty answer stands for an old server.
        if query.operation == "InputFields" and query.text_of("typeName") == "CreateArtifactInput":
            return {"data": answers.artifact_input_fields()}
        if query.operation.startswith("Probe") or query.operation == "InputFields":
            return {"data": {}}
        answer = _OPERATIONS.get(query.operation)
        if answer is not None:
            return {"data": answer(self, caller, query, base)}
        if query.operation == "CreateArtifact" and query.text_of("artifactCollectionName") == REPORT:
            return {"data": self._job_artifact(caller, query)}
        data = self._artifacts(caller, base).answer(query)
        if data is not None:
            return {"data": data}
        log.info("run %s: the operation %r is not answered here", caller.run_id, query.operation)
        sentence = (
            f"openlaunch does not answer {query.operation or 'this query'}: its server takes what a run reports; "
            "wandb.Api, use_artifact and registries need a W&B server"
        )
        return {"errors": [{"message": sentence}], "data": None}

    def _upsert(self, caller: Caller, query: Query, _base: str) -> dict[str, Any]:
        _own(caller, query.text_of("name", "id"))
        refused: list[str] = []
        text = query.text_of("config")
        config = wandb_api.plain_config(text, refused) if text else None
        first_row = self.store.begin(caller.run_id, caller.attempt, config=config)
        if first_row is None:
            raise _over(caller)
        if summary := query.text_of("summaryMetrics"):
            plain = wandb_api.plain_summary(summary, refused)
            self.store.set_summary(caller.run_id, caller.attempt, plain or {})
        for reason in refused:
            log.warning("run %s, attempt %d: not kept: %s", caller.run_id, caller.attempt, reason)
        return answers.upserted(query, caller.run_id, first_row=first_row)

    def _resume_status(self, caller: Caller, query: Query, _base: str) -> dict[str, Any]:
        _own(caller, query.text_of("name"))
        state = self.store.read_state(caller.run_id)
        if not self.store.resume(caller.run_id, caller.attempt):
            raise _over(caller)
        return answers.resume_status(query, caller.run_id, state, is_known=bool(state["rows"] or state["config"]))

    def _viewer(self, _caller: Caller, _query: Query, _base: str) -> dict[str, Any]:
        return answers.viewer("local")

    def _alert(self, caller: Caller, query: Query, _base: str) -> dict[str, Any]:
        log.warning("run %s alerts: %s: %s", caller.run_id, query.text_of("title"), query.text_of("text"))
        return {"notifyScriptableRunAlert": {"success": True}}

    def _job_inputs(self, caller: Caller, query: Query, _base: str) -> dict[str, Any]:
        said = query.variables.get("declaration")
        self._declare(caller, lambda known: with_declaration(known, said))
        return {"launchJobInputs": {"ok": True}}

    def _job_artifact(self, caller: Caller, query: Query) -> dict[str, Any]:
        """Read what the SDK says of the job in an artifact's metadata; the artifact itself is told to be here."""
        self._declare(caller, lambda known: with_job_metadata(known, query.text_of("metadata")))
        return answers.known_artifact(REPORT, query.text_of("digest"))

    def _declare(self, caller: Caller, add: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Keep a declaration of the job's inputs; one that makes no sense costs nobody anything."""
        run = (caller.run_id, caller.attempt)
        try:
            is_current = self.store.declare(*run, add)
        except ConfigError as exc:
            log.warning("run %s, attempt %d: not kept: %s", *run, exc)
            return
        if is_current is None:
            log.warning("run %s, attempt %d: not kept: what its script declares of the job's inputs is too long", *run)
        elif not is_current:
            raise _over(caller)

    def _stopped(self, caller: Caller, query: Query, _base: str) -> dict[str, Any]:
        _own(caller, query.text_of("runId", "runName"))
        return {"project": {"run": {"stopped": self.store.is_stop_requested(caller.run_id)}}}

    def _file_uploads(self, caller: Caller, query: Query, base: str) -> dict[str, Any]:
        _own(caller, query.text_of("run", "runName", "name"))
        names = [str(name) for name in query.variables.get("files") or []]
        answer = answers.file_uploads if query.operation == "CreateRunFiles" else answers.old_file_uploads
        parts = (
            "files",
            query.text_of("entity", "entityName") or "local",
            query.text_of("project", "projectName") or "-",
            caller.run_id,
        )
        return answer(
            names,
            run_id=caller.run_id,
            headers=wandb_api.upload_headers(caller.key),
            url=lambda name: answers.path_url(base, *parts, name),
        )

    def _artifacts(self, caller: Caller, base: str) -> Artifacts:
        return Artifacts(
            self.folder(caller.run_id) / "artifacts",
            url=lambda path: answers.path_url(base, "artifacts", caller.run_id, path),
            direct_url=lambda path: answers.path_url(
                base.replace("://", f"://api:{caller.key}@", 1), "artifacts", caller.run_id, path
            ),
            headers=wandb_api.upload_headers(caller.key),
        )

    def folder(self, run_id: str) -> Path:
        """Return where a run's files are."""
        return self.home / "runs" / run_id

    def reserve(self, caller: Caller, size_bytes: int) -> None:
        """Count a file against the run's limits, or refuse it."""
        fits: bool | None = None
        if size_bytes <= self.limits.file_bytes:
            run = (caller.run_id, caller.attempt)
            fits = self.store.reserve_file(*run, size_bytes, cap_bytes=self.limits.run_bytes)
        if fits is None:
            raise HTTPException(
                413,
                f"A file of {size_bytes} bytes does not fit: run {caller.run_id} may keep files of "
                f"{self.limits.file_bytes} bytes here, {self.limits.run_bytes} in all",
            )
        if not fits:
            raise _over(caller)

    def give_back(self, caller: Caller, size_bytes: int) -> None:
        """Take back a reservation."""
        self.store.reserve_file(caller.run_id, caller.attempt, -size_bytes, cap_bytes=self.limits.run_bytes)


_OPERATIONS: dict[str, Callable[[Tracker, Caller, Query, str], dict[str, Any]]] = {
    "Viewer": Tracker._viewer,
    "viewer": Tracker._viewer,
    "UpsertBucket": Tracker._upsert,
    "RunResumeStatus": Tracker._resume_status,
    "RunStoppedStatus": Tracker._stopped,
    "CreateRunFiles": Tracker._file_uploads,
    "RunUploadUrls": Tracker._file_uploads,
    "MarkRunFilesUploaded": lambda *_: {"markRunFilesUploaded": {"success": True}},
    "ServerFeaturesQuery": lambda *_: {"serverInfo": {"features": []}},
    "ServerInfo": lambda *_: {"serverInfo": {"cliVersionInfo": None, "latestLocalVersionInfo": None}},
    "NotifyScriptableRunAlert": Tracker._alert,
    "LaunchJobInputs": Tracker._job_inputs,
    "OrganizationCoreWeaveOrganizationID": lambda *_: {"entity": None},
    "ArtifactType": lambda *_: {"project": {"artifact": None}},
}


def _own(caller: Caller, run_id: str) -> None:
    if run_id and run_id not in (caller.run_id, answers.storage_id(caller.run_id)):
        raise HTTPException(403, _foreign(caller.run_id, run_id))


def _foreign(own: str, other: str) -> str:
    return (
        f"This API key may write run {own} only, not {other}: one launch is one run. Leave wandb.init's id to "
        "openlaunch (WANDB_RUN_ID), and enqueue another launch for another run."
    )


def _over(caller: Caller) -> HTTPException:
    return HTTPException(410, f"Attempt {caller.attempt} of run {caller.run_id} is over: nothing more is taken of it.")
