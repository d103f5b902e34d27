"""What the doctor says of brokers, servers, queues, agents, disks and packages that are as they should be, or not."""

from __future__ import annotations

import shutil
import socket
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from services import free_port

from launch import __version__
from launch.broker_health import BrokerFacts, broker_findings, check_broker
from launch.doctor import check_agents, check_disk, check_packages, check_queues, check_server
from launch.errors import TemporaryError
from launch.findings import Check, Finding
from launch.models import QueueSpec
from launch.plugins import Problem, Reach, TargetContext
from launch.records import AgentRecord, QueueCounts
from launch.settings import Settings
from launch.target_health import Served, check_reach, check_target, served_here
from launch.testing import FakeRunner, FakeTarget

GOOD_INFO = {
    "redis_version": "7.2.4",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "used_memory": 10_000_000,
    "total_system_memory": 8_000_000_000,
    "role": "master",
    "cluster_enabled": 0,
}
GOOD_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}


def facts(config: dict[str, str] | None = None, *, ahead: float = 0.0, ping: float = 0.001, **info: Any) -> BrokerFacts:
    config = GOOD_CONFIG if config is None else config
    return BrokerFacts("redis://host:6379/0", {**GOOD_INFO, **info}, config, (ping,) * 100, ahead)


# --- broker ----------------------------------------------------------------------------------------------------------


def test_a_good_broker_has_no_findings_and_says_what_it_promises() -> None:
    check = check_broker(facts())
    assert check.findings == ()
    assert "redis 7.2.4 at redis://host:6379/0" in check.said
    assert "everysec: its death loses nothing, a power cut up to the last second" in check.said
    assert "not even with the machine's power" in check_broker(facts({"appendfsync": "always"})).said
    assert "it does not say how often" in check_broker(facts({})).said
    assert check_broker(facts(valkey_version="8.1.0")).said.startswith("valkey 8.1.0")


@pytest.mark.parametrize(
    ("found", "what", "fix", "voids"),
    [
        (
            facts({"appendfsync": "everysec", "save": ""}, aof_enabled=0),
            "no append-only file: nothing is kept", "redis-cli -u redis://host:6379/0 CONFIG SET appendonly yes", True,
        ),
        (facts({"save": "3600 1"}, aof_enabled=0), "only a snapshot", "CONFIG SET appendonly yes", True),
        (facts({}, aof_enabled=0), "only a snapshot", "CONFIG SET appendonly yes", True),
        (facts({"appendfsync": "no"}), "appendfsync no", "CONFIG SET appendfsync everysec", True),
        (
            facts(maxmemory=10**9, maxmemory_policy="allkeys-lru"),
            "maxmemory-policy allkeys-lru", "CONFIG SET maxmemory-policy noeviction", True,
        ),
        (
            facts(maxmemory=10**9, maxmemory_policy="volatile-lru"),
            "maxmemory-policy volatile-lru", "CONFIG SET maxmemory-policy noeviction", True,
        ),
        (facts(role="slave", master_host="a", master_port=1), "is a replica", "in LAUNCH_BROKER_URL: a:1", True),
        (facts(maxmemory=11_000_000), "91% of maxmemory", "CONFIG SET maxmemory 22000000", False),
        (facts(used_memory=7.5e9), "94% of the machine's memory", "LAUNCH_RETENTION_S", False),
        (facts(aof_last_write_status="err"), "could not write the append-only file", "df -h", False),
        (facts(rdb_last_bgsave_status="err"), "could not write the last snapshot", "df -h", False),
        (facts(redis_version="6.2.14"), "The broker is redis 6.2.14", "version 7.0 or newer" , False),
        (facts(cluster_enabled=1), "is a Redis Cluster", "without cluster mode", False),
        (facts(ping=0.2), "99th percentile of 100 pings is 200 ms", "--latency", False),
        (facts(ahead=-90.0), "1 min 30 s behind this machine's", "timedatectl", False),
        (facts(ahead=30.0), "30 s ahead of this machine's", "timedatectl", False),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_broker_is_found(found: BrokerFacts, what: str, fix: str, voids: bool) -> None:
    (finding,) = broker_findings(found)
    assert what in finding.what
    assert fix in finding.fix or fix in finding.why
    assert finding.voids_promise is voids


def test_without_a_limit_nothing_is_thrown_away() -> None:
    assert broker_findings(facts(maxmemory=0, maxmemory_policy="allkeys-lru")) == []


def test_a_socket_is_named_as_redis_cli_takes_it() -> None:
    found = BrokerFacts("redis+socket:///home/ada/redis.sock?virtual_host=0", {**GOOD_INFO, "aof_enabled": 0})
    assert broker_findings(found)[0].fix.startswith("redis-cli -s /home/ada/redis.sock CONFIG SET")


# --- server ----------------------------------------------------------------------------------------------------------


class Answering(BaseHTTPRequestHandler):
    body = b'{"ok": true, "name": "openlaunch"}'

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def a_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_answers_everywhere_is_well(a_server: str) -> None:
    assert check_server([a_server], []) == Check("server", a_server)


def test_each_address_that_does_not_answer_is_named(a_server: str) -> None:
    silent = f"http://127.0.0.1:{free_port()}"
    (finding,) = check_server([a_server, silent], []).findings
    assert silent in finding.what
    assert "refused" in finding.what
    (finding,) = check_server(["ftp://x"], []).findings
    assert "no web address" in finding.what


def test_something_else_at_the_servers_address_is_found(a_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answering, "body", b"hello")
    (finding,) = check_server([a_server], []).findings
    assert "something else answers there" in finding.what


def test_no_server_is_a_finding_and_one_of_another_machine_is_not_asked() -> None:
    (finding,) = check_server([], []).findings
    assert finding.fix == "launch up"
    assert check_server(["http://127.0.0.1:1"], [an_agent(host="elsewhere")]).findings == ()


# --- queues and agents ------------------------------------------------------------------------------------------------


def an_agent(name: str = "box", **fields: Any) -> AgentRecord:
    said: dict[str, Any] = {
        "id": f"{name}-1",
        "name": name,
        "host": socket.gethostname(),
        "pid": 1,
        "version": __version__,
        "queues": ("q",),
        "localities": (),
        "max_jobs": 1,
        "runs": (),
        "state": "serving",
        "problems": (),
        "started_at": 0.0,
        "heartbeat_at": 95.0,
        "is_alive": True,
    }
    return AgentRecord(**{**said, **fields})


def test_queues_without_a_living_agent_are_found() -> None:
    queues = [QueueSpec(name="q", resource="docker"), QueueSpec(name="lonely", resource="docker", paused=True)]
    counts = {"q": QueueCounts(0, 0, 0, 0), "lonely": QueueCounts(7, 0, 0, 0)}
    check = check_queues(queues, counts, [an_agent(), an_agent(queues=("lonely",), is_alive=False)])
    (finding,) = check.findings
    assert (finding.what, finding.why) == ("No living agent serves queue lonely.", "7 run(s) wait in it.")
    assert finding.fix == "launch agent -q lonely"
    assert check.said == "q, lonely (paused: lonely)"
    assert check_queues([], {}, []).said == "none yet"


def test_what_keeps_agents_from_their_work_is_found() -> None:
    agents = [
        an_agent(),
        an_agent("old", version="0.0.9"),
        an_agent("stuck", problems=("docker: no engine",), state="blocked"),
        an_agent("dead", is_alive=False, version="0.0.1", heartbeat_at=40.0),
    ]
    check = check_agents(agents, {"r1": "q"}, now=100.0)
    assert [finding.what for finding in check.findings] == [
        f"Agent old is of version 0.0.9, this is {__version__}.",
        f"Agent stuck on {socket.gethostname()} takes no runs: docker: no engine",
        "Run r1 has no living agent.",
    ]
    assert check.said == "box (serving), old (serving), stuck (blocked); 1 dead, last seen 1 min ago"
    assert check_agents([], {}, now=0) == Check("agents", "none alive")


# --- targets ---------------------------------------------------------------------------------------------------------


def served(resource: str, *configs: dict[str, Any], tracking_url: str | None = None) -> Served:
    """Return a target with one queue for each config: q0, q1, ..."""
    queues = [QueueSpec(name=f"q{n}", resource=resource, config=config) for n, config in enumerate(configs or ({},))]
    return Served(resource, tuple(queues), tracking_url)


class Probed(FakeRunner):
    """A target whose jobs see this machine at the address that ``box`` names, and hear what ``heard`` says."""

    probe_options = frozenset({"env"})

    def __init__(self, folder: Path, heard: Reach) -> None:
        super().__init__(TargetContext("a1b2c3d4", folder), FakeTarget())
        self.heard = heard
        self.asked: list[str] = []

    def probe(self, url: str, options: Any) -> Reach:
        if "broken" in options.env:
            raise TemporaryError("the engine does not answer")
        self.asked.append(url)
        return self.heard


HERE = ["http://127.0.0.1:8080"]


def test_the_process_target_works_here_and_its_jobs_reach_the_server(a_server: str, tmp_path: Path) -> None:
    check = check_target(served("process"), TargetContext("a1b2c3d4", tmp_path), [a_server])
    assert check.findings == ()
    assert check.said == f"works here; tracking server reached at {a_server}"


def test_a_process_that_does_not_reach_the_server_is_found(tmp_path: Path) -> None:
    silent = f"http://127.0.0.1:{free_port()}"
    (finding,) = check_target(served("process"), TargetContext("a1b2c3d4", tmp_path), [silent]).findings
    assert finding.what.startswith("Jobs of process (queue q0) cannot reach the tracking server")
    assert f"{silent}: connection refused" in finding.what


def test_a_target_that_does_not_answer_is_found_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    check = check_target(served("docker"), TargetContext("a1b2c3d4", tmp_path), HERE)
    assert check.findings
    assert all(finding.fix for finding in check.findings)


def test_a_server_that_does_not_listen_where_jobs_look_is_found_unasked(tmp_path: Path) -> None:
    """The fake target's jobs look for the server on this machine's loopback address."""
    runner = Probed(tmp_path, Reach("reached"))
    (finding,) = check_reach(runner, served("fake"), ["http://172.17.0.1:8080"])
    assert isinstance(finding, Finding)
    assert "look for the tracking server at 127.0.0.1, but it listens at http://172.17.0.1:8080 only" in finding.what
    assert "launch server --host 127.0.0.1" in finding.fix
    assert runner.asked == []
    assert list(check_reach(runner, served("fake"), [])) == [], "no server at all is another finding"


def test_the_server_is_asked_once_for_each_way_jobs_are_connected(tmp_path: Path) -> None:
    runner = Probed(tmp_path, Reach("reached from afar"))
    target = served("fake", {}, {"env": {"net": "a"}}, {"grace": 1}, {"env": {"broken": "1"}})
    said = list(check_reach(runner, target, ["http://172.17.0.1:8080", *HERE]))
    assert runner.asked == ["http://127.0.0.1:8080"] * 2, "q0 and q2 are connected in the same way"
    assert said == ["tracking server reached from afar"] * 2 + [
        "tracking server not tested: the engine does not answer"
    ]


def test_jobs_that_cannot_reach_the_server_are_found_with_the_probes_reason(tmp_path: Path) -> None:
    runner = Probed(tmp_path, Reach("not reached", Problem("no answer within 3 s", "open the firewall")))
    (finding,) = check_reach(runner, served("fake", {}, {}), HERE)
    assert isinstance(finding, Finding)
    assert finding.what == "Jobs of fake (queue q0, q1) cannot reach the tracking server: no answer within 3 s."
    assert finding.fix == "open the firewall"


def test_a_target_without_a_probe_says_that_nothing_was_tested(tmp_path: Path) -> None:
    runner = FakeRunner(TargetContext("a1b2c3d4", tmp_path), FakeTarget())
    assert list(check_reach(runner, served("fake"), HERE)) == [
        "tracking server not tested: the fake target has no probe"
    ]
    runner.host = None
    assert list(check_reach(runner, served("fake"), HERE)) == [], "jobs without a network cannot, and need not"


def test_an_agent_that_was_told_another_address_is_believed(tmp_path: Path) -> None:
    """Its server is on another machine, and not where this Redis' server says it listens."""
    runner = Probed(tmp_path, Reach("reached"))
    here = an_agent(tracking_url="http://10.0.0.5:80")
    (target,) = served_here([QueueSpec(name="q", resource="fake")], [here, an_agent("b", host="far")])
    assert list(check_reach(runner, target, [])) == ["tracking server reached"]
    assert runner.asked == ["http://10.0.0.5:80"]


def test_targets_that_only_other_machines_serve_are_theirs_to_look_at() -> None:
    queues = [QueueSpec(name=name, resource=f"for-{name}") for name in ("here", "there", "nobody")]
    agents = [
        an_agent(queues=("here",)),
        an_agent("b", queues=("here", "there"), host="far"),
        an_agent("c", queues=("nobody",), host="far", is_alive=False),
    ]
    assert [target.resource for target in served_here(queues, agents)] == ["for-here", "for-nobody"]


def test_a_resource_without_a_plugin_is_a_finding(tmp_path: Path) -> None:
    (finding,) = check_target(served("abacus"), TargetContext("a1b2c3d4", tmp_path), []).findings
    assert "unknown resource 'abacus'" in finding.what


# --- this machine ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifact store lies in the launch home, which need not be there yet."""
    settings = Settings(home=tmp_path / "not" / "there")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100e9, 40e9, 60e9))
    assert check_disk(settings).findings == ()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100e9, 99e9, 1e9))
    (finding,) = check_disk(settings).findings
    assert finding.what.startswith("Only 1.0 GB of 100 GB are free")


def test_the_packages_here_are_what_is_needed() -> None:
    check = check_packages()
    assert check.findings == ()
    assert f"openlaunch {__version__}" in check.said


def test_a_package_that_is_too_old_or_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["celery>=999", "no-such-package", "docker>=999; extra == 'docker'", "redis"]
    monkeypatch.setattr("launch.doctor.metadata.requires", lambda name: needed)
    assert [finding.fix for finding in check_packages().findings] == [
        "pip install 'celery>=999'",
        "pip install 'no-such-package'",
    ]
