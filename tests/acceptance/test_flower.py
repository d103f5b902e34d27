"""Stock Flower on a real Redis with real agents: what it says of runs, what its buttons do, in a real browser too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from launch.broker import encode_request
from launch.client import Client
from launch.models import Cause, CauseKind, RunState
from launch.settings import read_settings
from launch.store import Claimed, RunStore
from launch.watch import Run
from tests.agents import QUICK, Fleet, a_fleet, wait_until
from tests.services import RedisServer, free_port, unavailable

pytestmark = pytest.mark.timeout(300)

USER = ("ann", "hunter2")
ANSWERS = {"stats", "active_queues", "scheduled", "active", "reserved", "revoked", "conf"}
DONE = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 0.", exit_code=0)


class Flower:
    """``celery -A workers.app flower``, as the README starts it."""

    def __init__(self, environment: Mapping[str, str], folder: Path, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "flower.log"
        words = [f"--port={port}", "--address=127.0.0.1", f"--basic-auth={':'.join(USER)}", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "celery", "-A", "workers.app", "flower", *words],
                env={**os.environ, **QUICK, **environment},
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        self._store = RunStore.connect(environment["LAUNCH_BROKER_URL"])
        self._http = httpx.Client(base_url=self.url, auth=USER, timeout=20)

    def get(self, path: str, **query: Any) -> Any:
        """Return what a page of its HTTP API says."""
        return self._http.get(path, params=query).raise_for_status().json()

    def page(self, path: str) -> str:
        """Return a page for people."""
        return self._http.get(path).raise_for_status().text

    def post(self, path: str, **query: Any) -> tuple[int, str]:
        """Do what one of its buttons does; returns status and text."""
        answer = self._http.post(path, params=query)
        return answer.status_code, answer.text

    def is_up(self) -> bool:
        """Whether it answers, and listens to events."""
        try:
            self._http.get("/healthcheck").raise_for_status()
        except httpx.HTTPError:
            assert self.process.poll() is None, self.log.read_text()
            return False
        return bool(self._store._run("tell_sent", "[]") > 0)

    def task(self, run: Run, state: str) -> dict[str, Any]:
        """Return a run as Flower shows it, once it is in a state."""
        return dict(
            wait_until(
                lambda: (
                    self.get("/api/tasks", limit=10_000).get(run.id, {}).get("state") == state
                    and self.get(f"/api/task/info/{run.id}")
                ),
                what=f"{state} of {run.id}, now {self.get('/api/tasks').get(run.id)}",
            )
        )

    def worker(self, name: str) -> dict[str, Any]:
        """Return what Flower finds when it asks an agent, once it has had all answers."""

        def asked() -> dict[str, Any]:
            answer = self._http.get("/api/workers", params={"refresh": "1", "workername": name})
            said: dict[str, Any] = answer.json()[name] if answer.is_success else {}
            return said if said.keys() >= ANSWERS else {}

        return dict(wait_until(asked, what=f"the answers of {name}"))

    def end(self) -> None:
        self._http.close()
        self._store.redis.close()
        self.process.terminate()
        self.process.wait(timeout=20)


@contextmanager
def a_flower(environment: Mapping[str, str], folder: Path, *options: str) -> Iterator[Flower]:
    flower = Flower(environment, folder, *options)
    try:
        wait_until(flower.is_up, what="Flower")
        yield flower
    finally:
        flower.end()


@pytest.fixture
def client(redis_url: str, tmp_path: Path) -> Iterator[Client]:
    environment = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(tmp_path / "home")}
    with Client(settings=read_settings(environment)) as client:
        client.create_queue("q", resource="process")
        yield client


@pytest.fixture
def fleet(client: Client, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with a_fleet(client.store, redis_url, tmp_path / "home", tmp_path) as fleet:
        yield fleet


@pytest.fixture
def flower(fleet: Fleet, tmp_path: Path) -> Iterator[Flower]:
    with a_flower(fleet.environment, tmp_path) as flower:
        yield flower


def enqueue(client: Client, *command: str, queue: str = "q", **more: Any) -> Run:
    return client.enqueue(command=list(command), queue=queue, tracking="optional", **more)


def node_of(client: Client, *, but: str = "") -> str:
    """Return the Celery node of the one agent that lives."""
    (agent,) = [agent for agent in client.agents() if agent.is_alive and agent.id != but.partition("@")[0]]
    return f"{agent.id}@{agent.host}"


def test_it_is_the_flower_we_mean() -> None:
    assert version("flower") == "2.2.0"


def test_runs_are_tasks_from_their_queue_to_their_end(client: Client, fleet: Fleet, flower: Flower) -> None:
    failing = enqueue(client, "sh", "-c", "echo the reason; exit 3", config={"lr": 0.1})
    assert flower.task(failing, "PENDING")["kwargs"].count("'lr': 0.1") == 1
    fleet.start("q")
    node = node_of(client)

    failed = flower.task(failing, "FAILURE")
    assert (failed["worker"], failed["exception"]) == (node, "The job exited with code 3.")
    assert "the reason" in failed["traceback"]
    well = enqueue(client, "true", project="mnist")
    assert flower.task(well, "SUCCESS")["name"] == "mnist/true"
    assert flower.get("/api/task/types")["task-types"] == ["mnist/true", "uncategorized/sh"]
    (worker,) = flower.get("/workers", json="1")["data"]
    assert (worker["hostname"], worker["status"], worker["task-received"]) == (node, True, 2)


def test_a_flower_that_starts_late_is_told_what_runs_and_what_waits(
    client: Client, fleet: Fleet, tmp_path: Path
) -> None:
    client.create_queue("lonely", resource="process")
    fleet.start("q")
    runs, waits = enqueue(client, "sleep", "60"), enqueue(client, "true")
    lonely = enqueue(client, "true", queue="lonely")
    wait_until(lambda: runs.refresh().state is RunState.RUNNING)

    with a_flower(fleet.environment, tmp_path) as flower:
        assert flower.task(runs, "RUNNING")["name"] == "uncategorized/sleep"
        for waiting in (waits, lonely):
            assert flower.task(waiting, "PENDING")["name"] == "uncategorized/true"
        runs.stop(grace_s=0)
        assert flower.task(waits, "SUCCESS")["kwargs"] is not None


def test_a_persistent_flower_that_starts_again_still_knows_the_runs(
    client: Client, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.start("q")
    options = ("--persistent=True", f"--db={tmp_path / 'flower'}")
    with a_flower(fleet.environment, tmp_path, *options) as flower:
        ended, runs = enqueue(client, "true"), enqueue(client, "sleep", "60")
        flower.task(ended, "SUCCESS")
        flower.task(runs, "RUNNING")
    runs.stop(grace_s=0).wait(timeout_s=20)
    later = enqueue(client, "true").wait(timeout_s=20)

    with a_flower(fleet.environment, tmp_path, *options) as flower:
        flower.task(ended, "SUCCESS")
        next_one = enqueue(client, "true")
        flower.task(next_one, "SUCCESS")
        assert later.id not in flower.get("/api/tasks"), "events are kept by nobody while Flower is away"


def test_an_adopted_run_is_the_same_task_with_a_new_worker(client: Client, fleet: Fleet, flower: Flower) -> None:
    first = fleet.start("q")
    run = enqueue(client, "sh", "-c", "sleep 6; echo done")
    node = node_of(client)
    assert flower.task(run, "RUNNING")["worker"] == node
    first.kill()
    fleet.start("q")

    def is_elsewhere() -> bool:
        return bool(flower.get(f"/api/task/info/{run.id}")["worker"] != node)

    wait_until(is_elsewhere, what="the adoption")
    assert flower.task(run, "RUNNING")["received"] is not None
    assert flower.task(run, "SUCCESS")["worker"] == node_of(client, but=node)
    workers = {worker["hostname"]: worker["status"] for worker in flower.get("/workers", json="1")["data"]}
    assert workers == {node: False, node_of(client, but=node): True}


def test_revoke_and_terminate_stop_runs_wherever_they_are(client: Client, fleet: Fleet, flower: Flower) -> None:
    client.create_queue("other", resource="process")
    fleet.start("q")
    runs, waits, lonely = (
        enqueue(client, "sleep", "60"),
        enqueue(client, "true"),
        enqueue(client, "true", queue="other"),
    )
    flower.task(runs, "RUNNING")

    for run in (waits, lonely):
        assert flower.post(f"/api/task/revoke/{run.id}", terminate="false")[0] == 200
        flower.task(run, "STOPPED")
        assert run.refresh().state is RunState.STOPPED
    flower.post(f"/api/task/revoke/{runs.id}", terminate="true", signal="SIGKILL")

    assert "Flower" in flower.task(runs, "STOPPED")["exception"]
    assert runs.refresh().state is RunState.STOPPED
    flower.post("/api/task/revoke/no-such-run", terminate="true")
    assert enqueue(client, "true").wait(timeout_s=20).state is RunState.FINISHED


def test_an_agents_page_shows_its_slots_and_grows_and_shrinks_them(
    client: Client, fleet: Fleet, flower: Flower
) -> None:
    fleet.start("q")
    node = node_of(client)
    first, second = enqueue(client, "sleep", "60", config={"lr": 0.1}), enqueue(client, "sleep", "60")
    flower.task(first, "RUNNING")
    said = flower.worker(node)
    (active,) = said["active"]
    assert (active["id"], active["name"], active["hostname"]) == (first.id, "uncategorized/sleep", node)
    assert "'lr': 0.1" in active["kwargs"]
    assert (said["reserved"], said["scheduled"], said["revoked"]) == ([], [], [])
    assert said["stats"]["pool"]["max-concurrency"] == 1

    assert flower.post(f"/api/worker/pool/grow/{node}", n=2)[0] == 200
    flower.task(second, "RUNNING")
    wait_until(lambda: [agent.max_jobs for agent in client.agents()] == [3], what="three slots")
    wait_until(lambda: len(flower.worker(node)["active"]) == 2, what="two active runs")
    flower.post(f"/api/worker/pool/shrink/{node}", n=1)
    flower.post(f"/api/worker/pool/shrink/{node}", n=1)
    wait_until(lambda: [agent.max_jobs for agent in client.agents()] == [1], what="one slot")
    assert "should be 1 to 1000, not 0" in flower.post(f"/api/worker/pool/shrink/{node}", n=1)[1]
    flower.post(f"/api/worker/pool/autoscale/{node}", min=1, max=7)
    wait_until(lambda: [agent.max_jobs for agent in client.agents()] == [7], what="seven slots")
    for run in (first, second):
        run.stop(grace_s=0)


@pytest.mark.parametrize(
    ("button", "query", "hint"),
    [
        ("worker/queue/add-consumer", {"queue": "launch.r"}, "launch agent -q NAME"),
        ("worker/queue/cancel-consumer", {"queue": "launch.q"}, "launch queue pause NAME"),
        ("worker/pool/restart", {}, "no pool to restart"),
        ("task/rate-limit", {"ratelimit": "1/m"}, "--max-concurrent"),
        ("task/timeout", {"soft": "1"}, "--run-limit"),
    ],
)
def test_what_means_nothing_to_runs_is_refused_with_what_to_do_instead(
    client: Client, fleet: Fleet, flower: Flower, button: str, query: dict[str, str], hint: str
) -> None:
    fleet.start("q")
    node = node_of(client)
    flower.worker(node)
    about, query = ("launch.run", {**query, "workername": node}) if button.startswith("task") else (node, query)

    status, said = flower.post(f"/api/{button}/{about}", **query)

    assert (status, hint in said) == (403, True), said
    assert enqueue(client, "true").wait(timeout_s=20).state is RunState.FINISHED


def test_shut_down_lets_go_of_the_runs(client: Client, fleet: Fleet, flower: Flower) -> None:
    agent = fleet.start("q")
    run = enqueue(client, "sh", "-c", "sleep 3; echo done")
    flower.task(run, "RUNNING")
    flower.worker(node_of(client))
    assert flower.post(f"/api/worker/shutdown/{node_of(client)}")[0] == 200

    assert agent.process.wait(timeout=20) == 0
    fleet.start("q")
    assert run.wait(timeout_s=30).attempt == 1
    flower.task(run, "SUCCESS")


def test_the_broker_page_has_every_queue_with_its_true_length(client: Client, fleet: Fleet, flower: Flower) -> None:
    """The paused, which no agent listens to, and the unserved; foreign messages of other priorities are counted."""
    for name, count in (("paused", 3), ("unserved", 2), ("empty", 0)):
        client.create_queue(name, resource="process")
        client.store.set_paused(name, name == "paused")
        for _ in range(count):
            enqueue(client, "true", queue=name)
    fleet.start("q", "paused", "empty")
    foreign = encode_request("a-foreign-run", "unserved", {"command": ["true"]})
    client.store.redis.lpush("launch.unserved\x06\x169", foreign)
    flower.worker(node_of(client))

    lengths = {one["name"]: one["messages"] for one in flower.get("/api/queues/length")["active_queues"]}

    assert lengths == {"launch.q": 0, "launch.paused": 3, "launch.unserved": 3, "launch.empty": 0}
    alias = {queue["name"]: queue["alias"] for queue in flower.worker(node_of(client))["active_queues"]}
    assert (alias["launch.q"], alias["launch.unserved"]) == ("served", "not served by this agent")


def test_nothing_is_lost_at_fifty_runs_a_second(client: Client, flower: Flower, redis_url: str) -> None:
    store = RunStore.connect(redis_url)
    client.store.heartbeat("a1", {"name": "a1", "nodename": "a1@box"}, gap_s=10)
    runs, started = [], time.monotonic()
    while len(runs) < 500:
        time.sleep(max(0.0, started + len(runs) / 50 - time.monotonic()))
        runs.append(enqueue(client, "true"))
        claimed = store.claim("q", "a1", locality="here")
        assert isinstance(claimed, Claimed)
        for state in (RunState.STARTING, RunState.RUNNING):
            store.advance(claimed.record.id, claimed.fence, state)
        store.finish(claimed.record.id, claimed.fence, RunState.FINISHED, DONE)
    store.redis.close()

    flower.task(runs[-1], "SUCCESS")
    shown = flower.get("/api/tasks", limit=1000)
    assert {(run.id, "SUCCESS", "a1@box") for run in runs} == {
        (run_id, task["state"], task["worker"]) for run_id, task in shown.items()
    }
    counted = re.search(r'flower_events_total\{.*type="task-succeeded".*\} ([\d.]+)', flower.page("/metrics"))
    assert counted is not None
    assert float(counted[1]) == len(runs)


@pytest.mark.parametrize("place", ["port", "socket"])
def test_neither_the_brokers_password_nor_an_environment_is_shown(
    client: Client, redis_url: str, redis_server: RedisServer, tmp_path: Path, place: str
) -> None:
    client.store.redis.acl_setuser(
        "keeper", enabled=True, passwords=["+opensesame"], keys=["*"], channels=["*"], categories=["+@all"]
    )
    socket = f"redis+socket://keeper:opensesame@{redis_server.socket_path}"
    url = socket if place == "socket" else redis_url.replace("redis://", "redis://keeper:opensesame@")
    with a_fleet(client.store, url, tmp_path / "home", tmp_path) as fleet:
        fleet.start("q")
        with a_flower(fleet.environment, tmp_path) as flower:
            run = enqueue(client, "sleep", "60", resource_args={"env": {"WORD": "opensesame"}})
            flower.task(run, "RUNNING")
            node = node_of(client)
            flower.worker(node)
            pages = ("/", "/tasks", "/broker", f"/worker/{node}", f"/task/{run.id}", "/api/tasks", "/api/workers")
            shown = "".join(flower.page(page) for page in pages)
            run.stop(grace_s=0)
        assert "opensesame" not in shown + flower.log.read_text()
        assert "WORD" in shown
    client.store.redis.acl_deluser("keeper")


def test_the_api_is_closed_without_the_password(flower: Flower) -> None:
    for path in ("/", "/api/tasks", "/api/workers", "/tasks", "/broker"):
        assert httpx.get(f"{flower.url}{path}").status_code == 401
    assert httpx.post(f"{flower.url}/api/task/revoke/x").status_code == 401


def test_it_works_on_the_embedded_brokers_socket(tmp_path: Path, redis_server: RedisServer) -> None:
    environment = {
        "LAUNCH_BROKER_URL": f"redis+socket://{redis_server.socket_path}?virtual_host=0",
        "LAUNCH_HOME": str(tmp_path / "home"),
    }
    with Client(settings=read_settings(environment)) as client:
        client.store.redis.flushall()
        client.create_queue("q", resource="process")
        with (
            a_fleet(client.store, environment["LAUNCH_BROKER_URL"], tmp_path / "home", tmp_path) as fleet,
            a_flower(environment, tmp_path) as flower,
        ):
            fleet.start("q")
            flower.task(enqueue(client, "true"), "SUCCESS")
            flower.worker(node_of(client))
            assert flower.get("/api/queues/length")["active_queues"] == [{"name": "launch.q", "messages": 0}]


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(flower: Flower) -> Iterator[Any]:
    """A page in a real Chromium that knows the password; the locators of playwright wait by themselves."""
    program = shutil.which("chromium")
    if program is None:
        unavailable("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = chromium.new_context(
            base_url=flower.url, http_credentials={"username": USER[0], "password": USER[1]}
        ).new_page()
        page.set_default_timeout(20_000)
        yield page
        chromium.close()


def test_in_a_browser_runs_are_found_looked_at_and_stopped(
    client: Client, fleet: Fleet, flower: Flower, browser: Any
) -> None:
    fleet.start("q")
    node = node_of(client)
    failed = enqueue(client, "sh", "-c", "echo the reason; exit 3")
    runs, waits = enqueue(client, "sleep", "60", project="mnist"), enqueue(client, "true")
    flower.task(failed, "FAILURE")
    flower.task(runs, "RUNNING")

    browser.goto("/tasks")
    rows = browser.locator("#tasks-table tbody tr")
    wait_until(lambda: rows.count() == 3, what="three rows")
    browser.locator("th[data-column=name]").first.click()
    wait_until(lambda: "mnist/sleep" in rows.first.inner_text(), what="the order of names")
    browser.get_by_role("button", name="Failed").click()
    wait_until(lambda: rows.count() == 1 and failed.id in rows.first.inner_text(), what="the failed one")
    browser.get_by_role("button", name="All").click()
    browser.locator("input[type=search]").fill("state:RUNNING")
    wait_until(lambda: rows.count() == 1 and runs.id in rows.first.inner_text(), what="the running one")

    browser.goto(f"/task/{failed.id}")
    text = browser.locator("#task-page").inner_text()
    assert all(part in text for part in ("The job exited with code 3.", "the reason", node, "FAILURE"))
    assert browser.locator("#task-terminate, #task-revoke").count() == 0

    browser.goto(f"/task/{waits.id}")
    assert "PENDING" in browser.locator("#task-page").inner_text()
    browser.locator("#task-revoke").click()
    wait_until(lambda: waits.refresh().state is RunState.STOPPED, what="the stop of the waiting run")

    browser.goto(f"/task/{runs.id}")
    assert "RUNNING" in browser.locator("#task-page").inner_text()
    browser.locator("#task-terminate").click()
    wait_until(lambda: runs.refresh().state is RunState.STOPPED, what="the stop of the running run")
    flower.task(runs, "STOPPED")
    browser.goto(f"/task/{runs.id}")
    assert "STOPPED" in browser.locator("#task-page").inner_text()


def test_in_a_browser_an_agent_is_looked_at_and_given_more_slots(
    client: Client, fleet: Fleet, flower: Flower, browser: Any
) -> None:
    client.create_queue("unserved", resource="process")
    enqueue(client, "true", queue="unserved")
    fleet.start("q")
    node = node_of(client)
    run = enqueue(client, "sleep", "60")
    flower.task(run, "RUNNING")
    flower.worker(node)

    browser.goto("/")
    browser.get_by_role("link", name=node).click()
    browser.locator("#worker-tab-tasks").click()
    wait_until(lambda: run.id in browser.locator("#tab-tasks").inner_text(), what="the run in the Tasks tab")
    browser.locator("#worker-tab-queues").click()
    queues = browser.locator("#tab-queues")
    wait_until(lambda: "not served by this agent" in queues.inner_text(), what="the queues' tab")
    browser.locator("#worker-tab-pool").click()
    browser.locator("#pool-size").fill("4")
    browser.locator("#worker-pool-grow").click()
    wait_until(lambda: [agent.max_jobs for agent in client.agents()] == [5], what="five slots")
    browser.locator("#worker-pool-shrink").click()
    wait_until(lambda: [agent.max_jobs for agent in client.agents()] == [1], what="one slot")

    browser.goto("/broker")
    text = browser.locator("table").inner_text()
    assert re.search(r"launch\.unserved\s+1", text)
    assert re.search(r"launch\.q\s+0", text)
    run.stop(grace_s=0)
