"""Virtual environments: made once, reused, and never half-made; by a Python of the test's that makes them quickly."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch.errors import BuildError, ConfigError, TemporaryError
from launch.plugins import BuildRequest, TargetContext
from workers.builders import venv as venv_module
from workers.builders._interpreters import find_interpreter
from workers.builders.venv import VenvBuilder

PATIENCE_S = 60.0
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "600", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


def builder_at(home: Path, **environ: str) -> VenvBuilder:
    return VenvBuilder(TargetContext("0a0a0a0a", home), environ={"PATH": os.environ["PATH"], **OFFLINE, **environ})


def build(home: Path, requirements=None, python=None, *, log=None, cancelled=lambda: False, **environ: str):
    request = BuildRequest(image=None, requirements=requirements, python_version=python)
    return builder_at(home, **environ).build(request, log or (lambda _: None), cancelled)


@pytest.fixture
def fake_python(tmp_path) -> dict[str, str]:
    """A ``python3.99`` that makes environments in no time: its PATH, and the file ``mode`` that troubles it."""
    folder, mode = tmp_path / "bin", tmp_path / "mode"
    folder.mkdir()
    script = f"""#!{sys.executable} -S
import json, os, sys, time
mode = open({str(mode)!r}).read() if os.path.exists({str(mode)!r}) else ""
if sys.argv[1] == "-I":
    print("3.99.1")
elif sys.argv[1:3] == ["-m", "venv"]:
    print("variables", json.dumps(dict(os.environ)))
    os.makedirs(sys.argv[3] + "/bin")
    os.symlink(__file__, sys.argv[3] + "/bin/python")
    while mode == "hold":
        time.sleep(0.02)
        mode = open({str(mode)!r}).read()
    if mode == "disk full":
        sys.exit("OSError: [Errno 28] No space left on device")
else:
    print("\\n".join(f"pip line {{i}}" for i in range(100)))
    sys.exit(7 if mode == "pip fails" else 0)
"""
    (folder / "python3.99").write_text(script)
    (folder / "python3.99").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "mode": str(mode)}


def test_each_reuse_is_noted(home, fake_python):
    """The time stamp of the marker is when the environment was last used, for a later clean-up."""
    image = build(home, python="3.99", **fake_python).image
    marker = Path(image) / venv_module.MARKER
    os.utime(marker, (1, 1))
    build(home, python="3.99", **fake_python)
    assert marker.stat().st_mtime > 1


def test_what_makes_another_environment(home, fake_python):
    """Other requirements or another Python: another environment."""
    images = {build(home, text, "3.99", **fake_python).image for text in ("a\n", "b\n", None)}
    assert len(images) == 3
    assert venv_module.environment_key("3.11.1", "a\n") != venv_module.environment_key("3.11.2", "a\n")


def test_agents_at_once_build_one(home, fake_python):
    """Of several that ask at the same moment one builds, and the others wait for it and say so."""
    Path(fake_python["mode"]).write_text("hold")
    said: list[str] = []

    def release_when_all_wait() -> bool:
        if said.count("waiting for another build of the same environment\n") == 3:
            Path(fake_python["mode"]).write_text("")
        return False

    def ask(_: int):
        return build(home, python="3.99", log=said.append, cancelled=release_when_all_wait, **fake_python)

    with ThreadPoolExecutor(4) as pool:
        builds = list(pool.map(ask, range(4)))
    assert len({made.image for made in builds}) == 1
    assert sorted(made.reused for made in builds) == [False, True, True, True]
    assert sum("making a virtual environment" in text for text in said) == 1


def test_a_failed_build_leaves_nothing(home, fake_python):
    """The message names the step and ends with the last 30 lines; the next try starts from nothing."""
    Path(fake_python["mode"]).write_text("pip fails")
    with pytest.raises(BuildError) as failed:
        build(home, "numpy\n", "3.99", **fake_python)
    lines = str(failed.value).splitlines()
    assert lines[0] == "pip install -r requirements failed with exit code 7; its last lines:"
    assert lines[1:] == [f"pip line {i}" for i in range(70, 100)]
    assert [path.suffix for path in (home / "venvs").iterdir()] == [".lock"]
    Path(fake_python["mode"]).write_text("")
    assert not build(home, "numpy\n", "3.99", **fake_python).reused


def test_a_full_disk_is_not_the_jobs_fault(home, fake_python):
    """It is tried again when there is room."""
    Path(fake_python["mode"]).write_text("disk full")
    with pytest.raises(TemporaryError, match="is full; free some space"):
        build(home, python="3.99", **fake_python)


def test_a_half_made_environment_is_made_anew(home, fake_python):
    """Without the marker, or with its Python gone, it is not whole."""
    image = Path(build(home, python="3.99", **fake_python).image)
    (image / venv_module.MARKER).unlink()
    (image / "junk").touch()
    assert not build(home, python="3.99", **fake_python).reused
    assert not (image / "junk").exists()
    (image / "bin" / "python").unlink()
    assert not build(home, python="3.99", **fake_python).reused


def test_a_build_step_sees_no_secret_of_the_agents(home, fake_python):
    """A package's setup code gets what pip needs, and nothing else of the agent's environment."""
    said: list[str] = []
    secrets = {"LAUNCH_BROKER_URL": "redis://:s3cr3t@h", "AWS_SECRET_ACCESS_KEY": "s3cr3t"}
    proxy = {"https_proxy": "http://proxy:3128", "PIP_INDEX_URL": "http://mirror/simple"}
    build(home, python="3.99", log=said.append, **fake_python, **secrets, **proxy)
    line = next(line for line in "".join(said).splitlines() if line.startswith("variables "))
    variables = json.loads(line.removeprefix("variables "))
    assert "s3cr3t" not in line
    assert {name: variables[name] for name in proxy} == proxy


def test_a_python_that_is_not_there(home, fake_python):
    """The message says which there are."""
    with pytest.raises(BuildError, match=r"no Python 3\.98 on this machine.*3\.99\.1 \(/.*/python3\.99\)"):
        build(home, python="3.98", **fake_python)


def test_the_agents_own_python_is_the_default():
    """It is also taken when it has the version that was asked for, without a look at the others."""
    version = f"3.{sys.version_info.minor}"
    own = find_interpreter(None, "")
    assert (own.path, own.version) == (sys.executable, platform.python_version())
    assert find_interpreter(version, "") == find_interpreter(own.version, "") == own


@pytest.mark.parametrize("version", ["2.7", "three", "3.", "3.11; rm"])
def test_a_version_that_is_none(home, version):
    """A wrong version is named."""
    with pytest.raises(ConfigError, match=re.escape(f"python_version: should be like '3.11', not {version!r}")):
        build(home, python=version)


def test_images_and_options_are_refused(home):
    """The process target runs no images, and this builder has no options."""
    builder = builder_at(home)
    with pytest.raises(ConfigError, match="runs no images such as 'alpine'; use a docker queue"):
        builder.build(BuildRequest("alpine", None, None), print, lambda: False)
    with pytest.raises(ConfigError, match="no options, such as 'base'"):
        builder.build(BuildRequest(None, None, None, {"base": "x"}), print, lambda: False)
    assert builder.check() == []


def test_a_waiting_build_can_be_cancelled(home, fake_python):
    """Waiting for another agent's build ends when the run is stopped, and that build goes on."""
    mode, began = Path(fake_python["mode"]), threading.Event()
    mode.write_text("hold")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(build, home, python="3.99", log=lambda _: began.set(), **fake_python)
        assert began.wait(PATIENCE_S)
        with pytest.raises(InterruptedError, match="waited for another build"):
            build(home, python="3.99", cancelled=lambda: True, **fake_python)
        mode.write_text("")
        assert not first.result().reused


def test_the_launch_home_stays_private(home, fake_python):
    """Requirements may hold a registry's password."""
    image = build(home, python="3.99", **fake_python).image
    assert Path(image).parent.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(image)
