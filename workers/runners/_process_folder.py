"""Making and deleting the run folder of a process attempt."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

from launch.errors import PermanentError, TemporaryError
from launch.plugins import Plan
from workers.runners import _process_wrapper

START_TIMEOUT_S = 30.0


def put_code(archive: Path | None, folder: Path) -> None:
    """Unpack the code beside its place and move it there, so that half of it is never run."""
    code = folder / "code"
    if code.exists():
        return
    temporary = folder / f"code.{secrets.token_hex(4)}"
    temporary.mkdir()
    if archive is not None:
        _unpack(archive, temporary)
    try:
        temporary.rename(code)
    except OSError:
        if not code.exists():
            raise
        shutil.rmtree(temporary, ignore_errors=True)  # another agent was faster


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            tar.extractall(folder, filter="data")
            while stream.read(1 << 20):  # as far as the checksum, which tarfile leaves unread
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise PermanentError(f"the job's code ({archive.name}) cannot be unpacked: {exc}") from exc


def start_wrapper(plan: Plan, folder: Path) -> None:
    command = [sys.executable, "-I", "-S", _process_wrapper.__file__, str(folder)]
    with (
        (folder / "wrapper.log").open("ab") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env={}, cwd="/", start_new_session=True
        ) as process,
    ):
        try:
            answer, _ = process.communicate(json.dumps(dict(plan.request)).encode(), START_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            raise TemporaryError(f"{plan.name}: its wrapper did not start within {START_TIMEOUT_S:g} s") from exc
    if not (folder / "started").exists():
        said = (folder / "wrapper.log").read_text(errors="replace")[-1000:]
        raise TemporaryError(f"{plan.name}: its wrapper did not start: {answer.decode()!r} {said}")


def delete_tree(folder: Path) -> None:
    """Delete a folder, also where the job took away its own permissions."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return
    for path, names, _ in os.walk(folder):
        for directory in (Path(path, name) for name in names):
            if not directory.is_symlink():
                directory.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise TemporaryError(f"{folder} cannot be deleted; delete it by hand")
