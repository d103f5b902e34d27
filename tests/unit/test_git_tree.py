"""What git lists of a commit, checked as if a stranger had written it, since one may have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import ConfigError
from launch.git.tree import check_links, check_names, check_size, read_listing

OID = "a" * 40


def line(name: str, mode: str = "100644", kind: str = "blob", size: str = "7") -> bytes:
    return f"{mode} {kind} {OID} {size:>7}\t{name}\0".encode()


def test_a_listing() -> None:
    listing = line("a b\tc\nd") + line("run", "100755") + line("link", "120000") + line("sub", "160000", "commit", "-")
    entries = read_listing(listing, where="x")

    assert [entry.name for entry in entries] == ["a b\tc\nd", "run", "link", "sub"]
    assert [(entry.is_executable, entry.is_link, entry.is_submodule) for entry in entries] == [
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert [entry.size for entry in entries] == [7, 7, 7, 0]


@pytest.mark.parametrize(
    "listing",
    [b"nonsense\0", line("x", "040000"), line("x", "160000"), line("x", "100644", "commit"), line("x", "777777")],
)
def test_what_is_no_file_is_refused(listing: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^x: "):
        read_listing(listing, where="x")


@pytest.mark.parametrize(
    "names",
    [["a", "a"], ["a", "a/b"], ["a/b", "a"], [".."], ["a/../b"], ["/a"], ["a//b"], ["a/"], ["."], [".git"],
     ["x/.GIT/config"], ["a\0"], ["GIT~1/x"]],
)  # fmt: skip
def test_names_that_cannot_be_files_beside_each_other_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^x: "):
        check_names(names, where="x")


def test_names_like_these_are_names() -> None:
    check_names([".gitignore", ".github/x", "a.git", "..a", "a/..b", "-rf", "a\nb"], where="x")


@pytest.mark.parametrize(
    "links",
    [
        {"a": "/etc/passwd"},
        {"a": ".."},
        {"d/a": "../../x"},
        {"a": ".", "b": "a/a/../.."},
        {"a": "d/e", "b": "a/../../.."},
        {"a": "b", "b": "../x"},
        {"d/a": "..", "b": "d/a/../x"},
    ],
)
def test_links_that_lead_out_are_refused(links: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="leads out of the job's folder"):
        check_links(links, where="x")


@pytest.mark.parametrize(
    "links",
    [{"a": "b"}, {"a": "a"}, {"a": "b", "b": "a"}, {"d/a": "../x"}, {"a": "d/../x"}, {"a": "d/e", "b": "a/../.."}],
)
def test_links_that_stay_inside_or_lead_nowhere_are_kept(links: dict[str, str]) -> None:
    check_links(links, where="x")


PARTS = st.sampled_from(["..", ".", "d", "e", "l", "m", ""])


@given(
    st.dictionaries(
        st.sampled_from(["l", "m", "d/l", "d/m", "d/e/l"]),
        st.lists(PARTS, min_size=1, max_size=5).map("/".join),
        max_size=4,
    )
)
def test_links_that_pass_stay_inside_for_the_kernel_too(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str]
) -> None:
    """Whatever folders there are."""
    links = {name: target for name, target in links.items() if target}
    try:
        check_links(links, where="x")
    except ConfigError:
        return
    root = tmp_path_factory.mktemp("links") / "deep" / "root"
    (root / "d" / "e").mkdir(parents=True)
    for name, target in links.items():
        (root / name).symlink_to(target)
    for name in links:
        try:
            found = (root / name).resolve(strict=True)
        except (OSError, RuntimeError):
            continue
        assert found.is_relative_to(root.resolve()), (links, found)


def test_what_is_too_large_names_the_biggest() -> None:
    entries = read_listing(line("small") + line("big", size="5000000"), where="x")
    assert check_size(entries, 1e7, where="x") == 5_000_007
    with pytest.raises(ConfigError, match=r"2 files have 5\.0 MB, more than the 1\.0 MB .*: big \(5\.0 MB\), small"):
        check_size(entries, 1e6, where="x")


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    raw = b"100644 blob " + OID.encode() + b"       1\t\xff\xfe\0"
    assert os.fsencode(read_listing(raw, where="x")[0].name) == b"\xff\xfe"
