"""For tests only: the contract that every runner keeps, and small real fakes that keep it too.

``RunnerContract`` is a pytest class: subclass it, override three fixtures, and every test of it runs over your runner.
``FakeRunner`` and ``FakeBuilder`` are an in-memory target whose attempts end when the test says so.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("launch.testing.contract")

from launch.testing.contract import Bench, RunnerContract, read_streams, tar_of  # noqa: E402
from launch.testing.fakes import FakeAttempt, FakeBuilder, FakeOptions, FakeRunner, FakeTarget, wait_until  # noqa: E402

__all__ = [
    "Bench",
    "FakeAttempt",
    "FakeBuilder",
    "FakeOptions",
    "FakeRunner",
    "FakeTarget",
    "RunnerContract",
    "read_streams",
    "tar_of",
    "wait_until",
]
