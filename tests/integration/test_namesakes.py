"""Two agents with one name on one Redis: as a machine's own is by default when several are started there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launch.cli import cli
from launch.client import Client
from launch.models import RunState
from launch.settings import settings as process_settings
from launch.watch import Run
from tests.agents import Fleet, wait_until

pytestmark = pytest.mark.redis


@pytest.fixture
def launch_cli(
    client: Client, redis_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """``launch WORDS…`` in this process, with the Redis and home of ``client``."""
    monkeypatch.setenv("LAUNCH_BROKER_URL", redis_url)
    monkeypatch.setenv("LAUNCH_HOME", str(home))
    process_settings.cache_clear()
    yield lambda *words: CliRunner().invoke(cli, words)
    process_settings.cache_clear()


def enqueue(client: Client, folder: Path, name: str) -> Run:
    """Enqueue a run that notes its start, and ends when its gate opens."""
    script = f"echo {name} >> {folder}/ledger; until test -e {folder}/gate-{name}; do sleep 0.05; done"
    return client.enqueue(queue="q", command=["sh", "-c", script], tracking="optional", run_id=name)


def carried_by(client: Client, run: Run) -> str | None:
    return client.store.record(run.id).agent


def test_both_serve_and_what_is_said_to_one_is_not_said_to_the_other(
    client: Client, fleet: Fleet, tmp_path: Path, launch_cli: Callable[..., Result]
) -> None:
    for _ in range(2):
        fleet.start("q", name="box")
    first, second = (enqueue(client, tmp_path, name) for name in ("a", "b"))
    wait_until(lambda: all(run.refresh().state is RunState.RUNNING for run in (first, second)), what="both run")
    ids = {agent.id for agent in client.agents()}
    assert {carried_by(client, first), carried_by(client, second)} == ids

    wait_until(lambda: all(agent.runs for agent in client.agents()), what="heartbeats that tell of them")
    for shown in (launch_cli("agents").stdout, launch_cli("status").stdout):
        assert all(shown.count(agent_id) == 1 for agent_id in ids)
    waiting = enqueue(client, tmp_path, "c")
    explained = launch_cli("explain", waiting.id).stdout
    assert all(agent_id in explained for agent_id in ids)

    for words in (("set", "box", "--max-jobs", "2"), ("drain", "box")):
        refused = launch_cli("agents", *words)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "2 living agents are called 'box'" in refused.stderr
        assert all(agent_id in refused.stderr for agent_id in ids)
    assert waiting.refresh().state is RunState.QUEUED

    one = str(carried_by(client, first))
    assert launch_cli("agents", "set", one, "--max-jobs", "2").stdout.startswith(f"agent {one} ")
    wait_until(lambda: waiting.refresh().state is RunState.RUNNING, what="the slot that was added is used")
    assert carried_by(client, waiting) == one
    assert launch_cli("agents", "set", "box", "--max-jobs", "3", "--all").stdout.count("carries up to 3") == 2
    wait_until(lambda: [agent.max_jobs for agent in client.agents()] == [3, 3], what="both agents have heard it")
    assert sorted((tmp_path / "ledger").read_text().split()) == ["a", "b", "c"]
    for name in "abc":
        (tmp_path / f"gate-{name}").touch()
    for run in (first, second, waiting):
        assert run.wait(timeout_s=30).state is RunState.FINISHED


def test_the_survivor_adopts_the_dead_ones_run_and_no_other(
    client: Client, fleet: Fleet, tmp_path: Path, launch_cli: Callable[..., Result]
) -> None:
    processes = {}
    for _ in range(3):
        known = {agent.id for agent in client.agents()}
        process = fleet.start("q", name="box")
        (new,) = {agent.id for agent in client.agents()} - known
        processes[new] = process
    runs = [enqueue(client, tmp_path, name) for name in ("a", "b", "c")]
    wait_until(lambda: all(run.refresh().state is RunState.RUNNING for run in runs), what="all run")
    owner = {run.id: str(carried_by(client, run)) for run in runs}
    assert len(set(owner.values())) == 3

    processes[owner["a"]].kill()
    wait_until(lambda: carried_by(client, runs[0]) not in (None, owner["a"]), what="the dead one's run is adopted")

    adopter = carried_by(client, runs[0])
    assert adopter in (owner["b"], owner["c"])
    notes = {run.id: [event.note for event in client.store.read_events(run.id)] for run in runs}
    assert notes["a"][-1] == f"adopted by {adopter} from {owner['a']}"
    assert not [note for run_id in "bc" for note in notes[run_id] if note.startswith("adopted")]
    assert {run_id: carried_by(client, client.run(run_id)) for run_id in "bc"} == {id: owner[id] for id in "bc"}
    for name in "abc":
        (tmp_path / f"gate-{name}").touch()
    for run in runs:
        assert (run.wait(timeout_s=30).state, run.attempt) == (RunState.FINISHED, 1)
    assert sorted((tmp_path / "ledger").read_text().split()) == ["a", "b", "c"]


def test_an_agent_is_called_by_its_name_again_once_its_namesake_is_gone(client: Client, fleet: Fleet) -> None:
    stays, leaves = fleet.start("q", name="box"), fleet.start("q", name="box")
    assert {agent.label for agent in client.agents()} == {agent.id for agent in client.agents()}
    leaves.terminate()
    wait_until(lambda: [agent.label for agent in client.agents()] == ["box"], what="its name")
    assert stays.process.poll() is None
