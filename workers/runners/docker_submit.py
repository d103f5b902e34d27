"""Brings an attempt's container to life, once, however often and from however many agents it is tried.

A second submit finds the first by the container's name. Create it, put the code in, start it *by id*: a container found
created but not started was left by an agent that died, or is being made by one that lost its claim. It is removed
without force and made anew; if the engine refuses, it was started just now and is taken as it is. One that has run is
never started again: starting it by its name could do that.
"""

from __future__ import annotations

import time

from launch.errors import ConfigError, LaunchError, PermanentError, TemporaryError
from launch.plugins import Plan
from workers.docker_engine import Engine, Refused
from workers.runners.docker_code import code_archive, owner_of, read_file_of
from workers.runners.docker_state import was_started

Owners = dict[tuple[str, str], tuple[int, int]]

PATIENCE_S = 10.0
"""How long to wait for another agent that is starting or removing the container."""


class Submission:
    """One try to have a plan's container running.

    Args:
        engine: where.
        plan: the container.
        owners: ``{(image id, user): (uid, gid)}`` of the users looked up so far, for submissions to come. An image with
            an id never changes, and reading two files of a container takes as long as starting it.
    """

    def __init__(self, engine: Engine, plan: Plan, owners: Owners | None = None) -> None:
        self.engine = engine
        self.plan = plan
        self._owners: Owners = {} if owners is None else owners

    def handle(self) -> str:
        """Return the id of the attempt's container, started now or before.

        Raises:
            ConfigError: the engine refuses what the resource config asks for, or cannot start the command.
            PermanentError: the image is gone, or the code cannot be read.
            TemporaryError: the engine is away or full, or another agent took the container's place.
        """
        was_there, container = self._create()
        if was_there:
            return container
        try:
            if self.plan.code is not None:
                self._put_code(container)
            self._start(container)
        except LaunchError:
            self._discard(container)
            raise
        return container

    def _create(self) -> tuple[bool, str]:
        """Return whether the attempt was started before, and the container's id.

        One container that is in the way is removed, as a dead agent's. If there is another one then, an agent is at
        work on it just now and is waited for: agents that went on removing each other's would never start any.
        """
        removed = None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            made = self._try_to_create()
            if made is not None:
                return False, made
            found = self.engine.inspect(self.plan.name)
            if found is not None and was_started(found):
                return True, str(found["Id"])
            if found is not None and removed is None:
                removed = found["Id"]
                self._discard(removed)
            elif found is not None:
                time.sleep(0.1)
        raise TemporaryError(f"another agent is starting or removing the container {self.plan.name}; it is tried again")

    def _try_to_create(self) -> str | None:
        """Return the new container's id, or none when the name is taken."""
        body = dict(self.plan.request)
        platform = body.pop("Platform", None)
        try:
            with self.engine.talk() as api:
                return str(api.create_container_from_config(body, self.plan.name, platform)["Id"])
        except Refused as exc:
            # The engine looks for the image first: an attempt that is there already needs it no more.
            if exc.status == 409 or (exc.status == 404 and self.engine.inspect(self.plan.name) is not None):
                return None
            raise _cannot_start(exc, f"cannot create a container of {body['Image']}") from exc

    def _put_code(self, container: str) -> None:
        assert self.plan.code is not None
        found = self.engine.inspect(container) or {}
        owner = self._owner(container, str(found.get("Image")), found.get("Config", {}).get("User") or "")
        try:
            with self.engine.talk() as api:
                api.put_archive(container, "/", code_archive(self.plan.code, owner))
        except Refused as exc:
            raise self._failure(exc, container, "the job's code cannot be put into the container") from exc

    def _owner(self, container: str, image: str, user: str) -> tuple[int, int]:
        if user in ("", "root", "0"):
            return 0, 0
        if (image, user) not in self._owners:
            passwd, group = (self._text_in(container, path) for path in ("/etc/passwd", "/etc/group"))
            self._owners[image, user] = owner_of(user, passwd, group)
        return self._owners[image, user]

    def _text_in(self, container: str, path: str) -> str:
        try:
            with self.engine.talk() as api:
                pieces, _ = api.get_archive(container, path)
                return read_file_of(pieces)
        except Refused:
            return ""  # an image without one: users are numbers

    def _start(self, container: str) -> None:
        try:
            with self.engine.talk() as api:
                api.start(container)
        except Refused as exc:
            raise self._failure(exc, container, "the container cannot start") from exc

    def _failure(self, exc: Refused, container: str, what: str) -> LaunchError:
        found = self.engine.inspect(container)
        # Its files vanish first: "/" of a container that is being removed is not found.
        if found is None or found["State"]["Status"] in ("removing", "dead") or "find the file /" in exc.words:
            return TemporaryError(f"the container {container[:12]} was removed before it was started")
        return _cannot_start(exc, what)

    def _discard(self, container: str) -> None:
        """Remove a container that has not started; nothing happens to one that has."""
        try:
            with self.engine.talk() as api:
                api.remove_container(container, v=True)
        except (Refused, TemporaryError):
            return  # it was started by another agent just now, or goes with the next reconciliation


def _cannot_start(exc: Refused, what: str) -> LaunchError:
    """Return the error for a container that did not start: away, no image, or a request that cannot be."""
    message = f"{what}: {exc.words}"
    if exc.is_passing:
        return TemporaryError(message)
    if exc.status == 404 and "o such image" in exc.words:
        return PermanentError(message)
    return ConfigError(message)
