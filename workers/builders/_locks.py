"""Who may build an image just now: one builder on a machine, and one on an engine, whichever machines share it.

On a machine a lock file in the launch home decides. At the engine it is a container that is never started: its name is
the lock, since an engine gives a name away once. Who holds it puts a new mark into the container every few seconds; a
holder whose mark has not changed for a minute, by the clock of whoever waits, is dead, and its container is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.errors import TemporaryError
from launch.file_locks import locked
from workers.builders._context import text_tar
from workers.docker_engine import Engine, Refused, away
from workers.runners.docker_code import read_file_of

LOCK_IMAGE = "launch-lock:1"
LOCK_LABEL = "ai.openlaunch.lock"
BEAT_S = 10.0
DEAD_AFTER_S = 60.0
_LOOK_S = 0.5
_MARK = "/mark"

Cancelled = Callable[[], bool]


def give_up_if(cancelled: Cancelled) -> None:
    """Raise InterruptedError if the build was cancelled."""
    if cancelled():
        raise InterruptedError("the build was cancelled")


@contextlib.contextmanager
def one_on_this_machine(home: Path, name: str, cancelled: Cancelled) -> Iterator[None]:
    """Hold ``locks/docker-<digest of name>.lock`` in the launch home, which all agents of the machine respect."""
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"docker-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    with locked(lock, lambda: give_up_if(cancelled)):
        yield


class EngineLock:
    """The right to build one tag on an engine.

    Args:
        engine: the engine.
        tag: what is built; part of the lock's name.
        beat_s: how often the holder says that it lives.
        dead_after_s: how long a holder may be silent.
    """

    def __init__(self, engine: Engine, tag: str, *, beat_s: float = BEAT_S, dead_after_s: float = DEAD_AFTER_S) -> None:
        self._engine = engine
        self.name = f"launch-build-{tag}"
        self._beat_s = beat_s
        self._dead_after_s = dead_after_s

    @contextlib.contextmanager
    def held(self, cancelled: Cancelled, is_done: Callable[[], bool]) -> Iterator[bool]:
        """Hold the lock for a block, and say whether it is held: not if somebody else has done the work meanwhile.

        Args:
            cancelled: asked while waiting.
            is_done: whether there is nothing to do any more.

        Raises:
            InterruptedError: it was cancelled.
            TemporaryError: the engine is away.
        """
        container = self._take(cancelled, is_done)
        if container is None:
            yield False
            return
        over = threading.Event()
        heart = threading.Thread(target=self._beat, args=(container, over), name="docker-lock", daemon=True)
        heart.start()
        try:
            yield True
        finally:
            over.set()
            heart.join()
            self._drop(container)

    def _take(self, cancelled: Cancelled, is_done: Callable[[], bool]) -> str | None:
        seen, unchanged_since = None, time.monotonic()
        while True:
            made = self._try()
            if made is not None:
                return made
            if is_done():
                return None
            give_up_if(cancelled)
            found = self._holder()
            if found != seen:
                seen, unchanged_since = found, time.monotonic()
            elif found and time.monotonic() - unchanged_since > self._dead_after_s:
                self._drop(found[0])
            time.sleep(_LOOK_S)

    def _try(self, *, may_make_image: bool = True) -> str | None:
        """Return the new container's id; none: the name is taken."""
        try:
            with self._engine.talk() as api:
                body = {"Image": LOCK_IMAGE, "Cmd": ["lock"], "Labels": {LOCK_LABEL: self.name}}
                return str(api.create_container_from_config(body, self.name)["Id"])
        except Refused as exc:
            if exc.status == 409:
                return None
            if exc.status != 404 or not may_make_image:
                raise away(exc) from exc
        self._make_image()
        return self._try(may_make_image=False)

    def _make_image(self) -> None:
        repository, _, tag = LOCK_IMAGE.partition(":")
        try:
            with self._engine.talk() as api:
                api.import_image_from_data(text_tar({"mark": ""}), repository=repository, tag=tag)
        except Refused as exc:
            raise away(exc) from exc

    def _beat(self, container: str, over: threading.Event) -> None:
        while not over.is_set():
            # An engine that is away for a moment: the next beat tells.
            with contextlib.suppress(Refused, TemporaryError), self._engine.talk() as api:
                api.put_archive(container, "/", text_tar({"mark": secrets.token_hex(8)}))
            over.wait(self._beat_s)

    def _holder(self) -> tuple[str, str] | None:
        """Return the holder's container and mark; by its id, so that no successor is taken for it."""
        found = self._engine.inspect(self.name)
        if found is None:
            return None
        with contextlib.suppress(Refused), self._engine.talk() as api:
            pieces, _ = api.get_archive(found["Id"], _MARK)
            return str(found["Id"]), read_file_of(pieces)
        return str(found["Id"]), ""

    def _drop(self, container: str) -> None:
        with contextlib.suppress(Refused, TemporaryError), self._engine.talk() as api:
            api.remove_container(container, force=True)
