"""Jobs can be deleted, and what nothing needs any more is removed from the store; nothing else is."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from launch.archive import archive_old_runs, read_archived
from launch.artifacts import ArtifactStore
from launch.artifacts_gc import collect
from launch.cli import cli
from launch.client import Client
from launch.errors import ConfigError, ConflictError, NotFoundError
from launch.models import (
    Cause,
    CauseKind,
    CodeSource,
    Job,
    LaunchSpec,
    QueueSpec,
    RetryRule,
    RunState,
    Tracking,
)
from launch.settings import settings as process_settings
from launch.store import Claimed, RunStore
from tests.object_stores import gs_service, launch_server, s3_service
from tests.services import RedisServer

pytestmark = pytest.mark.redis

DAY_S = 86_400.0
OLD_S = 10 * DAY_S


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def artifacts(client: Client) -> ArtifactStore:
    return client.artifacts


def blob_path(artifacts: ArtifactStore, digest: str) -> Path:
    return Path(artifacts.place.where(digest))


def an_old_blob(artifacts: ArtifactStore, data: bytes) -> str:
    digest = artifacts.put_bytes(data)
    make_old(artifacts, digest)
    return digest


def make_old(artifacts: ArtifactStore, *digests: str) -> None:
    then = time.time() - OLD_S
    for digest in digests:
        os.utime(blob_path(artifacts, digest), (then, then))


def make_all_old(artifacts: ArtifactStore) -> None:
    make_old(artifacts, *(blob.name for blob in artifacts.place.blobs()))


def a_job(artifacts: ArtifactStore, name: str) -> Job:
    """A job whose blobs were put long ago."""
    archive = an_old_blob(artifacts, f"the code of {name}".encode())
    requirements = an_old_blob(artifacts, f"the requirements of {name}".encode())
    source = CodeSource(archive=archive, archive_bytes=1, files=1)
    return Job(source=source, entrypoint=("true",), requirements=requirements, tracking=Tracking.OPTIONAL)


def needed_by(job: Job) -> set[str]:
    assert isinstance(job.source, CodeSource)
    assert job.requirements is not None
    return {job.source.archive, job.requirements}


def removed(store: RunStore, artifacts: ArtifactStore, older_than_s: float = DAY_S) -> set[str]:
    before = {blob.name for blob in artifacts.place.blobs()}
    found = collect(store, artifacts, older_than_s=older_than_s, is_dry_run=False)
    gone = before - {blob.name for blob in artifacts.place.blobs()}
    assert found.removed == len(gone)
    return gone


# --- what is needed --------------------------------------------------------------------------------------------------


def test_what_nothing_needs_goes_once_it_is_old(store: RunStore, client: Client, artifacts: ArtifactStore) -> None:
    old = an_old_blob(artifacts, b"old")
    young = artifacts.put_bytes(b"young")

    tried = collect(store, artifacts, older_than_s=DAY_S, is_dry_run=True)
    assert (tried.blobs, tried.removed, tried.removed_bytes, tried.young) == (2, 1, 3, 1)
    assert artifacts.has(old)

    assert removed(store, artifacts) == {old}
    assert artifacts.has(young)
    assert removed(store, artifacts) == set()


def test_what_is_put_again_is_young_again(store: RunStore, client: Client, artifacts: ArtifactStore) -> None:
    digest = an_old_blob(artifacts, b"old")
    artifacts.put_bytes(b"old")

    assert removed(store, artifacts) == set()
    assert artifacts.has(digest)


def test_jobs_and_runs_in_every_state_keep_what_they_need(
    store: RunStore, client: Client, artifacts: ArtifactStore
) -> None:
    kept: set[str] = set()
    registered = a_job(artifacts, "registered")
    client.registry.create("registered", registered)
    for state in ("waiting", "held", "claimed", "retried", "ended", "archived"):
        job = a_job(artifacts, state)
        kept |= needed_by(job)
        store.create_queue(QueueSpec(name=state, resource="process"))
        store.enqueue(LaunchSpec(run_id=state, queue=state, resource="process", job=job))
    store.hold("held", by="ada")
    log_of_a_try = an_old_blob(artifacts, b"the log of a first try")
    last_log = an_old_blob(artifacts, b"the log of an ended run")
    cause = Cause(kind=CauseKind.EXIT_CODE, message="it failed")
    for state in ("claimed", "retried", "ended", "archived"):
        claimed = store.claim(state, "agent")
        assert isinstance(claimed, Claimed)
        if state == "retried":
            rule = RetryRule(times=3)
            store.retry(claimed.record, claimed.fence, cause, log_archive=log_of_a_try, rule=rule)
        elif state in ("ended", "archived"):
            store.finish(state, claimed.fence, RunState.FAILED, cause, log_archive=last_log)
    archive_old_runs(store, artifacts, "archived", older_than_s=0)
    document = store.redis.hget("launch:archive", "archived").split()[0]
    make_all_old(artifacts)

    assert removed(store, artifacts) == set()

    everything = {blob.name for blob in artifacts.place.blobs()}
    assert everything == kept | needed_by(registered) | {log_of_a_try, last_log, document}
    assert read_archived(store, artifacts, "archived").record.spec.job.source.kind == "code"


def test_a_run_that_an_earlier_version_archived_keeps_what_it_needs(
    store: RunStore, client: Client, artifacts: ArtifactStore
) -> None:
    """Its document stands alone in the archive; what it holds is read."""
    job = a_job(artifacts, "old")
    store.enqueue(LaunchSpec(run_id="old", queue="q", resource="process", job=job))
    store.request_stop("old", by="ada", grace_s=1)
    archive_old_runs(store, artifacts, "q", older_than_s=-1)
    document = store.redis.hget("launch:archive", "old").split()[0]
    store.redis.hset("launch:archive", "old", document)
    make_all_old(artifacts)

    assert removed(store, artifacts) == set()

    blob_path(artifacts, document).unlink()  # lost: nothing leads to what it held any more
    assert removed(store, artifacts) == needed_by(job)


def test_a_blob_that_is_put_between_the_look_and_the_removal_stays(
    store: RunStore, client: Client, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = an_old_blob(artifacts, b"content")
    remove = artifacts.place.remove

    def put_again_first(name: str, *, before: float) -> bool:
        assert artifacts.put_bytes(b"content") == name
        return remove(name, before=before)

    monkeypatch.setattr(artifacts.place, "remove", put_again_first)

    assert removed(store, artifacts) == set()
    assert artifacts.has(digest)


def test_whoever_puts_while_blobs_are_removed_has_them(
    store: RunStore, client: Client, artifacts: ArtifactStore
) -> None:
    """A put comes before the removal, which then sees it, or after it, and writes anew."""
    digest = artifacts.put_bytes(b"content")
    both = threading.Barrier(2)

    def remove() -> bool:
        both.wait()
        return artifacts.place.remove(digest, before=time.time() - DAY_S)

    outcomes = set()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(300):
            make_old(artifacts, digest)
            removal = pool.submit(remove)
            both.wait()
            artifacts.put_bytes(b"content")
            outcomes.add(removal.result())
            assert artifacts.has(digest)
    assert outcomes, "nothing was tried"


def test_what_killed_writers_left_goes_once_it_is_old(
    store: RunStore, client: Client, artifacts: ArtifactStore
) -> None:
    artifacts.put_bytes(b"content")
    incoming = blob_path(artifacts, "0" * 64).parents[3] / "incoming"
    for name, age_s in (("old", OLD_S), ("young", 0)):
        (incoming / name).write_bytes(b"half")
        then = time.time() - age_s
        os.utime(incoming / name, (then, then))

    found = collect(store, artifacts, older_than_s=DAY_S, is_dry_run=False)

    assert (found.leftovers, found.leftover_bytes) == (1, 4)
    assert [path.name for path in incoming.iterdir()] == ["young"]


def test_another_installations_blobs_are_never_touched(
    store: RunStore, client: Client, artifacts: ArtifactStore
) -> None:
    """Such as when LAUNCH_BROKER_URL names a fresh Redis by mistake: everything looks unneeded from there."""
    digest = an_old_blob(artifacts, b"content")
    first = store.installation()
    store.redis.flushall()

    with pytest.raises(ConfigError, match=f"installation {first} keeps blobs in"):
        collect(store, artifacts, older_than_s=1, is_dry_run=False)
    assert artifacts.has(digest)


# --- other kinds of store --------------------------------------------------------------------------------------------


@pytest.fixture(params=["s3", "gs", "http"])
def url(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    start = {
        "s3": lambda: s3_service(tmp_path),
        "gs": lambda: gs_service(tmp_path),
        "http": lambda: launch_server(tmp_path / "server", redis_server.url),
    }
    with start[request.param]() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        yield service.url


def test_every_kind_of_store_is_cleaned(url: str, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = ArtifactStore(url, lambda: store)
    store.create_queue(QueueSpec(name="q", resource="process"))
    needed = artifacts.put_bytes(b"the code of a run")
    unneeded = artifacts.put_bytes(b"nobody's")
    source = CodeSource(archive=needed, archive_bytes=1, files=1)
    store.enqueue(LaunchSpec(run_id="a", queue="q", resource="process", job=Job(source=source, entrypoint=("true",))))

    assert collect(store, artifacts, older_than_s=DAY_S, is_dry_run=False).young == 1
    deadline = time.monotonic() + 20
    while not collect(store, artifacts, older_than_s=0.1, is_dry_run=False).removed:  # S3 counts whole seconds
        assert time.monotonic() < deadline

    assert (artifacts.has(needed), artifacts.has(unneeded)) == (True, False)


# --- deleting jobs ---------------------------------------------------------------------------------------------------


def versions(client: Client, name: str) -> list[int]:
    return [version.version for version in client.registry.versions(name)]


@pytest.fixture
def three(client: Client) -> str:
    """A job with versions 0, 1 and 2; ``best`` and ``good`` are 1."""
    for number in range(3):
        client.registry.create("words", a_job(client.artifacts, str(number)))
    client.registry.create("words", a_job(client.artifacts, "1"), ["best", "good"])
    client.registry.create("words", a_job(client.artifacts, "2"))
    return "words"


def test_a_version_is_deleted_and_its_number_not_given_again(client: Client, three: str) -> None:
    assert client.delete_job("words:v2") == ["words:v2"]

    assert versions(client, "words") == [0, 1]
    assert client.registry.get("words").version == 1
    with pytest.raises(NotFoundError, match="no version 'v2'"):
        client.registry.get("words:v2")
    again, is_new = client.registry.create("words", a_job(client.artifacts, "2"))
    assert (again.version, is_new) == (3, True)


def test_a_version_with_another_alias_stays(client: Client, three: str) -> None:
    for ref in ("words:v1", "words:best"):
        with pytest.raises(ConflictError, match=r"'(best|good)' is a name of that version too"):
            client.delete_job(ref)
    assert versions(client, "words") == [0, 1, 2]

    assert client.delete_job("words:best", force=True) == ["words:v1"]
    assert client.registry.aliases("words") == {"latest": 2}


def test_a_job_is_deleted_with_all_its_names(client: Client, three: str) -> None:
    assert client.delete_job("words") == ["words:v0", "words:v1", "words:v2"]

    assert client.jobs() == []
    for ref in ("words", "words:best", "words:v0"):
        with pytest.raises(NotFoundError, match="no job 'words'"):
            client.registry.get(ref)
    with pytest.raises(NotFoundError, match="no job 'words'"):
        client.delete_job("words")
    assert client.registry.create("words", a_job(client.artifacts, "0"))[0].version == 3


def test_a_job_that_a_run_waits_with_is_deleted_only_by_force_and_the_run_keeps_its_code(
    client: Client, store: RunStore, three: str
) -> None:
    run = client.enqueue(job="words:v1", queue="q")
    for ref in ("words", "words:v1"):
        with pytest.raises(ConflictError, match=f"runs that have not ended are of it: {run.id}"):
            client.delete_job(ref)
    client.delete_job("words:v0")  # another version is no matter

    client.delete_job("words", force=True)
    make_all_old(client.artifacts)
    store.redis.delete("launch:deleted")

    collect(store, client.artifacts, older_than_s=DAY_S, is_dry_run=False)
    assert {blob.name for blob in client.artifacts.place.blobs()} == needed_by(store.record(run.id).spec.job)


def test_code_outlives_its_deleted_job_a_while(client: Client, store: RunStore, three: str) -> None:
    """Somebody may just be about to enqueue what they read a moment before."""
    job = client.registry.get("words:v0").job
    client.delete_job("words:v0")

    assert removed(store, client.artifacts) == set()
    [(member, _)] = store.redis.zrange("launch:deleted", 0, -1, withscores=True)
    store.redis.zadd("launch:deleted", {member: store.now() - 2 * DAY_S})
    assert removed(store, client.artifacts) == needed_by(job)

    store.redis.zadd("launch:deleted", {member: store.now() - 31 * DAY_S})
    client.delete_job("words:v2")
    assert member not in store.redis.zrange("launch:deleted", 0, -1)


# --- at the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def shell(client: Client, monkeypatch: pytest.MonkeyPatch, redis_url: str, home: Path) -> Iterator[CliRunner]:
    monkeypatch.setenv("LAUNCH_BROKER_URL", redis_url)
    monkeypatch.setenv("LAUNCH_HOME", str(home))
    process_settings.cache_clear()
    yield CliRunner()
    process_settings.cache_clear()


def test_the_commands_say_what_they_did(shell: CliRunner, client: Client, three: str) -> None:
    answer = shell.invoke(cli, ["job", "delete", "words:v1"])
    assert (answer.exit_code, "--force" in answer.output) == (2, True)
    assert shell.invoke(cli, ["job", "delete", "words"]).output.splitlines() == [
        "words:v0 is deleted",
        "words:v1 is deleted",
        "words:v2 is deleted",
    ]
    client.store.redis.delete("launch:deleted")

    tried = shell.invoke(cli, ["artifacts", "gc", "--dry-run"])
    assert "would be removed: 6 that nothing needs" in tried.output
    found = json.loads(shell.invoke(cli, ["artifacts", "gc", "--older-than", "9d", "--json"]).output)
    assert (found["removed"], found["blobs"]) == (6, 6)
    assert shell.invoke(cli, ["artifacts", "gc", "--older-than", "soon"]).exit_code == 2
