"""An unchanged folder is not packed again, and a changed one always is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from launch import code_jobs, snapshot_index
from launch.artifacts import ArtifactStore
from launch.code_jobs import code_job
from launch.models import CodeSource, Job, Tracking
from launch.snapshot_index import Packed, SnapshotIndex
from launch.snapshots import CodeFiles, code_files, packed

MADE = Packed("ab" * 32, 123)
SETTLED_NS = 3_000_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "code"
    (root / "sub").mkdir(parents=True)
    (root / "main.py").write_text("print(1)\n")
    (root / "sub" / "model.py").write_text("x = 1\n")
    (root / "link").symlink_to("main.py")
    return root


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def settled(root: Path) -> CodeFiles:
    """Return a folder's files as if they were looked at a while later."""
    code = code_files(root)
    return replace(code, seen_ns=code.changed_ns + SETTLED_NS)


def test_what_was_packed_is_known(root: Path, home: Path) -> None:
    index = SnapshotIndex(home)
    assert index.find(settled(root)) is None

    index.keep(settled(root), MADE)

    assert SnapshotIndex(home).find(settled(root)) == MADE
    assert index.find(replace(settled(root), root=root.parent)) is None


def _rewritten(root: Path) -> None:
    """Another content of the same length, with the old time put back."""
    before = (root / "main.py").stat()
    (root / "main.py").write_text("print(2)\n")
    os.utime(root / "main.py", ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(root: Path) -> None:
    (root / "new").write_text("print(2)\n")
    os.utime(root / "new", ns=(0, (root / "main.py").stat().st_mtime_ns))
    (root / "new").replace(root / "main.py")


def _relinked(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("sub/model.py")


@pytest.mark.parametrize(
    "change",
    [
        _rewritten,
        _replaced,
        _relinked,
        lambda root: (root / "main.py").chmod(0o755),
        lambda root: (root / "sub" / "model.py").unlink(),
        lambda root: (root / "sub" / "model.py").rename(root / "sub" / "other.py"),
        lambda root: (root / "new.py").touch(),
        lambda root: (root / ".launchignore").write_text("sub\n"),
    ],
)
def test_any_change_is_seen(root: Path, home: Path, change: Callable[[Path], object]) -> None:
    index = SnapshotIndex(home)
    index.keep(settled(root), MADE)
    earlier = (root / "main.py").lstat().st_ctime_ns
    # The clock of a file system ticks every few milliseconds, and a change within a tick is what _TICK_NS is for.
    while (home / "clock").write_text("") is not None and (home / "clock").stat().st_ctime_ns == earlier:
        pass

    change(root)

    assert index.find(settled(root)) is None


def test_what_changed_just_now_is_not_trusted(root: Path, home: Path) -> None:
    """It may change again within the same tick of the file system's clock, and look the same."""
    index = SnapshotIndex(home)
    code = code_files(root)

    index.keep(replace(code, seen_ns=code.changed_ns + 1_900_000_000), MADE)
    assert index.find(code) is None
    index.keep(replace(code, seen_ns=code.changed_ns - SETTLED_NS), MADE)  # a clock that runs behind
    assert index.find(code) is None
    index.keep(replace(code, seen_ns=code.changed_ns + 2_000_000_000), MADE)
    assert index.find(code) == MADE


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"{}", b'{"fingerprint": 3, "digest": 4}', b"\xff\xfe"])
def test_a_damaged_index_costs_time_only(root: Path, home: Path, damage: bytes) -> None:
    index = SnapshotIndex(home)
    index.keep(settled(root), MADE)
    (file,) = (home / "snapshots").iterdir()
    file.write_bytes(damage)

    assert index.find(settled(root)) is None
    index.keep(settled(root), MADE)
    assert index.find(settled(root)) == MADE


def test_a_home_that_takes_nothing_is_no_error(root: Path, home: Path) -> None:
    (home / "snapshots").write_text("in the way")

    SnapshotIndex(home).keep(settled(root), MADE)
    SnapshotIndex(home / "nowhere").keep(settled(root), MADE)

    assert SnapshotIndex(home).find(settled(root)) is None


def test_many_at_once_leave_one_whole_file(root: Path, home: Path) -> None:
    code = settled(root)
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda _: (SnapshotIndex(home).keep(code, MADE), SnapshotIndex(home).find(code)), range(64))
        )

    assert {packed for _, packed in found} == {MADE}
    assert len(list((home / "snapshots").iterdir())) == 1


def test_the_oldest_folders_are_forgotten(root: Path, home: Path) -> None:
    code = settled(root)
    for number in range(501):
        SnapshotIndex(home).keep(replace(code, root=root / str(number)), MADE)

    assert len(list((home / "snapshots").iterdir())) == 251


# --- jobs of a folder ------------------------------------------------------------------------------------------------


def made(root: Path, home: Path) -> CodeSource:
    job: Job = code_job(ArtifactStore(f"file://{home}/artifacts"), root, home=home, tracking=Tracking.OPTIONAL)
    assert isinstance(job.source, CodeSource)
    return job.source


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were packed; files are trusted at once."""
    calls: list[Path] = []

    def counted(code: CodeFiles):
        calls.append(code.root)
        return packed(code)

    monkeypatch.setattr(code_jobs, "packed", counted)
    monkeypatch.setattr(snapshot_index, "_TICK_NS", 0)
    return calls


def test_an_unchanged_folder_is_packed_once(root: Path, home: Path, packs: list[Path]) -> None:
    first = made(root, home)

    assert [made(root, home), made(root, home)] == [first, first]
    assert packs == [root]


def test_a_blob_that_is_gone_is_made_again(root: Path, home: Path, packs: list[Path]) -> None:
    source = made(root, home)
    (home / "artifacts" / "blobs" / "sha256" / source.archive[:2] / source.archive).unlink()

    assert made(root, home) == source
    assert len(packs) == 2
    assert ArtifactStore(f"file://{home}/artifacts").has(source.archive)


def test_changes_are_found_in_a_work_tree_too(root: Path, home: Path, packs: list[Path]) -> None:
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    first = made(root, home)
    (root / "new.py").write_text("1\n")

    second = made(root, home)

    assert second.archive != first.archive
    assert second.origin is not None
    assert "new.py" in second.origin.dirty
