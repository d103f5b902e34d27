"""Makes or fetches the image that a Docker run starts from.

An image job's image is pulled. Any other job gets an *environment image*: a Python base, a user ``launch`` (uid 1000)
with a home of its own, and the job's requirements. It holds no code, so that an edit of the code builds nothing. Its
tag is a digest of the base image's id, the requirements and the Dockerfile: the same needs find the same image,
whichever agent or installation asks. Agents of one machine take turns with a lock file in the launch home; those of
two machines that share an engine may build the same image twice at worst.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import re
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from launch.checking import parse
from launch.errors import BuildError, LaunchError, PullError, TemporaryError
from launch.plugins import Build, Builder, BuildRequest, Problem, TargetContext
from workers.docker_engine import Engine, EngineSettings, Refused
from workers.runners.docker_options import BuilderOptions, PullPolicy

Log = Callable[[str], None]
Cancelled = Callable[[], bool]

REPOSITORY = "launch-env"
CONTENT_LABEL = "ai.openlaunch.content"
TAIL_LINES = 30
"""How much of a build's output its error repeats."""

_COLOUR = re.compile(r"\x1b\[(?:91|0)m")
"""The engine paints what a command writes on stderr red."""


class DockerBuilder(Builder):
    """Builds and pulls with a Docker engine."""

    name = "docker"
    settings_where: ClassVar[str] = "agent config: builders/docker"

    def __init__(self, context: TargetContext) -> None:
        super().__init__(context)
        self.settings = parse(EngineSettings, context.settings, where=self.settings_where)
        self.engine = Engine(self.settings)

    def check(self) -> list[Problem]:
        """Return what keeps the engine from building now."""
        return self.engine.check()

    def build(self, request: BuildRequest, log: Log, cancelled: Cancelled) -> Build:
        """Pull an image job's image, or make or find an environment image.

        ``request.options`` is :class:`~workers.runners.docker_options.BuilderOptions`.
        """
        options = parse(BuilderOptions, request.options, where="builder")
        if request.image is not None:
            return self._fetch(request.image, options, log, cancelled)
        version = request.python_version or self.settings.python_version or _own_python()
        base = options.base or self.settings.base_image.format(python_version=version)
        self._fetch(base, options, log, cancelled)
        return self._environment(base, request.requirements, options, log, cancelled)

    # --- pull ---------------------------------------------------------------------------------------------------------

    def _fetch(self, image: str, options: BuilderOptions, log: Log, cancelled: Cancelled) -> Build:
        policy: PullPolicy = options.pull
        before = self._id_of(image)
        if policy == "never" and before is None:
            raise PullError(f"the image {image!r} is not on the engine, and 'pull: never' forbids to fetch it")
        if before is not None and policy != "always":
            return Build(image, f"image {image} is on the engine already", reused=True)
        self._pull(image, options.platform, log, cancelled)
        if self._id_of(image) == before:
            return Build(image, f"image {image} is up to date", reused=True)
        return Build(image, f"pulled image {image}", reused=False)

    def _pull(self, image: str, platform: str | None, log: Log, cancelled: Cancelled) -> None:
        log(f"pulling {image}\n")
        repository, tag = _reference(image)
        wanted = {"fromImage": repository, "tag": tag, "platform": platform}
        progress = PullProgress(log)
        with _one_at_a_time(self.context.home, f"pull-{image}", cancelled):
            try:
                headers = self.engine.registry_auth(image)
                for messages in self.engine.open_messages("/images/create", wanted, headers=headers):
                    for message in messages:
                        progress.tell(message)
                    _give_up_if(cancelled)
            except Refused as exc:
                raise _cannot_pull(image, exc) from exc

    def _id_of(self, image: str) -> str | None:
        try:
            with self.engine.talk() as api:
                return str(api.inspect_image(image)["Id"])
        except Refused as exc:
            if exc.status == 404:
                return None
            raise _trouble(f"image {image!r}", exc) from exc

    # --- environment images -------------------------------------------------------------------------------------------

    def _environment(
        self, base: str, requirements: str | None, options: BuilderOptions, log: Log, cancelled: Cancelled
    ) -> Build:
        dockerfile = environment_dockerfile(base, bool(requirements), sorted(self.settings.build_args))
        content = _digest(self._id_of(base) or base, requirements or "", dockerfile, options.platform or "")
        image = f"{REPOSITORY}:{content[:12]}"
        with _one_at_a_time(self.context.home, f"build-{content[:12]}", cancelled):
            if self._id_of(image) is not None:
                return Build(image, f"reused environment image {image}, same base and requirements", reused=True)
            log(f"building environment image {image} from {base}\n")
            wanted = {
                "t": image,
                "rm": "1",
                "forcerm": "1",
                "labels": json.dumps({CONTENT_LABEL: content}),
                "buildargs": json.dumps(self.settings.build_args),
                "platform": options.platform,
            }
            files = {"Dockerfile": dockerfile, "requirements.txt": requirements or ""}
            self._run_build(wanted, _context(files), log, cancelled)
        return Build(image, f"built environment image {image}: {_first_run(requirements)}", reused=False)

    def _run_build(self, wanted: Mapping[str, Any], context: bytes, log: Log, cancelled: Cancelled) -> None:
        """Have the engine build; leaving before the end makes it give up too."""
        progress = BuildProgress(log)
        headers = {"Content-Type": "application/x-tar"}
        try:
            for messages in self.engine.open_messages("/build", wanted, data=context, headers=headers):
                for message in messages:
                    progress.tell(message)
                _give_up_if(cancelled)
        except Refused as exc:
            raise _trouble("the build", exc) from exc


def _give_up_if(cancelled: Cancelled) -> None:
    if cancelled():
        raise InterruptedError("the build was cancelled")


def environment_dockerfile(base: str, has_requirements: bool, build_args: Iterable[str]) -> str:
    """Return the Dockerfile of an environment image.

    Args:
        base: any image with Python and ``useradd`` or ``adduser``.
        has_requirements: whether there is something to install.
        build_args: names of build arguments that the installation may see.
    """
    lines = [
        f"FROM {base}",
        "ENV PYTHONUNBUFFERED=1",
        "USER root",
        "RUN grep -q ':x:1000:' /etc/passwd || useradd --create-home --uid 1000 launch || adduser -D -u 1000 launch",
    ]
    if has_requirements:
        # Debian's own Python refuses to install beside apt; in an image of ours there is nothing to protect.
        # pip's cache would only make the image larger.
        quiet = "PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1"
        lines += [f"ARG {name}" for name in build_args]
        lines += [
            "COPY requirements.txt /launch/requirements.txt",
            f"RUN {quiet} python -m pip install --no-cache-dir -r /launch/requirements.txt",
        ]
    return "\n".join([*lines, "USER 1000", ""])


class BuildProgress:
    """Passes a build's output on, and turns its failure into an error that names the step."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._step = "the first step"
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._line = ""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Take one message of the engine.

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
        if "returned a non-zero code" not in words and Refused(500, words).is_passing:
            raise TemporaryError(f"the engine cannot build now: {words}")
        raise BuildError(f"the environment image could not be built; this failed: {self._step}\n{words}\n{last}")


class PullProgress:
    """Turns a pull's many small messages into lines for people: each layer's end, and now and then the sum."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic, every_s: float = 2.0) -> None:
        self._log = log
        self._clock = clock
        self._every_s = every_s
        self._told_at = clock()
        self._layers: dict[str, tuple[int, int]] = {}

    def tell(self, message: Mapping[str, Any]) -> None:
        """Take one message of the engine.

        Raises:
            Refused: it says that the pull failed.
        """
        if "error" in message:
            raise Refused(500, str(message["error"]))
        status, layer = str(message.get("status", "")), message.get("id")
        detail = message.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[str(layer)] = (int(detail["current"]), int(detail["total"]))
            self._tell_sum()
        elif status in ("Pull complete", "Already exists"):
            self._log(f"{layer}: {status}\n")
        elif status and not detail and layer is None:
            self._log(f"{status}\n")

    def _tell_sum(self) -> None:
        if self._clock() - self._told_at < self._every_s:
            return
        self._told_at = self._clock()
        done, total = (sum(numbers) for numbers in zip(*self._layers.values(), strict=True))
        self._log(f"downloaded {done / 1e6:.1f} of {total / 1e6:.1f} MB\n")


@contextlib.contextmanager
def _one_at_a_time(home: Path, name: str, cancelled: Cancelled) -> Iterator[None]:
    """Hold ``locks/docker-<digest of name>.lock`` in the launch home, which all agents of the machine respect."""
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"docker-{_digest(name)[:16]}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _give_up_if(cancelled)
                time.sleep(0.2)  # whoever holds it is building what is wanted here
        yield


def _context(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(name)  # no time, no owner: the engine's cache sees the same file again
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _reference(image: str) -> tuple[str, str | None]:
    """Return an image reference as repository and tag, the way the engine is asked to pull one and not all tags."""
    if "@" in image:
        return image, None
    name, colon, tag = image.rpartition(":")
    if colon and "/" not in tag:
        return name, tag
    return image, "latest"


def _cannot_pull(image: str, exc: Refused) -> LaunchError:
    if exc.is_passing:
        return TemporaryError(f"the image {image!r} cannot be fetched now: {exc.words}")
    return PullError(f"the image {image!r} cannot be fetched: {exc.words}")


def _trouble(what: str, exc: Refused) -> LaunchError:
    if exc.status >= 500 and exc.is_passing:
        return TemporaryError(f"{what}: the Docker engine is in trouble: {exc.words}")
    return BuildError(f"{what}: {exc.words}")


def _first_run(requirements: str | None) -> str:
    return "first run with these requirements" if requirements else "first run with this base image"


def _own_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
