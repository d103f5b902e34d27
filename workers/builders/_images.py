"""Images of an engine and of registries: which are there, fetched and pushed by the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import BuildError, LaunchError, PullError, TemporaryError
from launch.plugins import Build
from launch.references import parse_reference
from workers.builders._locks import Cancelled, give_up_if, one_on_this_machine
from workers.builders._progress import TransferProgress
from workers.docker_engine import Engine, Refused
from workers.runners.docker_options import PullPolicy

Log = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """An image on the engine."""

    id: str
    digests: tuple[str, ...]
    """``name@sha256:…``, one for each registry it came from or went to."""

    def digest_in(self, name: str) -> str | None:
        """Return its digest in the repository of that name, ``host:5000/team/train``; none: it was never there."""
        wanted = _familiar(name)
        return next(
            (item.partition("@")[2] for item in self.digests if _familiar(item.partition("@")[0]) == wanted), None
        )


def _familiar(name: str) -> str:
    """Return a repository's name without what the engine leaves out of it."""
    return name.removeprefix("library/")


class Images:
    """What a builder does with an engine's images.

    Args:
        engine: the engine.
        home: the launch home, whose agents pull one image once.
    """

    def __init__(self, engine: Engine, home: Path) -> None:
        self._engine = engine
        self._home = home

    def find(self, image: str) -> Image | None:
        """Return an image of the engine; none: it has no such image."""
        try:
            with self._engine.talk() as api:
                found = api.inspect_image(image)
        except Refused as exc:
            if exc.status == 404:
                return None
            raise trouble(f"image {image!r}", exc) from exc
        return Image(str(found["Id"]), tuple(found.get("RepoDigests") or ()))

    def fetch(
        self,
        image: str,
        policy: PullPolicy,
        platform: str | None,
        log: Log,
        cancelled: Cancelled,
        *,
        digest: str | None = None,
    ) -> Build:
        """Have an image on the engine, as the policy says, and return what exactly is to run.

        Args:
            image: its reference.
            policy: when to ask its registry.
            platform: ``linux/amd64``; none: the engine's own.
            log: told of the progress.
            cancelled: asked every half second.
            digest: what ``image`` is to be, whatever its tag means now; none: what its tag means.

        Raises:
            PullError: it is not there, or its registry refuses.
            TemporaryError: the engine or the registry is away.
        """
        reference = parse_reference(image)
        wanted = reference.at(digest) if digest else image
        before = self.find(wanted)
        if policy == "never" and before is None:
            raise PullError(f"the image {wanted!r} is not on the engine, and 'pull: never' forbids to fetch it")
        # What a digest names never changes, so there is nothing to ask a registry for.
        is_fixed = digest is not None or reference.digest is not None
        if before is not None and (policy != "always" or is_fixed):
            because = "" if is_fixed else f", and 'pull: {policy}' asks no registry for a newer one"
            return self._found(wanted, before, f"image {wanted} is on the engine already{because}", reused=True)
        self.pull(wanted, platform, log, cancelled)
        after = self.find(wanted)
        if after is None:
            raise PullError(f"the image {wanted!r} was pulled, and is gone again from the engine")
        if before is not None and after.id == before.id:
            return self._found(wanted, after, f"image {wanted} is up to date", reused=True)
        return self._found(wanted, after, f"pulled image {wanted}", reused=False)

    def _found(self, image: str, found: Image, because: str, *, reused: bool) -> Build:
        """Return a build that names the image by its digest where it has one: its tag may move any moment."""
        reference = parse_reference(image)
        digest = reference.digest or found.digest_in(reference.name)
        return Build(reference.at(digest) if digest else image, because, reused, digest=digest)

    def pull(self, image: str, platform: str | None, log: Log, cancelled: Cancelled) -> None:
        """Fetch an image from its registry.

        Raises:
            PullError: it is not there, or its registry refuses.
            TemporaryError: the engine or the registry is away.
        """
        log(f"pulling {image}\n")
        reference = parse_reference(image)
        # Without a tag the engine would pull all of them.
        repository, tag = (image, None) if reference.digest else (reference.name, reference.tag or "latest")
        wanted = {"fromImage": repository, "tag": tag, "platform": platform}
        try:
            with one_on_this_machine(self._home, f"pull-{image}", cancelled):
                self._transfer("/images/create", wanted, image, log, cancelled)
        except Refused as exc:
            raise _cannot(f"the image {image!r} cannot be fetched", exc, PullError) from exc

    def push(self, image: str, log: Log, cancelled: Cancelled) -> str | None:
        """Push an image to its registry and return its digest there.

        Raises:
            BuildError: the registry refuses.
            TemporaryError: the engine or the registry is away.
        """
        log(f"pushing {image}\n")
        reference = parse_reference(image)
        try:
            return self._transfer(f"/images/{reference.name}/push", {"tag": reference.tag}, image, log, cancelled)
        except Refused as exc:
            raise _cannot(f"the image {image!r} cannot be pushed", exc, BuildError) from exc

    def _transfer(self, path: str, params: Mapping[str, Any], image: str, log: Log, cancelled: Cancelled) -> str | None:
        progress = TransferProgress(log)
        # A registry without a login gets an empty one: some engines refuse to push without the header.
        headers = self._engine.registry_auth(image) or {"X-Registry-Auth": "e30="}
        with contextlib.closing(self._engine.open_messages(path, params, headers=headers)) as batches:
            for messages in batches:
                for message in messages:
                    progress.tell(message)
                give_up_if(cancelled)
        return progress.digest

    def is_in_registry(self, image: str) -> bool:
        """Whether the image's registry has its tag.

        Raises:
            BuildError: the registry does not let us look.
            TemporaryError: the engine or the registry is away.
        """
        try:
            self._engine.distribution(image)
        except Refused as exc:
            if exc.status == 404 or _is_unknown(exc.words):
                return False
            raise _cannot(f"the image {image!r} cannot be looked for", exc, BuildError) from exc
        return True


def _is_unknown(words: str) -> bool:
    return any(word in words.lower() for word in ("manifest unknown", "name unknown", "not found"))


def _cannot(what: str, exc: Refused, permanent: type[LaunchError]) -> LaunchError:
    if exc.is_passing:
        return TemporaryError(f"{what} now: {exc.words}")
    words = exc.words.lower()
    if any(word in words for word in ("unauthorized", "denied", "authentication required", "no basic auth")):
        return permanent(
            f"{what}: its registry refuses the login: {exc.words}. Log in with `docker login`, or put the registry "
            "under `registries` in the agent's config"
        )
    if "x509" in words or "server gave http response" in words:
        return permanent(
            f"{what}: {exc.words}. The engine must trust the registry: put its authority into "
            "/etc/docker/certs.d/<host:port>/ca.crt on the engine's machine"
        )
    return permanent(f"{what}: {exc.words}")


def trouble(what: str, exc: Refused) -> LaunchError:
    """Return the error for a request about an image that the engine refused."""
    if exc.status >= 500 and exc.is_passing:
        return TemporaryError(f"{what}: the Docker engine is in trouble: {exc.words}")
    return BuildError(f"{what}: {exc.words}")
