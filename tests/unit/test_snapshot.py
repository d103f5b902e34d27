"""From a folder to a job: what is kept, what is refused, and that the same content is the same archive."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.code_archive import check_archive
from launch.errors import ConfigError, TemporaryError
from launch.jobs import check_image, check_python_version, parse_entrypoint
from launch.requirements import read_requirements, requirement_notes
from launch.snapshots import NEVER, Snapshot, snapshot

Tree = dict[str, bytes]


def write(root: Path, tree: dict[str, str]) -> Path:
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def taken(root: Path, **options: int) -> Snapshot:
    with snapshot(root, **options) as snap:
        return snap


def git(root: Path, *command: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *command], cwd=root, check=True, capture_output=True)


def extracted(snap: Snapshot, to: Path) -> Path:
    with tarfile.open(snap.archive) as tar:
        tar.extractall(to, filter="data")
    return to


def described(root: Path) -> dict[str, tuple[str, bytes, bool]]:
    """{path: (kind, content, executable)} of every file and link."""
    found = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(root))] = ("link", os.fsencode(os.readlink(path)), False)
        elif path.is_file():
            found[str(path.relative_to(root))] = ("file", path.read_bytes(), os.access(path, os.X_OK))
    return found


# --- the archive -----------------------------------------------------------------------------------------------------

_NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff\n\\'\" -*"),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in {".", "..", ".gitignore", ".launchignore", "pyvenv.cfg", *NEVER})
_FILES = st.dictionaries(
    st.lists(_NAMES, min_size=1, max_size=3).map(tuple),
    st.tuples(st.binary(max_size=50), st.booleans()),
    min_size=1,
    max_size=8,
).filter(lambda files: not any(one != other and one == other[: len(one)] for one in files for other in files))


@settings(deadline=None, max_examples=60)  # each writes and packs three folders
@given(files=_FILES, seed=st.integers())
def test_the_same_tree_is_the_same_archive_and_back(
    files: dict[tuple[str, ...], tuple[bytes, bool]], seed: int
) -> None:
    """Whatever the order in which files were made, their times, and the bits of their modes that do not matter."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for root in (Path(folder) / "one", Path(folder) / "two"):
            for parts, (content, executable) in chance.sample(list(files.items()), len(files)):
                path = root.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod((0o700 if executable else 0o600) | chance.choice([0, 0o40, 0o44, 0o64]))
                os.utime(path, (chance.randrange(2**31), chance.randrange(2**31)))
        with snapshot(Path(folder) / "one") as one, snapshot(Path(folder) / "two") as two:
            assert one.digest == two.digest
            assert one.archive.read_bytes() == two.archive.read_bytes()
            assert described(extracted(one, Path(folder) / "out")) == described(Path(folder) / "two")


def test_the_archive_holds_no_time_owner_or_name(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "", "sub/b.py": "x"})
    with snapshot(tmp_path) as snap, tarfile.open(snap.archive) as tar:
        assert snap.archive.read_bytes()[4:8] == b"\0\0\0\0"
        assert [(member.name, oct(member.mode)) for member in tar] == [
            ("a.py", "0o644"),
            ("sub", "0o755"),
            ("sub/b.py", "0o644"),
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar.getmembers()} == {(0, 0, 0, "", "")}


def test_other_content_name_or_executable_bit_is_another_archive(tmp_path: Path) -> None:
    first = taken(write(tmp_path, {"a.py": "1"})).digest
    digests = {first, taken(write(tmp_path, {"a.py": "2"})).digest}
    (tmp_path / "a.py").chmod(0o755)
    digests.add(taken(tmp_path).digest)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    digests.add(taken(tmp_path).digest)

    assert len(digests) == 4


def test_the_archive_is_gone_afterwards(tmp_path: Path) -> None:
    with snapshot(write(tmp_path, {"a.py": ""})) as snap:
        assert snap.archive.stat().st_size == snap.archive_bytes
    assert not snap.archive.parent.exists()


def test_long_and_deep_paths_are_kept(tmp_path: Path) -> None:
    name = "/".join(["d" * 100] * 5 + ["f" * 200])
    write(tmp_path, {"code/" + name: "x"})
    with snapshot(tmp_path / "code") as snap:
        assert described(extracted(snap, tmp_path / "out")) == {name: ("file", b"x", False)}


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["in git", "outside git"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that is a git work tree, or is not."""
    folder = tmp_path / "code"
    folder.mkdir()
    if request.param == "in git":
        git(folder, "init", "-q")
    return folder


def test_what_is_no_code_is_left_out(root: Path) -> None:
    write(root, dict.fromkeys(["train.py", "sub/model.py", "data/.keep"], "x"))
    junk = ["wandb/run-1/logs", "sub/wandb/x", "__pycache__/a.pyc", "sub/__pycache__/b.pyc", ".venv/bin/python"]
    junk += ["env/pyvenv.cfg", "env/lib/x.py", "sub/env/pyvenv.cfg", "sub/env/y.py", "node_modules/x/index.js"]
    write(root, dict.fromkeys([*junk, ".mypy_cache/x", ".DS_Store", ".ipynb_checkpoints/n.ipynb"], "x"))

    assert taken(root).paths == ("data/.keep", "sub/model.py", "train.py")


def test_a_package_called_wandb_is_code(root: Path) -> None:
    write(root, {"wandb/__init__.py": "", "wandb/sub/x.py": "", "other/wandb/run": ""})

    assert taken(root).paths == ("wandb/__init__.py", "wandb/sub/x.py")


def test_gitignore_is_honoured_at_every_depth(root: Path) -> None:
    write(root, {".gitignore": "*.log\n/data/\n!keep.log\n", "sub/.gitignore": "!*.log\n/only_here\n"})
    write(root, dict.fromkeys(["a.log", "keep.log", "data/x", "sub/data/x", "sub/b.log", "sub/only_here"], "x"))
    write(root, dict.fromkeys(["only_here", "sub/deep/only_here"], "x"))

    assert [name for name in taken(root).paths if not name.endswith(".gitignore")] == [
        "keep.log",
        "only_here",
        "sub/b.log",
        "sub/data/x",
        "sub/deep/only_here",
    ]


def test_launchignore_is_honoured(root: Path) -> None:
    write(root, {".launchignore": "big/\n*.ckpt\n!best.ckpt\n"})
    write(root, dict.fromkeys(["train.py", "big/a", "sub/big/b", "x.ckpt", "sub/best.ckpt"], "x"))

    assert taken(root).paths == (".launchignore", "sub/best.ckpt", "train.py")


def test_launchignore_leaves_out_what_git_tracks(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, {"train.py": "", "tests/data.bin": "x", ".launchignore": "tests/\n"})
    git(tmp_path, "add", ".")

    assert taken(tmp_path).paths == (".launchignore", "train.py")


def test_git_keeps_tracked_changed_and_new_but_not_deleted_files(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, {"tracked.py": "old", "gone.py": "", "forced.log": "", ".gitignore": "*.log\n"})
    git(tmp_path, "add", "-f", ".")
    write(tmp_path, {"tracked.py": "new", "untracked.py": "", "other.log": ""})
    (tmp_path / "gone.py").unlink()

    with snapshot(tmp_path) as snap:
        assert snap.paths == (".gitignore", "forced.log", "tracked.py", "untracked.py")
        with tarfile.open(snap.archive) as tar:
            assert tar.extractfile("tracked.py").read() == b"new"  # type: ignore[union-attr]


def test_a_folder_of_a_work_tree_is_taken_alone(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, {".gitignore": "*.log\n", "job/train.py": "", "job/x.log": "", "elsewhere.py": ""})

    assert taken(tmp_path / "job").paths == ("train.py",)


def test_a_folder_that_the_work_tree_ignores_is_taken_when_asked_for(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, {".gitignore": "scratch/\n", "scratch/train.py": "", "scratch/.gitignore": "*.log\n"})
    write(tmp_path, {"scratch/x.log": ""})

    assert taken(tmp_path / "scratch").paths == (".gitignore", "train.py")


def test_submodules_are_kept_and_a_missing_one_is_noted(tmp_path: Path) -> None:
    for name in ("library", "code"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
    write(tmp_path / "library", {"lib.py": "", ".gitignore": "*.log\n"})
    git(tmp_path / "library", "add", ".")
    git(tmp_path / "library", "commit", "-qm", "x")
    write(tmp_path / "code", {"train.py": ""})
    git(tmp_path / "code", "submodule", "add", "-q", str(tmp_path / "library"), "vendored")
    write(tmp_path / "code", {"vendored/x.log": "", "vendored/new.py": ""})

    snap = taken(tmp_path / "code")
    assert snap.paths == (".gitmodules", "train.py", "vendored/.gitignore", "vendored/lib.py", "vendored/new.py")
    assert snap.notes == ()

    shutil.rmtree(tmp_path / "code" / "vendored")
    (tmp_path / "code" / "vendored").mkdir()
    snap = taken(tmp_path / "code")
    assert snap.paths == (".gitmodules", "train.py")
    assert snap.notes == ("submodule vendored is not checked out, so its files are left out",)


def test_gits_own_variables_do_not_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a git hook, where they name the repository of the commit."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
    write(tmp_path / "one", {"a.py": ""})
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "two" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "two"))

    assert taken(tmp_path / "one").paths == ("a.py",)


def test_links_inside_are_kept_as_links(root: Path, tmp_path: Path) -> None:
    write(root, {"sub/a.py": "x", "data/d": "y"})
    (root / "to_file").symlink_to("sub/a.py")
    (root / "sub" / "up").symlink_to("../data")
    (root / "dangling").symlink_to("not/here")
    (root / "loop").symlink_to("loop")
    with snapshot(root) as snap:
        out = extracted(snap, tmp_path / "out")

    assert {name: os.readlink(out / name) for name in ("to_file", "sub/up", "dangling", "loop")} == {
        "to_file": "sub/a.py",
        "sub/up": "../data",
        "dangling": "not/here",
        "loop": "loop",
    }
    assert (out / "sub" / "up" / "d").read_text() == "y"


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "sub/../../outside", "sub/way_out", "{root}/sub/a.py"])
def test_links_that_lead_out_are_refused(root: Path, target: str) -> None:
    write(root, {"sub/a.py": "", "../outside": ""})
    if "way_out" in target:
        (root / "sub" / "way_out").symlink_to("../..")
        write(root, {".launchignore": "way_out\n"})
    (root / "link").symlink_to(target.format(root=root))

    with pytest.raises(ConfigError, match=r"the link link leads out of the folder"):
        taken(root)


def test_a_link_to_a_folder_may_be_the_path(tmp_path: Path) -> None:
    write(tmp_path, {"code/a.py": ""})
    (tmp_path / "link").symlink_to("code")

    assert taken(tmp_path / "link").paths == ("a.py",)


def test_pipes_are_left_out(root: Path) -> None:
    write(root, {"a.py": ""})
    os.mkfifo(root / "pipe")

    assert taken(root).paths == ("a.py",)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_nothing_to_snapshot_is_an_error(root: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to run"):
        taken(root)
    write(root, {"wandb/x": "", ".venv/y": ""})
    with pytest.raises(ConfigError, match="nothing to run"):
        taken(root)


def test_too_much_names_the_biggest(root: Path) -> None:
    write(root, {"small.py": "x" * 10, "models/big.bin": "x" * 5000, "ignored": "x" * 9000, ".launchignore": "ignored"})

    with pytest.raises(ConfigError, match=r"the biggest: models/big\.bin .*\.launchignore"):
        taken(root, max_bytes=5000)
    assert taken(root, max_bytes=5017).content_bytes == 5017


def test_a_file_of_2_gib_is_refused_unread(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, {"train.py": "x\n"})
    with (tmp_path / "checkpoint.pt").open("wb") as file:
        file.truncate(2 << 30)

    with pytest.raises(ConfigError, match=r"more than the 536\.9 MB .* the biggest: checkpoint\.pt \(2,147\.5 MB\)"):
        taken(tmp_path)
    write(tmp_path, {".launchignore": "*.pt\n"})
    assert taken(tmp_path).paths == (".launchignore", "train.py")


def test_50_000_files_are_packed(tmp_path: Path) -> None:
    for number in range(50_000):
        if number % 1_000 == 0:
            (tmp_path / f"{number // 1_000}").mkdir()
        os.close(os.open(tmp_path / f"{number // 1_000}" / f"{number}.py", os.O_CREAT))

    with snapshot(tmp_path) as snap:
        check_archive(snap.archive)
        assert snap.files == 50_000


def test_1_200_folders_in_each_other_are_packed(tmp_path: Path) -> None:
    for depth in (600, 1_200):
        os.makedirs(tmp_path / "/".join("d" * depth), exist_ok=True)
    (tmp_path / ("d/" * 1_200) / "deep.py").touch()

    try:
        with snapshot(tmp_path) as snap:
            check_archive(snap.archive)
            assert snap.paths == ("d/" * 1_200 + "deep.py",)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for shutil


def test_a_path_that_is_too_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"train.py": ""})
    monkeypatch.chdir(tmp_path)
    for _ in range(25):  # 5,000 bytes, where 4,096 can be named at once
        os.mkdir("d" * 200)
        os.chdir("d" * 200)

    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        taken(tmp_path)


def test_a_path_that_is_no_folder_says_what_to_give(tmp_path: Path) -> None:
    write(tmp_path, {"train.py": ""})

    with pytest.raises(ConfigError, match=r"not the file .*train\.py; give .* 'python train\.py'"):
        taken(tmp_path / "train.py")
    with pytest.raises(ConfigError, match="no folder"):
        taken(tmp_path / "nowhere")


def test_a_work_tree_that_git_does_not_read_is_an_error(tmp_path: Path) -> None:
    """Guessing instead would take along what git ignores."""
    write(tmp_path, {"a.py": "", ".git/HEAD": "nonsense"})

    with pytest.raises(ConfigError, match="git cannot list"):
        taken(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda path: path.write_text("xxxx"), lambda path: path.write_text(""), Path.unlink]
)
def test_a_file_that_changes_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    write(tmp_path, {"a.py": "xx"})
    monkeypatch.setattr("launch.snapshots._check_size", lambda *_: change(tmp_path / "a.py"))

    with pytest.raises(TemporaryError, match=r"a\.py .* the snapshot.* try again"):
        taken(tmp_path)


# --- requirements ----------------------------------------------------------------------------------------------------


def test_requirements_are_read_with_what_they_include(tmp_path: Path) -> None:
    write(tmp_path, {"requirements.txt": "-r deps/base.txt  # shared\nwandb>=0.17\n", "deps/base.txt": "-rmore.txt\n"})
    write(tmp_path, {"deps/more.txt": "numpy==1.26 \\\n    --hash=sha256:00\n--index-url https://example.org/x\n"})

    assert read_requirements(tmp_path, None) == (
        "# -r deps/base.txt\n# -rmore.txt\nnumpy==1.26 \\\n    --hash=sha256:00\n"
        "--index-url https://example.org/x\nwandb>=0.17\n"
    )


def test_no_requirements_are_none(tmp_path: Path) -> None:
    assert read_requirements(tmp_path) is None
    assert read_requirements(write(tmp_path, {"requirements.txt": "# nothing\n\n"})) is None


def test_an_explicit_file_goes_first_and_must_be_there(tmp_path: Path) -> None:
    write(tmp_path, {"requirements.txt": "a\n", "other.txt": "\ufeffb\r\n"})

    assert read_requirements(tmp_path, tmp_path / "other.txt") == "b\n"
    with pytest.raises(ConfigError, match=r"nowhere\.txt, cannot be read"):
        read_requirements(tmp_path, tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-r missing.txt", r"missing\.txt, which .*requirements\.txt includes, cannot be read"),
        ("-r requirements.txt", "includes itself"),
        ("--requirement=https://example.org/r.txt", "may change between two runs"),
        ("-c constraints.txt", "constraints cannot travel"),
        ("--constraint constraints.txt", "constraints cannot travel"),
        ("-e .", "without the job's code"),
        ("--editable=src/package", "without the job's code"),
        (".", "without the job's code"),
        (".[dev]", "without the job's code"),
        ("./package", "without the job's code"),
        ("../package", "without the job's code"),
        ("/opt/package", "without the job's code"),
        ("package @ file:///opt/package", "without the job's code"),
    ],
)
def test_a_line_that_cannot_travel_is_named(tmp_path: Path, line: str, why: str) -> None:
    write(tmp_path, {"requirements.txt": f"numpy\n{line}\n"})

    with pytest.raises(ConfigError, match=why):
        read_requirements(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.4.0+cu121",
        "package @ https://example.org/package-1.whl",
        "-e git+https://example.org/a/b.git@v1#egg=b",
        "--find-links https://example.org/wheels",
        "requests[security]>=2 ; python_version < '3.12'",
        "--constraints-are-fun",
    ],
)
def test_other_lines_are_kept_as_they_are(tmp_path: Path, line: str) -> None:
    assert read_requirements(write(tmp_path, {"requirements.txt": line})) == line + "\n"


def test_notes_warn_of_missing_wandb_and_of_passwords() -> None:
    assert requirement_notes("numpy\nwandb==0.20\n", needs_wandb=True) == []
    assert requirement_notes(None, needs_wandb=False) == []
    for text in (None, "numpy\n", "# wandb\n", "mywandb-fork2x\n"[2:]):
        assert "wandb.init" in requirement_notes(text, needs_wandb=True)[0]
    assert "password" in requirement_notes("--index-url https://me:secret@example.org\n", needs_wandb=False)[0]
    assert requirement_notes("--index-url https://me:${TOKEN}@example.org\n", needs_wandb=False) == []


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python train.py --lr 0.1", ("python", "train.py", "--lr", "0.1")),
        ("sh -c 'echo \"a b\"; exit 1'", ("sh", "-c", 'echo "a b"; exit 1')),
        ("train.py", ("python", "train.py")),
        ("src/train.py --lr 1", ("python", "src/train.py", "--lr", "1")),
        ("./train.py", ("./train.py",)),
        ("/opt/train.py", ("/opt/train.py",)),
        (["train.py", "a b"], ("python", "train.py", "a b")),
        ("python train.py ''", ("python", "train.py", "")),
        ("python x..y.py ...", ("python", "x..y.py", "...")),
    ],
)
def test_entrypoints_are_split_as_a_shell_would(text: str | list[str], words: tuple[str, ...]) -> None:
    assert parse_entrypoint(text) == words


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=1))
def test_a_quoted_command_comes_back(words: list[str]) -> None:
    import shlex

    words = ["program", *(word.replace("..", "") for word in words)]

    assert parse_entrypoint(shlex.join(words)) == tuple(words)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("python 'train.py", "unbalanced quotes"),
        ("python train.py\\", "unbalanced quotes or a stray backslash"),
        ("", "names no program"),
        ("  ", "names no program"),
        ("'' x", "names no program"),
        ("python ../train.py", r"'\.\./train\.py' leads out"),
        ("python train.py --out=a/../../b", "leads out"),
        ([], "names no program"),
        (["python", "a\0b"], "zero character"),
    ],
)
def test_bad_entrypoints_are_refused_with_the_reason(text: str | list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=f"entrypoint: .*{why}"):
        parse_entrypoint(text)


@pytest.mark.parametrize(
    "reference",
    [
        "python",
        "python:3.12-slim",
        "library/python",
        "localhost:5000/team/train:v1",
        "example.org/a/b__c/d--e:T_1.x",
        "[::1]:5000/a",
        f"python:3@sha256:{'0' * 64}",
        f"sha256:{'a' * 64}",
        "a" * 255,
    ],
)
def test_image_references_are_accepted(reference: str) -> None:
    assert check_image(reference) == reference


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", ""),
        ("a b", "white space"),
        ("python:3\n", "white space"),
        ("Python:3", "did you mean 'python:3'"),
        ("-v", ""),
        ("python:", ""),
        ("python:3@sha256:00", ""),
        ("a//b", ""),
        ("https://example.org/a", ""),
        ("a;rm -rf", "white space"),
        ("$(x)", ""),
        ("a" * 256, "over 255"),
        ("pythön", ""),
    ],
)
def test_bad_image_references_are_refused(reference: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)image: should be like .*not .*{why}"):
        check_image(reference)


@pytest.mark.parametrize("text", ["3", "3.11.4", "2.7", "python3.11", "3.x", "3.11\n", "3.¹"])
def test_bad_python_versions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"should be like '3\.11'"):
        check_python_version(text)
    assert check_python_version("3.12") == "3.12"
