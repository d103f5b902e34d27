"""The settings of git, what git is told, what its words mean, and what is kept of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from launch.errors import ConfigError, LaunchError, PermanentError, TemporaryError
from launch.git.access import GitAccess, GitCredential, read_git_access
from launch.git.cache import tidy
from launch.git.environment import GitEnvironment
from launch.git.errors import DamagedError, LoginError, RefusedError, UnadvertisedError, failure, last_lines
from launch.git.remote import check_remote
from launch.wandb_spec import from_wandb

HTTPS = check_remote("https://git.example/team/train.git")
SSH = check_remote("ssh://git@git.example:2222/train.git")


def told(access: GitAccess, environ: dict[str, str] | None = None) -> GitEnvironment:
    return GitEnvironment(Path("/home folder/git"), access, {"TOKEN": "t0ken"}.__getitem__, environ or {"PATH": "/bin"})


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "said"),
    [
        ({"host": "h"}, "give either a password or an ssh_key"),
        ({"host": "h", "password": "x", "ssh_key": "/k"}, "give either a password or an ssh_key"),
        ({"host": "https://h/", "password": "x"}, "should be a host like"),
        ({"host": "h", "ssh_key": "/k", "username": "ada"}, "leave username out"),
        ({"host": "h", "password": "${secret:}"}, "is no reference to a secret"),
    ],
)
def test_a_credential_that_is_none(tmp_path: Path, credential: dict[str, str], said: str) -> None:
    file = tmp_path / "git.yaml"
    file.write_text(str({"credentials": [credential]}))
    with pytest.raises(ConfigError, match=said) as refused:
        read_git_access(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("text", ["[1]", "a: [", "allow_htp: true", "timeout_s: 0"])
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "git.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"git\.yaml"):
        read_git_access(file)
    with pytest.raises(ConfigError, match=r"LAUNCH_GIT_CONFIG: .*none\.yaml cannot be read"):
        read_git_access(tmp_path / "none.yaml")


def test_who_creates_a_job_uses_their_own_login_and_an_agent_does_not() -> None:
    assert read_git_access(None).own_login
    assert not GitAccess().own_login
    assert read_git_access(None, allow=["http"]).allow_http


def test_a_password_is_for_its_host_alone() -> None:
    access = GitAccess(credentials=(GitCredential(host="Git.Example", password="${secret:TOKEN}"),))
    secret = {"TOKEN": "t0ken"}.__getitem__
    assert access.password_for(HTTPS, secret) == ("git", "t0ken")
    assert access.password_for(check_remote("https://ada@git.example/x"), secret) == ("ada", "t0ken")
    for url in ("https://git.example:8443/x", "https://other.example/x", "https://git.example.evil/x", SSH.url):
        assert access.password_for(check_remote(url), secret) is None
    with pytest.raises(ConfigError, match="has a line break in it"):
        access.password_for(HTTPS, lambda _: "a\nhost=evil.example")
    assert "secret" not in repr(access)


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    access = GitAccess(credentials=(GitCredential(host=SSH.host, ssh_key=tmp_path / "none"),))
    with pytest.raises(ConfigError, match=r"git/credentials: the key for git\.example:2222, .*none, is not there"):
        access.key_for(SSH)


def test_the_agent_example_shows_every_setting() -> None:
    section = yaml.safe_load((Path(__file__).parents[2] / "config" / "agent.yaml").read_text())["git"]
    assert set(section) == set(GitAccess.model_fields)
    assert {key for credential in section["credentials"] for key in credential} == set(GitCredential.model_fields)
    defaults = GitAccess().model_dump(mode="json")
    assert {key: value for key, value in section.items() if key != "credentials"} == {
        key: value for key, value in defaults.items() if key != "credentials"
    }


# --- what git is told ------------------------------------------------------------------------------------------------


def test_the_environment_is_made_from_nothing() -> None:
    hostile = dict.fromkeys(("GIT_SSH_COMMAND", "GIT_DIR", "GIT_CONFIG_PARAMETERS", "LD_PRELOAD", "HOME"), "evil")
    env = told(GitAccess(), {**hostile, "PATH": "/bin", "https_proxy": "http://proxy", "HF_TOKEN": "x"}).variables(
        HTTPS
    )
    assert "evil" not in env.values()
    assert {name for name in env if not name.startswith("GIT_")} == {"PATH", "HOME", "LC_ALL", "https_proxy"}
    assert env["GIT_ALLOW_PROTOCOL"] == "https"


def test_a_command_on_this_disk_alone_may_ask_nobody() -> None:
    environment = told(GitAccess(credentials=(GitCredential(host="git.example", password="x"),)))
    assert environment.variables(None)["GIT_ALLOW_PROTOCOL"] == "none"
    assert not [option for option in environment.options(None) if "allow=always" in option or "LAUNCH_GIT" in option]


def test_a_password_is_in_the_environment_and_in_no_option() -> None:
    environment = told(GitAccess(credentials=(GitCredential(host="git.example", password="a ${secret:TOKEN}"),)))
    assert environment.variables(HTTPS)["LAUNCH_GIT_PASSWORD"] == "a t0ken"
    assert "t0ken" not in " ".join(environment.options(HTTPS))
    assert any(option.startswith("credential.https://git.example.helper=") for option in environment.options(HTTPS))


def test_ssh_asks_nothing_and_knows_nobodys_keys_unless_told(tmp_path: Path) -> None:
    command = told(GitAccess()).variables(SSH)["GIT_SSH_COMMAND"]
    assert command.startswith("ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=accept-new")
    assert "IdentityFile=none" in command
    assert "IdentityAgent=none" in command
    assert """'UserKnownHostsFile="/home folder/git/known_hosts"'""" in command
    key = tmp_path / "key 100%"
    key.touch()
    access = GitAccess(credentials=(GitCredential(host=SSH.host, ssh_key=key),), host_keys="strict")
    command = told(access).variables(SSH)["GIT_SSH_COMMAND"]
    assert f"""'IdentityFile="{str(key).replace("%", "%%")}"'""" in command
    assert "StrictHostKeyChecking=yes" in command
    own = told(GitAccess(own_login=True), {"SSH_AUTH_SOCK": "/agent", "HOME": "/me"}).variables(SSH)
    assert (own["SSH_AUTH_SOCK"], own["HOME"], "-F none" in own["GIT_SSH_COMMAND"]) == ("/agent", "/me", False)


@pytest.mark.parametrize("spec", [{"uri": "https://git.example/x"}, {"git": {"version": "main"}}])
def test_a_message_names_no_repository(spec: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="register a commit of it as a job first: `launch job create git URL`"):
        from_wandb({"queue": "q", **spec})


# --- what git says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", LoginError),
        ("fatal: Authentication failed for 'https://h/x/'", LoginError),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 403", LoginError),
        ("git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.", LoginError),
        ("Host key verification failed.\nfatal: Could not read from remote repository.", ConfigError),
        ("fatal: unable to access 'https://h/': server certificate verification failed. CAfile: none", ConfigError),
        ("fatal: repository 'https://h/x/' not found", ConfigError),
        ("fatal: '/x' does not appear to be a git repository\nfatal: Could not read from remote", ConfigError),
        ("fatal: detected dubious ownership in repository at '/x'", ConfigError),
        ("fatal: unable to access 'https://h/': Could not resolve host: h", TemporaryError),
        ("ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote", TemporaryError),
        ("error: RPC failed; curl 18 transfer closed with outstanding read data remaining", TemporaryError),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 502", TemporaryError),
        ("fatal: the remote end hung up unexpectedly\nfatal: early EOF", TemporaryError),
        ("fatal: remote error: upload-pack: not our ref 0123", PermanentError),
        ("error: Server does not allow request for unadvertised object 0123", UnadvertisedError),
        ("error: object 01: hasDotgit: contains '.git'\nfatal: fsck error in packed object", RefusedError),
        ("fatal: something new", DamagedError),
        ("", DamagedError),
    ],
)
def test_what_gits_words_mean(said: str, kind: type[LaunchError]) -> None:
    error = failure(HTTPS, said, login_hint="do this")
    assert type(error) is kind
    assert HTTPS.url in str(error)
    assert ("do this" in str(error)) == (kind is LoginError)


def test_the_end_of_what_git_wrote_is_for_people() -> None:
    said = "one\n\x1b[31mred\x07\nReceiving:  1%\rReceiving: 99%\rdone.\n\n" + "x" * 1000 + "\nlast\n"
    assert last_lines(said) == "\n".join(["  one", "  [31mred", "  done.", "  " + "x" * 300, "  last"])


# --- what is kept ----------------------------------------------------------------------------------------------------


def kept(folder: Path, name: str, age_s: float, *, now: float) -> Path:
    mirror = folder / f"{name}.git" / "objects"
    mirror.mkdir(parents=True)
    (mirror / "pack").write_bytes(bytes(1000))
    (folder / f"{name}.lock").touch()
    os.utime(folder / f"{name}.lock", (now - age_s, now - age_s))
    return mirror.parent


def test_what_was_used_longest_ago_goes_when_it_is_too_much(tmp_path: Path) -> None:
    now = 1_000_000.0
    mirrors, archives = tmp_path / "git", tmp_path / "code"
    archives.mkdir()
    old, older, fresh = (kept(mirrors, name, age, now=now) for name, age in (("a", 1.8e5), ("b", 1.9e5), ("c", 60)))
    archive = archives / "git-0.tar.gz"
    archive.write_bytes(bytes(1000))
    os.utime(archive, (now - 1.7e5, now - 1.7e5))
    snapshot = archives / "of-a-snapshot.tar.gz"
    snapshot.write_bytes(bytes(9000))
    os.utime(snapshot, (0, 0))

    assert tidy(mirrors, archives, 4000, now=now) == []
    assert tidy(mirrors, archives, 2500, now=now) == [older, old]
    assert tidy(mirrors, archives, 0, now=now) == [archive]
    assert fresh.exists()
    assert snapshot.exists()


def test_what_is_worked_on_stays_and_what_nobody_finished_goes(tmp_path: Path) -> None:
    import fcntl

    now = 1_000_000.0
    mirrors, archives = tmp_path / "git", tmp_path / "code"
    archives.mkdir()
    busy = kept(mirrors, "a", 1.9e5, now=now)
    left = [mirrors / "export-x", mirrors / ".new-x", archives / ".git-0.tar.gz.00ff"]
    for path in left:
        path.mkdir()
        os.utime(path, (now - 1e5, now - 1e5))
    with (mirrors / "a.lock").open() as lock:
        os.utime(mirrors / "a.lock", (now - 1.9e5, now - 1.9e5))
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tidy(mirrors, archives, 0, now=now) == []
    assert busy.exists()
    assert not [path for path in left if path.exists()]
    assert tidy(mirrors, archives, 0, now=now) == [busy]
