"""What an image is made from and how: the plan of a build, before anything of it is built."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from launch.errors import BuildError
from launch.plugins import BuildRequest
from launch.references import parse_reference
from workers.builders._build_settings import shell_text
from workers.builders._context import OWN_DOCKERFILE, context_digest, context_tar, read_code, text_tar
from workers.builders._dockerfile import CHANNELS, PREDEFINED, Recipe, adapted, base_images, environment_dockerfile
from workers.builders._dockerignore import ignore_matcher
from workers.builders._images import Images
from workers.builders._last_build import Inputs
from workers.builders._locks import Cancelled
from workers.docker_settings import EngineSettings
from workers.runners.docker_options import BuilderOptions

Log = Callable[[str], None]


@dataclass(frozen=True)
class Making:
    """An image that is to be there, and how it is made."""

    inputs: Inputs
    what: str
    """What people call it: ``environment image``."""
    same: str
    """What it shares with an image that is reused: ``same base and requirements``."""
    dockerfile: str
    """The Dockerfile's name in the context."""
    context: Callable[[], Iterable[bytes]]
    """Gives the context as a plain tar, from its start each time."""
    arguments: Mapping[str, str]
    """Build arguments for the engine."""
    labels: Mapping[str, str]
    """What the image says of itself."""

    @property
    def holds_code(self) -> bool:
        """Whether the job's code is in it."""
        return self.inputs.kind == "dockerfile"


class Planner:
    """Plans builds; fetches base images, since what they are is part of what is made.

    Args:
        settings: the agent's.
        images: the engine's images.
    """

    def __init__(self, settings: EngineSettings, images: Images) -> None:
        self._settings = settings
        self._images = images

    def plan(self, request: BuildRequest, options: BuilderOptions, log: Log, cancelled: Cancelled) -> Making:
        """Return what the request comes to.

        Raises:
            BuildError: the Dockerfile or its context is not in the code.
            ConfigError: an image or a package is no name of one.
            PullError: a base image cannot be fetched.
            TemporaryError: the engine or a registry is away.
        """

        def id_of(base: str) -> str:
            return self._id_of(base, options, log, cancelled)

        if request.dockerfile is None:
            return self._environment(request, options, id_of)
        return self._from_dockerfile(request, options, id_of, log)

    def _environment(self, request: BuildRequest, options: BuilderOptions, id_of: Callable[[str], str]) -> Making:
        version = request.python_version or self._settings.python_version or _own_python()
        chosen = request.base_image or options.base
        base = chosen or self._settings.base_image.format(python_version=version)
        requirements = request.requirements or ""
        text = environment_dockerfile(
            Recipe(base, bool(requirements), request.apt, chosen is None, request.python_version)
        )
        inputs = Inputs(
            kind="environment",
            base=base,
            base_id=id_of(base),
            requirements=requirements,
            apt=request.apt,
            dockerfile=text,
            platform=options.platform or "",
            arguments=tuple(sorted(self._settings.build_args)),
        )
        files = {"Dockerfile": text, "requirements.txt": requirements}
        return Making(
            inputs=inputs,
            what="environment image",
            same="same base and requirements" if requirements else "same base",
            dockerfile="Dockerfile",
            context=lambda: [text_tar(files)],
            arguments=self._arguments(CHANNELS[0], frozenset()),
            # Versions of jobs share it: nothing of the one that happens to need it first belongs in it.
            labels={"org.opencontainers.image.base.name": base},
        )

    def _from_dockerfile(
        self, request: BuildRequest, options: BuilderOptions, id_of: Callable[[str], str], log: Log
    ) -> Making:
        assert request.dockerfile is not None
        archive = request.code
        if archive is None:
            raise BuildError(f"Dockerfile: {request.dockerfile!r} cannot be built, since the job has no code")
        code = read_code(archive, request.dockerfile, request.context)
        own = adapted(code.dockerfile, self._settings.build_args)
        if own.channel is None and shell_text(self._settings, CHANNELS[0]):
            log(f"{request.dockerfile}: its commands cannot take the build arguments and pip settings of this agent\n")
        bases = base_images(code.dockerfile, self._settings.build_args)
        ignored = ignore_matcher(code.ignore)
        inputs = Inputs(
            kind="dockerfile",
            base=" and ".join(bases),
            base_id=" ".join(map(id_of, bases)),
            dockerfile=code.dockerfile,
            context=context_digest(archive, code, ignored),
            platform=options.platform or "",
            arguments=tuple(sorted(self._settings.build_args)),
        )
        return Making(
            inputs=inputs,
            what=f"image of {request.dockerfile}",
            same="same Dockerfile, files and base",
            dockerfile=OWN_DOCKERFILE,
            context=lambda: context_tar(archive, code, ignored, own.text),
            arguments=self._arguments(own.channel, own.visible),
            labels=request.labels,
        )

    def _arguments(self, channel: str | None, visible: frozenset[str]) -> dict[str, str]:
        """Return the build arguments that the engine gets: the settings' carrier, and those that must be its own."""
        own = {name: value for name, value in self._settings.build_args.items() if name in visible | PREDEFINED}
        text = shell_text(self._settings, channel) if channel is not None else ""
        return {**own, channel: text} if channel is not None and text else own

    def _id_of(self, base: str, options: BuilderOptions, log: Log, cancelled: Cancelled) -> str:
        parse_reference(base, where="base image")
        found = self._images.find(base) if options.pull == "missing" else None
        if found is None:
            image = self._images.fetch(base, options.pull, options.platform, log, cancelled).image
            found = self._images.find(image)
        return found.id if found is not None else base


def _own_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
