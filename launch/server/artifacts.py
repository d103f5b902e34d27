"""W&B artifacts that a script logs: kept as files of its run. There is no registry of them here.

Below a run's folder: ``artifacts/<collection>/<digest>/`` with ``artifact.json`` (what the script said of it),
``manifest.json`` and ``files/``; ``artifacts/.clients/<client id>`` holds the id that a script's own name for a new
artifact became, since tables point at each other by it. Every id holds its collection and digest, so that nothing
need be looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.server.answers import name_of, storage_id
from launch.server.files import BadNameError, place_for
from launch.server.wandb_api import Query

_MAX_RECORD_BYTES = 1 << 20


class Artifacts:
    """One run's artifacts.

    Args:
        folder: the run's ``artifacts`` folder.
        url: gives the upload URL of a path below it.
        direct_url: gives a URL that can be read without a header: old SDKs read manifests so.
        headers: what an upload carries.
    """

    def __init__(
        self,
        folder: Path,
        *,
        url: Callable[[str], str],
        direct_url: Callable[[str], str],
        headers: Sequence[str],
    ) -> None:
        self._folder = folder
        self._url = url
        self._direct_url = direct_url
        self._headers = list(headers)

    def answer(self, query: Query) -> dict[str, Any] | None:
        """Return the data that answers an operation about artifacts; none if it is not one.

        Raises:
            BadNameError: a name or an id in it is unusable.
        """
        answers = {
            "CreateArtifact": self._create,
            "CreateArtifactManifest": self._create_manifest,
            "UpdateArtifactManifest": self._update_manifest,
            "CreateArtifactFiles": self._create_files,
            "CommitArtifact": self._commit,
            "UpdateArtifact": self._update,
            "UseArtifact": self._use,
            "ClientIDMapping": self._client_mapping,
            "ArtifactByID": self._by_id,
            "ArtifactByIDShort": self._by_id,
        }
        answer = answers.get(query.operation)
        return answer(query.variables) if answer else None

    def _create(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        said = {key: value for key, value in variables.items() if key != "input"}
        collection = str(said.get("artifactCollectionName") or (said.get("artifactCollectionNames") or [""])[0])
        identifier = storage_id(f"{collection}/{said.get('digest')}", "Artifact")
        folder = self._place(identifier)
        self._remember_client(said.get("clientID"), identifier)
        is_known = (folder / "artifact.json").exists() and (folder / "manifest.json").exists()
        _write_json(folder / "artifact.json", said)
        artifact: dict[str, Any] = {
            "id": identifier,
            "digest": said.get("digest"),
            "state": "COMMITTED" if is_known else "PENDING",
            "aliases": [],
            "artifactSequence": {"id": storage_id(collection, "Sequence"), "latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _create_manifest(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        identifier = str(variables.get("artifactID"))
        return {"createArtifactManifest": {"artifactManifest": self._manifest(identifier)}}

    def _update_manifest(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        identifier = name_of(str(variables.get("artifactManifestID")), "Manifest") or ""
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(identifier)}}

    def _manifest(self, identifier: str) -> dict[str, Any]:
        path = self._path(self._place(identifier) / "manifest.json")
        file = {
            "id": storage_id(path, "File"),
            "name": "manifest.json",
            "displayName": path,
            "uploadUrl": self._url(path),
            "uploadHeaders": self._headers,
            "directUrl": self._direct_url(path),
        }
        return {"id": storage_id(identifier, "Manifest"), "file": file}

    def _create_files(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        edges = [{"node": self._file(spec)} for spec in variables.get("artifactFiles") or []]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _file(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        identifier, name = str(spec.get("artifactID")), str(spec.get("name"))
        path = self._path(place_for(self._place(identifier) / "files", name))
        return {
            "id": storage_id(path, "File"),
            "name": name,
            "displayName": name,
            "storagePath": path,
            "uploadUrl": self._url(path),
            "uploadHeaders": self._headers,
            "uploadMultipartUrls": None,
            "artifact": {"id": identifier},
        }

    def _commit(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        identifier = str(variables.get("artifactID"))
        return {"commitArtifact": {"artifact": {"id": identifier, "digest": self._place(identifier).name}}}

    def _update(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"updateArtifact": {"artifact": {"id": variables.get("artifactID")}}}

    def _use(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"useArtifact": {"artifact": {"id": variables.get("artifactID")}}}

    def _by_id(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """What ``artifact.wait()`` reads back; each field as some SDK asks for it."""
        identifier = str(variables.get("id"))
        folder = self._place(identifier)
        if not (folder / "artifact.json").exists():
            return {"artifact": None}
        said = json.loads((folder / "artifact.json").read_text())
        written_at = datetime.fromtimestamp((folder / "artifact.json").stat().st_mtime, UTC)
        entity, project = str(said.get("entityName")), str(said.get("projectName"))
        collection = {
            "__typename": "ArtifactSequence",
            "id": storage_id(folder.parent.name, "Sequence"),
            "name": folder.parent.name,
            "project": {
                "id": storage_id(project, "Project"),
                "internalId": storage_id(project, "ProjectInternalId"),
                "name": project,
                "entityName": entity,
                "entity": {"name": entity},
            },
        }
        files = [path for path in (folder / "files").rglob("*") if path.is_file()]
        artifact = {
            "__typename": "Artifact",
            "id": identifier,
            "artifactSequence": collection,
            "versionIndex": 0,
            "artifactType": {"name": said.get("artifactTypeName")},
            "description": said.get("description"),
            "metadata": said.get("metadata"),
            "ttlDurationSeconds": -2,  # inherited, and there is none
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": said.get("historyStep"),
            "state": "COMMITTED",
            "size": sum(path.stat().st_size for path in files),
            "digest": folder.name,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": folder.name,
            "fileCount": len(files),
            "createdAt": written_at.isoformat(),
            "updatedAt": None,
            "currentManifest": self._manifest(identifier),
            "aliases": [_alias(said_of, collection) for said_of in said.get("aliases") or []],
        }
        return {"artifact": artifact}

    def _client_mapping(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        place = place_for(self._folder / ".clients", str(variables.get("clientID")))
        return {"clientIDMapping": {"serverID": place.read_text()} if place.is_file() else None}

    def _remember_client(self, client: Any, identifier: str) -> None:
        if isinstance(client, str) and client:
            place = place_for(self._folder / ".clients", client)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(identifier)

    def _place(self, identifier: str) -> Path:
        name = name_of(identifier, "Artifact")
        if name is None or name.count("/") != 1 or name.startswith("."):
            raise BadNameError(f"artifact {identifier!r} is not one of this run's")
        return place_for(self._folder, name)

    def _path(self, place: Path) -> str:
        return place.relative_to(self._folder).as_posix()


def _alias(said: Mapping[str, Any], collection: Mapping[str, Any]) -> dict[str, Any]:
    name = str(said.get("alias"))
    return {
        "__typename": "ArtifactAlias",
        "id": storage_id(f"{collection['name']}:{name}", "Alias"),
        "alias": name,
        "artifactCollectionName": collection["name"],
        "artifactCollection": collection,
    }


def _write_json(place: Path, value: Any) -> None:
    text = json.dumps(value, indent=1)
    if len(text) > _MAX_RECORD_BYTES:
        raise BadNameError(f"artifact {place.parent.parent.name!r}: its description and metadata exceed 1 MiB")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
