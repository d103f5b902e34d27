"""The images that builds of ours have left on an engine, and which of them may go. No I/O, no SDK here.

An image inherits its base's labels, so a label alone makes no image ours: a whole one has the tag that its label says
and no other; what a failed build leaves has no tag, and not yet the label that every whole image gets last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONTENT_LABEL = "ai.openlaunch.content"
"""The digest of what an image was made from; its tag is the beginning of it."""
BUILD_LABEL = "ai.openlaunch.build"
"""On every layer of a build: what a build that failed leaves behind is known by it."""
TAG_LENGTH = 12


@dataclass(frozen=True)
class OwnImage:
    """An image made here, or what a build of ours left unfinished."""

    id: str
    tags: tuple[str, ...]
    """None: it is a leftover."""
    content: str
    """The digest of what it was made from; of a leftover: nothing."""
    own_bytes: int
    """What removing it gives back at least: layers that no other image has."""
    used_at: float
    """When it was last used, in Unix seconds."""

    @property
    def title(self) -> str:
        """What people call it."""
        return ", ".join(self.tags) or f"leftover {self.id.removeprefix('sha256:')[:12]}"


def own_images(
    listed: Iterable[Mapping[str, Any]],
    last_used: Callable[[str], float | None],
    has_children: Collection[str] = (),
) -> list[OwnImage]:
    """Return those of an engine's images that are ours.

    Args:
        listed: images as ``GET /system/df`` lists them.
        last_used: when the image of a content was last used here, in Unix seconds.
        has_children: ids of images that others are made from.
    """
    found = []
    for item in listed:
        labels, tags = item.get("Labels") or {}, _tags(item)
        content = str(labels.get(CONTENT_LABEL, ""))
        is_image = bool(content and tags) and all(tag.endswith(f":{content[:TAG_LENGTH]}") for tag in tags)
        is_leftover = not tags and not content and BUILD_LABEL in labels and item["Id"] not in has_children
        if is_image or is_leftover:
            created = float(item.get("Created") or 0)
            used_at = (last_used(content) if is_image else None) or created
            found.append(OwnImage(str(item["Id"]), tags, content if is_image else "", _own_bytes(item), used_at))
    return found


def _tags(item: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(tag for tag in item.get("RepoTags") or () if tag != "<none>:<none>")


def _own_bytes(item: Mapping[str, Any]) -> int:
    shared = max(0, int(item.get("SharedSize") or 0))
    return max(0, int(item.get("Size") or 0) - shared)


def to_remove(images: Sequence[OwnImage], in_use: Collection[str], *, keep_bytes: float) -> list[OwnImage]:
    """Return the images to remove so that the rest takes up no more than ``keep_bytes``: the longest unused first.

    Leftovers always go, and what a container uses never does. To keep 0 bytes is to keep nothing: an image may be of
    layers alone that others have too.
    """
    left = sum(image.own_bytes for image in images)
    chosen = []
    for image in sorted(images, key=lambda image: (bool(image.tags), image.used_at)):
        if image.id in in_use or (image.tags and left <= keep_bytes and keep_bytes > 0):
            continue
        chosen.append(image)
        left -= image.own_bytes
    return chosen
