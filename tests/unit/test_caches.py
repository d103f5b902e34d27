"""What an agent's machine keeps is bounded, and what a run needs stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from workers.builders.venv import MARKER
from workers.caches import HeldCode, tidy_code, tidy_venvs

DAY_S = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def a_snapshot(folder: Path, digit: str, *, age_days: float = 0.0, size: int = 100) -> Path:
    path = folder / f"{digit * 64}.tar.gz"
    path.write_bytes(b"x" * size)
    return aged(path, age_days)


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))
    return path


def test_the_longest_unused_code_goes_until_the_rest_is_no_more_than_may_be(folder: Path) -> None:
    old, middle, new = (a_snapshot(folder, digit, age_days=age) for digit, age in (("a", 3), ("b", 2), ("c", 1)))

    assert tidy_code(folder, max_bytes=150, unused_s=30 * DAY_S) == [old, middle]

    assert list(folder.iterdir()) == [new]


def test_code_that_nobody_used_for_long_goes_though_there_is_room(folder: Path) -> None:
    a_snapshot(folder, "a", age_days=31)
    recent = a_snapshot(folder, "b", age_days=29)

    tidy_code(folder, max_bytes=1e9, unused_s=30 * DAY_S)

    assert list(folder.iterdir()) == [recent]


def test_code_that_a_run_needs_stays_until_the_run_is_over(folder: Path) -> None:
    held = HeldCode()
    path = a_snapshot(folder, "a", age_days=40)
    assert held.hold("run", lambda: path) == path
    aged(path, 40)

    assert tidy_code(folder, max_bytes=0, unused_s=DAY_S) == []
    held.release("run")
    held.release("run")  # nothing is left to let go of
    assert tidy_code(folder, max_bytes=0, unused_s=DAY_S) == [path]


def test_code_is_used_when_it_is_held(folder: Path) -> None:
    path = a_snapshot(folder, "a", age_days=40)
    held = HeldCode()
    held.hold("run", lambda: path)
    held.release("run")

    assert tidy_code(folder, max_bytes=1e9, unused_s=DAY_S) == []


def test_code_that_is_removed_between_fetch_and_hold_is_fetched_again(folder: Path) -> None:
    path = a_snapshot(folder, "a")
    fetches = []

    def fetch() -> Path:
        fetches.append(path)
        path.unlink() if len(fetches) == 1 else a_snapshot(folder, "a")
        return path

    held = HeldCode()
    assert held.hold("run", fetch) == path
    assert (len(fetches), path.exists()) == (2, True)
    held.release("run")
    assert HeldCode().hold("run", lambda: None) is None


def test_what_is_no_snapshot_is_left_and_what_a_killed_fetch_left_goes(folder: Path) -> None:
    other = aged(a_snapshot(folder, "a").rename(folder / "git-1234.tar.gz"), 99)
    young, old = folder / ".aaaa.1", folder / ".aaaa.2"
    young.touch()
    old.touch()
    aged(old, 2)

    tidy_code(folder, max_bytes=0, unused_s=DAY_S)

    assert set(folder.iterdir()) == {other, young}


def test_no_folder_is_no_error(folder: Path) -> None:
    assert tidy_code(folder / "none", max_bytes=0, unused_s=1) == []
    assert tidy_venvs(folder / "none", unused_s=1, in_use=set) == []


# --- virtual environments --------------------------------------------------------------------------------------------


def a_venv(folder: Path, name: str, *, age_days: float) -> Path:
    venv = folder / name
    (venv / "bin").mkdir(parents=True)
    (venv / MARKER).touch()
    aged(venv / MARKER, age_days)
    return venv


def test_environments_that_nobody_used_for_long_go_but_not_one_a_run_is_in(folder: Path) -> None:
    old, busy, recent = (a_venv(folder, name, age_days=age) for name, age in (("old", 40), ("busy", 40), ("new", 1)))
    half_made = folder / "half"
    half_made.mkdir()

    assert tidy_venvs(folder, unused_s=30 * DAY_S, in_use=lambda: {str(busy)}) == [old]

    assert {path for path in folder.iterdir() if path.is_dir()} == {busy, recent, half_made}


def test_an_environment_that_is_being_built_stays(folder: Path) -> None:
    import fcntl

    venv = a_venv(folder, "old", age_days=40)
    with (folder / "old.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tidy_venvs(folder, unused_s=DAY_S, in_use=set) == []
    assert venv.exists()


def test_an_environment_that_is_taken_in_the_moment_of_its_removal_stays(folder: Path) -> None:
    venv = a_venv(folder, "old", age_days=40)

    def a_run_takes_it() -> set[str]:
        os.utime(venv / MARKER)
        return set()

    assert tidy_venvs(folder, unused_s=DAY_S, in_use=a_run_takes_it) == []
    assert (venv / MARKER).exists()


def test_what_a_killed_clean_up_left_goes(folder: Path) -> None:
    a_venv(folder, ".gone-1234", age_days=40)

    assert tidy_venvs(folder, unused_s=DAY_S, in_use=set) == []
    assert list(folder.iterdir()) == []
