"""A newcomer follows the README: its marked blocks are run as they stand, in a fresh copy with a home of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from services import wait_until

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
NOT_IN_A_CLONE = shutil.ignore_patterns(".git", ".venv", ".cache", ".demo", "__pycache__", ".*_cache", ".hypothesis")


def marked_blocks(kind: str) -> list[str]:
    """Return the README's code blocks that an HTML comment ``test: kind`` marks, in order."""
    found = re.findall(rf"^<!-- test: {kind} -->\n```\w+\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert found, f"the README has no block marked 'test: {kind}'"
    return found


@dataclass
class Newcomer:
    """Somebody in a fresh copy of the checkout, who types what the README says."""

    checkout: Path
    home: Path
    transcript: Path
    _shells: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What this test's own settings and virtual environment are not part of."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAUNCH_", "VIRTUAL_ENV"))}
        path = f"{self.checkout}/.venv/bin:{os.environ['PATH']}"
        return {**kept, "LAUNCH_HOME": str(self.home), "PATH": path}

    def types(self, script: str) -> str:
        """Run a shell script to its end, and return what it printed; what it left in the background goes on."""
        return self._run(["bash", "-euo", "pipefail", "-c", script])

    def runs_python(self, script: str) -> str:
        """Run a Python script with the checkout's own interpreter."""
        return self._run([str(self.checkout / ".venv/bin/python"), "-W", "error", "-c", script])

    def _run(self, argv: list[str]) -> str:
        # Not a pipe: an agent in the background would hold it open.
        with self.transcript.open("wb") as out:
            shell = subprocess.Popen(
                argv,
                cwd=self.checkout,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._shells.append(shell)
        code = shell.wait(timeout=400)
        printed = self.transcript.read_text(errors="replace")
        assert code == 0, f"exit code {code} of {argv[-1]}\n{printed[-4000:]}"
        return printed

    def leave(self) -> None:
        """End what was left in the background, and then the rest as a user does."""
        for shell in self._shells:
            try:
                os.killpg(shell.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
            wait_until(lambda pid=shell.pid: not _lives(pid), "the agent in the background ends")
        if (self.checkout / ".venv/bin/launch").exists():
            self.types("launch down --stop")


def _lives(group: int) -> bool:
    """Whether a process group has a process that has not ended."""
    listing = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(line.split()[0] == str(group) and "Z" not in line.split()[1] for line in listing.splitlines())


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    checkout = tmp_path / "openlaunch"
    shutil.copytree(ROOT, checkout, ignore=NOT_IN_A_CLONE)
    somebody = Newcomer(checkout, tmp_path / "home", tmp_path / "transcript")
    try:
        yield somebody
    finally:
        somebody.leave()


def test_the_readme_works_as_it_is_written(newcomer: Newcomer) -> None:
    """Two commands, a queue with its agent, Python, plain Celery; and then nothing is left running."""
    two_commands, queues = marked_blocks("shell")
    printed = newcomer.types(two_commands)
    assert "finished in" in printed
    assert "epochs = 3" in printed

    printed = newcomer.types(queues)
    assert "finished in" in printed
    assert "digits:v" in printed

    (python,) = marked_blocks("python")
    printed = newcomer.runs_python(python)
    assert "finished True" in printed
    assert "best: 0.0" in printed
    assert "Stopped by" in printed

    (celery,) = marked_blocks("celery")
    url = json.loads(newcomer.runs_python("import json, launch; print(json.dumps(launch.Client().broker_url))"))
    before = _runs(newcomer)
    newcomer.runs_python(f"URL = {url!r}\n{celery}")
    wait_until(lambda: len(_runs(newcomer)) == len(before) + 1, "the message becomes a run")
    (run_id,) = set(_runs(newcomer)) - set(before)
    wait_until(lambda: _runs(newcomer)[run_id] not in ("queued", "building", "starting", "running"), "it ends", 60)
    assert _runs(newcomer)[run_id] == "finished"

    newcomer.leave()
    left = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert [line for line in left.splitlines() if str(newcomer.home) in line or str(newcomer.checkout) in line] == []


def _runs(newcomer: Newcomer) -> dict[str, str]:
    """Return ``{run id: state}``."""
    return {run["id"]: run["state"] for run in json.loads(newcomer.types("launch runs --json --limit 100"))}
