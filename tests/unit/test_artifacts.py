"""The artifact store: what goes in comes out, or is refused, on a disk and on an object store alike."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from launch.artifacts import ArtifactStore
from launch.errors import ConfigError, PermanentError, TemporaryError

ABSENT = "0" * 64


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    if request.param == "file":
        yield ArtifactStore(f"file://{tmp_path}/a store, 100%")
        return
    yield ArtifactStore("memory://bucket/prefix")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def disk(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}/store")


def blob(store: ArtifactStore, digest: str) -> Path:
    return Path(store.url.removeprefix("file://")) / "blobs" / "sha256" / digest[:2] / digest


def files(store: ArtifactStore) -> list[str]:
    fs, root = fsspec.url_to_fs(store.url)
    return sorted(path.removeprefix(root) for path in fs.find(root))


@pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 20_000])
def test_what_is_put_comes_back(store: ArtifactStore, data: bytes, tmp_path: Path) -> None:
    digest = store.put_bytes(data)

    assert digest == hashlib.sha256(data).hexdigest()
    assert store.has(digest)
    assert store.get_bytes(digest) == data
    assert store.fetch(digest, tmp_path / "deep" / "copy").read_bytes() == data
    with store.open(digest) as file:
        file.seek(len(data) // 2)
        assert file.read() == data[len(data) // 2 :]


def test_a_file_and_its_bytes_are_one_blob(store: ArtifactStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    digest = store.put_file(path)

    assert store.put_bytes(b"content") == digest
    assert store.put_file(path, digest=digest) == digest
    assert files(store) == [f"/blobs/sha256/{digest[:2]}/{digest}"]


def test_a_known_digest_spares_reading_the_file(store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.put_bytes(b"content")
    (tmp_path / "file").write_bytes(b"another")  # as long, so that only reading it would tell

    assert store.put_file(tmp_path / "file", digest=digest) == digest


def test_an_absent_blob_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    assert not store.has(ABSENT)
    for read in (store.get_bytes, store.open, lambda digest: store.fetch(digest, tmp_path / "copy")):
        with pytest.raises(PermanentError, match=f"blob {ABSENT} is not in {store.url[:6]}"):
            read(ABSENT)
    assert not list(tmp_path.glob("*copy*"))


def test_a_damaged_blob_is_refused_and_named(disk: ArtifactStore, tmp_path: Path) -> None:
    digest = disk.put_bytes(b"right")
    blob(disk, digest).write_bytes(b"wrong")

    with pytest.raises(PermanentError, match=rf"blob {digest} .* is damaged"):
        disk.get_bytes(digest)
    with pytest.raises(PermanentError, match=rf"blob {digest} .* is damaged"):
        disk.fetch(digest, tmp_path / "copy")
    assert not list(tmp_path.glob("*copy*"))


def test_a_fetched_file_is_used_again(disk: ArtifactStore, tmp_path: Path) -> None:
    """Once it is here, the store may be away."""
    digest = disk.put_bytes(b"content")
    copy = disk.fetch(digest, tmp_path / "copy")
    blob(disk, digest).unlink()

    assert disk.fetch(digest, copy) == copy


def test_a_damaged_copy_is_fetched_anew(disk: ArtifactStore, tmp_path: Path) -> None:
    digest = disk.put_bytes(b"content")
    (tmp_path / "copy").write_bytes(b"cont")

    assert disk.fetch(digest, tmp_path / "copy").read_bytes() == b"content"


def test_changing_a_fetched_file_leaves_the_blob(disk: ArtifactStore, tmp_path: Path) -> None:
    digest = disk.put_bytes(b"content")
    disk.fetch(digest, tmp_path / "copy").write_bytes(b"scribble")

    assert disk.get_bytes(digest) == b"content"


def test_many_at_once_put_and_fetch_one_blob(disk: ArtifactStore, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    copy = tmp_path / "copy"

    def put_and_fetch(_: int) -> bytes:
        store = ArtifactStore(disk.url)
        return store.fetch(store.put_bytes(data), copy).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put_and_fetch, range(24))) == {data}
    assert len(files(disk)) == 1
    assert list(tmp_path.glob("*copy*")) == [copy]


def test_a_writer_killed_half_way_leaves_no_blob(disk: ArtifactStore, tmp_path: Path) -> None:
    """The source is a pipe that never ends, so the kill certainly comes in the middle."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = "import sys; from pathlib import Path; from launch.artifacts import ArtifactStore\n"
    code += "ArtifactStore(sys.argv[1]).put_file(Path(sys.argv[2]))"
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, disk.url, str(pipe)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}) as writer, pipe.open("wb") as source:
        source.write(b"x" * (8 << 20))
        source.flush()
        writer.kill()

    assert [name for name in files(disk) if not name.startswith("/incoming/")] == []


def test_a_writer_that_fails_leaves_nothing(disk: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launch.artifacts.folder.sync", full)

    with pytest.raises(TemporaryError, match="No space left"):
        disk.put_bytes(b"content")
    assert files(disk) == []


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_malformed_digest_is_refused(disk: ArtifactStore, digest: str) -> None:
    with pytest.raises(ConfigError, match="64 lower-case"):
        disk.has(digest)


def test_an_unknown_kind_of_store_is_named() -> None:
    with pytest.raises(ConfigError, match="LAUNCH_ARTIFACTS: 'nowhere://x'"):
        ArtifactStore("nowhere://x").put_bytes(b"")


def test_making_a_store_loads_and_makes_nothing(tmp_path: Path) -> None:
    code = f"import sys; from launch.artifacts import ArtifactStore; ArtifactStore('file://{tmp_path}/s')\n"
    code += "sys.exit('fsspec' in sys.modules)"
    root = str(Path(__file__).parents[2])

    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}).returncode == 0
    assert not (tmp_path / "s").exists()
