"""Commits fetched from real servers (nginx with git's own CGI, sshd): logins, limits, damage, hostile repositories."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from git_servers import PASSWORD, USER, GitServer, Repository, SshServer, git, silent_server, thief
from services import need_program, unavailable

from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.git.access import GitAccess
from launch.git.code import GitCode
from launch.git.mirror import mirror_path
from launch.git.remote import check_remote
from launch.models import GitSource

SECRETS = {"GIT_TOKEN": PASSWORD}
LOGIN = {"username": USER, "password": "${secret:GIT_TOKEN}"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A launch home of this test's own."""
    return tmp_path / "home"


@pytest.fixture
def repository(git_server: GitServer, request: pytest.FixtureRequest) -> Repository:
    """A repository with one commit."""
    made = git_server.repository(
        f"{request.node.name[:60]}-{random.randrange(10**9)}".replace("[", "-").replace("]", "")
    )
    made.commit({"train.py": "print(1)\n", "src/run.sh": "true\n", "empty": ""}, links={"src/link": "../train.py"})
    return made


def name_of(repository: Repository) -> str:
    return repository.path.name.removesuffix(".git")


def fetcher(
    home: Path, server: GitServer | None = None, environ: dict[str, str] | None = None, **access: Any
) -> GitCode:
    """Return what fetches, trusting the test server's certificate and no more."""
    ca = {"ca_file": server.ca_file} if server else {}
    settings = GitAccess(**{**ca, **access})
    return GitCode(home, settings, secret=SECRETS.__getitem__, environ={**os.environ, **(environ or {})})


def files_of(archive: Path) -> dict[str, str | bytes]:
    """Return ``{name: content, or where a link leads}``."""
    with tarfile.open(archive) as tar:
        read = {info.name: tar.extractfile(info) for info in tar if info.isreg()}
        texts = {name: file.read() for name, file in read.items() if file is not None}
        return {**texts, **{info.name: info.linkname for info in tar if info.issym()}}


# --- what is fetched -------------------------------------------------------------------------------------------------


def test_a_commit_is_fetched_and_packed_once(git_server: GitServer, repository: Repository, home: Path) -> None:
    code = fetcher(home, git_server)
    notes: list[str] = []
    source = code.pin(git_server.https(name_of(repository)))
    archive = code.archive(source, note=notes.append)

    assert files_of(archive) == {
        "train.py": b"print(1)\n",
        "src/run.sh": b"true\n",
        "empty": b"",
        "src/link": "../train.py",
    }
    assert source.ref == "main"
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["empty", "src", "src/link", "src/run.sh", "train.py"]
        assert (tar.getmember("src/run.sh").mode, tar.getmember("train.py").mode) == (0o755, 0o644)
    assert len(notes) == 1
    assert notes[0].startswith(f"fetched {source.commit[:12]} of https://localhost")
    repository.path.rename(repository.path.with_suffix(".away"))
    assert code.archive(source, note=notes.append) == archive
    assert len(notes) == 1


def test_the_same_commit_gives_the_same_bytes_on_every_machine(
    git_server: GitServer, repository: Repository, tmp_path: Path
) -> None:
    archives = []
    for name in ("one", "two"):
        code = fetcher(tmp_path / name, git_server)
        archives.append(code.archive(code.pin(git_server.https(name_of(repository)))).read_bytes())

    assert archives[0] == archives[1]


def test_a_branch_that_moves_changes_nothing(git_server: GitServer, repository: Repository, home: Path) -> None:
    """Even when its history is rewritten, and the mirror is gone."""
    url = git_server.https(name_of(repository))
    code = fetcher(home, git_server)
    source = code.pin(url, "main")
    git("update-ref", "-d", "refs/heads/main", cwd=repository.path)
    repository.commit({"train.py": "print(2)\n"})

    assert files_of(code.archive(source))["train.py"] == b"print(1)\n"
    assert code.pin(url, "main").commit != source.commit


def test_refs_are_branches_then_tags_then_commits(git_server: GitServer, repository: Repository, home: Path) -> None:
    url, code = git_server.https(name_of(repository)), fetcher(home, git_server)
    first = git("rev-parse", "main", cwd=repository.path)
    git("tag", "-a", "v1", "-m", "one", "main", cwd=repository.path)
    second = repository.commit({"train.py": "print(2)\n"}, branch="team/next")
    git("tag", "team/next", "main", cwd=repository.path)

    assert code.pin(url, "v1") == GitSource(remote=url, commit=first, ref="v1")
    assert code.pin(url, "team/next") == GitSource(remote=url, commit=second, ref="team/next")
    assert code.pin(url, first) == GitSource(remote=url, commit=first)
    assert files_of(code.archive(code.pin(url, "v1")))["train.py"] == b"print(1)\n"
    with pytest.raises(ConfigError, match=r"no branch or tag 'mian'; did you mean 'main'\?"):
        code.pin(url, "mian")
    with pytest.raises(ConfigError, match=f"all of its 40 digits; did you mean '{second}'"):
        code.pin(url, second[:10])


def test_without_a_ref_it_is_main_then_master_then_what_there_is(git_server: GitServer, home: Path) -> None:
    code = fetcher(home, git_server)
    named = {}
    for branches in (("main", "master"), ("master", "x"), ("trunk", "dev")):
        made = git_server.repository(f"default-{'-'.join(branches)}")
        named[branches] = {branch: made.commit({"a": branch}, branch=branch) for branch in branches}

    assert code.pin(git_server.https("default-main-master")).commit == named["main", "master"]["main"]
    assert code.pin(git_server.https("default-master-x")).commit == named["master", "x"]["master"]
    with pytest.raises(ConfigError, match=r"neither main nor master; name one of its branches: dev, trunk"):
        code.pin(git_server.https("default-trunk-dev"))
    git_server.repository("default-empty")
    with pytest.raises(ConfigError, match="is empty: nothing was pushed to it yet"):
        code.pin(git_server.https("default-empty"))


def test_a_subdirectory_is_a_root_of_its_own(git_server: GitServer, home: Path) -> None:
    made = git_server.repository("mono")
    made.commit({"apps/train/train.py": "1", "apps/train/lib/x.py": "2", "other/big": "3"})
    code = fetcher(home, git_server)
    source = code.pin(git_server.https("mono"))

    inner = code.archive(source.model_copy(update={"subdirectory": "apps/train"}))
    assert set(files_of(inner)) == {"train.py", "lib/x.py"}
    assert inner != code.archive(source)
    with pytest.raises(ConfigError, match=r"no folder 'apps/tran' in .*; did you mean 'apps/train'\?"):
        code.archive(source.model_copy(update={"subdirectory": "apps/tran"}))
    for bad in ("../x", "/etc", "a/../../b", ".git"):
        with pytest.raises(ConfigError, match="subdirectory: "):
            code.archive(source.model_copy(update={"subdirectory": bad}))


@pytest.mark.parametrize("how", ["old", "dumb"])
def test_a_server_that_gives_out_no_commit_by_its_id_is_asked_for_its_history(
    git_server: GitServer, repository: Repository, home: Path, how: str
) -> None:
    """Protocol 0 without allowReachableSHA1InWant, and a server that only knows files."""
    url, code = git_server.https(name_of(repository), how), fetcher(home, git_server)
    source = code.pin(url)
    newer = repository.commit({"train.py": "print(2)\n"})
    git("repack", "-adq", cwd=repository.path)
    git("update-server-info", cwd=repository.path)

    notes: list[str] = []
    assert files_of(code.archive(source, note=notes.append))["train.py"] == b"print(1)\n"
    assert "gives out no commit by its id: fetching its whole history" in notes[0]
    assert files_of(code.archive(code.pin(url)))["train.py"] == b"print(2)\n"
    assert code.pin(url).commit == newer
    with pytest.raises(PermanentError, match="has no commit 0123456789"):
        code.archive(source.model_copy(update={"commit": "0123456789" * 4}))


def test_a_commit_that_is_gone_is_said_to_be(git_server: GitServer, repository: Repository, home: Path) -> None:
    source = GitSource(remote=git_server.https(name_of(repository)), commit="0123456789" * 4)
    with pytest.raises(PermanentError, match="has no such commit"):
        fetcher(home, git_server).archive(source)


def test_files_of_git_lfs_stay_pointers_and_that_is_said(git_server: GitServer, home: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"
    git_server.repository("lfs").commit({"model.bin": pointer, ".gitattributes": "*.bin filter=lfs\n", "a.py": ""})
    code, notes = fetcher(home, git_server), []
    archive = code.archive(code.pin(git_server.https("lfs")), note=notes.append)

    assert files_of(archive)["model.bin"] == pointer.encode()
    assert "1 files are pointers of Git LFS, and stay pointers: model.bin" in notes[1]


def test_odd_names_survive(git_server: GitServer, home: Path) -> None:
    names = ["mit Leer zeichen", "ümlaut", "quo'te\"", "-rf", "a\tb", "x" * 200, "*?[", "back\\slash"]
    made = git_server.repository("odd-names")
    # The index format of the helper has a line a name, so these go in as trees.
    blob = made.blob(b"1")
    made.commit_tree(made.tree(*((("100644", name, blob)) for name in names)))
    code = fetcher(home, git_server)

    assert set(files_of(code.archive(code.pin(git_server.https("odd-names"))))) == set(names)


# --- logins ----------------------------------------------------------------------------------------------------------


def test_a_private_repository_without_credentials_says_what_to_configure(
    git_server: GitServer, repository: Repository, home: Path
) -> None:
    url = git_server.https(name_of(repository), "private")
    for access in ({}, {"credentials": [{"host": "localhost", **LOGIN}]}, {"credentials": [{"host": "x", **LOGIN}]}):
        with pytest.raises(ConfigError, match=r"wants a login.* add a credential for its host to git/credentials"):
            fetcher(home, git_server, **access).pin(url)
    wrong = {"host": git_server.host, "username": USER, "password": "wrong"}
    with pytest.raises(ConfigError, match="wants a login, or another one"):
        fetcher(home, git_server, credentials=[wrong]).pin(url)


def test_a_token_from_a_secret_opens_it_and_is_nowhere_else(
    git_server: GitServer, repository: Repository, home: Path, tmp_path: Path
) -> None:
    """Not in the arguments of any git process, not on the disk, not in what is said."""
    arguments = tmp_path / "arguments"
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    real = need_program("git")
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {arguments}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    login = {"host": git_server.host, **LOGIN}
    path = {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    code, notes = fetcher(home, git_server, path, credentials=[login]), []
    source = code.pin(git_server.https(name_of(repository), "private"))

    assert "train.py" in files_of(code.archive(source, note=notes.append))
    assert "ls-remote" in arguments.read_text()
    written = [arguments, *(path for path in home.rglob("*") if path.is_file())]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]
    assert PASSWORD not in f"{notes}{source}{code.access!r}"


def test_a_redirect_to_another_host_gets_no_password(git_server: GitServer, home: Path) -> None:
    credentials = [{"host": git_server.host, **LOGIN}]
    with thief(git_server) as told, pytest.raises(ConfigError, match="wants a login"):
        fetcher(home, git_server, credentials=credentials).pin(git_server.https("whatever", "moved"))
    assert told
    assert set(told) == {""}


def test_a_redirect_from_https_to_http_is_not_followed(
    git_server: GitServer, repository: Repository, home: Path
) -> None:
    code = fetcher(home, git_server, allow_http=True)
    with pytest.raises(ConfigError, match="leads on to another transport"):
        code.pin(git_server.https(name_of(repository), "downgraded"))


def test_plain_http_is_refused_unless_allowed(git_server: GitServer, repository: Repository, home: Path) -> None:
    url = git_server.http(name_of(repository))
    with pytest.raises(ConfigError, match=r"http is not allowed here; use https or ssh, or set allow_http"):
        fetcher(home).pin(url)
    assert fetcher(home, allow_http=True).pin(url).ref == "main"


def test_a_certificate_that_is_not_trusted_is_refused(
    git_server: GitServer, repository: Repository, home: Path
) -> None:
    with pytest.raises(ConfigError, match=r"certificate is not trusted; name .* in git/ca_file"):
        fetcher(home).pin(git_server.https(name_of(repository)))


def test_ssh_with_a_key(ssh_server: SshServer, repository: Repository, home: Path) -> None:
    url = ssh_server.url(repository.path)
    code = fetcher(home, credentials=[{"host": ssh_server.host, "ssh_key": ssh_server.key}])
    assert "train.py" in files_of(code.archive(code.pin(url)))
    # From now on its host key is known, and another one is refused.
    known = home / "cache" / "git" / "known_hosts"
    other = (ssh_server.key.parent / "other_key.pub").read_text().split()[1]
    known.write_text(known.read_text().replace(known.read_text().split()[2], other))
    with pytest.raises(ConfigError, match="ssh host key is not the known one"):
        code.pin(url)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform == "darwin", reason="ssh's own port is root's; not for macOS")
def test_ssh_as_scp_writes_it(ssh_server: SshServer, repository: Repository, home: Path) -> None:
    login = {"host": ssh_server.usual_address, "ssh_key": ssh_server.key}
    code = fetcher(home, credentials=[login])
    source = code.pin(ssh_server.scp_like(repository.path))
    assert source.remote.count("/") == str(repository.path).count("/")
    assert "train.py" in files_of(code.archive(source))


@pytest.mark.parametrize("key", [None, "other_key"])
def test_ssh_without_the_right_key(ssh_server: SshServer, repository: Repository, home: Path, key: str | None) -> None:
    """Whatever keys and agent the user of this process has."""
    given = [] if key is None else [{"host": ssh_server.host, "ssh_key": getattr(ssh_server, key)}]
    with pytest.raises(ConfigError, match=r"wants a login.* git/credentials"):
        fetcher(home, credentials=given).pin(ssh_server.url(repository.path))


def test_strict_host_keys(ssh_server: SshServer, repository: Repository, home: Path, tmp_path: Path) -> None:
    access = {"credentials": [{"host": ssh_server.host, "ssh_key": ssh_server.key}], "host_keys": "strict"}
    url = ssh_server.url(repository.path)
    with pytest.raises(ConfigError, match="ssh host key is not the known one"):
        fetcher(home, **access).pin(url)
    spaced = tmp_path / "a folder 100%" / "known_hosts"
    spaced.parent.mkdir()
    spaced.write_bytes(ssh_server.known_hosts.read_bytes())
    assert fetcher(home, **access, known_hosts=spaced).pin(url).ref == "main"


def test_the_own_login_of_whoever_creates_a_job(
    git_server: GitServer, repository: Repository, home: Path, tmp_path: Path
) -> None:
    """Their git's credential helper is asked, once a login is wanted; an agent's own user's is not."""
    user = tmp_path / "user"
    user.mkdir()
    (user / ".gitconfig").write_text(f"[credential]\n\thelper = store --file {user}/passwords\n")
    (user / "passwords").write_text(f"https://{USER}:{PASSWORD}@localhost%3a{git_server.https_port}\n")
    url, environ = git_server.https(name_of(repository), "private"), {"HOME": str(user)}

    code = fetcher(home, git_server, environ, own_login=True)
    assert "train.py" in files_of(code.archive(code.pin(url)))
    with pytest.raises(ConfigError, match="wants a login"):
        fetcher(home, git_server, environ).pin(url)


# --- servers that are away, slow, or too large -----------------------------------------------------------------------


def test_a_server_that_is_away_is_waited_for(git_server: GitServer, home: Path, repository: Repository) -> None:
    with silent_server() as port:
        pass  # nobody listens there any more
    away = [f"https://localhost:{port}/x.git", git_server.https("x").replace("/public/", "/broken/")]
    away += ["https://no-such-host.invalid/x.git", f"ssh://git@127.0.0.1:{port}/x.git"]
    for url in away:
        with pytest.raises(TemporaryError, match="it does not answer as it should"):
            fetcher(home, git_server).pin(url)


def test_a_repository_that_is_not_there_is_named(git_server: GitServer, home: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such repository, or this login may not see it"):
        fetcher(home, git_server).pin(git_server.https("no-such"))


def test_a_server_that_says_nothing_ends_at_the_time_limit(home: Path) -> None:
    with silent_server() as port:
        began = time.monotonic()
        with pytest.raises(PermanentError, match=r"took longer than the 0.5 s that git/timeout_s allows"):
            fetcher(home, allow_http=True, timeout_s=0.5).pin(f"http://127.0.0.1:{port}/x.git")
        assert time.monotonic() - began < 5
    assert processes_about(f"127.0.0.1:{port}") == []


def test_a_fetch_is_cancelled_within_a_second(home: Path) -> None:
    with silent_server() as port:
        source = GitSource(remote=f"http://127.0.0.1:{port}/x.git", commit="0" * 40)
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        with pytest.raises(InterruptedError):
            fetcher(home, allow_http=True).archive(source, cancelled=stop.is_set)
        assert time.monotonic() - began < 3
    assert processes_about(f"127.0.0.1:{port}") == []


def processes_about(word: str) -> list[str]:
    """Return the command lines of the git processes that name a word."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if word in line and line.startswith("git")]


def test_what_is_too_large_is_refused_and_leaves_nothing(git_server: GitServer, home: Path) -> None:
    """While it comes in, or before it is packed; then the biggest files are named."""
    noise = random.Random(1).randbytes(8_000_000)
    git_server.repository("large").commit({"data.bin": noise, "a.py": "1"})
    source = fetcher(home, git_server).pin(git_server.https("large"))
    with pytest.raises(PermanentError, match=r"more than the 2\.0 MB that the git settings allow"):
        fetcher(home, git_server, max_fetch_mb=2).archive(source)
    assert list((home / "cache" / "git").glob("*.git")) == []
    with pytest.raises(ConfigError, match=r"2 files have 8\.0 MB, more than the 4\.0 MB .*data\.bin \(8\.0 MB\)"):
        fetcher(home, git_server, max_mb=4).archive(source)
    assert list((home / "cache").rglob("*.tar.gz")) == []
    assert list((home / "cache" / "git").glob("export-*")) == []
    assert set(files_of(fetcher(home, git_server).archive(source))) == {"data.bin", "a.py"}


def test_a_tree_that_unfolds_without_end_is_stopped(git_server: GitServer, home: Path) -> None:
    """Ten folders of ten folders of ... the same file: a thousand bytes that stand for ten thousand million files."""
    made = git_server.repository("bomb")
    tree = made.tree(("100644", "f", made.blob(b"x")))
    for _ in range(10):
        tree = made.tree(*(("40000", f"d{i}", tree) for i in range(10)))
    made.commit_tree(tree)
    code = fetcher(home, git_server)
    with pytest.raises((ConfigError, PermanentError), match="more than the"):
        code.archive(code.pin(git_server.https("bomb")))


# --- processes that die, share, or find damage -----------------------------------------------------------------------


FETCH = """
import sys
from pathlib import Path
from launch.git.access import GitAccess
from launch.git.code import GitCode
from launch.models import GitSource
home, remote, commit, ca = sys.argv[1:]
print("begins", flush=True)
print(GitCode(Path(home), GitAccess(ca_file=ca)).archive(GitSource(remote=remote, commit=commit)).name)
"""


def fetching(home: Path, server: GitServer, source: GitSource) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", FETCH, str(home), source.remote, source.commit, str(server.ca_file)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def heavy(git_server: GitServer) -> tuple[GitServer, str]:
    """A repository that takes a moment to fetch."""
    noise = random.Random(2)
    made = git_server.repository("heavy")
    made.commit({f"d{i % 7}/f{i}": noise.randbytes(100_000) for i in range(150)})
    return git_server, git_server.https("heavy")


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_killed_in_the_middle_of_a_fetch_the_next_one_succeeds(
    heavy: tuple[GitServer, str], home: Path, after_s: float
) -> None:
    server, url = heavy
    source = fetcher(home, server).pin(url)
    process = fetching(home, server, source)
    assert process.stdout is not None
    process.stdout.readline()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    process.kill()
    process.communicate()

    archive = fetcher(home, server).archive(source)

    assert len(files_of(archive)) == 150
    mirror = mirror_path(home / "cache" / "git", check_remote(url))
    assert list(mirror.rglob("tmp_*")) == []
    git(f"--git-dir={mirror}", "fsck", "--connectivity-only", cwd=home)


def test_several_fetchers_at_once_share_one_copy(heavy: tuple[GitServer, str], home: Path) -> None:
    server, url = heavy
    source = fetcher(home, server).pin(url)
    processes = [fetching(home, server, source) for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], ended
    assert len({out for out, _ in ended}) == 1
    assert len(list((home / "cache" / "git").glob("*/objects/pack/*.pack"))) == 1
    assert len(files_of(next((home / "cache" / "code").glob("git-*.tar.gz")))) == 150


@pytest.mark.parametrize("damage", ["cut", "head", "objects", "no-pack", "ref", "one-file"])
def test_a_damaged_copy_is_thrown_away_and_fetched_again(
    git_server: GitServer, repository: Repository, home: Path, damage: str
) -> None:
    code, notes = fetcher(home, git_server), []
    source = code.pin(git_server.https(name_of(repository)))
    whole = code.archive(source).read_bytes()
    mirror = mirror_path(home / "cache" / "git", check_remote(source.remote))
    pack = next(mirror.glob("objects/pack/*.pack"))
    pack.chmod(0o600)
    if damage == "cut":
        pack.write_bytes(pack.read_bytes()[: pack.stat().st_size // 2])
    elif damage == "head":
        (mirror / "HEAD").write_text("nonsense")
    elif damage == "objects":
        pack.write_bytes(bytes(pack.stat().st_size))
    elif damage == "no-pack":
        pack.unlink()
    elif damage == "one-file":
        packed = pack.read_bytes()
        pack.unlink()
        git(f"--git-dir={mirror}", "unpack-objects", "-q", cwd=home, data=packed)
        blob = git("rev-parse", "main:train.py", cwd=repository.path)
        (mirror / "objects" / blob[:2] / blob[2:]).unlink()
    else:
        (mirror / "refs" / "launch" / source.commit).write_text("")
    for archive in (home / "cache" / "code").iterdir():
        archive.unlink()

    assert code.archive(source, note=notes.append).read_bytes() == whole
    assert any(note.startswith("fetched ") for note in notes)


def test_locks_that_a_killed_git_left_do_not_matter(git_server: GitServer, repository: Repository, home: Path) -> None:
    code = fetcher(home, git_server)
    url = git_server.https(name_of(repository))
    code.archive(code.pin(url))
    mirror = mirror_path(home / "cache" / "git", check_remote(url))
    for name in ("shallow.lock", "config.lock", "packed-refs.lock"):
        (mirror / name).touch()
    repository.commit({"train.py": "print(2)\n"})

    assert files_of(code.archive(code.pin(url)))["train.py"] == b"print(2)\n"


def test_a_full_disk_is_no_fault_of_the_job(
    git_server: GitServer, heavy: tuple[GitServer, str], tmp_path: Path
) -> None:
    server, url = heavy
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        unavailable(f"no small file system can be mounted: {mounted.stderr}")
    try:
        code = fetcher(small, server)
        source = code.pin(url)
        with pytest.raises(TemporaryError, match=r"full|No space|cannot be"):
            code.archive(source)
        assert list(small.rglob("*.tar.gz")) == []
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        assert len(files_of(code.archive(source))) == 150
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# --- submodules ------------------------------------------------------------------------------------------------------


def test_submodules_come_with_it_at_their_pinned_commits(git_server: GitServer, home: Path) -> None:
    """Relative and absolute URLs, one within another, and one below the job's own root."""
    core = git_server.repository("group/core")
    pinned = core.commit({"core.py": "pinned"})
    core.commit({"core.py": "newer"})
    lib = git_server.repository("group/lib")
    inner = lib.commit({"lib.py": "1"}, submodules={"vendor/core": ("../core.git", pinned)})
    top = git_server.repository("group/top")
    absolute = git_server.https("group/core")
    top.commit(
        {"app/train.py": "2", "lib-x": "3"},
        submodules={"app/lib": ("../lib.git", inner), "core": (absolute, pinned)},
    )
    code = fetcher(home, git_server)
    source = code.pin(git_server.https("group/top"))

    whole = files_of(code.archive(source))
    below = files_of(code.archive(source.model_copy(update={"subdirectory": "app"})))

    expected = {"lib/lib.py": b"1", "lib/vendor/core/core.py": b"pinned", "train.py": b"2"}
    assert {name: text for name, text in below.items() if not name.endswith(".gitmodules")} == expected
    assert {f"app/{name}": text for name, text in below.items()}.items() <= whole.items()
    assert whole["core/core.py"] == b"pinned"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ext::sh -c 'touch {canary}'", "white space"),
        ("ext::touch%20{canary}", "the helper 'ext' could run any command"),
        ("--upload-pack=touch${{IFS}}{canary}", "refused"),
        ("-u./x", "refused"),
        ("ssh://-oProxyCommand=touch%20{canary}/x", "refused"),
        ("git@-oProxyCommand=x:y", "refused"),
        ("file:///etc/x.git", "file is not allowed here"),
        ("/etc", "it is a path"),
        ("http://localhost/x.git", "http is not allowed here"),
        ("git://localhost/x.git", "no transport that is allowed"),
        ("https://ada:pw@localhost/x", "has a password in it"),
        ("../../../../../../x", "leads out of"),
        ("", "is empty"),
    ],
)
def test_a_submodule_over_a_refused_transport_is_named_and_nothing_runs(
    git_server: GitServer, repository: Repository, home: Path, tmp_path: Path, url: str, why: str
) -> None:
    canary = tmp_path / "canary"
    repository.commit({"a.py": ""}, submodules={"libs/x": (url.format(canary=canary), "1" * 40)})
    code = fetcher(home, git_server)
    source = code.pin(git_server.https(name_of(repository)))
    # git itself refuses some of them as they come in.
    with pytest.raises((ConfigError, PermanentError), match=f"{why}|git refuses what it sent"):
        code.archive(source)
    assert not canary.exists()
    assert list((home / "cache").rglob("*.tar.gz")) == []


def test_a_submodule_that_gitmodules_does_not_know_is_named(git_server: GitServer, home: Path) -> None:
    git_server.repository("stray").commit({"a.py": ""}, submodules={"x": ("../y", "1" * 40)}, gitmodules="")
    code = fetcher(home, git_server)
    with pytest.raises(ConfigError, match=r"\.gitmodules has no URL for the submodule x"):
        code.archive(code.pin(git_server.https("stray")))


def test_a_submodule_that_is_not_to_be_checked_out_is_left_out(git_server: GitServer, home: Path) -> None:
    text = '[submodule "x"]\n\tpath = x\n\turl = ../nowhere.git\n\tupdate = none\n'
    git_server.repository("update-none").commit({"a.py": ""}, submodules={"x": ("", "1" * 40)}, gitmodules=text)
    code = fetcher(home, git_server)

    assert set(files_of(code.archive(code.pin(git_server.https("update-none"))))) == {"a.py", ".gitmodules"}


# --- repositories that mean harm -------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that must not appear."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def test_hooks_filters_and_configuration_in_a_repository_run_nothing(
    git_server: GitServer, repository: Repository, home: Path, canary: Path
) -> None:
    """All that git would run on a checkout, or from the environment and configuration of the agent's user."""
    hook = f"#!/bin/sh\ntouch {canary}\n"
    attributes = "* filter=evil diff=evil merge=evil ident export-subst working-tree-encoding=UTF-16 text eol=crlf\n"
    runs = f"touch {canary}\n"
    config = f'[filter "evil"]\n\tsmudge = {runs}\tprocess = {runs}[core]\n\tfsmonitor = {runs}'
    names = ["hooks/post-checkout", "hooks/reference-transaction", ".githooks/post-checkout", ".husky/post-checkout"]
    evil = {**dict.fromkeys(names, hook), ".gitattributes": attributes, ".gitconfig": config, "x.txt": "a\n$Id$\n"}
    repository.commit(evil)
    user = home.parent / "user"
    user.mkdir()
    for name in ("post-checkout", "reference-transaction"):
        (user / name).write_text(hook)
        (user / name).chmod(0o755)
    (user / ".gitconfig").write_text(
        f'{config}\thooksPath = {user}\n[url "ext::touch {canary} "]\n\tinsteadOf = https://\n'
        f"[credential]\n\thelper = !touch {canary}\n[core]\n\tsshCommand = touch {canary}\n"
    )
    environ = {
        "HOME": str(user),
        "XDG_CONFIG_HOME": str(user),
        "GIT_SSH_COMMAND": f"touch {canary}",
        "GIT_ASKPASS": f"touch {canary}",
        "GIT_PROXY_COMMAND": f"touch {canary}",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": f"touch {canary}",
        "GIT_CONFIG_PARAMETERS": f"'core.fsmonitor=touch {canary}'",
        "GIT_TEMPLATE_DIR": str(user),
        "GIT_EXEC_PATH": str(user),
    }
    code = fetcher(home, git_server, environ)
    found = files_of(code.archive(code.pin(git_server.https(name_of(repository)))))

    assert found == {name: text.encode() for name, text in evil.items()}
    with pytest.raises(ConfigError, match="wants a login"):
        code.pin(git_server.https(name_of(repository), "private"))


@pytest.mark.parametrize(
    "url",
    ["ext::sh -c touch% {}", "fd::17", "--upload-pack=touch {}", "-utouch {}", "ssh://-oProxyCommand=touch {}/x",
     "git@-oProxyCommand=touch:x", "foo::bar", "https://localhost/x\n[core]", "git@host:-oProxyCommand=x"],
)  # fmt: skip
def test_a_remote_that_would_run_something_never_reaches_git(home: Path, canary: Path, url: str) -> None:
    code = GitCode(home, GitAccess(allow_file=True, allow_http=True), environ={"PATH": str(home / "no-git-here")})
    with pytest.raises(ConfigError, match="is refused"):
        code.pin(url.format(canary))
    with pytest.raises(ConfigError, match="is refused"):
        code.archive(GitSource(remote=url.format(canary), commit="0" * 40))


@pytest.mark.parametrize(
    "ref", ["--upload-pack=x", "-u", "a..b", "a b", "x:y", "+main", "refs/heads/*", "a\nb", "@{u}"]
)
def test_a_ref_that_git_would_read_otherwise_never_reaches_it(home: Path, ref: str) -> None:
    code = GitCode(home, GitAccess(), environ={"PATH": str(home / "no-git-here")})
    source = GitSource(remote="https://localhost/x", commit="0" * 40, ref=ref)
    if ref != "+main":  # a name that git allows, and harmless where it is used
        with pytest.raises(ConfigError, match="ref: should be"):
            code.pin("https://localhost/x", ref)
        with pytest.raises(ConfigError, match="ref: should be"):
            code.archive(source)


def hostile_trees() -> dict[str, Any]:
    """Return ``{name: (what makes the tree, what is said of it)}``; git's own check refuses some before ours does."""
    link = "120000"
    return {
        "absolute-link": lambda r: r.tree((link, "x", r.blob(b"/etc/passwd"))),
        "link-out": lambda r: r.tree((link, "x", r.blob(b"../../etc/passwd"))),
        "link-through-link": lambda r: r.tree((link, "a", r.blob(b".")), (link, "b", r.blob(b"a/a/../.."))),
        "dot-git": lambda r: r.tree(("40000", ".git", r.tree(("100644", "config", r.blob(b"[core]"))))),
        "dot-git-file": lambda r: r.tree(("100644", ".git", r.blob(b"gitdir: /tmp/x"))),
        "dot-git-case": lambda r: r.tree(("40000", ".GIT", r.tree(("100644", "config", r.blob(b"[core]"))))),
        "dot-dot": lambda r: r.tree(("40000", "..", r.tree(("100644", "x", r.blob(b"1"))))),
        "slash": lambda r: r.tree(("100644", "a/../../x", r.blob(b"1"))),
        "twice": lambda r: r.tree(("100644", "x", r.blob(b"1")), ("100644", "x", r.blob(b"2"))),
        "file-and-folder": lambda r: r.tree(
            (link, "x", r.blob(b"y")), ("40000", "x", r.tree(("100644", "z", r.blob(b"1"))))
        ),
        "gitmodules-link": lambda r: r.tree((link, ".gitmodules", r.blob(b"../../x")), ("160000", "sub", "1" * 40)),
        "empty-name": lambda r: r.tree(("100644", "", r.blob(b"1"))),
    }


@pytest.mark.parametrize("name", hostile_trees())
@pytest.mark.parametrize("checked", [True, False])
def test_a_tree_that_no_git_add_would_make_is_refused(
    git_server: GitServer, home: Path, name: str, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By git as it comes in, and by our own check where git's is off."""
    if not checked:
        import launch.git.environment as environment

        options = [option for option in environment._ALWAYS if "fsck" not in option.lower()]
        monkeypatch.setattr(environment, "_ALWAYS", tuple(options))
    made = git_server.repository(f"hostile-{name}-{checked}")
    made.commit_tree(hostile_trees()[name](made))
    code = fetcher(home, git_server)
    with pytest.raises((ConfigError, PermanentError)) as refused:
        code.archive(code.pin(git_server.https(f"hostile-{name}-{checked}")))

    assert not isinstance(refused.value, TemporaryError)
    assert list((home / "cache").rglob("*.tar.gz")) == []


def test_an_agent_that_is_killed_leaves_no_git_behind_that_holds_the_copy_for_ever(home: Path) -> None:
    """The lock is the git process's too; whoever comes next waits for it, within its own time limit."""
    with silent_server() as port:
        source = GitSource(remote=f"http://127.0.0.1:{port}/x.git", commit="0" * 40)
        words = [sys.executable, "-c", FETCH.replace("ca_file=ca", "allow_http=True"), str(home), source.remote]
        process = subprocess.Popen([*words, source.commit, "-"], stdout=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 20
            while not (found := pids_about(f"127.0.0.1:{port}")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.kill()
            process.communicate()
            with pytest.raises(PermanentError, match="took longer than"):
                fetcher(home, allow_http=True, timeout_s=0.5).archive(source)
        finally:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def pids_about(word: str) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if word in line and line.split()[1].endswith("git")]
