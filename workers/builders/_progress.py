"""What an engine says while it builds, pulls and pushes, as text for people. No I/O, no SDK here."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from launch.errors import BuildError, TemporaryError
from launch.plugins import MASK
from workers.docker_engine import Refused

Log = Callable[[str], None]

TAIL_LINES = 30
"""How much of a build's output its error repeats."""

_COLOUR = re.compile(r"\x1b\[(?:91|0)m")
"""The engine paints what a command writes on stderr red."""


class Mask:
    """Takes values out of text that comes in pieces: what may be the start of one is kept back for a while."""

    def __init__(self, log: Log, values: Iterable[str], hidden: Iterable[str] = ()) -> None:
        """Pass text on to ``log``, each of ``values`` as asterisks, each of ``hidden`` left out."""
        self._log = log
        self._signs = {**dict.fromkeys(values, MASK), **dict.fromkeys(hidden, "")}
        longest_first = sorted(map(re.escape, self._signs), key=len, reverse=True)
        self._pattern = re.compile("|".join(longest_first)) if longest_first else None
        self._kept = ""

    def __call__(self, text: str) -> None:
        """Take a piece."""
        text = self.clean(self._kept + text)
        keep = max((self._overlap(text, value) for value in self._signs), default=0)
        self._kept = text[len(text) - keep :]
        if len(text) > keep:
            self._log(text[: len(text) - keep])

    def finish(self) -> None:
        """Pass on what was kept back."""
        kept, self._kept = self._kept, ""
        if kept:
            self._log(kept)

    def clean(self, text: str) -> str:
        """Return a whole text without the values."""
        return self._pattern.sub(lambda found: self._signs[found[0]], text) if self._pattern else text

    @staticmethod
    def _overlap(text: str, value: str) -> int:
        """Return how long the longest end of the text is that the value begins with."""
        return next((n for n in range(min(len(text), len(value) - 1), 0, -1) if value.startswith(text[-n:])), 0)


class BuildProgress:
    """Passes a build's output on, and turns its failure into an error that names the step.

    Args:
        log: where the output goes.
        what: what is built, for the error: ``"the environment image"``.
    """

    def __init__(self, log: Mask, what: str) -> None:
        self._log = log
        self._what = what
        self._step = "the first step"
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._line = ""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Take one message of the engine, colours and all.

        Raises:
            BuildError: it says that the build failed.
            TemporaryError: it says that the engine or a registry is away.
        """
        if "stream" in message:
            self._add(_COLOUR.sub("", str(message["stream"])))
        if "error" in message:
            self._fail(str(message["error"]))

    def _add(self, text: str) -> None:
        self._log(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._tail.append(line)
            if line.startswith("Step "):
                self._step = line.strip()

    def _fail(self, words: str) -> None:
        if self._line:
            self._tail.append(self._line)
        self._log(f"{words}\n")
        last = "\n".join(self._tail)
        # What a command of the Dockerfile printed is no word of the engine: a build whose pip failed failed.
        if "returned a non-zero code" not in words and is_passing(words):
            raise TemporaryError(self._log.clean(f"the engine cannot build now: {words}"))
        message = f"{self._what} could not be built; this failed: {self._step}\n{words}\n{last}"
        raise BuildError(self._log.clean(message))


def is_passing(words: str) -> bool:
    """Whether the same build may succeed later: the engine is in trouble, or lost one of its own layers meanwhile."""
    return Refused(500, words).is_passing or re.search(r"[Nn]o such image: sha256:", words) is not None


class TransferProgress:
    """Turns a pull's or push's many small messages into lines: each layer's end, and now and then the sum."""

    _MOVING = {"Downloading": "downloaded", "Pushing": "pushed"}
    _DONE = ("Pull complete", "Already exists", "Pushed", "Layer already exists")

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic, every_s: float = 2.0) -> None:
        self._log = log
        self._clock = clock
        self._every_s = every_s
        self._told_at = clock()
        self._layers: dict[str, tuple[int, int]] = {}
        self.digest: str | None = None
        """``sha256:…`` of what was pushed, once its registry has it."""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Take one message of the engine.

        Raises:
            Refused: it says that it failed.
        """
        if "error" in message:
            raise Refused(500, str(message["error"]))
        self.digest = (message.get("aux") or {}).get("Digest") or self.digest
        status, layer = str(message.get("status", "")), message.get("id")
        detail = message.get("progressDetail") or {}
        if status in self._MOVING and detail.get("total"):
            self._layers[str(layer)] = (int(detail["current"]), int(detail["total"]))
            self._tell_sum(self._MOVING[status])
        elif status in self._DONE:
            self._log(f"{layer}: {status}\n")
        elif status and not detail and layer is None:
            self._log(f"{status}\n")

    def _tell_sum(self, verb: str) -> None:
        if self._clock() - self._told_at < self._every_s:
            return
        self._told_at = self._clock()
        done, total = (sum(numbers) for numbers in zip(*self._layers.values(), strict=True))
        self._log(f"{verb} {done / 1e6:.1f} of {total / 1e6:.1f} MB\n")
