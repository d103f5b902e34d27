"""What every test may ask for; the services themselves are in ``services.py``."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["services", "git_servers", "docker_builds"]

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("openlaunch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("openlaunch")

MAY_BE_SKIPPED_IN_CI = ("macOS", "GPU")
"""What CI's machines are not: a skip there must name one of these, anything else fails."""


def _refuse_skip(report: Any) -> None:
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[-1]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(word in reason for word in MAY_BE_SKIPPED_IN_CI):
        report.outcome = "failed"
        report.longrepr = f"nothing is skipped in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Let a test skipped in CI fail."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """Let a module skipped in CI fail."""
    report = yield
    _refuse_skip(report)
    return report
