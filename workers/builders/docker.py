"""Makes or fetches the image that a Docker run starts from.

An image job's image is pulled, and run by its digest. A job with a Dockerfile gets the image that this makes of its
code. Any other job gets an *environment image*: a Python base, Debian packages, a user ``launch`` (uid 1000) with a
home of its own, and the job's requirements. It holds no code, so that an edit of the code builds nothing.

An image's tag is a digest of everything it is made from: the same needs find the same image, whichever agent or
installation asks, on the engine or in the registry that images are pushed to. One tag is built once at a time on an
engine (``workers.builders._locks``); engines that share nothing but a registry may build the same at the same time.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from launch.checking import parse
from launch.errors import BuildError, TemporaryError
from launch.plugins import Build, Builder, BuildRequest, Problem, TargetContext
from workers.builders._build_settings import passwords
from workers.builders._cleanup import Cleanup
from workers.builders._dockerfile import CHANNELS, prelude
from workers.builders._images import Images, trouble
from workers.builders._last_build import differences, job_of, mark_used, recall, remember
from workers.builders._locks import Cancelled, EngineLock, give_up_if, one_on_this_machine
from workers.builders._making import Log, Making, Planner
from workers.builders._progress import BuildProgress, Mask
from workers.docker_engine import Engine, Refused
from workers.docker_images import CONTENT_LABEL, TAG_LENGTH
from workers.docker_settings import EngineSettings
from workers.runners.docker_options import BuilderOptions

REPOSITORY = "launch-env"
"""Where images are named that go to no registry."""


class DockerBuilder(Builder):
    """Builds and pulls with a Docker engine."""

    name = "docker"
    settings_where: ClassVar[str] = "agent config: builders/docker"

    def __init__(self, context: TargetContext) -> None:
        super().__init__(context)
        self.settings = parse(EngineSettings, context.settings, where=self.settings_where)
        self.engine = Engine(self.settings)
        self.images = Images(self.engine, context.home)
        self.cleanup = Cleanup(self.engine, context.home)

    def check(self) -> list[Problem]:
        """Return what keeps the engine from building now; a disk that is short of space is cleared up first."""
        problems = self.engine.check()
        if problems and self._cleared_up():
            return self.engine.check()
        return problems

    def _cleared_up(self) -> bool:
        try:
            return self.engine.is_short_of_space() and self.cleanup.make_room()
        except (TemporaryError, ImportError):
            return False  # it is not the disk that is the problem

    def build(self, request: BuildRequest, log: Log, cancelled: Cancelled) -> Build:
        """Pull an image job's image, or make or find the image of any other job.

        ``request.options`` is :class:`~workers.runners.docker_options.BuilderOptions`.
        """
        options = parse(BuilderOptions, request.options, where="builder")
        masked = Mask(
            log, passwords(self.settings) | self.context.secrets, hidden=[prelude(channel) for channel in CHANNELS]
        )
        try:
            with self._in_time(cancelled) as is_over:
                if request.image is not None:
                    return self._fetch(request.image, request.digest, options, masked, is_over)
                making = Planner(self.settings, self.images).plan(request, options, masked, is_over)
                return _Making(self, making, options, masked, is_over).have(job_of(request.labels))
        finally:
            masked.finish()

    @contextlib.contextmanager
    def _in_time(self, cancelled: Cancelled) -> Iterator[Cancelled]:
        """Give a question that is also true once the build has taken too long, which is an error of its own."""
        limit_s = self.settings.build_limit_s or math.inf
        until = time.monotonic() + limit_s
        try:
            yield lambda: cancelled() or time.monotonic() > until
        except InterruptedError as exc:
            if cancelled() or time.monotonic() <= until:
                raise
            raise BuildError(
                f"the build took longer than {limit_s:g} s, the build_limit_s in this agent's config; make it longer, "
                "or see in the log what takes so long"
            ) from exc

    def _fetch(self, image: str, digest: str | None, options: BuilderOptions, log: Log, cancelled: Cancelled) -> Build:
        return self.images.fetch(image, options.pull, options.platform, log, cancelled, digest=digest)


class _Making:
    """One image on its way: found on the engine, fetched from its registry, or built."""

    def __init__(
        self, builder: DockerBuilder, making: Making, options: BuilderOptions, log: Mask, cancelled: Cancelled
    ) -> None:
        self._builder = builder
        self._making = making
        self._platform = options.platform
        self._destination = options.destination or builder.settings.destination
        self._log = log
        self._cancelled = cancelled
        self._content = making.inputs.content
        self.image = f"{self._destination or REPOSITORY}:{self._content[:TAG_LENGTH]}"

    def have(self, job: str) -> Build:
        """Have the image on the engine, and in its registry if there is one.

        Args:
            job: the name of the job it is for, whose last build it is compared with.
        """
        home, making = self._builder.context.home, self._making
        why = f"reused {making.what} {self.image}, {making.same}"
        is_new, found = False, self._builder.images.find(self.image)
        digest = found.digest_in(self._destination) if found and self._destination else None
        if found is None or (self._destination and digest is None):
            with one_on_this_machine(home, f"build-{self.image}", self._cancelled):
                if not self._is_there():
                    fetched = self._fetched()
                    is_new = not fetched and self._built()
                    why = f"{why}; {fetched or 'built just now by another agent'}"
                digest = self._pushed()
        mark_used(home, self._content)
        if is_new:
            why = f"built {making.what} {self.image}: {differences(recall(home, job), making.inputs)}"
            self._builder.cleanup.keep_below(self._builder.settings.max_images_gb)
        remember(home, job, making.inputs)
        return Build(self.image, why, not is_new, digest=digest, holds_code=making.holds_code)

    def _is_there(self) -> bool:
        return self._builder.images.find(self.image) is not None

    def _fetched(self) -> str:
        """Return that the image came from its registry; nothing when it is not there."""
        images = self._builder.images
        if not self._destination or not images.is_in_registry(self.image):
            return ""
        images.pull(self.image, self._platform, self._log, self._cancelled)
        return f"fetched from {self._destination}"

    def _built(self) -> bool:
        """Build the image; false when another agent has built it meanwhile."""
        lock = EngineLock(self._builder.engine, self._content[:TAG_LENGTH])
        with lock.held(self._cancelled, is_done=self._is_there) as is_held:
            if not is_held or self._is_there():
                return False
            self._log(f"building {self._making.what} {self.image} from {self._making.inputs.base}\n")
            self._run()
            return True

    def _run(self) -> None:
        """Have the engine build; leaving before the end makes it give up too."""
        progress = BuildProgress(self._log, f"the {self._making.what}")
        params, headers = self._params(), {"Content-Type": "application/x-tar"}
        try:
            stream = self._builder.engine.open_messages(
                "/build", params, data=iter(self._making.context()), headers=headers
            )
            with contextlib.closing(stream) as batches:
                for messages in batches:
                    for message in messages:
                        progress.tell(message)
                    give_up_if(self._cancelled)
        except Refused as exc:
            raise trouble("the build", exc) from exc

    def _params(self) -> dict[str, Any]:
        making = self._making
        return {
            "t": self.image,
            "dockerfile": making.dockerfile,
            "rm": "1",
            "forcerm": "1",
            "labels": json.dumps({**making.labels, CONTENT_LABEL: self._content}),
            "buildargs": json.dumps(making.arguments),
            "platform": self._platform,
        }

    def _pushed(self) -> str | None:
        """Have the image in its registry and return its digest there; none when it has no registry."""
        if not self._destination:
            return None
        images = self._builder.images
        found = images.find(self.image)
        digest = found.digest_in(self._destination) if found else None
        return digest or images.push(self.image, self._log, self._cancelled)
