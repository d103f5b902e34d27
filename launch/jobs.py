"""The jobs there are, version by version, and the values a job is given.

A version never changes. A job with the same content as an earlier version *is* that version: nothing new is made, and
``latest`` and the aliases given move to it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from launch.checking import did_you_mean
from launch.errors import ConfigError, ConflictError, NotFoundError
from launch.models import APT_PATTERN, Alias, Job, JobName, JobTypes, JobVersion
from launch.references import parse_reference
from launch.scripted import P, Scripted

if TYPE_CHECKING:
    from launch.artifacts import ArtifactStore
    from launch.connection import LaunchRedis

_Versions = list[JobVersion]
_MAX_NAME = 128

_JOB_NAME: TypeAdapter[str] = TypeAdapter(JobName)
_ALIAS: TypeAdapter[str] = TypeAdapter(Alias)


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
        number = which
        if not _is_number(which):
            number = f"v{self.redis.hget(key, _number_field(which or 'latest'))}"
        found, types = self.redis.hmget(key, number, f"types:{number}")
        if found is None:
            raise NotFoundError(self._missing(name, which))
        version = JobVersion.model_validate_json(found)
        return version.model_copy(update={"types": JobTypes.model_validate_json(types)}) if types else version

    def fill_in_types(self, ref: str, types: JobTypes) -> bool:
        """Keep what a version's first finished run told of it; false if that is known, or there is no such version."""
        name, _, number = ref.partition(":")
        return bool(self._run("fill_in_types", name, number, types.model_dump_json(exclude_defaults=True)))

    def list(self) -> _Versions:
        """Return the latest version of every job, by name."""
        names = self._names()
        latest = self._each((name, "latest") for name in names)
        found = self._each((name, f"v{number}") for name, number in zip(names, latest, strict=True))
        return [JobVersion.model_validate_json(text) for text in found if text is not None]

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
        named = {
            field.removeprefix("alias:"): int(fields[field]) for field in sorted(fields) if field.startswith("alias:")
        }
        return {"latest": int(fields["latest"]), **named}

    def delete(self, name: str, versions: Iterable[int], *, spared: Iterable[str] | None) -> None:
        """Delete versions of a job, with the last one the job; their numbers are not given out again.

        Args:
            name: the job.
            versions: their numbers.
            spared: the aliases that may go with them; none: any.

        Raises:
            ConflictError: another alias means one of them; nothing was deleted.
        """
        aliases = "*" if spared is None else " ".join(spared)
        alias = self._run("delete_job", name, aliases, *versions)
        if alias:
            raise ConflictError(
                f"job {name}: {alias!r} is a name of that version too: give it to another one first, or delete "
                "with --force"
            )

    def add_alias(self, ref: str, alias: str) -> JobVersion:
        """Give a version a further name, taken from the one that had it, and return the version.

        Raises:
            NotFoundError: there is no such version.
            ConfigError: the alias may not be one.
        """
        check_alias(alias)
        version = self.get(ref)
        if not self._run("alias_job", version.name, f"v{version.version}", alias):
            raise NotFoundError(self._missing(version.name, f"v{version.version}"))
        return version

    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(self.redis.smembers(f"{P}jobs")))

    def _each(self, wanted: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        with self.redis.pipeline(transaction=False) as pipe:
            for name, field in wanted:
                pipe.hget(f"{P}job:{name}", field)
            return tuple(pipe.execute())

    def _fields(self, name: str) -> dict[str, str]:
        fields: dict[str, str] = self.redis.hgetall(f"{P}job:{name}")
        if "latest" not in fields:  # never made, or deleted: then only the number of its next version is there
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
    # Without defaults, so that a field that is added to Job some day does not make every job look changed; without the
    # branch that meant a commit and the commit a snapshot was taken at, which are for people.
    text = job.model_dump_json(exclude_defaults=True, exclude={"source": {"ref", "origin"}})
    return hashlib.sha256(text.encode()).hexdigest()


def _is_number(which: str) -> bool:
    return re.fullmatch("v[0-9]+", which) is not None


def _number_field(which: str) -> str:
    return which if which == "latest" or _is_number(which) else f"alias:{which}"


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


def check_image(reference: str, *, where: str = "image") -> str:
    """Return the image reference if it is well formed; whether there is such an image, its registry knows.

    Raises:
        ConfigError: it is not, with a guess at what is wrong.
    """
    parse_reference(reference, where=where)
    return reference


def check_apt(package: str) -> str:
    """Return the name of a Debian package, ``=version`` after it or not, if it is one.

    Raises:
        ConfigError: it is not.
    """
    if not re.fullmatch(APT_PATTERN, package, re.ASCII):
        raise ConfigError(f"apt: should be Debian packages like 'libgl1' or 'ffmpeg=7:5.1.6-0', not {package!r}")
    return package
