"""What git says of the work tree a snapshot is taken in, and that asking it runs nothing a repository brings along."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launch import work_tree
from launch.errors import ConfigError
from launch.snapshots import code_files
from launch.work_tree import Found, OriginProbe, without_password


def git(root: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    return subprocess.run(["git", *identity, *command], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A work tree with one commit, on main."""
    root = tmp_path / "code"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    for name in ("train.py", "gone.py", "sub/model.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    return root


def found(root: Path) -> Found:
    with OriginProbe(root) as probe:
        found = probe.found(code_files(root).paths)
    assert found is not None
    return found


def test_a_clean_work_tree_is_its_commit(root: Path) -> None:
    git(root, "remote", "add", "origin", "https://me:secret@example.org/team/digits.git?token=x")

    origin = found(root).origin

    assert origin.commit == git(root, "rev-parse", "HEAD").strip()
    assert (origin.branch, origin.dirty, origin.more_dirty) == ("main", (), 0)
    assert origin.remote == "https://example.org/team/digits.git"
    assert found(root).diff == b""


def test_changes_are_listed_and_kept_as_a_diff(root: Path) -> None:
    (root / "train.py").write_text("# changed\n")
    (root / "gone.py").unlink()
    (root / "new.py").touch()
    (root / "sub" / "data.bin").write_bytes(b"\0\1")
    git(root, "add", "sub/data.bin")

    after = found(root)

    assert after.origin.dirty == ("gone.py", "new.py", "sub/data.bin", "train.py")
    assert b"-# train.py\n+# changed\n" in after.diff
    assert b"GIT binary patch" in after.diff
    assert b"new.py" not in after.diff  # in the snapshot, and not git's


def test_a_diff_without_removals_can_be_applied(root: Path) -> None:
    (root / "sub" / "model.py").write_text("# changed\n")
    (root / "data.bin").write_bytes(b"\0\1")
    git(root, "add", "data.bin")
    git(root, "config", "diff.noprefix", "true")

    after = found(root)

    git(root, "reset", "-q", "--hard")
    subprocess.run(["git", "apply"], cwd=root, input=after.diff, check=True)
    assert (root / "data.bin").read_bytes() == b"\0\1"
    assert (root / "sub" / "model.py").read_text() == "# changed\n"


def test_paths_are_those_of_the_snapshots_folder(root: Path) -> None:
    (root / "train.py").write_text("elsewhere\n")
    (root / "sub" / "model.py").write_text("changed\n")

    after = found(root / "sub")

    assert after.origin.dirty == ("model.py",)
    assert b"elsewhere" not in after.diff


def test_a_link_to_a_folder_is_that_folder(root: Path, tmp_path: Path) -> None:
    (root / "sub" / "new.py").touch()
    (tmp_path / "link").symlink_to(root / "sub")

    assert found(tmp_path / "link").origin.dirty == ("new.py",)


def test_what_is_left_out_of_the_snapshot_is_in_no_diff(root: Path) -> None:
    (root / "gone.py").write_text("PASSWORD = 'secret'\n")
    (root / "untracked.py").touch()
    (root / ".launchignore").write_text("gone.py\nuntracked.py\n")

    after = found(root)

    assert after.origin.dirty == (".launchignore",)
    assert after.diff == b""


def test_a_deleted_file_takes_its_content_along(root: Path) -> None:
    """What a file held that is left out of the snapshots may not come in by its removal."""
    (root / "gone.py").unlink()

    after = found(root)

    assert b"deleted file" in after.diff
    assert b"# gone.py" not in after.diff


def test_without_a_commit_all_is_new(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "train.py").touch()

    origin = found(tmp_path).origin

    assert (origin.commit, origin.branch, origin.dirty) == (None, "trunk", ("train.py",))


def test_no_branch_is_none(root: Path) -> None:
    git(root, "checkout", "-q", "--detach")

    assert (found(root).origin.branch, found(root).origin.remote) == (None, None)


def test_many_changes_are_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_tree, "MAX_DIFF_BYTES", 3_000)
    for number in range(130):
        (root / f"new{number:03}.py").write_text(f"{number}\n" * 50)
        git(root, "add", "-N", f"new{number:03}.py")

    after = found(root)

    assert (len(after.origin.dirty), after.origin.more_dirty) == (100, 30)
    assert len(after.diff) <= 3_000
    assert after.diff.startswith(b"diff --git a/new000.py")
    assert after.diff.endswith(b"\n")
    assert "not all are kept" in after.notes[0]


def test_odd_names_can_be_stored(root: Path) -> None:
    os.makedirs(os.fsencode(root) + b"/odd")
    for name in (b"odd/\xff\xfe.py", "odd/naïve.py".encode(), b"odd/a\nb.py", b"odd/ x -> y.py"):
        with open(os.path.join(os.fsencode(root), name), "wb") as file:
            file.write(b"")
    git(root, "add", "-A")

    dirty = found(root).origin.dirty

    assert set(dirty) == {r"odd/\xff\xfe.py", "odd/naïve.py", "odd/a\nb.py", "odd/ x -> y.py"}
    assert found(root).origin.model_dump_json()


def test_outside_of_a_work_tree_git_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").touch()
    monkeypatch.setenv("PATH", "")

    with OriginProbe(tmp_path) as probe:
        assert probe.found(["train.py"]) is None


def test_a_machine_without_git_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ConfigError, match="no git here"), OriginProbe(root):
        pass


def test_a_refusal_meanwhile_leaves_no_process(root: Path) -> None:
    with OriginProbe(root) as probe:
        status = probe._status

    assert status is not None
    assert status.returncode is not None


@pytest.mark.parametrize(
    "config",
    [
        {"core.fsmonitor": "{evil}"},
        {"core.hooksPath": "{hooks}"},
        {"diff.external": "{evil}"},
        {"diff.own.textconv": "{evil}"},
        {"diff.own.command": "{evil}"},
        {"filter.own.clean": "{evil}"},
        {"filter.own.process": "{evil}", "filter.own.required": "true"},
        {"filter.a=b.clean": "{evil}"},
        {"core.pager": "{evil}", "pager.diff": "true", "pager.status": "true"},
    ],
)
def test_nothing_that_the_repository_is_configured_with_is_run(
    root: Path, tmp_path: Path, config: dict[str, str]
) -> None:
    evil, hooks, trace = tmp_path / "evil", tmp_path / "hooks", tmp_path / "trace"
    evil.write_text(f"#!/bin/sh\ntouch {trace}\ncat\n")
    evil.chmod(0o755)
    hooks.mkdir()
    (hooks / "post-index-change").symlink_to(evil)
    (root / ".gitattributes").write_text("*.py diff=own filter=own\nsub/* filter=a=b\n")
    for name in ("train.py", "sub/model.py"):
        (root / name).write_text("changed\n")
    for key, value in config.items():
        git(root, "config", key, value.format(evil=evil, hooks=hooks))

    after = found(root)

    assert not trace.exists()
    assert {"train.py", "sub/model.py"} <= set(after.origin.dirty)
    assert b"+changed" in after.diff


def test_a_partial_clone_fetches_nothing(root: Path, tmp_path: Path) -> None:
    """The remote of a missing object may name a program."""
    trace = tmp_path / "trace"
    git(root, "config", "core.repositoryFormatVersion", "1")
    git(root, "config", "protocol.ext.allow", "always")
    git(root, "config", "remote.origin.url", f"ext::sh -c touch% {trace}")
    git(root, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    git(root, "config", "remote.origin.promisor", "true")
    git(root, "config", "extensions.partialClone", "origin")
    blob = git(root, "rev-parse", "HEAD:train.py").strip()
    (root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    (root / "train.py").write_text("changed\n")

    after = found(root)

    assert "train.py" in after.origin.dirty
    assert after.notes == ("git cannot say what changed since the last commit",)
    assert not trace.exists()


def test_the_index_is_not_written(root: Path) -> None:
    os.utime(root / "train.py", (1, 1))  # git would note that it is unchanged
    before = (root / ".git" / "index").read_bytes()

    found(root)

    assert (root / ".git" / "index").read_bytes() == before


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://host/a/b", "https://host/a/b"),
        ("https://token@host:8443/a.git", "https://host:8443/a.git"),
        ("https://me:secret@host/a#x", "https://host/a"),
        ("ssh://git@host:22/a", "ssh://git@host:22/a"),
        ("ssh://git:secret@host/a", "ssh://git@host/a"),
        ("git@host:team/a.git", "git@host:team/a.git"),
        ("/srv/git/a.git", "/srv/git/a.git"),
    ],
)
def test_remotes_lose_their_secrets(remote: str, shown: str) -> None:
    assert without_password(remote) == shown
