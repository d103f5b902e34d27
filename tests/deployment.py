"""What tests of ``deploy/`` share: programs as a machine's init would start them, and a tracked script to run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.client import Client
from launch.connection import connect
from launch.errors import TemporaryError
from launch.models import JobVersion
from launch.store import RunStore
from tests.agents import QUICK, wait_until

DEPLOY = Path(__file__).parent.parent / "deploy"
LAUNCH = (sys.executable, "-P", "-m", "launch")

TRAIN = """
import time
from pathlib import Path
import wandb

run = wandb.init(project="mine", config={"steps": 3, "until": None})
for step in range(run.config["steps"]):
    run.log({"loss": 1 / (step + 1)})
    print("step", step, flush=True)
while run.config["until"] and not Path(run.config["until"]).exists():
    time.sleep(0.05)
run.finish()
"""
"""Logs three steps; with ``until`` it goes on until that file is there."""


@contextmanager
def a_process(words: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a program for a block, SIGTERM at its end; yields its pid."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            words, env={**os.environ, **(environment or {})}, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def a_redis(words: Sequence[str | Path], log: Path, url: str) -> Iterator[RunStore]:
    """Run a Redis for a block; yields it as whoever the URL names sees it."""
    with a_process(words, log):
        wait_until(lambda: _answers(url), what=f"an answer of {words[0]}")
        store = RunStore.connect(url)
        yield store
        store.redis.close()


def _answers(url: str) -> bool:
    try:
        connect(url, timeout_s=2).close()
    except TemporaryError:
        return False
    return True


@contextmanager
def a_tracking_server(store: RunStore, log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run ``launch server`` for a block; yields where it listens."""
    with a_process((*LAUNCH, "server"), log, {**QUICK, **environment}):
        (url, *_) = wait_until(store.server_urls, what="the tracking server")
        yield str(url)


def create_train_job(client: Client, folder: Path) -> JobVersion:
    """Register :data:`TRAIN` as the job ``train``."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(TRAIN)
    return client.create_job("train", path=folder, entrypoint=[sys.executable, "train.py"])


def launch_command(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Return what a command of ``launch`` has said, from a folder that is not the checkout."""
    return subprocess.run(
        [*LAUNCH, *words], env={**os.environ, **environment}, cwd="/", capture_output=True, text=True, timeout=60
    )
