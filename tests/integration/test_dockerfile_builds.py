"""Images made by a job's own Dockerfile, with a real engine."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from docker_builds import MakeBuilder, built, bytes_of, code_archive, commit, output_of

from launch.errors import BuildError, PermanentError
from launch.plugins import BuildRequest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "code"


def dockerfile_job(folder: Path, files: dict[str, str], dockerfile: str = "Dockerfile", **more: Any) -> BuildRequest:
    """Return a request for an image of these files."""
    return BuildRequest(None, None, None, code=code_archive(folder, files), dockerfile=dockerfile, **more)


def test_it_runs_as_its_dockerfile_says(make_builder: MakeBuilder, fresh: str, api: Any, folder: Path) -> None:
    """Working directory, user and code are the image's own; its labels say what job it is."""
    text = f"FROM {fresh}\nUSER 1234\nWORKDIR /somewhere\nCOPY . .\nRUN cat train.py\nCMD python train.py\n"
    labels = {"org.opencontainers.image.title": f"job-{secrets.token_hex(4)}", "org.opencontainers.image.version": "v3"}
    files = {"Dockerfile": text, "train.py": "import os; print(os.getcwd(), os.getuid(), sorted(os.listdir()))"}
    log: list[str] = []
    build = built(make_builder(), dockerfile_job(folder, files, labels=labels), log)

    assert build.holds_code
    assert build.because == f"built image of Dockerfile {build.image}: first run with this Dockerfile"
    assert output_of(api, build.image) == "/somewhere 1234 ['Dockerfile', 'train.py']\n"
    assert "RUN cat train.py" in "".join(log)
    assert labels.items() <= api.inspect_image(build.image)["Config"]["Labels"].items()


def test_only_what_it_could_see_makes_another_one(
    make_builder: MakeBuilder, fresh: str, api: Any, folder: Path
) -> None:
    """A file that is ignored, or outside of the context, builds nothing; one of the context does."""
    job = {"org.opencontainers.image.title": f"job-{secrets.token_hex(4)}"}
    files = {
        "docker/gpu.Dockerfile": f"FROM {fresh}\nCOPY . /app/\nCMD ls -A /app /app/sub\n",
        "src/main.py": "1",
        "src/sub/kept.txt": "k",
        "src/Data/kept.txt": "k",
        "src/data/large.bin": "x" * 100_000,
        "src/.dockerignore": "# not this\ndata\n*.log\n!sub/kept.txt\n",
        "src/a.log": "1",
        "notes.md": "1",
    }

    def build(**changed: str) -> Any:
        given = files | {name.replace("__", "/").replace("_dot_", "."): text for name, text in changed.items()}
        wanted = dockerfile_job(folder, given, "docker/gpu.Dockerfile", context="src", labels=job)
        return built(make_builder(), wanted)

    first = build()
    assert output_of(api, first.image) == "/app:\n.dockerignore\nData\nmain.py\nsub\n\n/app/sub:\nkept.txt\n"
    for unseen in ({"notes_dot_md": "2"}, {"src__a_dot_log": "2"}, {"src__data__large_dot_bin": "2"}):
        again = build(**unseen)
        assert (again.image, again.reused) == (first.image, True)
        assert again.because == f"reused image of docker/gpu.Dockerfile {first.image}, same Dockerfile, files and base"
    edited = build(src__main_dot_py="2")
    assert edited.because.endswith(": files of the build context changed")
    assert edited.image != first.image


def test_a_dockerfiles_own_ignore_file_goes_first(
    make_builder: MakeBuilder, fresh: str, api: Any, folder: Path
) -> None:
    files = {
        "Dockerfile": f"FROM {fresh}\nCOPY . /app/\nCMD ls -A /app\n",
        "Dockerfile.dockerignore": "a\nDockerfile*\n",
        ".dockerignore": "b\n",
        "a": "",
        "b": "",
    }
    assert output_of(api, built(make_builder(), dockerfile_job(folder, files)).image) == ".dockerignore\nb\n"


def test_stages_and_arguments_in_from(make_builder: MakeBuilder, fresh: str, api: Any, folder: Path) -> None:
    """Build arguments reach ``FROM`` and commands, and none of them is left in the image."""
    canary = f"canary{secrets.token_hex(8)}"
    text = (
        "ARG BASE=nothing/of-the-kind\nFROM ${BASE} AS one\nARG TOKEN\n"
        "RUN echo ${#TOKEN} > /length\n"
        f'FROM {fresh}\nCOPY --from=one /length /length\nRUN ["true"]\n'
        "RUN pip config list | grep -q index-url\nCMD cat /length\n"
    )
    settings = {"build_args": {"BASE": fresh, "TOKEN": canary}, "pip": {"index_url": f"https://u:{canary}@h/simple"}}
    log: list[str] = []
    build = built(make_builder(**settings), dockerfile_job(folder, {"Dockerfile": text}), log)
    assert output_of(api, build.image) == f"{len(canary)}\n"
    ids = [line.split()[1] for line in "".join(log).splitlines() if line.startswith(" ---> ") and "Running" not in line]
    assert len(set(ids)) > 4
    everything = bytes_of(api, build.image, *(set(ids) - {"Using"}))
    assert b"index-url" in everything
    assert canary.encode() not in everything


def test_what_is_missing_is_named(make_builder: MakeBuilder, fresh: str, folder: Path) -> None:
    """With what is there instead."""
    files = {"a/Dockerfile.gpu": f"FROM {fresh}\n", "train.py": "", "b/c/x": ""}
    builder = make_builder()
    for wanted, why in [
        (dockerfile_job(folder, files), "no file 'Dockerfile'; there is: a/Dockerfile.gpu"),
        (dockerfile_job(folder, {"x": "", "y/z": ""}), "no file 'Dockerfile'; at its top there are: x, y"),
        (dockerfile_job(folder, files, "a/Dockerfile.gpu", context="d"), "no folder 'd'; its folders are: a, b, b/c"),
        (dockerfile_job(folder, files, "../x"), "'../x' leads out of the job's code"),
        (dockerfile_job(folder, files, "a/Dockerfile.gpu", context="/etc"), "'/etc' leads out"),
    ]:
        with pytest.raises(BuildError, match=why.replace("(", r"\(")):
            built(builder, wanted)


def test_a_failing_step_is_named(make_builder: MakeBuilder, fresh: str, folder: Path) -> None:
    """With its last 30 lines, and without what was put before the command."""
    text = f"FROM {fresh}\nRUN seq 100 && exit 3\n"
    with pytest.raises(BuildError) as caught:
        built(make_builder(), dockerfile_job(folder, {"Dockerfile": text}))
    message = str(caught.value)
    assert "this failed: Step 3/4 : RUN seq 100 && exit 3\n" in message
    assert "returned a non-zero code: 3" in message
    assert "\n99\n100\n" in message
    assert "\n60\n" not in message
    assert "eval" not in message


def test_a_code_archive_that_is_damaged(make_builder: MakeBuilder, folder: Path) -> None:
    wanted = dockerfile_job(folder, {"Dockerfile": "FROM scratch\n"})
    assert wanted.code is not None
    wanted.code.write_bytes(wanted.code.read_bytes()[:40])
    with pytest.raises(PermanentError, match="cannot be read"):
        built(make_builder(), wanted)


def test_a_moved_base_makes_another_one(make_builder: MakeBuilder, fresh: str, api: Any, folder: Path) -> None:
    job = {"org.opencontainers.image.title": f"job-{secrets.token_hex(4)}"}
    wanted = dockerfile_job(folder, {"Dockerfile": f"FROM {fresh}\nCMD true\n"}, labels=job)
    first = built(make_builder(), wanted)
    commit(api, fresh, fresh, f"made-for={fresh}")
    second = built(make_builder(), wanted)
    assert second.image != first.image
    assert second.because.endswith(f": base image {fresh} moved")


def test_it_can_be_cancelled(make_builder: MakeBuilder, fresh: str, folder: Path) -> None:
    log: list[str] = []
    wanted = dockerfile_job(folder, {"Dockerfile": f"FROM {fresh}\nRUN sleep 1000\n"})
    with pytest.raises(InterruptedError):
        make_builder().build(wanted, log.append, lambda: "Running in" in "".join(log))
