"""``import launch``: cheap, and with every name that is promised."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import launch


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["celery", "kombu", "redis", "pydantic", "click", "fsspec"]
    script = f"import sys, launch; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    script = "import launch; print([name for name in launch.__all__ if getattr(launch, name) is None])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(launch.__all__) <= set(dir(launch))
    with pytest.raises(AttributeError, match="no attribute 'enqeue'"):
        launch.enqeue  # noqa: B018


def test_no_module_hides_a_public_name() -> None:
    """``import launch.runs`` would replace the function ``launch.runs``."""
    modules = {path.stem for path in Path(launch.__file__).parent.iterdir()}
    assert not modules & set(launch.__all__)


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((Path(launch.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert launch.__version__ == project["version"]
