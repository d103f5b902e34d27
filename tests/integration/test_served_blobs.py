"""The launch server as an artifact store: who may use it, what it refuses, and a run whose machines share no disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from launch.artifacts import ArtifactStore
from launch.client import Client
from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.models import RunState
from launch.settings import read_settings
from launch.store import RunStore
from tests.agents import a_fleet
from tests.object_stores import StoreService, launch_server, s3_service
from tests.services import RedisServer, need_program, unavailable, wait_until

pytestmark = pytest.mark.redis

DATA = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[StoreService]:
    with launch_server(tmp_path_factory.mktemp("server") / "home", redis_server.url, max_blob_gb="0.001") as service:
        yield service


@pytest.fixture
def artifacts(server: StoreService, store: RunStore) -> ArtifactStore:
    return ArtifactStore(server.url, lambda: store)


@pytest.fixture
def asking(server: StoreService, store: RunStore) -> Iterator[httpx.Client]:
    """A client with the key."""
    headers = {"Authorization": f"Bearer {store.artifact_key()}"}
    with httpx.Client(base_url=f"{server.url}/blobs", headers=headers) as client:
        yield client


def kept(server: StoreService) -> list[str]:
    folder = server.log.parent / "home" / "artifacts"
    return [path.name for path in folder.rglob("*") if path.is_file() and "installations" not in path.parts]


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "GET", "POST", "PUT"])
def test_nobody_without_the_key_reads_or_writes(
    server: StoreService, artifacts: ArtifactStore, store: RunStore, method: str
) -> None:
    """A job reaches this server, and has a key of its own for its own run; it gets no other job's code with it."""
    url = f"{server.url}/blobs/sha256/{artifacts.put_bytes(DATA)}?bytes=1"
    key = store.artifact_key()
    for given, code in {None: 401, "Basic YXBpOmtleQ==": 401, "Bearer x": 403, f"Bearer {key[:-1]}": 403}.items():
        headers = {} if given is None else {"Authorization": given}
        answer = httpx.request(method, url, headers=headers, content=b"evil" if method == "PUT" else None)
        assert answer.status_code == code, given
        assert DATA[:20] not in answer.content
    assert httpx.post(f"{server.url}/blobs/collect?older_than_s=1&dry_run=0").status_code == 401
    assert key not in server.log.read_text()


def test_another_installations_key_is_refused_and_said(server: StoreService, store: RunStore) -> None:
    class Other:
        def installation(self) -> str:
            return "00000000"

        def artifact_key(self) -> str:
            return "f" * 64

    with pytest.raises(ConfigError, match=r"does not take this installation's key.*LAUNCH_BROKER_URL"):
        ArtifactStore(server.url, Other).put_bytes(DATA)


def test_the_key_is_made_once(store: RunStore) -> None:
    assert store.artifact_key() == store.artifact_key()
    assert len(store.artifact_key()) == 64


# --- what it takes and gives -----------------------------------------------------------------------------------------


def test_content_with_another_digest_is_refused_and_not_kept(server: StoreService, asking: httpx.Client) -> None:
    wrong = "12" * 32

    answer = asking.put(f"/sha256/{wrong}", content=DATA)

    assert answer.status_code == 422
    assert asking.head(f"/sha256/{wrong}").status_code == 404
    assert wrong not in kept(server)
    assert not [name for name in kept(server) if len(name) == 32], "something is left in incoming"


def test_a_part_of_a_blob(artifacts: ArtifactStore, asking: httpx.Client) -> None:
    path = f"/sha256/{artifacts.put_bytes(DATA)}"
    for given, start, end in (("bytes=0-0", 0, 1), ("bytes=1000-", 1000, None), ("bytes=5-99999999", 5, None)):
        answer = asking.get(path, headers={"Range": given})
        assert (answer.status_code, answer.content) == (206, DATA[start:end])
        last = len(DATA) if end is None else end
        assert answer.headers["Content-Range"] == f"bytes {start}-{last - 1}/{len(DATA)}"
    assert asking.get(path, headers={"Range": f"bytes={len(DATA)}-"}).status_code == 416
    assert asking.get(path, headers={"Range": "bytes=oops"}).status_code == 400
    assert asking.head(path).headers["Content-Length"] == str(len(DATA))


def test_what_is_too_large_is_refused_before_it_is_sent(server: StoreService, artifacts: ArtifactStore) -> None:
    data = os.urandom(1_200_000)

    with pytest.raises(ConfigError, match=r"LAUNCH_MAX_BLOB_GB, 0\.001"):
        artifacts.put_bytes(data)
    assert not artifacts.has(hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "A" * 64, "0" * 63])
def test_what_is_no_digest_is_no_path(asking: httpx.Client, name: str) -> None:
    assert asking.get(f"/sha256/{name}").status_code == 404
    assert asking.put(f"/sha256/{name}", content=b"x").status_code in (404, 405)


def test_a_damaged_blob_is_noticed_by_whoever_reads_it(
    server: StoreService, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    digest = artifacts.put_bytes(b"right content")
    (path,) = (server.log.parent / "home" / "artifacts").rglob(digest)
    path.write_bytes(b"wrong content")

    for read in (artifacts.get_bytes, lambda digest: artifacts.fetch(digest, tmp_path / "copy")):
        with pytest.raises(PermanentError, match=f"blob {digest} in {server.url} is damaged"):
            read(digest)
    assert not list(tmp_path.glob("*copy*"))


def test_what_answers_is_no_launch_server(store: RunStore, tmp_path: Path) -> None:
    with (
        s3_service(tmp_path) as other,
        pytest.raises((ConfigError, TemporaryError), match=r"LAUNCH_ARTIFACTS|cannot be"),
    ):
        ArtifactStore(f"http://127.0.0.1:{other.port}", lambda: store).put_bytes(DATA)


# --- what fails in the middle ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    words = [need_program("mount"), "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        unavailable("no disk can be mounted here: this needs root")
    try:
        yield folder
    finally:
        subprocess.run([need_program("umount"), str(folder)], check=True)


def test_a_disk_that_fills_in_the_middle_is_said_and_leaves_nothing(
    redis_server: RedisServer, store: RunStore, tmp_path: Path
) -> None:
    data = os.urandom(6 << 20)
    with a_small_disk(tmp_path / "disk", "4m") as disk:
        url = f"file://{disk}/store"
        with pytest.raises(TemporaryError, match=f"{url} cannot be used: .*No space left"):
            ArtifactStore(url, lambda: store).put_bytes(data)
        assert not list((disk / "store" / "incoming").iterdir())

        with launch_server(tmp_path / "home", redis_server.url, artifacts=url) as server:
            artifacts = ArtifactStore(server.url, lambda: store)
            with pytest.raises(TemporaryError, match=f"{server.url} cannot be used: .*No space left"):
                artifacts.put_bytes(data)
            assert not artifacts.has(hashlib.sha256(data).hexdigest())
            assert artifacts.get_bytes(artifacts.put_bytes(DATA)) == DATA
        assert "Traceback" not in server.log.read_text()


def test_a_server_that_is_started_anew_loses_no_reader(
    redis_server: RedisServer, store: RunStore, tmp_path: Path
) -> None:
    data = os.urandom(24 << 20)
    with launch_server(tmp_path / "home", redis_server.url) as server:
        artifacts = ArtifactStore(server.url, lambda: store)
        digest = artifacts.put_bytes(data)
        file = artifacts.open(digest)
        read = file.read(1 << 20)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with launch_server(tmp_path / "home", redis_server.url, port=server.port), file:
        read += file.read()
    assert hashlib.sha256(read).hexdigest() == digest


# --- the whole path --------------------------------------------------------------------------------------------------

SCRIPT = "import pathlib; print('the code says', pathlib.Path('word.txt').read_text())"


def the_whole_path(store: RunStore, redis_url: str, url: str, folder: Path, environment: dict[str, str]) -> None:
    """A client and an agent that share nothing but Redis and the store run a snapshot, and its log comes back."""
    code = folder / "code"
    code.mkdir()
    (code / "main.py").write_text(SCRIPT)
    (code / "word.txt").write_text("here")
    settings = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(folder / "client"), "LAUNCH_ARTIFACTS": url}
    with (
        Client(settings=read_settings(settings)) as client,
        a_fleet(store, redis_url, folder / "agent", folder) as fleet,
    ):
        client.create_queue("q", resource="process")
        client.create_job("words", path=code, tracking="optional")
        fleet.environment |= {"LAUNCH_ARTIFACTS": url, **environment}
        fleet.start("q")
        run = client.enqueue(job="words", queue="q")
        wait_until(lambda: run.refresh().state.is_final, "the run ends", 120)
        assert run.state is RunState.FINISHED, list(run.logs())
        wait_until(lambda: store.record(run.id).log_archive is not None, "its log is kept")
        archive = store.record(run.id).log_archive
        assert archive is not None
        lines = [json.loads(line) for line in client.artifacts.get_bytes(archive).splitlines()]
        assert "the code says here" in "".join(line["t"] for line in lines)
        for home in ("client", "agent"):
            assert not (folder / home / "artifacts").exists()


@pytest.mark.timeout(240)
def test_client_and_agent_share_no_disk_but_the_servers(
    redis_server: RedisServer, store: RunStore, redis_url: str, tmp_path: Path
) -> None:
    with launch_server(tmp_path / "server", redis_server.url) as server:
        the_whole_path(store, redis_url, server.url, tmp_path, {})


@pytest.mark.timeout(240)
def test_the_servers_own_variable_may_name_itself(redis_server: RedisServer, store: RunStore, tmp_path: Path) -> None:
    """The same environment on all machines; the server keeps what it gets in its home."""
    with launch_server(tmp_path / "server", redis_server.url, artifacts="http://127.0.0.1:9") as server:
        artifacts = ArtifactStore(server.url, lambda: store)
        assert artifacts.get_bytes(artifacts.put_bytes(DATA)) == DATA
    assert (tmp_path / "server" / "artifacts" / "blobs" / "sha256" / DIGEST[:2] / DIGEST).exists()


@pytest.mark.timeout(240)
def test_client_and_agent_share_a_bucket(
    store: RunStore, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_service(tmp_path) as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        the_whole_path(store, redis_url, s3.url, tmp_path, dict(s3.environment))
