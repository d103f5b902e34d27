"""The Docker runner keeps the contract of every runner, over a real engine, and a few promises of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.models import parse
from launch.plugins import TargetContext
from launch.testing import RunnerContract
from workers.runners.docker import DockerRunner
from workers.runners.docker_options import DockerOptions

pytestmark = pytest.mark.docker


def options_of(**config: Any) -> DockerOptions:
    return parse(DockerOptions, DockerRunner.canonical(config), where="test")


class TestDockerRunner(RunnerContract):
    """Everything an agent relies on."""

    @pytest.fixture
    def make_runner(self, docker_host: str, tmp_path: Path) -> Any:
        """Runners of the test session's own engine."""

        def make(installation: str) -> DockerRunner:
            return DockerRunner(TargetContext(installation, tmp_path, {"host": docker_host}))

        return make

    @pytest.fixture
    def image(self, base_image: str) -> str:
        """Debian with Python."""
        return base_image

    @pytest.fixture
    def options(self) -> DockerOptions:
        """No limits, and no network, which takes time to make."""
        return options_of(network="none")
