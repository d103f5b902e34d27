"""The jobs there are, version by version, and how a folder of code becomes one.

A version never changes. A job with the same content as an earlier version *is* that version: nothing new is made, and
``latest`` and the aliases given move to it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from launch.checking import closest, did_you_mean
from launch.errors import ConfigError, NotFoundError
from launch.models import Alias, CodeSource, Job, JobName, JobVersion, RetryPolicy, Tracking
from launch.requirements import read_requirements, requirement_notes
from launch.scripted import P, Scripted
from launch.snapshots import MAX_BYTES, Snapshot, snapshot

if TYPE_CHECKING:
    from launch.artifacts import ArtifactStore
    from launch.connection import LaunchRedis

_Versions = list[JobVersion]
_MAX_NAME = 128
_MAX_IMAGE_NAME = 255

_JOB_NAME: TypeAdapter[str] = TypeAdapter(JobName)
_ALIAS: TypeAdapter[str] = TypeAdapter(Alias)

# Source: https://github.com/distribution/reference/blob/main/regexp.go
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?P<name>(?:{_HOST}(?::[0-9]+)?/)?{_PATH}(?:/{_PATH})*)"
    r"(?::[\w][\w.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)


class JobRegistry(Scripted):
    """Job versions in Redis.

    Args:
        redis: a connection as :func:`launch.connection.connect` makes it.
        artifacts: where the jobs' code and requirements are.
    """

    def __init__(self, redis: LaunchRedis, artifacts: ArtifactStore) -> None:
        super().__init__(redis)
        self.artifacts = artifacts

    def create(self, name: str, job: Job, aliases: Iterable[str] = ()) -> tuple[JobVersion, bool]:
        """Return the version with this content, made now if there is none, and whether it is new.

        Args:
            name: the job's name; the first version makes the job.
            job: what to run.
            aliases: further names of the version, taken from the one that had them.

        Raises:
            ConfigError: the name or an alias is not one.
        """
        arguments = [check_job_name(name), job.model_dump_json(), _content(job), *map(check_alias, aliases)]
        version, is_new = self._run("create_job", *arguments)
        return JobVersion.model_validate_json(version), bool(is_new)

    def get(self, ref: str) -> JobVersion:
        """Return the version a reference means: ``name``, ``name:latest``, ``name:v3`` or ``name:alias``.

        Raises:
            NotFoundError: there is none; the message says which there are.
        """
        name, _, which = ref.partition(":")
        key = f"{P}job:{name}"
        found = self.redis.hget(key, _number_field(which or "latest"))
        if found is not None and not _is_number(which):
            found = self.redis.hget(key, f"v{found}")
        if found is None:
            raise NotFoundError(self._missing(name, which))
        return JobVersion.model_validate_json(found)

    def list(self) -> _Versions:
        """Return the latest version of every job, by name."""
        names = self._names()
        latest = self._each((name, "latest") for name in names)
        found = self._each((name, f"v{number}") for name, number in zip(names, latest, strict=True))
        return [JobVersion.model_validate_json(text) for text in found]

    def versions(self, name: str) -> _Versions:
        """Return all versions of a job, the oldest first.

        Raises:
            NotFoundError: there is no such job.
        """
        fields = self._fields(name)
        found = [JobVersion.model_validate_json(text) for field, text in fields.items() if _is_number(field)]
        return sorted(found, key=lambda version: version.version)

    def aliases(self, name: str) -> dict[str, int]:
        """Return ``{alias: version}`` of a job, ``latest`` first.

        Raises:
            NotFoundError: there is no such job.
        """
        fields = self._fields(name)
        named = {field.removeprefix("alias:"): int(fields[field]) for field in sorted(fields) if ":" in field[:6]}
        return {"latest": int(fields["latest"]), **named}

    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(self.redis.smembers(f"{P}jobs")))

    def _each(self, wanted: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        with self.redis.pipeline(transaction=False) as pipe:
            for name, field in wanted:
                pipe.hget(f"{P}job:{name}", field)
            return tuple(pipe.execute())

    def _fields(self, name: str) -> dict[str, str]:
        fields: dict[str, str] = self.redis.hgetall(f"{P}job:{name}")
        if not fields:
            raise NotFoundError(self._missing(name, ""))
        return fields

    def _missing(self, name: str, which: str) -> str:
        names = self._names()
        if name in names:
            versions = [f"v{version.version}" for version in self.versions(name)]
            return f"job {name!r} has no version {which!r}{did_you_mean(which, [*versions, *self.aliases(name)])}"
        if not names:
            return f"no job {name!r}; there are none yet: make one with 'launch job create code PATH --name {name}'"
        return f"no job {name!r}{did_you_mean(name, names)}"


def _content(job: Job) -> str:
    # Without defaults, so that a field that is added to Job some day does not make every job look changed.
    return hashlib.sha256(job.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def _is_number(which: str) -> bool:
    return re.fullmatch("v[0-9]+", which) is not None


def _number_field(which: str) -> str:
    return which if which == "latest" or _is_number(which) else f"alias:{which}"


# --- code jobs -------------------------------------------------------------------------------------------------------


def create_code_job(
    registry: JobRegistry,
    path: Path,
    name: str,
    entrypoint: str | Sequence[str] | None = None,
    *,
    aliases: Iterable[str] = (),
    python_version: str | None = None,
    requirements: Path | None = None,
    tracking: Tracking = Tracking.REQUIRED,
    retry: RetryPolicy | None = None,
    max_bytes: int = MAX_BYTES,
) -> tuple[JobVersion, bool, list[str]]:
    """Register a folder of code and return its version, whether that is new, and notes for the user.

    See :func:`code_job` for the arguments and :meth:`JobRegistry.create` for what a version is.

    Raises:
        RequestError: a value is wrong; no job was made.
    """
    check_job_name(name)
    taken = [check_alias(alias) for alias in aliases]
    notes: list[str] = []
    job = code_job(
        registry.artifacts,
        path,
        entrypoint,
        python_version=python_version,
        requirements=requirements,
        tracking=tracking,
        retry=retry,
        max_bytes=max_bytes,
        note=notes.append,
    )
    version, is_new = registry.create(name, job, taken)
    return version, is_new, notes


def code_job(
    artifacts: ArtifactStore,
    path: Path,
    entrypoint: str | Sequence[str] | None = None,
    *,
    python_version: str | None = None,
    requirements: Path | None = None,
    tracking: Tracking = Tracking.REQUIRED,
    retry: RetryPolicy | None = None,
    max_bytes: int = MAX_BYTES,
    note: Callable[[str], None] = lambda _: None,
) -> Job:
    """Keep a folder's code and requirements in the artifact store and return the job that runs it.

    Args:
        path: the folder.
        entrypoint: the command, as text or a list; none: ``python main.py``, if there is a ``main.py``.
        python_version: ``"3.11"``; none: the builder's default.
        requirements: read instead of the folder's ``requirements.txt``.
        tracking: whether a run must call ``wandb.init`` to count as finished.
        retry: when a failed attempt is followed by another; none: as the queue says.
        max_bytes: the most the code may have.
        note: called with each thing the user should know, a sentence.

    Raises:
        RequestError: a value is wrong; nothing was kept.
    """
    command, version = _command(path, entrypoint, note), _optional(check_python_version, python_version)
    needed = read_requirements(path, requirements)
    with snapshot(path, max_bytes=max_bytes) as snap:
        _check_script(command, snap, path)
        for text in (*snap.notes, *requirement_notes(needed, needs_wandb=tracking is Tracking.REQUIRED)):
            note(text)
        artifacts.put_file(snap.archive, digest=snap.digest)
        source = CodeSource(archive=snap.digest, archive_bytes=snap.archive_bytes, files=snap.files)
    return Job(
        source=source,
        entrypoint=command,
        python_version=version,
        requirements=artifacts.put_bytes(needed.encode()) if needed is not None else None,
        tracking=tracking,
        retry=retry,
    )


def _command(path: Path, entrypoint: str | Sequence[str] | None, note: Callable[[str], None]) -> tuple[str, ...]:
    if not entrypoint:
        if not path.is_dir() or (path / "main.py").is_file():
            return ("python", "main.py")
        scripts = sorted(file.name for file in path.glob("*.py"))
        like = f"python {scripts[0]}" if scripts else "python train.py"
        raise ConfigError(f"entrypoint: is required, since {path} has no main.py; for example '{like}'")
    command = parse_entrypoint(entrypoint)
    if isinstance(entrypoint, str) and command[0] != shlex.split(entrypoint)[0]:
        note(f"the entrypoint {entrypoint!r} has no program before the script, so it became {shlex.join(command)!r}")
    return command


def _check_script(command: Sequence[str], snap: Snapshot, path: Path) -> None:
    """Refuse ``python x.py`` when there is no x.py: cheaper to hear now than after a build."""
    if len(command) < 2 or not re.fullmatch(r"python[\d.]*", command[0]) or not command[1].endswith(".py"):
        return
    script = command[1].removeprefix("./")
    if script in snap.paths or script.startswith("/"):
        return
    near = closest(script, [name for name in snap.paths if name.endswith(".py")])
    why = "it is left out of the snapshot (.gitignore, .launchignore)" if (path / script).exists() else "no such file"
    raise ConfigError(
        f"entrypoint: {command[1]!r} is not in {path}: {why}" + (f"; did you mean {near!r}?" if near else "")
    )


def _optional(check: Callable[[str], str], value: str | None) -> str | None:
    return None if value is None else check(value)


# --- values ----------------------------------------------------------------------------------------------------------


def parse_entrypoint(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return a command as a list of words, quotes understood as a shell would.

    A command that begins with the bare name of a ``.py`` file gets ``python`` before it: nothing would find it
    otherwise. One that names the file as a program, ``./train.py``, is left alone.

    Raises:
        ConfigError: unbalanced quotes, nothing in it, or a path that leads out of the job's folder by ``..``.
    """
    try:
        words = tuple(shlex.split(text)) if isinstance(text, str) else tuple(text)
    except ValueError as exc:
        raise ConfigError(f"entrypoint: {text!r} has unbalanced quotes or a stray backslash: {exc}") from exc
    if not words or not words[0]:
        raise ConfigError(f"entrypoint: {text!r} names no program; it should be like 'python train.py'")
    for word in words:
        if "\0" in word:
            raise ConfigError(f"entrypoint: {word!r} has a zero character in it")
        if ".." in re.split("[/=]", word):
            raise ConfigError(f"entrypoint: {word!r} leads out of the job's folder by '..'; name what is inside it")
    return ("python", *words) if words[0].endswith(".py") and words[0][0] not in "./" else words


def check_job_name(name: str) -> str:
    """Return the name if it is one.

    Raises:
        ConfigError: it is not; the message proposes one.
    """
    try:
        return _JOB_NAME.validate_python(name)
    except ValidationError as exc:
        safe = re.sub(r"[^a-zA-Z0-9_.-]", "_", name).lstrip("_.-")
        safe = safe if len(safe) <= _MAX_NAME else f"{safe[:63]}..{safe[-63:]}"
        raise ConfigError(
            f"name: should be 1 to {_MAX_NAME} letters, digits, '_', '.' and '-', starting with a letter or digit, not "
            f"{name!r}" + (f"; did you mean {safe!r}?" if safe else "")
        ) from exc


def check_alias(alias: str) -> str:
    """Return the alias if it may be one.

    Raises:
        ConfigError: it is malformed, or means something already: ``latest``, ``v3``.
    """
    if alias == "latest" or _is_number(alias):
        raise ConfigError(f"alias: {alias!r} is a name that every job gives out itself; choose another")
    try:
        return _ALIAS.validate_python(alias)
    except ValidationError as exc:
        raise ConfigError(f"alias: should be 1 to 64 letters, digits, '_', '.' and '-', not {alias!r}") from exc


def check_python_version(text: str) -> str:
    """Return the version if it is one.

    Raises:
        ConfigError: it is not of the form ``3.11``.
    """
    if not re.fullmatch(r"3\.\d+", text, re.ASCII):
        raise ConfigError(f"python_version: should be like '3.11', not {text!r}")
    return text


def check_image(reference: str) -> str:
    """Return the image reference if it is well formed; whether there is such an image, its registry knows.

    Raises:
        ConfigError: it is not, with a guess at what is wrong.
    """
    found = _IMAGE.fullmatch(reference)
    if found and len(found["name"]) <= _MAX_IMAGE_NAME:
        return reference
    why = ""
    if found:
        why = f": its name is over {_MAX_IMAGE_NAME} characters"
    elif re.search(r"\s", reference):
        why = ": it has white space in it"
    elif _IMAGE.fullmatch(reference.lower()):
        why = f": its name should be lower-case; did you mean {reference.lower()!r}?"
    raise ConfigError(f"image: should be like 'python:3.12-slim' or 'host:5000/team/train:v1', not {reference!r}{why}")
