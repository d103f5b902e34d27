"""From a request to a frozen :class:`~launch.models.LaunchSpec`: the same checks for every way to enqueue.

A request is a mapping with the keywords of :func:`launch.enqueue`; it comes from the SDK, the command line or a plain
Celery message, which may use W&B's spellings as well (``overrides.run_config``, ``docker.docker_image``). Reads queues
and jobs, writes nothing: a request that is refused leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from launch.checking import parse
from launch.durations import duration, parse_duration
from launch.errors import ConfigError, RequestError
from launch.job_inputs import check_given, read_files
from launch.models import (
    MAX_SPEC_BYTES,
    CommandSource,
    ImageSource,
    Job,
    JobTypes,
    JobVersion,
    LaunchSpec,
    Limits,
    Priority,
    QueueSpec,
    Tracking,
    new_run_id,
)
from launch.plugins import Runner, runner_class
from launch.records import spec_to_json
from launch.request import Request, as_tracking, check_one_source, image_job, json_mapping
from launch.resolve import own_section, resolve
from launch.secrets import references
from launch.templates import given_values
from launch.wandb_spec import from_wandb


class QueueSource(Protocol):
    """Where queues are looked up; :class:`launch.store.RunStore` is one."""

    def queue(self, name: str) -> QueueSpec:
        """Return a queue, or raise a NotFoundError that lists those there are."""
        ...


class JobSource(Protocol):
    """Where jobs are looked up; :class:`launch.jobs.JobRegistry` is one."""

    def get(self, ref: str) -> JobVersion:
        """Return the version a reference (``name``, ``name:v3``, ``name:alias``) means, or raise a NotFoundError."""
        ...


class CodeSnapshots(Protocol):
    """Makes an unnamed job of a directory."""

    def __call__(self, path: Path, entrypoint: tuple[str, ...], tracking: Tracking) -> Job:
        """Return the job whose code is a snapshot of the directory."""
        ...


# Looking through the installed packages takes 3 ms, ten times as long as all the rest of a launch.
cached_runner_class = cache(runner_class)
_STAND_IN = Job(source=CommandSource(), entrypoint=("true",))


class SpecBuilder:
    """Turns requests into specs.

    Args:
        queues: where queues are looked up.
        jobs: where jobs are looked up.
        snapshot: makes a job of a directory; without it a request with ``path`` is refused, as one that came over the
            network must be: it would read the files of this machine.
        note: called with what looks wrong in a request and may be meant, a sentence each.
        digest_of: returns what an image's tag means now, for queues that resolve images at enqueue; none: it is left
            to the agent.
    """

    def __init__(
        self,
        queues: QueueSource,
        jobs: JobSource,
        snapshot: CodeSnapshots | None = None,
        note: Callable[[str], None] = lambda _: None,
        digest_of: Callable[[str], str] | None = None,
    ) -> None:
        self._queues = queues
        self._jobs = jobs
        self._snapshot = snapshot
        self._note = note
        self._digest_of = digest_of

    def build(self, request: Mapping[str, Any], *, where: str = "launch") -> LaunchSpec:
        """Return the launch a request asks for.

        Args:
            request: keywords of :func:`launch.enqueue`; ``None`` is the same as leaving one out.
            where: what the request is, for messages.

        Raises:
            RequestError: something in it is wrong; the message names the value and the fix.
        """
        asked = parse(Request, {key: value for key, value in request.items() if value is not None}, where=where)
        check_one_source(asked, where)
        queue = self._queues.queue(asked.queue)
        priority = priority_in(asked.priority, queue)
        config, files = json_mapping(asked.config, "config"), read_files(asked.files)
        runner = cached_runner_class(queue.resource)
        resource_args = _override(asked, queue, runner)
        variables = own_variables(asked.template_variables, queue)
        effective = resolve(queue, runner, resource_args, variables)
        limits, run_limit_s = own_limits(queue, asked.run_limit)
        given = {key: getattr(asked, key) for key in ("name", "project", "entity", "author")}
        fields = {
            **{key: value for key, value in given.items() if value is not None},
            "run_id": asked.run_id if asked.run_id is not None else new_run_id(),
            "queue": queue.name,
            "queue_version": queue.version,
            "resource": queue.resource,
            "priority": priority,
            "args": asked.args,
            "config": config,
            "files": files,
            "template_variables": variables,
            "resource_args": resource_args,
            "resource_config": effective,
            "limits": limits,
            "run_limit_s": run_limit_s,
        }
        if asked.path is not None:
            # A snapshot writes to the artifact store, so all the rest must be right before one is taken.
            check_spec(parse(LaunchSpec, {**fields, "job": _STAND_IN}, where=where))
        job, job_ref, types = self._job(asked)
        check_given(config, files, job.inputs, types, job=job_ref or "here", note=self._note)
        check_runs_images(job, queue, runner)
        check_uses_dockerfile(asked.dockerfile, job, queue, runner)
        job = self._resolved(job, queue)
        retry = job.retry or queue.retry
        spec = parse(LaunchSpec, {**fields, "job": job, "job_ref": job_ref, "retry": retry}, where=where)
        check_spec(spec)
        return spec

    def build_many(self, requests: Sequence[Mapping[str, Any]]) -> list[LaunchSpec]:
        """Return the launches of many requests; each queue and job is looked up once.

        Raises:
            RequestError: one of them is wrong; the message starts with its place, ``launches/3``.
        """
        digest_of = self._digest_of and cache(self._digest_of)
        remembering = SpecBuilder(_Queues(self._queues), _Jobs(self._jobs), self._snapshot, self._note, digest_of)
        specs = []
        for place, request in enumerate(requests):
            where = f"launches/{place}"
            if not isinstance(request, Mapping):
                raise ConfigError(f"{where}: should be a mapping of enqueue's keywords, not {request!r}")
            try:
                specs.append(remembering.build(request))
            except RequestError as exc:
                raise type(exc)(f"{where}: {exc}") from exc
        _check_distinct(specs)
        return specs

    def register_foreign(self, spec: Any, *, run_id: str | None = None) -> LaunchSpec:
        """Return the launch that a plain Celery message asks for.

        Args:
            spec: the message's ``spec`` keyword: ``enqueue``'s keywords, W&B's spellings accepted.
            run_id: the id to use when the spec names none; the message's own task id makes a repeated one harmless.

        Raises:
            RequestError: the message is no valid request.
        """
        if not isinstance(spec, Mapping):
            raise ConfigError(f"spec: should be a mapping, not {str(spec)[:80]!r}")
        request = from_wandb(spec)
        if request.get("path") is not None:
            raise ConfigError("spec/path: code cannot be named by a path in a message; register it as a job first")
        if request.get("run_id") is None and run_id is not None:
            request["run_id"] = run_id
        return SpecBuilder(self._queues, self._jobs).build(request, where="spec")

    def _resolved(self, job: Job, queue: QueueSpec) -> Job:
        """Return the job with its image's tag resolved, where the queue says so."""
        source = job.source
        if queue.resolve_images != "enqueue" or self._digest_of is None or not isinstance(source, ImageSource):
            return job
        return job.model_copy(update={"source": source.model_copy(update={"digest": self._digest_of(source.image)})})

    def _job(self, asked: Request) -> tuple[Job, str | None, JobTypes | None]:
        ref, types = None, None
        if asked.job is not None:
            version = self._jobs.get(asked.job)
            job, ref, types = version.job, version.ref, version.types
            if asked.entrypoint is not None:
                job = _replaced(job, entrypoint=asked.entrypoint)
        elif asked.path is not None:
            if self._snapshot is None:
                raise ConfigError("path: code cannot be named by a path here; register it as a job first")
            tracking = Tracking.REQUIRED if asked.tracking is None else as_tracking(asked.tracking)
            job = self._snapshot(asked.path, asked.entrypoint or asked.command or (), tracking)
        elif asked.image is not None:
            job = image_job(asked.image, asked.command or asked.entrypoint, Tracking.REQUIRED)
        else:
            job = Job(source=CommandSource(), entrypoint=asked.command or ())
        if asked.tracking is not None:
            job = _replaced(job, tracking=as_tracking(asked.tracking))
        if asked.dockerfile is not None:
            job = _replaced(job, dockerfile=_inside(asked.dockerfile, "dockerfile"))
        return job, ref, types


def _replaced(job: Job, **fields: Any) -> Job:
    return parse(Job, {**{name: getattr(job, name) for name in Job.model_fields}, **fields}, where="launch")


def _inside(path: Any, where: str) -> str:
    """Return a path in the job's code, or raise a ConfigError."""
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ConfigError(f"{where}: should be a path in the job's code, not {path!r}")
    if path.startswith("/") or ".." in path.split("/"):
        raise ConfigError(f"{where}: {path!r} should be relative to the job's code, and stay in it, without '..'")
    return path


def check_uses_dockerfile(dockerfile: Any, job: Job, queue: QueueSpec, runner: type[Runner]) -> None:
    """Raise a ConfigError for a launch's own Dockerfile where no image is built."""
    if dockerfile is None:
        return
    if job.source.kind not in ("code", "git"):
        raise ConfigError(f"dockerfile: is for jobs of code; the source of this one is {job.source.kind}")
    if not runner.runs_images:
        raise ConfigError(
            f"dockerfile: queue {queue.name!r} is of resource {queue.resource!r}, which builds no images; use a queue "
            "of resource docker"
        )


def check_runs_images(job: Job, queue: QueueSpec, runner: type[Runner]) -> None:
    """Raise a ConfigError for an image job in a queue whose target runs none."""
    if job.source.kind == "image" and not runner.runs_images:
        raise ConfigError(
            f"image: queue {queue.name!r} is of resource {queue.resource!r}, which runs no images; use a queue of "
            "resource docker"
        )


def own_limits(queue: QueueSpec, run_limit: Any) -> tuple[Limits, float | None]:
    """Return a launch's limits, and its own run limit in seconds; it may only be shorter than the queue's.

    Raises:
        ConfigError: it is no time span, or longer.
    """
    if run_limit is None:
        return queue.limits, None
    own_s, queue_s = parse_duration(run_limit, where="run_limit"), queue.limits.run_s
    if queue_s is not None and own_s > queue_s:
        raise ConfigError(
            f"run_limit: {duration(own_s)} is longer than the {duration(queue_s)} that queue {queue.name!r} allows; "
            "leave it out, or give a shorter one"
        )
    return queue.limits.model_copy(update={"run_s": own_s}), own_s


def priority_in(value: Any, queue: QueueSpec) -> Priority:
    """Return the priority class of that name, medium for none, or raise a ConfigError if the queue does not know it."""
    priority = Priority.MEDIUM if value is None else Priority.of(value)
    if priority is not Priority.MEDIUM and not queue.priorities:
        raise ConfigError(
            f"priority: queue {queue.name!r} was created without priorities, so {priority.label!r} means nothing "
            "there; leave the priority out, or use a queue created with --priorities"
        )
    return priority


def _override(asked: Request, queue: QueueSpec, runner: type[Runner]) -> dict[str, Any]:
    names = (queue.resource, runner.name, *runner.aliases)
    if asked.resource is not None and asked.resource not in names:
        raise ConfigError(
            f"resource: queue {queue.name!r} is of resource {queue.resource!r}, not {asked.resource!r}; leave it out"
        )
    return own_override(asked.resource_args, queue, runner)


def own_override(resource_args: Any, queue: QueueSpec, runner: type[Runner]) -> dict[str, Any]:
    """Return a launch's override of a queue's resource config, in whichever form it is given."""
    return own_section(json_mapping(resource_args, "resource_args"), (queue.resource, runner.name, *runner.aliases))


def own_variables(given: Any, queue: QueueSpec) -> dict[str, Any]:
    """Return what a launch gives of a queue's template variables, each value of its variable's type."""
    return dict(given_values(queue.template_variables, json_mapping(given, "template_variables"), queue=queue.name))


def check_spec(spec: LaunchSpec) -> None:
    """Raise a ConfigError for a launch that is too large to be a message, or refers to a secret where all can read."""
    for part in ("config", "files", "args"):
        names = _secrets_in(getattr(spec, part))
        if names:
            raise ConfigError(
                f"{part}: the secret {min(names)!r} cannot stand here, since {part} are recorded and shown; have the "
                "script read a variable, and put the secret into env of the queue's config or of resource_args"
            )
    size = len(spec_to_json(spec).encode())
    if size <= MAX_SPEC_BYTES:
        return
    largest = max(("config", "files", "resource_args", "args"), key=lambda name: len(str(getattr(spec, name))))
    raise ConfigError(
        f"launch: is {size:,} bytes as JSON, more than the {MAX_SPEC_BYTES:,} a launch may have; the largest part is "
        f"{largest}: put large inputs into the job or a file it reads"
    )


def _secrets_in(value: Any) -> frozenset[str]:
    try:
        return references(value)
    except ConfigError:
        return frozenset()  # what only looks like one is text here


def _check_distinct(specs: Iterable[LaunchSpec]) -> None:
    seen: dict[str, int] = {}
    for place, spec in enumerate(specs):
        if spec.run_id in seen:
            first = seen[spec.run_id]
            raise ConfigError(f"launches/{place}: run_id {spec.run_id!r} is launches/{first}'s already; ids are unique")
        seen[spec.run_id] = place


class _Queues:
    """Remembers what it looked up, for one batch."""

    def __init__(self, source: QueueSource) -> None:
        self._source = source
        self._known: dict[str, QueueSpec] = {}

    def queue(self, name: str) -> QueueSpec:
        if name not in self._known:
            self._known[name] = self._source.queue(name)
        return self._known[name]


class _Jobs:
    """Remembers what it looked up, for one batch."""

    def __init__(self, source: JobSource) -> None:
        self._source = source
        self._known: dict[str, JobVersion] = {}

    def get(self, ref: str) -> JobVersion:
        if ref not in self._known:
            self._known[ref] = self._source.get(ref)
        return self._known[ref]
