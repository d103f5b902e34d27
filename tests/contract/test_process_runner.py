"""The process runner keeps the contract, with real processes."""

from __future__ import annotations

from typing import Any

import pytest

from launch.plugins import TargetContext
from launch.testing import RunnerContract
from workers.runners.process import ProcessOptions, ProcessRunner


class TestProcessRunner(RunnerContract):
    """Every test of the contract."""

    @pytest.fixture
    def make_runner(self, tmp_path):
        return lambda installation: ProcessRunner(TargetContext(installation, tmp_path / "home"))

    @pytest.fixture
    def options(self) -> Any:
        return ProcessOptions()
