"""Jobs of code from the folder to the run: what a version remembers, what differs between two, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from launch.cli import cli
from launch.client import Client
from launch.models import CauseKind, CodeSource, Job, RunState, Tracking
from launch.settings import settings
from tests.agents import Fleet

pytestmark = pytest.mark.redis


def git(root: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *command], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A work tree with one commit."""
    root = tmp_path / "code"
    root.mkdir()
    (root / "train.py").write_text("import wandb\n")
    (root / "requirements.txt").write_text("wandb\nnumpy==1.0\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    return root


@pytest.fixture
def shell(
    client: Client, monkeypatch: pytest.MonkeyPatch, redis_url: str, home: Path
) -> Iterator[Callable[..., Result]]:
    """``launch WORDS…`` in this process."""
    monkeypatch.setenv("LAUNCH_BROKER_URL", redis_url)
    monkeypatch.setenv("LAUNCH_HOME", str(home))
    settings.cache_clear()
    yield lambda *words: CliRunner().invoke(cli, [str(word) for word in words])
    settings.cache_clear()


def created(client: Client, code: Path, **given: Any) -> str:
    return client.create_job("digits", path=code, entrypoint="python train.py", **given).ref


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_commit_without_a_change_is_no_new_version(client: Client, code: Path) -> None:
    assert created(client, code) == "digits:v0"
    (code / "train.py").write_text("import wandb  # two\n")
    assert created(client, code) == "digits:v1"

    git(code, "commit", "-qam", "two")

    assert created(client, code) == "digits:v1"
    source = client.registry.get("digits:v1").job.source
    assert isinstance(source, CodeSource)
    assert source.origin is not None
    assert source.origin.dirty == ("train.py",)  # as it was when the version was made


def test_all_that_is_chosen_is_kept(client: Client, code: Path) -> None:
    (code / "docker").mkdir()
    (code / "docker" / "gpu").write_text("FROM x\n")
    (code / "runtime.txt").write_text("python-3.12.1\n")

    ref = created(client, code, dockerfile="docker/gpu", base_image="team/base:v1", apt=["libgl1", "git", "libgl1"])

    job = client.registry.get(ref).job
    assert (job.dockerfile, job.base_image, job.apt) == ("docker/gpu", "team/base:v1", ("libgl1", "git"))
    assert job.python_version == "3.12"


def test_an_unnamed_job_is_described_alike(client: Client, code: Path) -> None:
    (code / ".python-version").write_text("3.11.2\n")
    (code / "Dockerfile.wandb").write_text("FROM x\n")

    job = client.build(path=code, entrypoint="python train.py", queue="q").job

    assert (job.python_version, job.dockerfile) == ("3.11", "Dockerfile.wandb")
    assert isinstance(job.source, CodeSource)
    assert job.source.origin is not None
    assert job.source.origin.commit == git(code, "rev-parse", "HEAD").strip()


def test_an_alias_moves(client: Client, shell: Callable[..., Result], code: Path) -> None:
    created(client, code, aliases=["prod"])
    (code / "new.py").touch()
    created(client, code)

    said = shell("job", "alias", "digits:v1", "prod")

    assert (said.exit_code, said.output) == (0, "digits:prod is digits:v1 now\n")
    assert client.registry.aliases("digits") == {"latest": 1, "prod": 1}
    for ref, alias, why in [
        ("digits:v9", "x", "has no version"),
        ("digits", "v3", "gives out itself"),
        ("no", "x", "no job"),
    ]:
        refused = shell("job", "alias", ref, alias)
        assert refused.exit_code == 2
        assert why in refused.output
    assert client.registry.aliases("digits") == {"latest": 1, "prod": 1}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-r", "3"], "python_version"),
        (["-D", "Dockerfile"], "dockerfile"),
        (["-b", "../x"], "build_context"),
        (["-B", "a b"], "base_image"),
        (["--apt", "a b"], "apt"),
    ],
)
def test_a_refused_job_leaves_nothing_behind(
    client: Client, shell: Callable[..., Result], code: Path, options: list[str], why: str
) -> None:
    said = shell("job", "create", "code", code, "-n", "digits", "-E", "python train.py", *options)

    assert said.exit_code == 2
    assert why in said.output
    assert client.jobs() == []


def test_a_dockerfile_that_is_ignored_is_missed_at_once(client: Client, code: Path) -> None:
    (code / "Dockerfile.launch").write_text("FROM x\n")
    (code / ".launchignore").write_text("Docker*\n")

    with pytest.raises(Exception, match=r"dockerfile: 'Dockerfile.launch' in .* is left out of the snapshot"):
        created(client, code)


# --- show and diff ---------------------------------------------------------------------------------------------------


def test_show_tells_where_the_code_comes_from(client: Client, shell: Callable[..., Result], code: Path) -> None:
    commit = git(code, "rev-parse", "HEAD").strip()
    git(code, "remote", "add", "origin", "https://me:secret@example.org/digits.git")
    (code / "train.py").write_text("import wandb  # two\n")
    (code / "new.py").touch()
    created(client, code, apt=["git"])

    text = shell("job", "show", "digits").output

    for line in (
        "source         code, 3 files, 0.00 MB packed",
        "remote         https://example.org/digits.git",
        f"base commit    {commit} (main)",
        "changed since  new.py\n               train.py\n",
        "requirements   wandb\n               numpy==1.0\n",
        "apt packages   git",
    ):
        assert line in text
    assert "+import wandb  # two" in shell("job", "show", "digits", "--diff").output
    data = json.loads(shell("job", "show", "digits", "--diff", "--json").output)
    assert data["job"]["source"]["origin"]["dirty"] == ["new.py", "train.py"]
    assert "-import wandb\n+import wandb  # two\n" in data["diff"]


def test_a_folder_without_git_has_no_diff(client: Client, shell: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    created(client, tmp_path)

    assert "base commit" not in shell("job", "show", "digits").output
    said = shell("job", "show", "digits", "--diff")
    assert said.exit_code == 2
    assert "no git work tree" in said.output


def test_a_diff_tells_settings_requirements_and_files(client: Client, shell: Callable[..., Result], code: Path) -> None:
    (code / "old.py").write_text("old\n")
    (code / "data.bin").write_bytes(b"\0\1")
    (code / "run.sh").write_text("true\n")
    (code / "link").symlink_to("train.py")
    created(client, code)
    (code / "old.py").unlink()
    (code / "new.py").write_text("new\n")
    (code / "data.bin").write_bytes(b"\0\2")
    (code / "run.sh").chmod(0o755)
    (code / "link").unlink()
    (code / "link").symlink_to("new.py")
    (code / "train.py").write_text("import wandb\nwandb.init()\n")
    (code / "requirements.txt").write_text("wandb\nnumpy==2.0\n")
    client.create_job("digits", path=code, entrypoint="python train.py --lr '1 2'", apt=["git"])

    text = shell("job", "diff", "digits", "v0").output
    data = json.loads(shell("job", "diff", "digits", "v0", "v1", "--json").output)

    assert data["fields"] == {
        "entrypoint": [["python", "train.py"], ["python", "train.py", "--lr", "1 2"]],
        "apt": [None, ["git"]],
    }
    assert (data["before"], data["after"]) == ("digits:v0", "digits:v1")
    assert (data["added"], data["removed"]) == (["new.py"], ["old.py"])
    assert sorted(data["changed"]) == ["data.bin", "link", "requirements.txt", "run.sh", "train.py"]
    assert data["changed"]["data.bin"] == data["changed"]["run.sh"] == []
    assert data["changed"]["link"][-2:] == ["-link to train.py", "+link to new.py"]
    assert data["changed"]["train.py"][-1] == "+wandb.init()"
    assert data["requirements"][-2:] == ["-numpy==1.0", "+numpy==2.0"]
    for line in (
        "entrypoint: python train.py -> python train.py --lr '1 2'",
        "apt: none -> git",
        "removed: old.py",
        "added: new.py",
        "changed: data.bin",
        "--- digits:v0/train.py\n+++ digits:v1/train.py",
        "+wandb.init()",
    ):
        assert line in text
    assert shell("job", "diff", "digits", "v0", "v0").output == "both are digits:v0\n"


def test_versions_of_other_kinds_differ_in_their_settings(
    client: Client, shell: Callable[..., Result], code: Path
) -> None:
    created(client, code)
    client.create_job("digits", image="team/digits:v1")

    text = shell("job", "diff", "digits", "v0", "v1").output

    assert "source: code -> image" in text
    assert "image: none -> team/digits:v1" in text
    assert "entrypoint: python train.py -> none" in text


# --- at the target ---------------------------------------------------------------------------------------------------


def archive_with(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, linkname, type_ in (
            (tarfile.TarInfo("train.py"), "", tarfile.REGTYPE),
            (tarfile.TarInfo(name), link, kind),
        ):
            member.linkname, member.type = linkname, type_
            tar.addfile(member)
    return gzip.compress(buffer.getvalue())


@pytest.mark.parametrize(
    ("name", "kind", "link", "why"),
    [
        ("{outside}", tarfile.REGTYPE, "", "is outside of its folder"),
        ("../../../../escaped", tarfile.REGTYPE, "", "is outside of its folder"),
        ("link", tarfile.SYMTYPE, "{outside}", "is a link out of its folder"),
        ("hard", tarfile.LNKTYPE, "/etc/passwd", "is neither a file"),
        ("null", tarfile.CHRTYPE, "", "is neither a file"),
    ],
)
def test_a_hostile_blob_in_a_shared_store_is_not_unpacked(
    client: Client, fleet: Fleet, tmp_path: Path, home: Path, name: str, kind: bytes, link: str, why: str
) -> None:
    """Its digest is right, since whoever may write to the store put it there."""
    outside = str(tmp_path / "escaped")
    blob = archive_with(name.format(outside=outside), kind, link.format(outside=outside))
    source = CodeSource(archive=client.artifacts.put_bytes(blob), archive_bytes=len(blob), files=2)
    job = Job(source=source, entrypoint=("python3", "train.py"), tracking=Tracking.OPTIONAL)
    client.registry.create("hostile", job)
    fleet.start("q")

    run = client.enqueue(job="hostile", queue="q")
    run.wait(timeout_s=60)

    assert (run.state, run.cause and run.cause.kind) == (RunState.FAILED, CauseKind.CONFIG)
    assert run.cause is not None
    assert f"the job's code is refused: {name.format(outside=outside)!r} {why}" in run.cause.message
    assert not Path(outside).exists()
    assert not list((home / "cache" / "code").glob(f"*{source.archive}*"))


def test_what_is_for_images_only_is_noted_where_none_is_built(client: Client, fleet: Fleet, tmp_path: Path) -> None:
    root = tmp_path / "folder"
    root.mkdir()
    (root / "train.py").write_text("print('ran')\n")
    (root / "Dockerfile.launch").write_text("FROM x\n")
    client.create_job("d", path=root, entrypoint="python train.py", tracking="optional", apt=["git", "libgl1"])
    fleet.start("q")

    run = client.enqueue(job="d", queue="q")
    run.wait(timeout_s=120)

    log = list(run.logs())
    assert run.state is RunState.FINISHED, (run.cause, log)
    assert "ran" in log
    noted = "left out: Dockerfile (Dockerfile.launch), apt packages (git libgl1)"
    assert any(line.endswith(noted) and "only the job's requirements count" in line for line in log)
