"""Blobs in a real S3, a real Google Cloud Storage and a launch server: what goes in comes out, or was never there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from launch.artifacts import ArtifactStore
from launch.artifacts.folder import REFRESH_S
from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.store import RunStore
from tests.object_stores import BUCKET, StallingProxy, StoreService, clean_sdk, gs_service, launch_server, s3_service
from tests.services import RedisServer, free_port

pytestmark = [
    # aiohttp of whoever passes more than 1 MiB to it as bytes, as gcsfs does.
    pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning"),
    pytest.mark.redis,
]

KINDS = ("s3", "gs", "http")
ABSENT = "0" * 64
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> Iterator[Callable[[str], StoreService]]:
    """Each kind of store, started when it is first asked for."""
    import contextlib

    folder = tmp_path_factory.mktemp("stores")
    started: dict[str, StoreService] = {}
    with contextlib.ExitStack() as stack:

        def service(kind: str) -> StoreService:
            if kind not in started:
                made = {
                    "s3": lambda: s3_service(folder),
                    "gs": lambda: gs_service(folder),
                    "http": lambda: launch_server(folder / "server", redis_server.url),
                }
                started[kind] = stack.enter_context(made[kind]())
            return started[kind]

        yield service


@pytest.fixture
def clean_sdks() -> Iterator[None]:
    """Clients are made anew, since they read the environment once."""
    with clean_sdk("s3"), clean_sdk("gs"):
        yield


@pytest.fixture(params=KINDS)
def service(
    request: pytest.FixtureRequest,
    services: Callable[[str], StoreService],
    monkeypatch: pytest.MonkeyPatch,
    clean_sdks: None,
) -> StoreService:
    found = services(request.param)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def artifacts(service: StoreService, store: RunStore) -> ArtifactStore:
    return ArtifactStore(service.url, lambda: store)


def a_file(folder: Path, size: int) -> Path:
    path = folder / "content"
    path.write_bytes(os.urandom(size))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
def test_what_is_put_comes_back(artifacts: ArtifactStore, size: int, tmp_path: Path) -> None:
    path = a_file(tmp_path, size)
    data = path.read_bytes()

    digest = artifacts.put_bytes(data)

    assert digest == sha256(path)
    assert artifacts.has(digest)
    assert artifacts.put_file(path) == digest
    assert artifacts.get_bytes(digest) == data
    assert artifacts.fetch(digest, tmp_path / "deep" / "copy").read_bytes() == data
    with artifacts.open(digest) as file:
        for position in (size // 2, size, 0, size // 3):
            file.seek(position)
            assert file.read(1000) == data[position : position + 1000]
        file.seek(-min(size, 10), os.SEEK_END)
        assert file.read() == data[size - min(size, 10) :]


def test_a_large_file_goes_in_parts_and_comes_back(
    artifacts: ArtifactStore, service: StoreService, tmp_path: Path
) -> None:
    path = a_file(tmp_path, (110 if service.url.startswith("s3") else 30) << 20)
    digest = sha256(path)

    assert artifacts.put_file(path) == digest
    assert sha256(artifacts.fetch(digest, tmp_path / "copy")) == digest


def test_an_absent_blob_is_named(artifacts: ArtifactStore, tmp_path: Path) -> None:
    assert not artifacts.has(ABSENT)
    for read in (artifacts.get_bytes, artifacts.open, lambda digest: artifacts.fetch(digest, tmp_path / "copy")):
        with pytest.raises(PermanentError, match=f"blob {ABSENT} is not in {artifacts.url}"):
            read(ABSENT)


def test_many_writers_of_one_blob_at_once(service: StoreService, store: RunStore, tmp_path: Path) -> None:
    data = os.urandom(6 << 20)
    digest = hashlib.sha256(data).hexdigest()
    path = tmp_path / "content"
    path.write_bytes(data)

    def put_and_get(number: int) -> bytes:
        own = ArtifactStore(service.url, lambda: store)
        assert (own.put_bytes(data) if number % 2 else own.put_file(path)) == digest
        return own.get_bytes(digest)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(put_and_get, range(12))) == {data}


def test_a_file_that_changes_while_it_is_put_is_refused(artifacts: ArtifactStore, tmp_path: Path) -> None:
    """The digest is that of what its owner read before: nothing may get that name but this."""
    path = a_file(tmp_path, 20 << 20)
    digest = sha256(path)
    path.write_bytes(os.urandom(20 << 20))

    with pytest.raises(TemporaryError, match="changed while it was put"):
        artifacts.put_file(path, digest=digest)
    assert not artifacts.has(digest)


def test_a_writer_killed_in_the_middle_leaves_nothing_to_see(
    service: StoreService, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    """The network hangs after 1 MiB of 4, and the writer is killed there."""
    path = a_file(tmp_path, 4 << 20)
    digest = sha256(path)
    with StallingProxy(service.port, after_bytes=1 << 20) as proxy:
        url, environment = service.at_port(proxy.port)
        code = "import sys; from pathlib import Path; from launch.artifacts import ArtifactStore\n"
        code += "from launch.store import RunStore\n"
        code += "ArtifactStore(sys.argv[1], lambda: RunStore.connect(sys.argv[2])).put_file(Path(sys.argv[3]))"
        redis_url = f"redis://127.0.0.1:{artifacts._installation().redis.connection_pool.connection_kwargs['port']}/0"
        environ = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen([sys.executable, "-c", code, url, redis_url, str(path)], env=environ) as writer:
            assert proxy.stalled.wait(30), "nothing was uploaded"
            writer.kill()
        assert proxy.is_over.wait(30)

    assert not artifacts.has(digest)
    assert artifacts.put_file(path) == digest
    assert sha256(artifacts.fetch(digest, tmp_path / "copy")) == digest


@pytest.mark.parametrize("service", ["s3", "gs"], indirect=True)
def test_a_damaged_blob_is_refused_and_a_shorter_one_replaced(artifacts: ArtifactStore, tmp_path: Path) -> None:
    digest = artifacts.put_bytes(b"as it should be")
    key = artifacts.place.where(digest)
    with fsspec.open(key, "wb") as file:
        file.write(b"as it shouldn't")

    for read in (artifacts.get_bytes, lambda digest: artifacts.fetch(digest, tmp_path / "copy")):
        with pytest.raises(PermanentError, match=rf"(?s)blob {digest} .* is damaged.*Delete {key}"):
            read(digest)

    with fsspec.open(key, "wb") as file:
        file.write(b"as it")
    assert artifacts.put_bytes(b"as it should be") == digest
    assert artifacts.get_bytes(digest) == b"as it should be"


@pytest.mark.parametrize("service", ["s3", "gs"], indirect=True)
def test_what_is_put_again_is_young_again(artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else it could be removed before the record that needs it is written."""
    digest = artifacts.put_bytes(os.urandom(100))
    (before,) = [blob.modified_at for blob in artifacts.place.blobs() if blob.name == digest]
    assert abs(before - datetime.now(UTC).timestamp()) < 60
    now = time.time
    monkeypatch.setattr("launch.artifacts.objects.time.time", lambda: now() + REFRESH_S + 60)

    deadline = now() + 30
    after = before
    while after <= before and now() < deadline:  # S3 counts whole seconds
        assert artifacts.keep(digest, 100)
        (after,) = [blob.modified_at for blob in artifacts.place.blobs() if blob.name == digest]
    assert after > before
    assert hashlib.sha256(artifacts.get_bytes(digest)).hexdigest() == digest


@pytest.mark.parametrize("service", ["s3"], indirect=True)
def test_an_upload_in_parts_that_was_never_finished_is_found_and_removed(artifacts: ArtifactStore) -> None:
    place = artifacts.place
    fs, key = place._fs, place._path("ab" * 32)  # type: ignore[attr-defined]
    bucket, _, name = key.partition("/")
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key=name)
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key="another/prefix/blobs/x")

    (left,) = place.leftovers()
    assert left.name.startswith(name)
    place.remove_leftover(left.name)
    place.remove_leftover(left.name)

    assert list(place.leftovers()) == []
    assert len(fs.list_multipart_uploads(bucket)) == 1


# --- what is wrong is said -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["s3", "gs"], indirect=True)
def test_a_bucket_that_is_not_there_is_named(service: StoreService) -> None:
    url = service.url.replace(BUCKET, "no-such-bucket")

    assert not ArtifactStore(url).has(ABSENT)
    with pytest.raises(ConfigError, match=r"LAUNCH_ARTIFACTS: .*no bucket 'no-such-bucket'"):
        ArtifactStore(url).put_bytes(b"content")


@pytest.mark.parametrize("service", ["s3"], indirect=True)
def test_missing_credentials_are_said_with_the_variable(service: StoreService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(ConfigError, match=r"without credentials.*AWS_ACCESS_KEY_ID"):
        ArtifactStore(service.url).put_bytes(b"content")


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_away_is_tried_again_later(
    kind: str, store: RunStore, monkeypatch: pytest.MonkeyPatch, clean_sdks: None
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setenv("FSSPEC_GS", '{"token": "anon"}')
    url = address if kind == "http" else f"{kind}://{BUCKET}/x"

    with pytest.raises(TemporaryError, match=f"artifact store {url} cannot be used"):
        ArtifactStore(url, lambda: store).put_bytes(b"content")
