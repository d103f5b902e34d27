"""Which images are ours, and which of them may go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.docker_images import BUILD_LABEL, CONTENT_LABEL, OwnImage, own_images, to_remove

CONTENT = "abcdef012345" + "6" * 52


def listed(
    id: str = "sha256:1", tags: tuple[str, ...] = ("launch-env:abcdef012345",), size: int = 10, **labels: str
) -> dict[str, Any]:
    given = labels or {CONTENT_LABEL: CONTENT, BUILD_LABEL: "environment"}
    return {"Id": id, "RepoTags": list(tags), "Labels": given, "Size": size, "SharedSize": 4, "Created": 100}


def ours(*items: dict[str, Any], children: tuple[str, ...] = ()) -> Any:
    return own_images(items, lambda _: None, children)


def test_an_image_made_here_is_ours() -> None:
    (found,) = ours(listed())
    assert (found.content, found.own_bytes, found.used_at) == (CONTENT, 6, 100)
    assert own_images([listed()], lambda content: 200.0)[0].used_at == 200


@pytest.mark.parametrize(
    "foreign",
    [
        listed(**{"made-for": "x"}),
        listed(tags=("launch-env:abcdef012345", "mine:1")),
        listed(tags=("mine:1",)),
        listed(tags=("launch-env:000000000000",)),
        {**listed(), "Labels": None},
        listed(tags=(), **{"other": "x"}),
    ],
)
def test_other_images_are_not(foreign: dict[str, Any]) -> None:
    assert ours(foreign) == []


def test_an_image_that_was_made_from_ours_inherits_its_labels_and_is_not_ours() -> None:
    assert ours(listed(tags=())) == []
    assert ours(listed(tags=("theirs:1",))) == []


def test_what_a_failed_build_leaves_is_ours_unless_something_is_made_from_it() -> None:
    leftover = listed(tags=(), **{BUILD_LABEL: "environment"})
    assert [image.title for image in ours(leftover)] == ["leftover 1"]
    assert ours(leftover, children=("sha256:1",)) == []
    assert [image.tags for image in ours({**leftover, "RepoTags": ["<none>:<none>"]})] == [()]


images = st.lists(
    st.builds(
        OwnImage,
        id=st.uuids().map(str),
        tags=st.sampled_from([(), ("t:1",)]),
        content=st.just("c"),
        own_bytes=st.integers(0, 1000),
        used_at=st.floats(0, 1000),
    ),
    max_size=8,
)


@given(images, st.integers(0, 3000), st.sets(st.integers(0, 7)))
def test_the_longest_unused_go_and_no_more_than_needed(
    known: list[OwnImage], keep_bytes: int, used_places: set[int]
) -> None:
    in_use = {image.id for place, image in enumerate(known) if place in used_places}
    gone = to_remove(known, in_use, keep_bytes=keep_bytes)
    kept = [image for image in known if image not in gone]

    assert not {image.id for image in gone} & in_use
    assert all(image in gone or image.id in in_use for image in known if not image.tags)
    removable = [image for image in kept if image.tags and image.id not in in_use]
    tagged = [image for image in gone if image.tags]
    assert all(one.used_at <= other.used_at for one in tagged for other in removable)
    left = sum(image.own_bytes for image in kept)
    assert left <= keep_bytes or not removable
    if tagged and keep_bytes:
        assert left + max(tagged, key=lambda image: image.used_at).own_bytes >= keep_bytes or tagged[-1].own_bytes == 0
