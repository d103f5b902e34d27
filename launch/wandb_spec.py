"""W&B's spellings of a launch, read as ours, so that what was written for W&B Launch can be sent here. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.errors import ConfigError

_WANDB_ONLY = frozenset(
    {"uri", "git", "sweep_id", "registry", "builder", "queue_entity", "python_version", "additional_services",
     "_resume_count"}
)  # fmt: skip
_MOVED = {
    "run_config": "config", "args": "args", "entry_point": "entrypoint", "files": "files", "dockerfile": "dockerfile",
}  # fmt: skip


def from_wandb(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request in our own words, from one that may use those of a W&B ``launch_spec``.

    Empty keys that only W&B has are dropped, its API key always; one that asks for something we do not do is refused.

    Raises:
        ConfigError: a value is given in both spellings, or means something that is not supported.
    """
    request = {
        key: value for key, value in spec.items() if key not in {"docker", "overrides", "image_uri", *_WANDB_ONLY}
    }
    request.pop("_wandb_api_key", None)
    for key in _WANDB_ONLY & set(spec):
        if not _is_empty(spec[key]) and key in ("uri", "git"):
            raise ConfigError(
                f"spec/{key}: a repository cannot be named by a message; register a commit of it as a job first: "
                "`launch job create git URL`, and name that job"
            )
        if not _is_empty(spec[key]):
            raise ConfigError(f"spec/{key}: is not supported; leave it out")
    for key, value in _section(spec, "overrides").items():
        if key in _MOVED:
            _move(request, _MOVED[key], value, f"overrides/{key}")
        elif not _is_empty(value):
            raise ConfigError(f"spec/overrides/{key}: is not supported; there are: {', '.join(sorted(_MOVED))}")
    _move(request, "image", _section(spec, "docker").get("docker_image"), "docker/docker_image")
    _move(request, "image", spec.get("image_uri"), "image_uri")
    if isinstance(request.get("job"), str):
        request["job"] = request["job"].rpartition("/")[2]
    return request


def _section(spec: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = spec.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"spec/{key}: should be a mapping, not {str(value)[:80]!r}")
    return value


def _move(request: dict[str, Any], key: str, value: Any, source: str) -> None:
    if _is_empty(value):
        return
    if not _is_empty(request.get(key)):
        raise ConfigError(f"spec: {key!r} and {source!r} are the same; give one of them")
    request[key] = value


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_empty(item) for item in value.values())
    return value is None or value in ("", [], ())
