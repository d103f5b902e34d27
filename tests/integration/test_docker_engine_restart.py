"""The Docker engine itself dies under a running job, and comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import BASE_IMAGE, PrivateEngine, engine_of_its_own

from launch.errors import TemporaryError
from launch.models import new_run_id
from launch.plugins import Attempt, Phase, TargetContext
from workers.runners.docker import DockerRunner
from workers.runners.docker_options import DockerOptions

pytestmark = pytest.mark.docker

LINES = 40
COUNTING = f"i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); sleep 0.1; done"


@pytest.fixture(params=[False, True], ids=["plain", "live-restore"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PrivateEngine]:
    """An engine that this test may kill; with ``live-restore`` containers outlive it."""
    with engine_of_its_own(tmp_path / "data", {"live-restore": request.param}) as engine:
        yield engine


def test_an_engine_that_is_killed(engine: PrivateEngine, tmp_path: Path) -> None:
    """Its death is a target that is away, not the job's end; afterwards log and end are there, no line lost."""
    runner = DockerRunner(TargetContext("a1b2c3d4", tmp_path, {"host": engine.host}))
    attempt = Attempt("a1b2c3d4", new_run_id(), 1, ("sh", "-c", COUNTING))
    handle = runner.submit(runner.plan(attempt, BASE_IMAGE, DockerOptions()))
    text, cursor = "", None
    killer = threading.Thread(target=engine.kill)
    with pytest.raises(TemporaryError, match="does not answer"):  # noqa: PT012
        for chunk in runner.logs(handle):
            text, cursor = text + chunk.text, chunk.cursor
            if "5\n" in text and not killer.ident:
                killer.start()
    killer.join()
    assert len(runner.check()) == 1
    with pytest.raises(TemporaryError):
        runner.status([handle])

    engine.start()
    is_restored = bool(engine.settings["live-restore"])
    assert runner.status([handle])[handle].phase is (Phase.RUNNING if is_restored else Phase.ENDED)
    text += "".join(chunk.text for chunk in runner.logs(handle, cursor))
    numbers = [int(word) for word in text.split()]
    assert numbers == list(range(len(numbers)))
    status = runner.wait(handle, 30)
    assert status.phase is Phase.ENDED
    assert (len(numbers) == LINES and status.exit_code == 0) if is_restored else status.exit_code != 0
    runner.remove(handle)
    if is_restored:
        assert runner.find() == {}
