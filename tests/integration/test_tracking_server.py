"""The tracking server under the real wandb SDK: scripts nobody changed report here, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from launch.connection import connect
from launch.errors import LostClaimError, TemporaryError
from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, QueueSpec, RunState, new_run_id
from launch.store import Claimed, RunStore
from launch.tracking import TrackingStore, tracking_env

pytest.importorskip("wandb", reason="needs the wandb SDK: pip install wandb")
pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "tests" / "jobs" / "digits" / "train.py"
SERVE = """
import sys
from pathlib import Path
from launch.server import serve
from launch.settings import Settings
from launch.store import RunStore
store = RunStore.connect(sys.argv[2], timeout_s=1)
serve(Settings(home=Path(sys.argv[1])), store=store, on_ready=lambda urls: print(*urls, flush=True))
store.redis.close()
"""


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found


class Redis:
    """A redis-server of the test's own, that writes each command to disk before it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"redis+socket://{folder}/redis.sock"
        self.start()

    def start(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            pytest.skip("needs redis-server or valkey-server on PATH")
        options = ["--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.process = subprocess.Popen([program, *options, *durable], stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def _answers(self) -> bool:
        with suppress(TemporaryError):
            connect(self.url).close()
            return True
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Server:
    """The tracking server as a process."""

    def __init__(self, home: Path, redis_url: str, *, program: str = SERVE) -> None:
        self.argv = [sys.executable, "-c", program, str(home), redis_url]
        self.start()

    def start(self) -> None:
        # Its messages go to the test's own standard error, which pytest shows when the test fails.
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, text=True, cwd="/", env=python_env())
        assert self.process.stdout
        self.urls = self.process.stdout.readline().split()
        assert self.urls, "it did not start"
        self.url = self.urls[0]

    def end(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Return how many seconds it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.communicate()
        return time.monotonic() - began


def python_env() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    # Not pytest's folder: a socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ol-track-") as folder:
        server = Redis(Path(folder))
        yield server
        server.kill()


@pytest.fixture
def store(redis: Redis) -> Iterator[RunStore]:
    store = RunStore.connect(redis.url)
    with closing(store.redis):
        store.redis.flushall()
        store.create_queue(QueueSpec(name="q", resource="process"))
        yield store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def shared_server(redis: Redis, home: Path) -> Iterator[Server]:
    server = Server(home, redis.url)
    yield server
    server.end()


@pytest.fixture
def server(shared_server: Server, store: RunStore) -> Server:
    """The server that all tests share which do not end it."""
    del store
    return shared_server


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with tempfile.TemporaryDirectory(prefix="ol-track-") as folder:
        server = Redis(Path(folder))
        yield server
        server.kill()


@pytest.fixture
def own_store(own_redis: Redis) -> Iterator[RunStore]:
    store = RunStore.connect(own_redis.url)
    with closing(store.redis):
        yield store


@pytest.fixture
def own_server(own_redis: Redis, tmp_path: Path) -> Iterator[Server]:
    """A server, and a Redis, for tests that end them."""
    server = Server(tmp_path / "home", own_redis.url)
    yield server
    if server.process.poll() is None:
        server.end()


class Run:
    """A claimed run, and scripts that run as its job."""

    def __init__(self, store: RunStore, folder: Path, **spec: Any) -> None:
        self.store, self.tracking, self.folder = store, TrackingStore(store.redis), folder
        job = Job(source=CommandSource(), entrypoint=("python", "train.py"))
        self.spec = LaunchSpec(run_id=spec.pop("run_id", new_run_id()), queue="q", resource="process", job=job, **spec)
        self.id = self.spec.run_id
        store.enqueue(self.spec)
        self.claim()

    def claim(self) -> None:
        claimed = self.store.claim("q", "agent")
        assert isinstance(claimed, Claimed)
        self.fence, self.attempt = claimed.fence, claimed.record.attempt
        self.key = self.tracking.issue_key(self.id, self.attempt)

    def requeue(self) -> None:
        self.store.unclaim(self.record, self.fence, note="preempted")
        self.claim()

    def finish(self) -> None:
        self.store.advance(self.id, self.fence, RunState.STARTING)
        self.store.advance(self.id, self.fence, RunState.RUNNING)
        cause = Cause(kind=CauseKind.EXIT_CODE, message="Exit code 0.", exit_code=0)
        self.store.finish(self.id, self.fence, RunState.FINISHED, cause)

    def start(
        self, server: Server, script: str | Path, *, give_up_after_s: float = 60.0, **env: str
    ) -> subprocess.Popen[str]:
        """Start a script (a file or its text) as the job."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        wandb_dir = folder / "wandb-files"
        wandb_dir.mkdir()
        path = script if isinstance(script, Path) else folder / "script.py"
        if isinstance(script, str):
            path.write_text(script)
        tracked = tracking_env(
            self.spec,
            self.attempt,
            base_url=server.url,
            wandb_dir=str(wandb_dir),
            give_up_after_s=give_up_after_s,
        )
        return subprocess.Popen(
            [sys.executable, str(path)],
            cwd=folder,
            env={**python_env(), "HOME": str(folder), **tracked, "WANDB_API_KEY": self.key, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, server: Server, script: str | Path, **options: Any) -> str:
        """Run a script to its good end, and return what it wrote."""
        job = self.start(server, script, **options)
        output, _ = job.communicate(timeout=90)
        assert job.returncode == 0, output
        return output

    @property
    def record(self) -> Any:
        return self.store.record(self.id)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [row for _, row in self.store.read_history(self.id, limit=100_000)]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


@pytest.fixture
def a_run(store: RunStore, tmp_path: Path) -> Callable[..., Run]:
    return lambda **spec: Run(store, tmp_path, **spec)


@pytest.fixture
def an_own_run(own_store: RunStore, tmp_path: Path) -> Run:
    own_store.create_queue(QueueSpec(name="q", resource="process"))
    return Run(own_store, tmp_path)


# --- what a script reports --------------------------------------------------------------------------------------------


def test_digits_job_is_tracked_to_its_end(server: Server, a_run: Callable[..., Run], home: Path) -> None:
    """The example job, as its author wrote it: config with overrides, every epoch, summary, system metrics, files."""
    pytest.importorskip("sklearn", reason="the example job needs scikit-learn")
    run = a_run(config={"epochs": 4, "lr": 0.01}, project="Digits", name="first try", author="ada")

    output = run.run(server, DIGITS)

    assert "epoch 4/4" in output
    assert run.record.tracked
    assert run.record.config == {"epochs": 4, "lr": 0.01, "hidden": 32, "batch_size": 64, "seed": 0}
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert run.steps == [0, 1, 2, 3]
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert run.record.summary["best_accuracy"] == max(row["accuracy"] for row in run.history) > 0.85
    assert run.record.summary["epoch"] == 4
    assert any("system.memory" in key or "memory" in key for key in run.tracking.read_system(run.id)[0])
    assert (home / "runs" / run.id / "files" / "config.yaml").read_text().startswith("_wandb:")
    assert run.store.redis.hget(f"launch:run:{run.id}", "reported_exit") == "0"


LOCKED = """
import wandb
run = wandb.init(project="other", id="other", config={"lr": 0.1, "nested": {"a": 1, "b": 2}})
run.config.update({"lr": 9, "late": "yes"}, allow_val_change=True)
print("RESULT", run.id, run.project, run.config.lr, run.config.nested)
run.finish()
"""


def test_overrides_are_locked(server: Server, a_run: Callable[..., Run]) -> None:
    """What a launch overrides, the script cannot change; the rest it can."""
    run = a_run(config={"lr": 0.5, "nested": {"b": 20}}, project="Mine")

    output = run.run(server, LOCKED)

    assert f"RESULT {run.id} mine 0.5 {{'a': 1, 'b': 20}}" in output
    assert "'lr' was locked by 'launch'" in output
    assert run.record.config == {"lr": 0.5, "nested": {"a": 1, "b": 20}, "late": "yes"}


def test_config_longer_than_an_environment_variable(server: Server, a_run: Callable[..., Run]) -> None:
    """A long override comes in pieces and arrives whole."""
    words = {"words": ["ä word " * 10] * 2000}
    run = a_run(config=words)

    run.run(server, "import wandb\nwandb.init().finish()")

    assert run.record.config == words


MEDIA = """
import math, wandb
run = wandb.init()
with open("model.txt", "w") as file:
    file.write("weights")
model = wandb.Artifact("my-model", "model", metadata={"depth": 3}, description="small")
model.add_file("model.txt")
logged = run.log_artifact(model, aliases=["best"]).wait()
print("LOGGED", logged.name, "best" in logged.aliases)
run.log({"table": wandb.Table(columns=["a", "b"], data=[[1, 2.5], [3, math.nan]])})
run.log({"bars": wandb.Histogram([1, 2, 3, 3]), "nan": math.nan, "inf": -math.inf})
run.log({"line": wandb.plot.line(wandb.Table(columns=["x", "y"], data=[[1, 2]]), "x", "y")})
run.log({"huge": "x" * 1_100_000})
run.log({"after": 1})
run.save("model.txt")
run.log_code(".")
run.alert("title", "text")
try:
    run.use_artifact("local/p/other:latest")
except Exception as exc:
    print("REFUSED", exc)
run.finish()
"""


def test_artifacts_tables_and_files_do_not_break_a_script(
    server: Server, a_run: Callable[..., Run], home: Path
) -> None:
    """All that scripts commonly log is taken and kept as files; a row that is too large costs that row only."""
    run = a_run()

    output = run.run(server, MEDIA)

    assert "LOGGED my-model:v0 True" in output
    assert "REFUSED" in output
    assert "openlaunch does not answer" in output
    kept = home / "runs" / run.id
    assert (kept / "files" / "model.txt").read_text() == "weights"
    assert [path.read_text() for path in kept.glob("artifacts/my-model/*/files/model.txt")] == ["weights"]
    assert list(kept.glob("files/media/table/table_*.table.json"))
    assert list(kept.glob("artifacts/source-*/*/files/script.py"))
    rows = run.history
    assert {"nan": "NaN", "inf": "-Infinity"}.items() <= rows[1].items()
    assert [sorted(key for key in row if key[0] != "_")[0] for row in rows] == ["table", "bars", "line_table", "after"]
    assert run.record.summary["after"] == 1
    assert "huge" not in run.record.summary


TWICE = """
import wandb
for part in range(2):
    run = wandb.init()
    for i in range(3):
        run.log({"value": part * 10 + i})
    run.summary[f"part{part}"] = True
    run.finish()
"""


def test_second_init_in_one_script_goes_on(server: Server, a_run: Callable[..., Run]) -> None:
    """One launch is one run: a script that calls wandb.init again adds to it."""
    run = a_run()

    run.run(server, TWICE)

    assert [row["value"] for row in run.history] == [0, 1, 2, 10, 11, 12]
    assert run.record.summary.items() >= {"part0": True, "part1": True}.items()


RANK = """
import os, time, wandb
rank = int(os.environ["RANK"])
run = wandb.init()
for i in range(40):
    run.log({"rank": rank, "i": i})
    time.sleep(0.05)
run.summary[f"best{rank}"] = rank
run.finish()
"""


def test_two_processes_write_one_run(server: Server, a_run: Callable[..., Run]) -> None:
    """Every rank calls wandb.init: no row is lost, none is written over, and each one's summary stays."""
    run = a_run()

    ranks = [run.start(server, RANK, RANK=str(rank)) for rank in (0, 1)]
    outputs = [rank.communicate(timeout=90)[0] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    for rank in (0, 1):
        assert [row["i"] for row in run.history if row["rank"] == rank] == list(range(40))
    assert run.record.summary.items() >= {"best0": 0, "best1": 1}.items()


# --- stop, restarts, deaths -------------------------------------------------------------------------------------------

ENDLESS = """
import time, wandb
run = wandb.init()
try:
    while True:
        run.log({"t": time.time()})
        time.sleep(0.1)
except KeyboardInterrupt:
    print("INTERRUPTED", flush=True)
    run.finish(exit_code=130)
    raise SystemExit(130)
"""


def test_stop_interrupts_the_script(server: Server, a_run: Callable[..., Run]) -> None:
    """A stop request reaches an unmodified script as the KeyboardInterrupt that W&B raises."""
    run = a_run()
    job = run.start(server, ENDLESS)
    wait_until(lambda: run.history)

    run.store.request_stop(run.id, by="ada", grace_s=60)
    output, _ = job.communicate(timeout=60)

    assert "INTERRUPTED" in output
    assert job.returncode == 130


SIXTY = """
import time, wandb
run = wandb.init()
for i in range(60):
    run.log({"i": i})
    time.sleep(0.05)
run.finish()
print("DONE")
"""


def test_server_restart_loses_no_row(own_server: Server, an_own_run: Run) -> None:
    """Killed in the middle and started anew, the server is found again at its port, and has every row once."""
    run = an_own_run
    job = run.start(own_server, SIXTY)
    wait_until(lambda: run.history)

    before = own_server.urls
    own_server.end(signal.SIGKILL)
    own_server.start()
    output, _ = job.communicate(timeout=90)

    assert own_server.urls == before
    assert "DONE" in output
    assert job.returncode == 0, output
    assert run.steps == list(range(60))


def test_redis_restart_loses_no_row(own_server: Server, own_redis: Redis, an_own_run: Run) -> None:
    """While Redis is away the SDK is told to try again, so that every row arrives once."""
    run = an_own_run
    job = run.start(own_server, SIXTY)
    wait_until(lambda: run.history)

    own_redis.kill()
    answer = httpx.post(f"{own_server.url}/graphql", auth=("api", run.key), json={"query": "query Viewer { viewer }"})
    own_redis.start()
    output, _ = job.communicate(timeout=90)

    assert answer.status_code == 503
    assert job.returncode == 0, output
    assert run.steps == list(range(60))


def test_script_ends_although_the_server_is_gone(own_server: Server, an_own_run: Run) -> None:
    """finish() gives up in bounded time, and the script's own result stands."""
    run = an_own_run
    job = run.start(own_server, SIXTY, give_up_after_s=4)
    wait_until(lambda: run.history)

    own_server.end(signal.SIGKILL)
    began = time.monotonic()
    output, _ = job.communicate(timeout=60)

    assert job.returncode == 0, output
    assert "DONE" in output
    assert time.monotonic() - began < 30


RESUMING = """
import os, wandb
run = wandb.init(resume=os.environ.get("HOW"))
print("RESUMED", run.resumed)
for i in range(3):
    run.log({"i": i})
run.summary["old"] = True
run.finish()
"""


def test_next_attempt_begins_a_new_history(server: Server, a_run: Callable[..., Run]) -> None:
    """A retried run shows its last attempt's rows, not two attempts mixed."""
    run = a_run()
    run.run(server, RESUMING)
    run.requeue()

    run.run(server, TWICE)

    assert [row["value"] for row in run.history] == [0, 1, 2, 10, 11, 12]
    assert "old" not in run.record.summary


def test_next_attempt_of_a_resuming_script_goes_on(server: Server, a_run: Callable[..., Run]) -> None:
    """wandb.init(resume="allow") finds the attempt before, and adds to its history."""
    run = a_run()
    assert "RESUMED False" in run.run(server, RESUMING, HOW="allow")
    run.requeue()

    assert "RESUMED True" in run.run(server, RESUMING, HOW="allow")

    assert run.steps == [0, 1, 2, 3, 4, 5]


# --- whose request it is ----------------------------------------------------------------------------------------------


class Api:
    """The server as a program speaks to it that is not the SDK."""

    def __init__(self, server: Server, key: str) -> None:
        self.url, self.auth = server.url, ("api", key)

    def stream(self, run_id: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/files/e/p/{run_id}/file_stream", auth=self.auth, json=body)

    def rows(self, run_id: str, offset: int, *values: int) -> httpx.Response:
        content = [f'{{"_step":{value}}}' for value in values]
        return self.stream(run_id, files={"wandb-history.jsonl": {"offset": offset, "content": content}})

    def upsert(self, run_id: str, **variables: Any) -> httpx.Response:
        query = {"query": "mutation UpsertBucket { x }", "variables": {"name": run_id, **variables}}
        return httpx.post(f"{self.url}/graphql", auth=self.auth, json=query)

    def put(self, run_id: str, name: str, content: bytes) -> httpx.Response:
        return httpx.put(f"{self.url}/files/e/p/{run_id}/{name}", auth=self.auth, content=content)

    def announce(self, run_id: str, name: str, size_bytes: int) -> int:
        """Begin an upload of that size without sending it, and return the status of the answer."""
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        with closing(connection):
            connection.putrequest("PUT", f"/files/e/p/{run_id}/{name}")
            connection.putheader("Authorization", httpx.BasicAuth(*self.auth)._auth_header)
            connection.putheader("Content-Length", str(size_bytes))
            connection.endheaders()
            return connection.getresponse().status


# --- what a script declares of its job's inputs -----------------------------------------------------------------------


def ask(api: Api, operation: str, **variables: Any) -> httpx.Response:
    query = {"operationName": operation, "query": f"mutation {operation} {{ x }}", "variables": variables}
    return httpx.post(f"{api.url}/graphql", auth=api.auth, json=query)


def test_declarations_are_kept_and_nonsense_costs_nothing(server: Server, a_run: Callable[..., Run]) -> None:
    """Our own functions tell of one input at a time; what is none, or too long, is left out with a line in the log."""
    run = a_run()
    api = Api(server, run.key)
    one = {"include": [["lr"]], "exclude": [], "schema": None, "types": None}
    file = {"include": None, "exclude": None, "schema": {"type": "object"}, "types": {"x": "number"}}

    given = [
        {"path": None, **one},
        {"path": "a.yaml", **file},
        3,
        {"path": "/etc/a.yaml"},
        {"schema": "x" * (300 << 10)},
    ]
    answers = [ask(api, "LaunchJobInputs", declaration=declaration) for declaration in given]

    assert [answer.status_code for answer in answers] == [200] * 5
    assert run.tracking.declared(run.id) == {"config": one, "files": {"a.yaml": file}}


def test_the_job_artifact_of_the_sdk_is_read_and_not_asked_for(server: Server, a_run: Callable[..., Run]) -> None:
    """What it says of the inputs is in its metadata; its files are nobody's business."""
    run = a_run()
    api = Api(server, run.key)
    numbers = {"wb_type": "typedDict", "params": {"type_map": {"lr": {"wb_type": "number"}}}}
    artifact = {"artifactCollectionName": "openlaunch-job-inputs", "artifactTypeName": "job", "digest": "d"}
    for metadata in ("{", json.dumps({"input_types": {"@wandb.config": numbers}})):
        answer = ask(api, "CreateArtifact", **artifact, metadata=metadata).json()
        assert answer["data"]["createArtifact"]["artifact"]["state"] == "COMMITTED"
    assert run.tracking.declared(run.id)["config"] == {"types": {"lr": "number"}, "schema": None}


def test_older_sdks_are_told_what_an_artifact_may_have(server: Server, a_run: Callable[..., Run]) -> None:
    """They ask for the fields first, and log no artifact without an answer; of other types they hear nothing."""
    api = Api(server, a_run().key)
    answer = ask(api, "InputFields", typeName="CreateArtifactInput").json()["data"]["TypeInfo"]["inputFields"]
    assert {"artifactCollectionName", "clientID", "metadata"} <= {field["name"] for field in answer}
    assert ask(api, "InputFields", typeName="Other").json() == {"data": {}}


# --- keys -------------------------------------------------------------------------------------------------------------


def test_unknown_key_is_refused(server: Server, a_run: Callable[..., Run]) -> None:
    """No key, another key, a broken header: 401 with a sentence, and nothing is written."""
    run = a_run()

    answers = [Api(server, "0" * 40).rows(run.id, 0, 1), Api(server, "0" * 40).put(run.id, "a", b"a")]
    bare = httpx.post(f"{server.url}/graphql", json={"query": ""}, headers={"Authorization": "Basic !!"})

    assert [answer.status_code for answer in [*answers, bare]] == [401, 401, 401]
    assert "WANDB_API_KEY" in answers[0].json()["error"]
    assert run.history == []


def test_key_writes_its_own_run_only(server: Server, a_run: Callable[..., Run], home: Path) -> None:
    """A job cannot touch another run, by any of the ways there are."""
    mine, other = a_run(run_id="mine"), a_run(run_id="other")
    api = Api(server, mine.key)

    answers = [api.rows("other", 0, 1), api.upsert("other", config="{}"), api.put("other", "a", b"a")]

    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert "may write run mine only" in answers[1].json()["errors"][0]["message"]
    assert other.history == []
    assert not other.record.tracked
    assert not (home / "runs" / "other" / "files" / "a").exists()


def test_key_dies_with_its_run(server: Server, a_run: Callable[..., Run]) -> None:
    """When the run has ended its key is revoked."""
    run = a_run()
    api = Api(server, run.key)
    assert api.rows(run.id, 0, 0).status_code == 200

    run.finish()

    assert api.rows(run.id, 1, 1).status_code == 401
    assert run.steps == [0]
    with pytest.raises(LostClaimError, match="attempt 1 is over"):
        run.tracking.issue_key(run.id, run.attempt)


def test_key_of_an_earlier_attempt_writes_nothing(server: Server, a_run: Callable[..., Run]) -> None:
    """A process that outlived its attempt is told that it is over, and that there is no use in trying again."""
    run = a_run()
    old = Api(server, run.key)
    old.upsert(run.id)

    run.requeue()

    answers = [old.rows(run.id, 0, 7), old.upsert(run.id), old.put(run.id, "late.txt", b"late")]
    assert {answer.status_code for answer in answers} <= {401, 410}
    assert run.history == []


# --- repeated and broken posts ----------------------------------------------------------------------------------------


def test_repeated_posts_add_only_what_is_new(server: Server, a_run: Callable[..., Run]) -> None:
    """The answer may be lost: the same post again adds nothing, an overlapping one its tail."""
    run = a_run()
    api = Api(server, run.key)

    for offset, values in ((0, (0, 1)), (0, (0, 1)), (1, (1, 2, 3)), (0, (0,)), (4, (4,))):
        assert api.rows(run.id, offset, *values).status_code == 200

    assert run.steps == [0, 1, 2, 3, 4]


def test_posts_at_once_keep_each_row_once(server: Server, a_run: Callable[..., Run]) -> None:
    """The same posts from four connections at once: the rows of one."""
    run = a_run()
    api = Api(server, run.key)

    def post_all() -> None:
        for offset in range(20):
            api.rows(run.id, offset, offset)

    threads = [threading.Thread(target=post_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert run.steps == list(range(20))


def test_repeated_system_rows_are_kept_once(server: Server, a_run: Callable[..., Run]) -> None:
    """System metrics that are posted again are known by their time stamp."""
    run = a_run()
    api = Api(server, run.key)
    rows = ['{"_timestamp":1,"system.cpu":5}', '{"_timestamp":2,"system.cpu":6}']

    for _ in range(2):
        api.stream(run.id, files={"wandb-events.jsonl": {"offset": 0, "content": rows}})

    assert [row["system.cpu"] for row in run.tracking.read_system(run.id)] == [5, 6]


@pytest.mark.parametrize("body", [b"", b"[]", b"not json", b'{"files": 3}', b'{"files": {"wandb-history.jsonl": {}}}'])
def test_broken_post_is_refused(server: Server, a_run: Callable[..., Run], body: bytes) -> None:
    """Nonsense is answered 400, which no SDK repeats."""
    run = a_run()

    answer = httpx.post(f"{server.url}/files/e/p/{run.id}/file_stream", auth=("api", run.key), content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["%2e%2e/up", "a/%2e%2e/%2e%2e/up", "%2Fetc/x", "a//b", "a%5Cb", "a%0Ab", "x" * 300])
def test_file_name_that_leads_elsewhere_is_refused(
    server: Server, a_run: Callable[..., Run], home: Path, name: str
) -> None:
    """A file lands below its run's folder, or nowhere."""
    run = a_run()
    before = sorted(home.rglob("*"))

    answer = Api(server, run.key).put(run.id, name, b"x")

    assert answer.status_code in (400, 404)
    assert sorted(home.rglob("*")) == before


def test_files_are_counted_against_a_cap(server: Server, a_run: Callable[..., Run], home: Path) -> None:
    """A file that takes another's place is counted once, and one that is said to be too large is not begun."""
    run = a_run()
    api = Api(server, run.key)

    assert api.put(run.id, "deep/ü er/a.txt", b"12345").status_code == 200
    assert api.put(run.id, "deep/ü er/a.txt", b"123").status_code == 200
    assert api.announce(run.id, "big", 1 << 40) == 413

    assert (home / "runs" / run.id / "files" / "deep" / "ü er" / "a.txt").read_bytes() == b"123"
    assert run.store.redis.hget(f"launch:run:{run.id}", "file_bytes") == "3"
    assert api.put(run.id, "deep", b"x").status_code == 400
    assert run.store.redis.hget(f"launch:run:{run.id}", "file_bytes") == "3"


# --- the process ------------------------------------------------------------------------------------------------------


def test_server_says_where_it_is_until_it_ends(own_server: Server, own_store: RunStore) -> None:
    """It is announced while it serves, withdrawn when it ends, and ends within a second."""
    store = own_store
    assert store.server_urls() == own_server.urls
    assert httpx.get(f"{own_server.url}/healthz").json() == {"ok": True, "name": "openlaunch"}

    assert own_server.end() < 1.5
    assert own_server.process.returncode == 0
    assert store.server_urls() == []


def test_server_ends_in_time_although_redis_hangs(own_server: Server, own_redis: Redis, an_own_run: Run) -> None:
    """A request that waits for Redis does not hold the server up: the SDK posts it again to the next one."""
    run, redis = an_own_run, own_redis
    redis.process.send_signal(signal.SIGSTOP)
    try:
        waiting = threading.Thread(target=_post_and_ignore, args=(own_server.url, run.key), daemon=True)
        waiting.start()
        assert own_server.end() < 1.5
    finally:
        redis.process.send_signal(signal.SIGCONT)
    waiting.join(10)


def _post_and_ignore(url: str, key: str) -> None:
    with suppress(httpx.HTTPError):
        httpx.post(f"{url}/graphql", auth=("api", key), json={"query": "{ viewer }"}, timeout=10)


def test_one_server_a_home(own_server: Server) -> None:
    """A second one says that there is one."""
    second = subprocess.run(own_server.argv, env=python_env(), cwd="/", capture_output=True, text=True)

    assert second.returncode != 0
    assert f"is running already, as process {own_server.process.pid}" in second.stderr


def test_port_that_is_taken_is_named(own_redis: Redis, own_server: Server, tmp_path: Path) -> None:
    """Running jobs hold the port, so the server takes no other one by itself."""
    port = own_server.url.rpartition(":")[2]
    other = tmp_path / "other"
    (other / "server").mkdir(parents=True)
    (other / "server" / "port").write_text(port)

    second = subprocess.run(
        [sys.executable, "-c", SERVE, str(other), own_redis.url],
        env=python_env(),
        cwd="/",
        capture_output=True,
        text=True,
    )

    assert f"port {port} ({other}/server/port) is taken by another program" in second.stderr


LATE_BRIDGE = """
import sys
from pathlib import Path
from launch.server import listen
flag = Path(sys.argv[1]) / "bridge"
listen.bridge_address = lambda name: flag.read_text() if flag.exists() else None
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS has one loopback address, and no bridge")
def test_bridge_that_appears_later_is_listened_on(own_redis: Redis, own_store: RunStore, tmp_path: Path) -> None:
    """Docker may be started after the server: a few seconds later containers reach it, at the same port."""
    server = Server(tmp_path, own_redis.url, program=LATE_BRIDGE + SERVE)
    try:
        assert len(server.urls) == 1
        (tmp_path / "bridge").write_text("127.0.0.2")
        wait_until(lambda: len(own_store.server_urls()) == 2, timeout_s=10)
        assert own_store.server_urls()[1] == server.url.replace("127.0.0.1", "127.0.0.2")
        assert httpx.get(f"{own_store.server_urls()[1]}/healthz").json()["ok"]
    finally:
        server.end()
