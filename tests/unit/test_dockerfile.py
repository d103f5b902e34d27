"""Dockerfiles as text: what is generated, what is read in a user's own and what is put into it, and .dockerignore."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch.errors import BuildError, ConfigError
from workers.builders._build_settings import MAX_CERT_BYTES, passwords, shell_text
from workers.builders._dockerfile import (
    Recipe,
    adapted,
    base_images,
    environment_dockerfile,
    instructions,
    prelude,
)
from workers.builders._dockerignore import ignore_matcher
from workers.docker_settings import EngineSettings

PEM = "-----BEGIN CERTIFICATE-----\nMIIB it's one\n-----END CERTIFICATE-----\n"

# --- the generated one -----------------------------------------------------------------------------------------------


def test_what_changes_seldom_comes_first() -> None:
    """Other requirements leave the layers of Debian packages, the user and Python alone."""
    text = environment_dockerfile(Recipe("cuda:12", True, ("git", "libgl1=1.0-2"), False, "3.11"))
    places = [text.index(part) for part in ("FROM cuda:12", "python3-pip", "useradd", "git libgl1=1.0-2", "-r /launch")]
    assert places == sorted(places)
    assert "--no-install-recommends" in text
    assert "rm -rf /var/lib/apt/lists/*" in text
    assert text.endswith("USER 1000\n")


@pytest.mark.parametrize("base", ["a b", "a\nRUN evil", "python:3@sha256:00", "python:3 AS x", "Python", "$(x)", ""])
def test_a_base_image_is_one_reference(base: str) -> None:
    with pytest.raises(ConfigError, match="base image: should be like"):
        environment_dockerfile(Recipe(base))


@pytest.mark.parametrize("package", ["git; rm -rf /", "-o", "a b", "Git", "a\nb", "$(x)", "g"])
def test_a_debian_package_is_a_name(package: str) -> None:
    with pytest.raises(BuildError, match="no name of a Debian package"):
        environment_dockerfile(Recipe("python:3.11", apt=(package,)))


# --- a user's own ----------------------------------------------------------------------------------------------------

OWN = r"""# syntax=docker/dockerfile:1
ARG TAG=3.11
ARG UNUSED
FROM --platform=linux/amd64 python:${TAG}-slim AS build
RUN pip install \
    # a comment in between
    numpy && \
    echo done
run ["pip", "list"]
COPY --from=build /a /b
COPY --from=registry:5000/tools:1 /c /d
FROM build
  RUN	make
CMD python x.py
"""


def test_a_dockerfile_is_read_as_the_engine_reads_it() -> None:
    words = [(item.word, item.rest) for item in instructions(OWN)]
    assert ("RUN", "pip install  numpy &&  echo done") in words
    assert [word for word, _ in words] == ["ARG", "ARG", "FROM", "RUN", "RUN", "COPY", "COPY", "FROM", "RUN", "CMD"]


def test_its_bases_are_images_and_no_stages() -> None:
    assert base_images(OWN, {}) == ["python:3.11-slim", "registry:5000/tools:1"]
    assert base_images(OWN, {"TAG": "3.12"})[0] == "python:3.12-slim"
    assert base_images("ARG X\nFROM $X\n", {}) == []
    assert base_images("FROM scratch\n", {}) == []
    assert base_images("FROM ${X:-a:1}\n", {}) == ["a:1"]


def test_every_shell_command_takes_the_settings() -> None:
    """Commands in exec form, and everything else, stay as they are."""
    own = adapted(OWN, [])
    lines = own.text.splitlines()
    assert own.channel == "ftp_proxy"
    assert f"RUN {prelude('ftp_proxy')}pip install \\" in lines
    assert f"RUN {prelude('ftp_proxy')}make" in lines
    assert 'run ["pip", "list"]' in lines
    assert lines.count("LABEL ai.openlaunch.build=dockerfile") == 2
    assert lines[lines.index("FROM build") + 1].startswith("LABEL")


def test_another_escape_character() -> None:
    text = "# escape=`\nFROM a\nRUN one `\n  two\n"
    assert instructions(text)[1].rest == "one  two"


def test_the_settings_take_a_way_that_the_dockerfile_does_not_use() -> None:
    """A predefined argument that is declared would be kept in the history."""
    assert adapted("FROM a\nARG ftp_proxy\nRUN x\n", []).channel == "FTP_PROXY"
    own = adapted("FROM a\nARG ftp_proxy FTP_PROXY=x\nRUN x\n", [])
    assert (own.channel, "eval" in own.text) == (None, False)
    assert adapted('FROM a\nSHELL ["/bin/bash", "-c"]\nRUN x\n', []).channel == "ftp_proxy"
    assert adapted('FROM a\nSHELL ["pwsh", "-c"]\nRUN x\n', []).channel is None


def test_arguments_used_outside_of_commands_are_the_engines_own() -> None:
    text = "ARG BASE\nFROM $BASE\nARG INDEX\nARG DATA=${OTHER}x\nRUN pip -i $INDEX\nENV A=${HOME_OF_IT}\n"
    names = ["BASE", "INDEX", "OTHER", "HOME", "HOME_OF_IT"]
    assert adapted(text, names).visible == {"BASE", "OTHER", "HOME_OF_IT"}


# --- settings as shell text ------------------------------------------------------------------------------------------


def carried_out(settings: EngineSettings, command: str, channel: str = "ftp_proxy") -> str:
    """Return what a ``RUN`` with that command prints."""
    script = prelude(channel) + command
    env = {channel: shell_text(settings, channel), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, check=True).stdout


def test_settings_are_in_force_and_leave_no_trace(tmp_path: Path) -> None:
    cert = tmp_path / "ca.pem"
    cert.write_text(PEM)
    settings = EngineSettings.model_validate(
        {
            "build_args": {"ODD": 'it\'s $HOME; "x" `y`', "N": 3, "ftp_proxy": "http://real"},
            "pip": {
                "index_url": "https://ada:s3cret@host/simple",
                "extra_index_urls": ["https://b/s", "https://c/s"],
                "trusted_hosts": ["h:1"],
                "cert": str(cert),
            },
        }
    )
    out = carried_out(
        settings,
        'printf "%s\\n" "$ODD" "$N" "$PIP_INDEX_URL" "$PIP_EXTRA_INDEX_URL" "$PIP_TRUSTED_HOST" "$ftp_proxy"; '
        'echo "$PIP_CERT"; '
        'grep -c "one" "$PIP_CERT"; grep -q "it.s one" "$PIP_CERT"',
    )
    *lines, path, count = out.splitlines()
    assert lines == [
        'it\'s $HOME; "x" `y`',
        "3",
        "https://ada:s3cret@host/simple",
        "https://b/s https://c/s",
        "h:1",
        "http://real",
    ]
    assert int(count) >= 1
    assert not Path(path).exists()


def test_no_settings_are_no_text() -> None:
    assert shell_text(EngineSettings(), "ftp_proxy") == ""
    assert carried_out(EngineSettings(), "echo $ftp_proxy.") == ".\n"
    assert carried_out(EngineSettings(build_args={"A": "1"}), 'echo "$A ${ftp_proxy-unset}"') == "1 unset\n"


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    for content, why in [(None, "cannot be read"), ("x", "holds no certificate"), (PEM * 2000, "more than")]:
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=f"pip/cert: .*ca.pem.*{why}"):
            shell_text(EngineSettings.model_validate({"pip": {"cert": str(path)}}), "ftp_proxy")
    assert len(PEM * 2000) > MAX_CERT_BYTES


def test_passwords_are_known() -> None:
    settings = EngineSettings.model_validate(
        {
            "build_args": {"HTTPS_PROXY": "http://u:pr%40xy@h:1", "N": "60"},
            "pip": {"index_url": "https://token@h/s", "extra_index_urls": ["https://u:p2@h/s"]},
            "registries": {"h:5000": {"username": "u", "password": "p3"}},
        }
    )
    assert passwords(settings) == {"pr%40xy", "pr@xy", "token", "p2", "p3"}


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"pip": {"index_url": "host/simple"}}, "pip/index_url: should be a URL"),
        ({"pip": {"index": "x"}}, "pip/index: unknown key"),
        ({"build_args": {"A B": "x"}}, "build_args/A B.*should be a variable's name"),
        ({"build_args": {"A": "x\ny"}}, "build_args/A: should be one line"),
        ({"destination": "team/repo"}, "destination: should begin with a registry's address"),
        ({"destination": "h:5000/a:v1"}, "destination: should have no tag"),
        ({"registries": {"h": {"username": "u"}}}, "registries/h/password: is required"),
    ],
)
def test_wrong_settings_are_named_by_their_path(settings: dict[str, object], path: str) -> None:
    from launch.checking import parse

    with pytest.raises(ConfigError, match=f"here/{path}"):
        parse(EngineSettings, settings, where="here")


# --- .dockerignore ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "out", "kept"),
    [
        (["data"], ["data", "data/a/b"], ["Data", "data2", "x/data", "x/data/a"]),
        (["/data/"], ["data", "data/a"], ["x/data"]),
        (["*.py"], ["a.py"], ["d/a.py", "a.pyc"]),
        (["**/*.py"], ["a.py", "d/a.py", "d/e/a.py"], ["a.pyc"]),
        (["d/**"], ["d/a", "d/e/a"], ["e"]),
        (["*", "!keep", "keep/not"], ["a", ".git", "keep/not"], ["keep", "keep/a"]),
        (["*", "!a/b.txt"], ["a/c.txt"], ["a/b.txt"]),
        (["a?c", "[xy].txt", "[^a]b"], ["abc", "x.txt", "bb"], ["ac", "z.txt", "ab", "a/c"]),
        (["# a comment", "", " b "], ["b"], ["# a comment", "a"]),
        (["./x/../y"], ["y"], ["x"]),
        (["."], [], ["a"]),
        ([r"\*.txt"], ["*.txt"], ["a.txt"]),
    ],
)
def test_dockerignore(lines: list[str], out: list[str], kept: list[str]) -> None:
    ignored = ignore_matcher(lines)
    assert [path for path in out if not ignored(path)] == []
    assert [path for path in kept if ignored(path)] == []
