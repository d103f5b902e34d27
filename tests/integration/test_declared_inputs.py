"""Inputs end to end: a launch's values reach scripts that call ``manage_*``, W&B's or ours; a first run fills in what
its job takes, and the next launch is held against that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from launch.cli import cli
from launch.client import Client
from launch.errors import ConfigError
from launch.models import JobInputs, JobTypes, JobVersion, RunState
from launch.settings import settings
from launch.store import RunStore
from launch.watch import Run
from tests.agents import Fleet, wait_until

pytest.importorskip("wandb", reason="needs the wandb SDK: pip install wandb")
pytestmark = [pytest.mark.redis, pytest.mark.timeout(150)]

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
from pathlib import Path
from launch.server import serve
from launch.settings import Settings
from launch.store import RunStore
store = RunStore.connect(sys.argv[2], timeout_s=1)
serve(Settings(home=Path(sys.argv[1])), store=store, on_ready=lambda urls: print(*urls, flush=True))
"""
CONFIG = {"model": {"name": "resnet", "layers": 18}, "epochs": 10}
LR = {"type": "number", "minimum": 0, "maximum": 1, "description": "Learning rate"}
LAYERS = {"type": "integer", "minimum": 1}

# The same script twice: written for W&B's module, and for ours.
TRAIN = f"""
import json
IMPORT
launch.manage_config_file(
    "config.yaml", include=["model"], exclude=["model.name"],
    schema={{"properties": {{"model": {{"type": "object", "properties": {{"layers": {LAYERS}}}}}}}}},
)
launch.manage_wandb_config(include=["lr", "net"], exclude=["net.seed"])
import wandb, yaml
run = wandb.init(project="mine", config={{"lr": 0.1, "net": {{"depth": 2, "seed": 1}}, "secret": "x"}})
run.config.update({{"lr": 7}}, allow_val_change=True)
print("CONFIG", json.dumps(dict(run.config)))
print("FILE", json.dumps(yaml.safe_load(open("config.yaml"))))
print("LOADED", json.dumps(dict(launch.load_wandb_config())))
run.log({{"loss": 1.0}})
run.summary["best"] = "yes"
run.finish()
"""
SCRIPTS = {
    "wandb": TRAIN.replace("IMPORT", "from wandb.sdk import launch"),
    "openlaunch": TRAIN.replace("IMPORT", "import launch"),
}


@pytest.fixture
def server(redis_url: str, home: Path) -> Iterator[str]:
    """A tracking server as a process; the URL at which jobs reach it."""
    argv = [sys.executable, "-c", SERVE, str(home), redis_url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd="/", env={"PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout
        yield process.stdout.readline().split()[0]
        process.terminate()


@pytest.fixture
def agent(fleet: Fleet, client: Client, server: str) -> None:
    """An agent that serves ``q``, whose jobs are tracked."""
    fleet.start("q", options=("--tracking-url", server))


def register(client: Client, folder: Path, script: str, **options: Any) -> JobVersion:
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(script)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return client.create_job("digits", path=folder, entrypoint=[sys.executable, "train.py"], **options)


def said(run: Run, word: str) -> Any:
    """Return what the script has printed after a word, as JSON."""
    (line,) = [line for line in run.logs() if line.startswith(word)]
    return json.loads(line.removeprefix(word))


def ended(run: Run) -> Run:
    wait_until(lambda: run.state.is_final, 90, "the run's end")
    assert run.state is RunState.FINISHED, run.record.cause
    return run


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("module", SCRIPTS)
def test_a_launchs_values_arrive_and_the_first_run_fills_in_the_jobs_inputs(
    client: Client, tmp_path: Path, module: str
) -> None:
    """The file is patched, the config is locked; then the job is known, and what it does not allow is refused."""
    version = register(client, tmp_path / "code", SCRIPTS[module])
    assert client.registry.get("digits").types is None

    run = ended(
        client.enqueue(
            job="digits",
            queue="q",
            config={"lr": 0.5, "net": {"depth": 3}},
            files={"config.yaml": {"model": {"layers": 50}}},
        )
    )

    assert said(run, "CONFIG") == {"lr": 0.5, "net": {"depth": 3, "seed": 1}, "secret": "x"}
    assert said(run, "FILE") == {"model": {"name": "resnet", "layers": 50}, "epochs": 10}
    assert said(run, "LOADED") == {"lr": 0.5, "net": {"depth": 3}}

    found = client.registry.get("digits")
    assert found.model_copy(update={"types": None}) == version
    layers = {"type": "object", "properties": {"layers": LAYERS}}
    assert found.types == JobTypes(
        config={"lr": "number", "net": {"depth": "number", "seed": "number"}, "secret": "text"},
        summary={"loss": "number", "best": "text"},
        settable={"lr": "number", "net": {"depth": "number"}},
        files={"config.yaml": {"model": {"layers": "number"}}},
        inputs=JobInputs(files={"config.yaml": {"properties": {"model": layers}}}),
    )
    assert found.types.inputs

    with pytest.raises(ConfigError, match="config/net/seed: job digits:v0 does not let a launch set it"):
        client.enqueue(job="digits", queue="q", config={"net": {"seed": 2}})
    with pytest.raises(ConfigError, match=r"files/config\.yaml/model/layers: should be an integer at least 1, not 0"):
        client.enqueue(job="digits", queue="q", files={"config.yaml": {"model": {"layers": 0}}})
    with pytest.raises(ConfigError, match="config/secret: job digits:v0 does not let a launch set it"):
        client.rerun(run.id, config={"secret": "y"})


PLAIN = """
import wandb
run = wandb.init(config={"lr": 0.1})
run.log({"loss": wandb.Histogram([1, 2]), "step": 1})
run.finish()
"""


@pytest.mark.usefixtures("agent")
def test_a_script_that_declares_nothing_tells_its_types(client: Client, tmp_path: Path) -> None:
    """The first finished run counts, once; another version has its own."""
    register(client, tmp_path / "code", PLAIN)
    ended(client.enqueue(job="digits", queue="q"))

    types = JobTypes(config={"lr": "number"}, summary={"loss": "histogram", "step": "number"})
    assert client.registry.get("digits").types == types
    assert not client.registry.fill_in_types("digits:v0", JobTypes(config={"other": "text"}))
    assert client.registry.get("digits:v0").types == types
    assert client.registry.aliases("digits") == {"latest": 0}

    register(client, tmp_path / "code", PLAIN.replace("0.1", "'fast'"))
    assert client.registry.get("digits").types is None


@pytest.mark.usefixtures("agent")
def test_a_failed_run_tells_nothing(client: Client, tmp_path: Path) -> None:
    register(client, tmp_path / "code", PLAIN + "raise SystemExit(3)\n")
    run = client.enqueue(job="digits", queue="q")
    wait_until(lambda: run.state.is_final, 90, "the run's end")
    assert run.state is RunState.FAILED
    assert client.registry.get("digits").types is None


def test_types_of_a_version_that_is_gone_make_no_job(client: Client, store: RunStore) -> None:
    """A run may outlive its job: what it tells must not bring half of it back."""
    assert not client.registry.fill_in_types("digits:v0", JobTypes(config={"lr": "number"}))
    assert store.redis.keys("launch:job:*") == []


# --- template variables, through the record and the agent -------------------------------------------------------------

ENV = {"OMP_NUM_THREADS": "{{threads}}"}
THREADS = {"threads": {"type": "integer", "minimum": 1, "maximum": 8, "default": 2}}


def test_variables_are_rendered_at_enqueue_and_taken_by_the_agent(client: Client, fleet: Fleet) -> None:
    """The agent holds the run against the queue's version it was enqueued with, whatever the queue is now."""
    client.create_queue("sized", resource="process", config={"env": ENV}, template_variables=THREADS, overrides="none")
    command = ["sh", "-c", "echo THREADS $OMP_NUM_THREADS"]
    launch: dict[str, Any] = {"queue": "sized", "command": command, "tracking": "optional"}
    run = client.enqueue(**launch, template_variables={"threads": "4"})
    assert run.spec.resource_config == {"env": {"OMP_NUM_THREADS": 4}}

    changed = client.update_queue("sized", template_variables={"threads": {**THREADS["threads"], "maximum": 3}})
    assert changed.version == 2
    with pytest.raises(ConfigError, match="should be an integer between 1 and 3, not 4"):
        client.enqueue(**launch, template_variables={"threads": 4})
    edited = client.edit(run.id, template_variables={"threads": 8})
    assert edited.spec.resource_config == {"env": {"OMP_NUM_THREADS": 8}}
    with pytest.raises(ConfigError, match="should be an integer between 1 and 3, not 8"):
        client.rerun(run.id)

    fleet.start("sized")
    assert said(ended(run), "THREADS") == 8
    again = ended(client.rerun(run.id, template_variables={"threads": None}))
    assert (again.spec.template_variables, said(again, "THREADS")) == ({}, 2)


def test_a_record_that_was_tampered_with_is_refused_by_the_agent(client: Client, store: RunStore, fleet: Fleet) -> None:
    """A value out of the variable's bounds does not run, however it came into the record."""
    client.create_queue("sized", resource="process", config={"env": ENV}, template_variables=THREADS)
    run = client.enqueue(queue="sized", command=["true"], tracking="optional", template_variables={"threads": 8})
    text = store.redis.hget(f"launch:run:{run.id}", "spec")
    store.redis.hset(f"launch:run:{run.id}", "spec", text.replace('"threads":8', '"threads":99'))
    fleet.start("sized")
    wait_until(lambda: run.state.is_final, what="the run's end")
    assert run.record.cause is not None
    assert "template_variables/threads: should be an integer between 1 and 8, not 99" in run.record.cause.message


def test_a_wandb_spec_brings_its_variables_and_files(client: Client, redis_url: str, fleet: Fleet) -> None:
    """A plain Celery message with W&B's keys."""
    from celery import Celery

    client.create_queue("sized", resource="process", config={"env": ENV}, template_variables=THREADS)
    client.create_job("noop", path=ROOT / "tests" / "jobs" / "digits", entrypoint="true", tracking="optional")
    spec = {
        "queue": "sized",
        "job": "team/project/noop:latest",
        "template_variables": {"threads": 3},
        "overrides": {"files": {"config.yaml": {"a": 1}}, "run_config": {"lr": 1}},
    }
    with closing(Celery(broker=redis_url)) as app:
        app.send_task("launch.run", kwargs={"spec": spec}, queue="launch.sized", task_id="foreign1")
    fleet.start("sized")
    run = ended(wait_until(lambda: client.runs(queue="sized") or None, what="the run")[0])
    assert run.spec.resource_config == {"env": {"OMP_NUM_THREADS": 3}}
    assert (run.spec.files, run.spec.config) == ({"config.yaml": {"a": 1}}, {"lr": 1})


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def launch_cli(redis_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """``launch WORDS…`` in this process, with the same Redis and home as ``client``."""
    monkeypatch.setenv("LAUNCH_BROKER_URL", redis_url)
    monkeypatch.setenv("LAUNCH_HOME", str(home))
    settings.cache_clear()
    yield lambda *words: CliRunner().invoke(cli, words)
    settings.cache_clear()


@pytest.mark.usefixtures("client")
def test_variables_at_the_command_line(launch_cli: Callable[..., Result]) -> None:
    """From a queue's making to a launch's dry run."""
    made = launch_cli(
        *("queue", "create", "sized", "-r", "docker", "-c", '{"cpus": "{{cpu}}"}'),
        *("--var", "cpu: {type: integer, minimum: 1, maximum: 4, default: 2}", "--var", "spare: {default: x}"),
    )
    assert (made.exit_code, "nothing in its config uses the template variable 'spare'" in made.stderr) == (0, True)
    shown = launch_cli("queue", "show", "sized").stdout
    assert "cpu = an integer between 1 and 4, default 2" in shown

    launch = ("enqueue", "--image", "a:1", "-q", "sized", "--tracking", "optional")
    planned = launch_cli(*launch, "--set-var", "cpu=3", "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "3000000000" in planned.stdout
    refused = launch_cli(*launch, "--set-var", "cpu=many")
    assert refused.exit_code == 2
    assert 'template_variables/cpu: should be an integer between 1 and 4, not "many"' in refused.stderr
    assert launch_cli(*launch, "-v", "cpu=4", "--run-id", "r1").exit_code == 0
    assert "cpu = 4" in launch_cli("show", "r1").stdout
    assert launch_cli("edit", "r1", "--set-var", "cpu=1").exit_code == 0
    assert json.loads(launch_cli("show", "r1", "--json").stdout)["resource_config"] == {"cpus": 1}
    changed = launch_cli("queue", "update", "sized", "--var", "cpu: {type: integer, maximum: 2, default: 1}")
    assert "template_variables: " in changed.stdout


@pytest.mark.usefixtures("client")
def test_a_jobs_form_at_the_command_line(launch_cli: Callable[..., Result], tmp_path: Path) -> None:
    """A schema in a YAML file; the job shows it, a launch is held against it."""
    (tmp_path / "main.py").write_text("")
    schema = tmp_path / "inputs.yaml"
    schema.write_text(yaml.safe_dump({"@wandb.config": {"properties": {"lr": LR}}, "files": {"a.yaml": {}}}))
    words = ("job", "create", "code", str(tmp_path), "-n", "digits", "--schema", str(schema))
    assert launch_cli(*words).exit_code == 0
    assert "-c lr=  a number between 0 and 1: Learning rate" in launch_cli("job", "show", "digits").stdout

    refused = launch_cli("enqueue", "digits", "-q", "q", "-c", "lr=fast")
    assert refused.exit_code == 2
    assert 'config/lr: should be a number between 0 and 1, not "fast"' in refused.stderr
    refused = launch_cli("enqueue", "digits", "-q", "q", "--set-file", "b.yaml:x=1")
    assert "files/b.yaml: is no input of job digits:v0; did you mean 'a.yaml'?" in refused.stderr
    made = launch_cli("enqueue", "digits", "-q", "q", "-c", "lr=0.2", "--set-file", "a.yaml:x.y=1", "--run-id", "r1")
    assert made.exit_code == 0, made.stderr
    assert "a.yaml: x.y = 1" in launch_cli("show", "r1").stdout
    broken = launch_cli(*words[:-1], '{"type": "nmber"}')
    assert (broken.exit_code, "schema/type: is no JSON Schema" in broken.stderr) == (2, True)
