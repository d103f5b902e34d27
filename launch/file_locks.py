"""Locks on files that the processes of a machine respect. Who holds one ends it by closing the file, or by dying."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.1


@contextmanager
def locked(path: Path, waiting: Callable[[], object]) -> Iterator[int]:
    """Hold a file's lock, the file made if it is not there, and give its descriptor.

    Args:
        path: the file; its folder is there.
        waiting: called ten times a second while somebody else has the lock; raises to give up.
    """
    with _opened(path) as file:
        while not _is_taken(file):
            waiting()
            time.sleep(_POLL_S)  # nobody tells when a lock is free
        yield file


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold a file's lock unless somebody else does; yields whether it is held."""
    with _opened(path) as file:
        yield _is_taken(file)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _is_taken(file: int) -> bool:
    """Take the lock of an open file, if nobody has it; whether it was taken."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
