"""The Kubernetes manifests: what kubectl makes of them, held against the API's schemas and what a cluster enforces."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment import DEPLOY
from tests.services import need_program

FOLDER = DEPLOY / "kubernetes"
CONFIG = DEPLOY.parent / "config"
VERSIONS = ("1.27", "1.31", "1.35")
"""The oldest that Pod Security, probes and the like are all stable in, and newer ones."""


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    """Everything that ``kubectl apply -k`` would send."""
    done = subprocess.run([need_program("kubectl"), "kustomize", FOLDER], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] in kinds}


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return ``{name: pod template}``."""
    return {name: each["spec"]["template"] for name, each in of_kind(objects, "Deployment", "StatefulSet").items()}


def containers(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, pod in pods(objects).items():
        for container in pod["spec"]["containers"]:
            yield name, pod["spec"], container


@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_is_what_the_api_takes(objects: list[dict[str, Any]], version: str) -> None:
    """By the published schemas, with no field that they do not know."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: make dev")
    assert len(objects) > 15
    for each in objects:
        validate.validate(each, version, strict=True)


def test_pods_are_restricted(objects: list[dict[str, Any]]) -> None:
    """What the namespace enforces, and more: a root that is read only, no token, bounded memory."""
    (namespace,) = of_kind(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert set(pods(objects)) == {"redis", "server", "agent", "flower"}
    for _, pod, container in containers(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert all("hostPath" not in volume for volume in pod["volumes"])


def test_what_is_named_is_there(objects: list[dict[str, Any]]) -> None:
    """Volumes, selectors and ports fit together, and secrets hold what `make-users` writes."""
    written = {f"{name}.url" for name in ("agent", "server", "flower", "viewer")} | {"users.acl", "flower-basic-auth"}
    for _, pod, container in containers(objects):
        names = {volume["name"] for volume in pod["volumes"]}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted - {"data"} == names
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                assert variable["valueFrom"]["secretKeyRef"]["key"] in written
        for volume in pod["volumes"]:
            assert {item["key"] for item in volume.get("secret", {}).get("items", [])} <= written
            if "configMap" in volume:
                assert volume["configMap"]["name"] in of_kind(objects, "ConfigMap")
    labels = [pod["metadata"]["labels"] for pod in pods(objects).values()]
    for each in of_kind(objects, "Service").values():
        assert each["spec"]["selector"] in labels
    ports = {port["name"] for _, _, container in containers(objects) for port in container.get("ports", [])}
    for each in of_kind(objects, "NetworkPolicy").values():
        assert {port["port"] for rule in each["spec"].get("ingress", []) for port in rule.get("ports", [])} <= ports


def test_redis_is_the_one_that_is_documented(objects: list[dict[str, Any]]) -> None:
    """Its config is ``config/redis.conf`` with a bound for memory below the container's."""
    documented = (CONFIG / "redis.conf").read_text()
    assert (FOLDER / "redis.conf").read_text() == documented.replace("\nmaxmemory 0\n", "\nmaxmemory 3gb\n")
    spec = pods(objects)["redis"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["memory"] == "4Gi"
    assert of_kind(objects, "StatefulSet")["redis"]["spec"]["volumeClaimTemplates"]


def test_the_agents_file_is_one_that_an_agent_takes(tmp_path: Path) -> None:
    from workers.config import read_config

    config = read_config(FOLDER / "agent-config.yaml", {})
    assert config.tracking_url
    assert config.queues == ("cloud",)


def test_images_are_ours_and_pinned(objects: list[dict[str, Any]]) -> None:
    """The tag is that of the package, and no image names a registry."""
    from launch import __version__

    images = {container["image"] for _, _, container in containers(objects)}
    assert images == {f"openlaunch:{__version__}", f"openlaunch-server:{__version__}", "redis:7.4"}
