"""What a folder says about the job in it, and in which order its files are heeded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from launch.errors import ConfigError
from launch.job_files import JobFiles, describe
from launch.models import Job, Tracking


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "code", {"train.py": "", "sub/train.py": "", "requirements.txt": "wandb\n"})


def test_a_plain_folder_leaves_all_to_the_builder(root: Path) -> None:
    found = describe(root, "python train.py --lr '1 2'")

    assert found == JobFiles(
        root=None,
        entrypoint=("python", "train.py", "--lr", "1 2"),
        python_version=None,
        requirements="wandb\n",
        dockerfile=None,
        base_image=None,
        apt=(),
        notes=(),
    )
    assert {*found.job_fields()} <= {*Job.model_fields}


# --- the Python version ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "given", "version"),
    [
        ({"runtime.txt": "python-3.11.4\n"}, None, "3.11"),
        ({"runtime.txt": "python-3.9"}, None, "3.9"),
        ({"runtime.txt": "3.8.9"}, None, "3.8"),
        ({"runtime.txt": "\ufeff Python-3.12.1 \r\n"}, None, "3.12"),
        ({".python-version": "3.10.2\n"}, None, "3.10"),
        ({".python-version": "# pyenv\n\n3.13\n3.12\n"}, None, "3.13"),
        ({".python-version": "cpython@3.12"}, None, "3.12"),
        ({".python-version": "3.14.0rc1"}, None, "3.14"),
        ({"runtime.txt": "3.11", ".python-version": "3.12"}, None, "3.11"),
        ({"runtime.txt": "nonsense", ".python-version": "3.12"}, "3.9", "3.9"),
    ],
)
def test_the_python_version(root: Path, files: dict[str, str], given: str | None, version: str) -> None:
    assert describe(write(root, files), "python train.py", python_version=given).python_version == version


@pytest.mark.parametrize(
    ("name", "text", "like"),
    [
        ("runtime.txt", "python-2.7.18", "'python-3.11.4', not 'python-2.7.18'"),
        ("runtime.txt", "pypy-7.3", "not 'pypy-7.3'"),
        ("runtime.txt", "", "not ''"),
        (".python-version", "my-environment", "'3.11', not 'my-environment'"),
        (".python-version", "3", "not '3'"),
        (".python-version", "3.13t", "not '3.13t'"),
        (".python-version", "\0" * 9000, "not "),
    ],
)
def test_a_bad_version_names_file_and_value(root: Path, name: str, text: str, like: str) -> None:
    with pytest.raises(ConfigError) as caught:
        describe(write(root, {name: text}), "python train.py")
    assert str(root / name) in str(caught.value)
    assert like in str(caught.value)
    assert len(str(caught.value)) < 600


# --- Dockerfile and build context ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "command", "expected"),
    [
        (["Dockerfile"], "python train.py", (None, None, "python train.py")),
        (["Dockerfile.wandb"], "python train.py", (None, "Dockerfile.wandb", "python train.py")),
        (["Dockerfile.wandb", "Dockerfile.launch"], "python train.py", (None, "Dockerfile.launch", "python train.py")),
        (["sub/Dockerfile.wandb"], "python train.py", (None, None, "python train.py")),
        (["sub/Dockerfile.wandb"], "python -m sub.train", (None, None, "python -m sub.train")),
        (["sub/Dockerfile.wandb"], "python sub/train.py x", ("sub", "Dockerfile.wandb", "python train.py x")),
        (["sub/Dockerfile.launch"], "python3.11 ./sub/train.py", ("sub", "Dockerfile.launch", "python3.11 train.py")),
        (["sub/Dockerfile.launch"], "./sub/train.py 1", ("sub", "Dockerfile.launch", "./train.py 1")),
        (
            ["sub/Dockerfile.wandb"],
            "python -u -X dev sub/train.py",
            ("sub", "Dockerfile.wandb", "python -u -X dev train.py"),
        ),
        (["Dockerfile.wandb"], "torchrun sub/train.py", (None, "Dockerfile.wandb", "torchrun sub/train.py")),
        (["Dockerfile.wandb"], "python -m sub.train", (None, "Dockerfile.wandb", "python -m sub.train")),
    ],
)
def test_a_dockerfile_beside_the_script_makes_its_folder_the_root(
    root: Path, files: list[str], command: str, expected: tuple[str | None, str | None, str]
) -> None:
    found = describe(write(root, dict.fromkeys(files, "FROM x")), command)

    assert (found.root, found.dockerfile, " ".join(found.entrypoint)) == expected


def test_a_root_of_its_own_has_its_own_files(root: Path) -> None:
    write(root, {"sub/Dockerfile.wandb": "FROM x", "sub/runtime.txt": "3.12", "sub/requirements.txt": "torch\n"})

    found = describe(root, "python sub/train.py")

    assert (found.python_version, found.requirements) == ("3.12", "torch\n")
    assert found.notes == ()  # what its image has installed, the Dockerfile knows


def test_a_build_context_is_the_root(root: Path) -> None:
    write(root, {"sub/docker/gpu": "FROM x", "sub/deep/model.py": ""})

    found = describe(root, "python train.py", build_context="./sub/", dockerfile="docker/gpu")
    assert (found.root, found.dockerfile, found.requirements) == ("sub", "docker/gpu", None)
    assert describe(root, "python train.py", build_context=".").root is None
    write(root, {"sub/deep/Dockerfile.wandb": "FROM x"})
    assert describe(root, "python deep/model.py", build_context="sub").root == "sub/deep"


def test_an_own_dockerfile_goes_before_the_one_beside_the_script(root: Path) -> None:
    write(root, {"sub/Dockerfile.wandb": "FROM x", "gpu.Dockerfile": "FROM y"})

    found = describe(root, "python sub/train.py", dockerfile="gpu.Dockerfile")

    assert (found.root, found.dockerfile, found.entrypoint[1]) == (None, "gpu.Dockerfile", "sub/train.py")


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"dockerfile": "Dockerfle"}, "no such file in .*; did you mean 'Dockerfile'"),
        ({"dockerfile": "sub"}, "is a folder"),
        ({"dockerfile": "../Dockerfile"}, r"leads out .* without '\.\.'"),
        ({"dockerfile": "/etc/Dockerfile"}, "leads out"),
        ({"dockerfile": "escape"}, "leads out"),
        ({"dockerfile": " "}, "is no path"),
        ({"build_context": "subs"}, "no such folder in .*; did you mean 'sub'"),
        ({"build_context": "train.py"}, "is a file"),
        ({"build_context": "sub/../.."}, "leads out"),
        ({"build_context": "away"}, "leads out"),
        ({"build_context": ""}, "is no path"),
        ({"base_image": "python:3.12\nRUN evil"}, "base_image: .*white space"),
        ({"base_image": "Python"}, "base_image: .*lower-case"),
        ({"apt": ["libgl1", "ffmpeg; rm -rf /"]}, "apt: .*'ffmpeg; rm -rf /'"),
        ({"apt": ["-y"]}, "apt: .*'-y'"),
        ({"entrypoint": "python ../train.py"}, r"'\.\.'"),
        ({"entrypoint": "python trian.py"}, "'trian.py' is not in .*: no such file; did you mean 'train.py'"),
        ({"entrypoint": None}, r"is required, since .* has no main\.py; for example 'python train\.py'"),
        ({"python_version": "3.11.2"}, "python_version"),
    ],
)
def test_what_is_wrong_or_missing_is_named(root: Path, tmp_path: Path, choice: dict[str, object], why: str) -> None:
    write(root, {"Dockerfile": "FROM x"})
    write(tmp_path, {"elsewhere/Dockerfile": "FROM x"})
    (root / "escape").symlink_to(tmp_path / "elsewhere" / "Dockerfile")
    (root / "away").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match=why):
        describe(root, **{"entrypoint": "python train.py", **choice})  # type: ignore[arg-type]


# --- notes, and code of others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "is_noted"),
    [
        ({}, True),
        ({"tracking": Tracking.OPTIONAL}, False),
        ({"base_image": "team/all-in-it"}, False),
        ({"dockerfile": "Dockerfile"}, False),
    ],
)
def test_missing_wandb_is_noted_where_it_matters(root: Path, choice: dict[str, object], is_noted: bool) -> None:
    write(root, {"requirements.txt": "numpy\n", "Dockerfile": "FROM x"})

    assert bool(describe(root, "python train.py", **choice).notes) is is_noted  # type: ignore[arg-type]


def test_what_a_dockerfile_installs_itself_may_be_anything(root: Path) -> None:
    write(root, {"requirements.txt": "-e .\n", "Dockerfile.launch": "FROM x"})

    found = describe(root, "python train.py")

    assert found.requirements is None
    assert "without the job's code" in found.notes[0]
    with pytest.raises(ConfigError, match="without the job's code"):
        describe(root, "python train.py", requirements=root / "requirements.txt")


def test_a_script_without_a_program_is_noted(root: Path) -> None:
    found = describe(root, "train.py --lr 1")

    assert found.entrypoint[:2] == ("python", "train.py")
    assert "became 'python train.py --lr 1'" in found.notes[0]


@pytest.mark.parametrize(
    "name", ["requirements.txt", ".python-version", "pyproject.toml", "uv.lock", "Dockerfile.wandb"]
)
def test_links_in_code_of_others_lead_to_no_file_of_this_machine(root: Path, tmp_path: Path, name: str) -> None:
    write(tmp_path, {"secret": "secret\n"})
    (root / "requirements.txt").unlink()
    (root / name).symlink_to(tmp_path / "secret")

    with pytest.raises(ConfigError, match="leads out of") as caught:
        describe(root, "python train.py", trusted=False)
    assert "secret\n" not in str(caught.value)


def test_includes_in_code_of_others_stay_inside(root: Path, tmp_path: Path) -> None:
    write(tmp_path, {"secret": "secret\n"})
    write(root, {"requirements.txt": f"-r {tmp_path}/secret\n"})

    assert describe(root, "python train.py", tracking=Tracking.OPTIONAL).requirements is not None
    with pytest.raises(ConfigError, match="leads out of"):
        describe(root, "python train.py", trusted=False)
