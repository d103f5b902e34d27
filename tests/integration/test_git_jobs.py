"""Git jobs from ``launch job create git`` to the end of a run that a real agent carries on the process target."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from git_servers import PASSWORD, USER, GitServer, Repository, git, silent_server

from launch.client import Client
from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.models import GitSource, RunState
from launch.settings import read_settings
from launch.store import RunStore
from tests.agents import Fleet, wait_until

FILES = {
    "train.py": "print('trained')\n",
    "requirements.txt": "wandb\n",
    "runtime.txt": "python-3.11.4\n",
    "apps/eval/main.py": "print('evaluated')\n",
}


@pytest.fixture
def project(git_server: GitServer, request: pytest.FixtureRequest) -> tuple[Repository, str]:
    """A repository with a script, and the name it is served under."""
    name = f"{request.node.originalname}-{request.node.nodeid.__hash__() & 0xFFFF}"
    made = git_server.repository(name)
    made.commit(FILES)
    return made, name


@pytest.fixture
def git_config(git_server: GitServer, tmp_path: Path) -> Path:
    """The settings of whoever creates jobs: the test server's certificate, and a token from the environment."""
    login = {"host": git_server.host, "username": USER, "password": "${secret:GIT_TOKEN}"}
    path = tmp_path / "git.yaml"
    path.write_text(yaml.safe_dump({"ca_file": str(git_server.ca_file), "credentials": [login], "own_login": False}))
    return path


@pytest.fixture
def creator(
    store: RunStore, redis_url: str, home: Path, git_config: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """A client that knows the token, and tells its notes to ``told``."""
    monkeypatch.setenv("GIT_TOKEN", PASSWORD)
    known = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(home), "LAUNCH_GIT_CONFIG": str(git_config)}
    with Client(settings=read_settings(known), note=told.append) as made:
        told.clear()
        made.create_queue("q", resource="process")
        yield made


told: list[str] = []


def agent_options(tmp_path: Path, server: GitServer, **access: Any) -> tuple[str, ...]:
    """Return the options of an agent that may fetch from the test server."""
    section = {"ca_file": str(server.ca_file), **access}
    config = {"git": section, "secrets": {"sources": [{"env": {"names": ["GIT_TOKEN"]}}]}}
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(config))
    return ("--config", str(path), "--tracking-url", "http://127.0.0.1:9")


# --- creating --------------------------------------------------------------------------------------------------------


def test_a_job_is_a_pinned_commit_with_what_its_files_say(
    creator: Client, git_server: GitServer, project: tuple[Repository, str]
) -> None:
    repository, name = project
    version = creator.create_git_job(git_server.https(name, "private"), entrypoint="python train.py", aliases=["best"])
    commit = git("rev-parse", "main", cwd=repository.path)

    assert version.ref == f"job-{name}:v0"
    assert version.job.source == GitSource(remote=git_server.https(name, "private"), commit=commit, ref="main")
    assert version.job.entrypoint == ("python", "train.py")
    assert version.job.python_version == "3.11"
    assert version.job.requirements is not None
    assert creator.artifacts.get_bytes(version.job.requirements) == b"wandb\n"
    assert creator.registry.get(f"job-{name}:best") == version

    git("tag", "v1", "main", cwd=repository.path)
    again = creator.create_git_job(git_server.https(name, "private"), ref="v1", entrypoint="python train.py")
    assert again.ref == version.ref
    assert told[-1] == f"nothing has changed: this is {version.ref}"
    repository.commit({**FILES, "train.py": "print('better')\n"})
    moved = creator.create_git_job(git_server.https(name, "private"), entrypoint="python train.py")
    assert moved.version == 1
    assert creator.registry.get(f"job-{name}:v0").job.source == version.job.source


def test_a_folder_of_the_repository_can_be_the_root(
    creator: Client, git_server: GitServer, project: tuple[Repository, str]
) -> None:
    version = creator.create_git_job(git_server.https(project[1]), name="eval", build_context="apps/eval/")
    assert isinstance(version.job.source, GitSource)
    assert version.job.source.subdirectory == "apps/eval"
    assert version.job.entrypoint == ("python", "main.py")
    assert version.job.requirements is None


def test_a_dockerfile_beside_the_script_makes_its_folder_the_root(creator: Client, git_server: GitServer) -> None:
    git_server.repository("beside").commit({"a/b/train.py": "1", "a/b/Dockerfile.wandb": "FROM x\n", "a/lib.py": ""})
    version = creator.create_git_job(git_server.https("beside"), build_context="a", entrypoint="python b/train.py")
    assert isinstance(version.job.source, GitSource)
    assert version.job.source.subdirectory == "a/b"
    assert (version.job.entrypoint, version.job.dockerfile) == (("python", "train.py"), "Dockerfile.wandb")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"entrypoint": "python trian.py"}, r"'trian.py' is not in https://.* at main: .*did you mean 'train.py'\?"),
        ({"entrypoint": "python ../train.py"}, r"entrypoint: '../train.py' leads out"),
        ({"entrypoint": None}, r"entrypoint: is required, since https://.* has no main.py"),
        ({"build_context": "apps/evil"}, r"build_context: there is no folder 'apps/evil'.*did you mean 'apps/eval'\?"),
        ({"build_context": "../x"}, r"build_context: '../x' leads out of the repository"),
        ({"dockerfile": "Dockerfile"}, r"dockerfile: 'Dockerfile': there is no such file in https://"),
        ({"ref": "mian"}, r"ref: .* has no branch or tag 'mian'; did you mean 'main'\?"),
        ({"name": "a b"}, r"name: .*did you mean 'a_b'\?"),
        ({"python_version": "2.7"}, r"python_version: should be like '3.11', not '2.7'"),
        ({"base_image": "python 3"}, r"base_image: .*white space"),
        ({"allow": ["ext"]}, r"allow: should be http or file, not 'ext'"),
        ({"tracking": "never"}, r"tracking: should be one of required, optional, not 'never'"),
    ],
)
def test_what_is_wrong_is_named_and_no_job_is_made(
    creator: Client, git_server: GitServer, project: tuple[Repository, str], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        creator.create_git_job(git_server.https(project[1]), **{"entrypoint": "python train.py", **wrong})
    assert creator.jobs() == []


def test_files_that_lead_out_of_the_repository_are_not_read(creator: Client, git_server: GitServer) -> None:
    """A requirements file that is a link to a secret of whoever creates the job."""
    git_server.repository("reads-out").commit({"main.py": ""}, links={"requirements.txt": "../../../../etc/passwd"})
    with pytest.raises(ConfigError, match=r"the link requirements\.txt leads out"):
        creator.create_git_job(git_server.https("reads-out"))
    git_server.repository("includes-out").commit({"main.py": "", "requirements.txt": "-r ../../../../etc/passwd\n"})
    with pytest.raises(ConfigError, match="requirements: "):
        creator.create_git_job(git_server.https("includes-out"))


def test_the_command_line_makes_one_and_says_what_is_wrong(
    store: RunStore,
    redis_url: str,
    home: Path,
    git_config: Path,
    git_server: GitServer,
    project: tuple[Repository, str],
) -> None:
    def run(*words: str, token: str = PASSWORD) -> subprocess.CompletedProcess[str]:
        known = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(home), "LAUNCH_GIT_CONFIG": str(git_config)}
        environment = {**known, "GIT_TOKEN": token, "PATH": "/usr/bin:/bin"}
        argv = [sys.executable, "-P", "-m", "launch", "job", *words]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)

    url = git_server.https(project[1], "private")
    made = run("create", "git", url, "--ref", "main", "--entrypoint", "python train.py", "-n", "train", "-r", "3.11")
    assert made.returncode == 0, made.stderr
    assert "job train:v0 is ready" in made.stdout
    shown = run("show", "train")
    assert f"git, {url} at " in shown.stdout
    for words, code, said in [
        ([url, "--ref", "nope"], 2, "there are: main"),
        (["ext::sh -c id"], 2, "is refused"),
        (["--", "--upload-pack=id"], 2, "looks like an option of git"),
        ([git_server.http(project[1])], 2, "set allow_http in the git settings"),
    ]:
        failed = run("create", "git", *words)
        assert (failed.returncode, said in failed.stderr) == (code, True), failed.stderr
        assert "Traceback" not in failed.stderr
    no_login = run("create", "git", url, token="wrong")
    assert no_login.returncode == 2
    assert "LAUNCH_GIT_CONFIG" in no_login.stderr
    assert PASSWORD not in made.stdout + made.stderr + shown.stdout + no_login.stderr


# --- running ---------------------------------------------------------------------------------------------------------


def git_job(creator: Client, url: str, **options: Any) -> str:
    """Register a job that shows its files and what it is told of its commit, and return its reference."""
    script = "cat train.py; ls -a; echo $WANDB_GIT_COMMIT $WANDB_GIT_REMOTE_URL"
    version = creator.create_git_job(url, entrypoint=["sh", "-c", script], tracking="optional", **options)
    # Installing its requirements is another matter.
    bare = version.job.model_copy(update={"requirements": None, "python_version": None})
    return creator.registry.create(version.name, bare)[0].ref


@pytest.fixture
def agents(fleet: Fleet, creator: Client, tmp_path: Path) -> Fleet:
    """Agents with a launch home of their own: what the creator has fetched is not theirs."""
    fleet.environment |= {"LAUNCH_HOME": str(tmp_path / "agent"), "LAUNCH_ARTIFACTS": creator.settings.artifacts_url}
    return fleet


def test_an_agent_fetches_the_pinned_commit_and_runs_it(
    creator: Client, agents: Fleet, git_server: GitServer, project: tuple[Repository, str], tmp_path: Path
) -> None:
    """From a private repository, whose branch has moved since."""
    repository, name = project
    url = git_server.https(name, "private")
    job = git_job(creator, url)
    commit = git("rev-parse", "main", cwd=repository.path)
    repository.commit({"train.py": "print('another')\n"})
    login = {"host": git_server.host, "username": USER, "password": "${secret:GIT_TOKEN}"}
    agents.start("q", options=agent_options(tmp_path, git_server, credentials=[login]))

    run = creator.enqueue(job=job, queue="q")
    run.wait(timeout_s=60)

    log = list(run.logs())
    assert run.state is RunState.FINISHED, (run.cause, log)
    assert "print('trained')" in log
    assert "requirements.txt" in log
    assert f"{commit} {url}" in log
    assert any(line.startswith(f"fetched {commit[:12]} of {url}") for line in log)
    assert PASSWORD not in "\n".join(log) + agents.agents[0].log.read_text()


def test_an_agent_that_may_not_fetch_it_says_what_to_configure(
    creator: Client, agents: Fleet, git_server: GitServer, project: tuple[Repository, str], tmp_path: Path
) -> None:
    """The creator's permissions are not the agent's."""
    private = git_job(creator, git_server.https(project[1], "private"), name="private")
    plain = git_job(creator, git_server.http(project[1]), name="plain", allow=["http"])
    local = git_job(creator, f"file://{project[0].path}", name="local", allow=["file"])
    agents.start("q", options=agent_options(tmp_path, git_server))
    runs = [creator.enqueue(job=job, queue="q") for job in (private, plain, local)]

    said = []
    for run in runs:
        assert run.wait(timeout_s=60).state is RunState.FAILED
        assert run.cause is not None
        assert run.cause.kind == "config"
        said.append(run.cause.message)
    assert "add a credential for its host to git/credentials in the agent's config" in said[0]
    assert "http is not allowed here" in said[1]
    assert "file is not allowed here" in said[2]


def test_a_host_that_is_away_puts_the_run_back_and_a_stop_ends_a_fetch(
    creator: Client, agents: Fleet, git_server: GitServer, project: tuple[Repository, str], tmp_path: Path
) -> None:
    job = git_job(creator, git_server.http(project[1]), allow=["http"])
    version = creator.registry.get(job).job
    assert isinstance(version.source, GitSource)
    with silent_server() as port:
        source = version.source.model_copy(update={"remote": f"http://127.0.0.1:{port}/x.git"})
        silent, _ = creator.registry.create("silent", version.model_copy(update={"source": source}))
        agents.start("q", options=agent_options(tmp_path, git_server, allow_http=True))
        stopped = creator.enqueue(job=silent.ref, queue="q")
        wait_until(lambda: stopped.refresh().state is RunState.BUILDING)
        stopped.stop()
        assert stopped.wait(timeout_s=20).state is RunState.STOPPED
    away = creator.enqueue(job=silent.ref, queue="q")
    wait_until(lambda: "does not answer as it should" in (creator.store.record(away.id).note or ""))
    assert away.refresh().state in (RunState.QUEUED, RunState.BUILDING)
    assert creator.store.record(away.id).attempts == ()


def test_a_remote_that_is_away_or_a_commit_that_is_gone_is_no_job(
    creator: Client, git_server: GitServer, project: tuple[Repository, str]
) -> None:
    with silent_server() as port:
        pass  # nobody listens there any more
    with pytest.raises(TemporaryError, match="does not answer as it should"):
        creator.create_git_job(f"https://localhost:{port}/x.git")
    with pytest.raises(PermanentError, match="has no such commit"):
        creator.create_git_job(git_server.https(project[1]), ref="0123456789" * 4)
    assert creator.jobs() == []
