"""What a run asks of a builder, and what images and containers say of its job. No I/O but the artifact store's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.artifacts import ArtifactStore
from launch.models import CodeSource, GitSource, ImageSource, LaunchSpec
from launch.plugins import BuildRequest

_OCI = "org.opencontainers.image."


def build_request(
    spec: LaunchSpec, options: Mapping[str, Any], code: Path | None, artifacts: ArtifactStore
) -> BuildRequest:
    """Return what a launch needs built.

    Args:
        spec: the launch.
        options: what the queue says to the builder.
        code: the job's code on this machine, a gzip tar.
        artifacts: where its requirements are.

    Raises:
        PermanentError: its requirements are gone.
        TemporaryError: the artifact store is away.
    """
    job = spec.job
    image = job.source if isinstance(job.source, ImageSource) else None
    return BuildRequest(
        image=image.image if image else None,
        digest=image.digest if image else None,
        requirements=artifacts.get_bytes(job.requirements).decode() if job.requirements else None,
        python_version=job.python_version,
        options=options,
        code=code,
        dockerfile=job.dockerfile,
        context=job.context,
        base_image=job.base_image,
        apt=job.apt,
        labels=job_labels(spec),
    )


def job_labels(spec: LaunchSpec) -> dict[str, str]:
    """Return the OCI annotations of a launch's job: title, version, source and revision, as far as they are known.

    Source: https://github.com/opencontainers/image-spec/blob/main/annotations.md
    """
    name, _, version = (spec.job_ref or "").partition(":")
    source = spec.job.source
    remote, commit = None, None
    if isinstance(source, GitSource):
        remote, commit = source.remote, source.commit
    elif isinstance(source, CodeSource) and source.origin is not None:
        remote, commit = source.origin.remote, source.origin.commit
    # Launches of one unnamed folder share a project and a command.
    title = name or f"{spec.project}: {' '.join(spec.job.entrypoint)}"[:200]
    known = {"title": title, "version": version, "source": remote, "revision": commit}
    return {f"{_OCI}{key}": value for key, value in known.items() if value}
