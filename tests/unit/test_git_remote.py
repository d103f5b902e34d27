"""Which remotes, refs and submodules may be named: letter by letter, before any git runs."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import ConfigError
from launch.git.remote import (
    Remote,
    check_inner_path,
    check_ref,
    check_remote,
    default_job_name,
    submodule_url,
    without_password,
)
from launch.jobs import check_job_name


@pytest.mark.parametrize(
    ("url", "transport", "host", "user"),
    [
        ("https://git.example/team/train.git", "https", "git.example", None),
        ("https://Git.Example:8443/team/train", "https", "git.example:8443", None),
        ("https://git.example:443/x", "https", "git.example", None),
        ("https://ada@dev.example/org/project/_git/train", "https", "dev.example", "ada"),
        ("https://git.example/~ada/a%20b.git/", "https", "git.example", None),
        ("https://[::1]:8443/x", "https", "[::1]:8443", None),
        ("ssh://git@git.example:2222/team/train.git", "ssh", "git.example:2222", "git"),
        ("ssh://git.example/~/train", "ssh", "git.example", None),
        ("git@git.example:team/train.git", "ssh", "git.example", "git"),
        ("git@git.example:/srv/train.git", "ssh", "git.example", "git"),
    ],
)
def test_what_may_be_asked(url: str, transport: str, host: str, user: str | None) -> None:
    remote = check_remote(url)
    assert (remote.url, remote.transport, remote.host, remote.user) == (url, transport, host, user)


HOSTILE = [
    "ext::sh -c id", "ext::sh% -c% id", "fd::3", "foo::https://git.example/x", "transport::address", "-u", "-uid",
    "--upload-pack=id", "--exec=id", "-", "git://git.example/x", "ftp://git.example/x", "rsync://git.example/x",
    "https://-oProxyCommand=id/x", "https://-u@git.example/x", "https://git.example", "https:///x", "https://git.example/",
    "ssh://-oProxyCommand=id/x", "ssh://git@-oProxyCommand=id/x", "ssh://-l@git.example/x", "git@-oProxyCommand=id:x",
    "-git@git.example:x", "git@git.example:-oProxyCommand=id", "git.example:x", "git@git.example:", "git@git.example::",
    "https://git.example/x\n", "https://git.example/\nx", "https://git.example/x\0", "https://git.example/%0ax",
    "https://git.example/%00", "https://git.example/x y", "https://git.example\\x", "https://git.example/x#main",
    "https://git.example/x?service=git-upload-pack", "HTTPS://git.example/x", "https:/git.example/x", "//git.example/x",
    "/srv/x", "./x", "../x", "~/x", "x", "C:/x", "", "https://git.example/../x", "git@git.example:a/../../b",
    "file://host/x", "file:/x", "https://[::1/x", "https://git.example:99999999/x", "https://a@b@git.example/x",
    "https://git.example/" + "x" * 3000, "https://git.example/$(id)\"", "https://gıt.example/x", "ssh://git@[-x]/y",
]  # fmt: skip


@pytest.mark.parametrize("url", HOSTILE)
def test_everything_else_is_refused(url: str) -> None:
    """Also where http and files are allowed."""
    with pytest.raises(ConfigError, match=r"^here: "):
        check_remote(url, allow_http=True, allow_file=True, where="here")


def test_http_and_files_are_refused_unless_allowed() -> None:
    for url, name in (("http://git.example/x", "http"), ("file:///srv/x.git", "file")):
        with pytest.raises(ConfigError, match=f"{name} is not allowed here; use https or ssh, or set allow_{name}"):
            check_remote(url, allow_http=name != "http", allow_file=name != "file")
        assert check_remote(url, allow_http=True, allow_file=True).transport == name


@pytest.mark.parametrize("url", ["https://ada:pa55@git.example/x", "ssh://ada:pa55@git.example/x", "https://:pa55@h/x"])
def test_a_password_in_a_url_is_refused_and_not_said(url: str) -> None:
    with pytest.raises(ConfigError, match="has a password in it") as refused:
        check_remote(url)
    assert "pa55" not in str(refused.value)
    assert "pa55" not in without_password(url)


def test_a_password_in_what_is_no_url_is_not_said_either() -> None:
    for url in ("https://ada:pa55/w0rd@git.example/x", "foo://ada:pa55@git.example"):
        with pytest.raises(ConfigError) as refused:
            check_remote(url)
        assert "pa55" not in str(refused.value)
        assert "w0rd" not in str(refused.value)


@given(st.text(max_size=60) | st.from_regex(r"(https|ssh)://[!-~]{0,40}", fullmatch=True))
def test_what_passes_is_nothing_that_git_or_ssh_could_take_for_an_option(url: str) -> None:
    try:
        remote = check_remote(url, allow_http=True, allow_file=True)
    except ConfigError:
        return
    parts = (remote.url, remote.host, remote.user or "", remote.path if remote.transport == "ssh" else "")
    assert not [part for part in parts if part.startswith("-")] or remote.url.startswith("ssh://")
    assert remote.url.isprintable()
    assert " " not in remote.url
    assert "::" not in remote.url.partition("/")[0]
    assert remote.url.startswith(("https://", "http://", "ssh://", "file:///")) or "@" in remote.url.partition(":")[0]


# --- submodules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parent", "url", "expected"),
    [
        ("https://git.example/team/train.git", "../lib.git", "https://git.example/team/lib.git"),
        ("https://git.example/team/train.git/", "../../other/lib", "https://git.example/other/lib"),
        ("https://git.example/team/train", "./lib", "https://git.example/team/train/lib"),
        ("https://git.example/team/train", "./../lib/", "https://git.example/team/lib"),
        ("git@git.example:team/train.git", "../lib.git", "git@git.example:team/lib.git"),
        ("git@git.example:train.git", "../lib.git", "git@git.example:lib.git"),
        ("git@git.example:/srv/train", "../lib", "git@git.example:/srv/lib"),
        ("ssh://git@git.example:2222/a/b", "../../c", "ssh://git@git.example:2222/c"),
        ("file:///srv/train", "../lib", "file:///srv/lib"),
        ("https://git.example/team/train", "ssh://git@h/x", "ssh://git@h/x"),
        ("https://git.example/team/train", "lib", "lib"),
    ],
)
def test_the_url_of_a_submodule(parent: str, url: str, expected: str) -> None:
    assert submodule_url(check_remote(parent, allow_file=True), url) == expected


@pytest.mark.parametrize("parent", ["https://git.example/train", "git@git.example:train", "file:///train"])
def test_a_submodule_above_the_host_is_refused(parent: str) -> None:
    with pytest.raises(ConfigError, match=r"\.gitmodules: the URL '\.\./\.\./\.\./x' leads out of"):
        submodule_url(check_remote(parent, allow_file=True), "../../../x")


@given(st.lists(st.sampled_from(["..", ".", "a", "-x", "", "b c"]), max_size=8).map("/".join))
def test_a_relative_submodule_stays_at_its_parents_host_or_is_refused(url: str) -> None:
    for parent in ("https://git.example:1/a/b/c", "git@git.example:a/b"):
        try:
            remote = check_remote(submodule_url(check_remote(parent), f"../{url}"))
        except ConfigError:
            continue
        assert (remote.host, remote.transport) == (check_remote(parent).host, check_remote(parent).transport)


# --- refs and paths --------------------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=20) | st.text(alphabet="ab/.-@{}~^:?*[\\ \x7f\t+=#,lock", min_size=1, max_size=12))
def test_a_ref_passes_only_if_git_takes_it(ref: str) -> None:
    try:
        check_ref(ref)
    except ConfigError:
        return
    encoded = ref.encode(errors="surrogateescape")
    done = subprocess.run([b"git", b"check-ref-format", b"refs/heads/" + encoded], capture_output=True)
    assert done.returncode == 0
    assert not ref.startswith("-")


@pytest.mark.parametrize("ref", ["main", "v1.0", "team/next", "release-2", "a@b", "feature/#12", "ü", "0" * 40])
def test_usual_refs_pass(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", None), (".", None), ("./", None), ("a/b/", "a/b"), ("a//./b", "a/b"), (".github", ".github")],
)
def test_a_path_in_a_repository(path: str, expected: str | None) -> None:
    assert check_inner_path(path, where="x") == expected


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "/x", ".git", "a/.GIT/b", "a\0b"])
def test_a_path_out_of_a_repository_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^x: "):
        check_inner_path(path, where="x")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://git.example/team/train.git", "job-train"),
        ("git@git.example:Mein%20Repo", "job-Mein_Repo"),
        ("https://git.example/team/train/", "job-train"),
        ("https://git.example/ü.git", "job-_"),
        ("https://git.example/.git", "job-git"),
        ("https://git.example/" + "x" * 300, "job-" + "x" * 124),
    ],
)
def test_the_name_of_a_job_that_got_none(url: str, name: str) -> None:
    assert check_job_name(default_job_name(check_remote(url))) == name


def test_a_remote_is_data() -> None:
    assert check_remote("https://h.example/x") == Remote("https://h.example/x", "https", "h.example", None, "x")
