"""Removes images made here that nobody has used for long, when space is short. Foreign images are never touched."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from launch.errors import LaunchError
from workers.builders._last_build import last_used
from workers.builders._locks import LOCK_LABEL
from workers.docker_engine import Engine, Refused, away
from workers.docker_images import OwnImage, own_images, to_remove

log = logging.getLogger(__name__)

LOW_WATER = 0.8
"""Once over the limit, so much of it is kept: the next build is not to clear up again."""
QUIET_S = 3600.0
"""Only leftovers older than this go: younger ones may be layers of a build under way."""
SPARED_S = 600.0
"""By itself an agent removes nothing used so lately: a container may be about to start from it."""
_AGAIN_S = 300.0


class Cleanup:
    """Clears up an engine.

    Args:
        engine: the engine.
        home: the launch home that knows when images were last used.
    """

    def __init__(self, engine: Engine, home: Path) -> None:
        self._engine = engine
        self._home = home
        self._next_try = 0.0

    def plan(self, keep_gb: float, *, spared_s: float = 0.0) -> tuple[list[OwnImage], list[OwnImage]]:
        """Return the images made here, and those to remove so that the rest takes up no more.

        Args:
            keep_gb: in 10^9 bytes.
            spared_s: an image used this short a time ago stays.

        Raises:
            TemporaryError: the engine is away.
        """
        images, in_use, is_building = self._look()
        images = [image for image in images if image.tags or (not is_building and _is_old(image))]
        spared = {image.id for image in images if image.tags and time.time() - image.used_at < spared_s}
        return images, to_remove(images, in_use | spared, keep_bytes=keep_gb * 1e9)

    def remove(self, chosen: Sequence[OwnImage]) -> list[OwnImage]:
        """Remove images by their tags, and return those that are gone; one that is needed just now stays."""
        return [image for image in chosen if self._remove(image)]

    def _remove(self, image: OwnImage) -> bool:
        try:
            for name in image.tags or (image.id,):
                with self._engine.talk() as api:
                    api.remove_image(name)
        except Refused as exc:
            log.info("image %s stays: %s", image.title, exc.words)
            return False
        return True

    def keep_below(self, limit_gb: float | None) -> None:
        """Remove the longest unused images if all of them take up more than the limit; a failure is logged only."""
        if limit_gb is None:
            return
        try:
            images, _ = self.plan(limit_gb)
            if sum(image.own_bytes for image in images) > limit_gb * 1e9:
                self._tell(self.remove(self.plan(limit_gb * LOW_WATER, spared_s=SPARED_S)[1]))
        except LaunchError as exc:
            log.warning("unused images could not be cleared up: %s", exc)

    def make_room(self) -> bool:
        """Remove unused images until the engine's disk has space again; returns whether any went.

        Asked again and again by an agent whose disk is full, it looks every few minutes.
        """
        if time.monotonic() < self._next_try:
            return False
        self._next_try = time.monotonic() + _AGAIN_S
        gone: list[OwnImage] = []
        try:
            for image in self.plan(0.0, spared_s=SPARED_S)[1]:
                if not self._engine.is_short_of_space():
                    break
                gone += self.remove([image])
        except LaunchError as exc:
            log.warning("unused images could not be cleared up: %s", exc)
        self._tell(gone)
        return bool(gone)

    @staticmethod
    def _tell(gone: Collection[OwnImage]) -> None:
        if gone:
            size = sum(image.own_bytes for image in gone) / 1e9
            log.info("removed %d unused images, %.1f GB: %s", len(gone), size, ", ".join(i.title for i in gone))

    def _look(self) -> tuple[list[OwnImage], frozenset[str], bool]:
        """Return our images, the ids of those in use, and whether something is being built."""
        try:
            with self._engine.talk() as api:
                listed = api.df()["Images"] or []
                parents = {str(item.get("ParentId")) for item in api.images(all=True)}
                containers = api.containers(all=True)
                found = own_images(listed, self._last_used, parents)
        except Refused as exc:
            raise away(exc) from exc
        in_use = frozenset(str(item["ImageID"]) for item in containers)
        return found, in_use, any(LOCK_LABEL in (item.get("Labels") or {}) for item in containers)

    def _last_used(self, content: str) -> float | None:
        return last_used(self._home, content)


def _is_old(image: OwnImage) -> bool:
    return time.time() - image.used_at > QUIET_S
