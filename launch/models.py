"""What a job, a launch, a queue and a run *are*: frozen data, checked on the way in. No I/O here.

Everything that is stored or sent is one of these models; every agent, server and client reads the same shape. What is
wrong with data that does not fit is said by :mod:`launch.checking`.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, StrictStr, StringConstraints, model_validator

from launch.checking import Model, matching
from launch.errors import ConfigError

SCHEMA_VERSION = 2
MAX_SPEC_BYTES = 1 << 20
RUN_ID_PATTERN = "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
APT_PATTERN = r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9][A-Za-z0-9.+~:-]*)?"
"""A Debian package: ``libgl1``, ``ffmpeg=7:5.1.6-0``.

Source: the Debian Policy Manual, section 5.6.1.
"""
_NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_.-]{0,%d}"
_NAME_MEANING = "1 to %d of letters, digits, '_', '.' and '-', starting with a letter or digit"

RunId = Annotated[str, matching(RUN_ID_PATTERN, "1 to 40 of a-z, 0-9 and '-', neither starting nor ending with '-'")]
Name = Annotated[str, matching(_NAME_PATTERN % 63, _NAME_MEANING % 64)]
"""What queues, aliases and agents are called."""
QueueName = Name
Alias = Name
JobName = Annotated[str, matching(_NAME_PATTERN % 127, _NAME_MEANING % 128)]
Digest = Annotated[str, matching("[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
Commit = Annotated[str, matching("[0-9a-f]{40}", "40 lower-case hexadecimal digits")]


def new_run_id() -> str:
    """Return eight random characters that are a run's name everywhere."""
    alphabet = string.ascii_lowercase + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(8))


# --- what becomes of a run that fails, and how long it may take -------------------------------------------------------


def _as_rule(value: Any) -> Any:
    return {"times": value} if isinstance(value, int) and not isinstance(value, bool) else value


class RetryRule(Model):
    """How often a run is tried again after one kind of failure; a bare number is ``times``."""

    times: Annotated[int, Field(ge=0, le=1000)] = 0
    memory: Annotated[str, matching(r"x\d+(\.\d+)?", "a multiple, such as 'x1.5'")] | None = None
    """Memory for the next attempt, as a multiple of this one's: ``"x1.5"``."""

    @property
    def memory_factor(self) -> float:
        """The multiple as a number; 1 if memory stays."""
        return float(self.memory[1:]) if self.memory else 1.0


Rule = Annotated[RetryRule, BeforeValidator(_as_rule)]


class RetryPolicy(Model):
    """When a failed attempt is followed by another, at the run's old place in its queue."""

    preempted: Rule = RetryRule(times=5)
    """The target took its machine away."""
    host_lost: Rule = RetryRule()
    """Its machine vanished. The attempt may still run there, unseen: allow it for jobs that may run twice at once."""
    oom: Rule = RetryRule()
    """It ran out of memory."""
    error: Rule = RetryRule()
    """It exited with another code than 0, or by a signal."""
    backoff_s: Annotated[float, Field(ge=0)] = 10.0
    """The pause before the first retry, twice as long before each further one."""
    max_backoff_s: Annotated[float, Field(ge=0)] = 600.0

    def rule_for(self, kind: CauseKind) -> RetryRule:
        """Return the rule for a cause; most causes have none, since trying again would change nothing."""
        if kind in (CauseKind.EXIT_CODE, CauseKind.SIGNAL):
            return self.error
        rules = {CauseKind.PREEMPTED: self.preempted, CauseKind.HOST_LOST: self.host_lost, CauseKind.OOM: self.oom}
        return rules.get(kind, RetryRule())

    def pause_s(self, retries_before: int) -> float:
        """Return the pause before a retry, in seconds."""
        return float(min(self.max_backoff_s, self.backoff_s * 2.0 ** min(retries_before, 60)))


class Limits(Model):
    """How long a run may take; none: no limit."""

    start_s: Annotated[float, Field(gt=0)] | None = None
    """From its claim until it runs: fetching, building, pulling, waiting for a machine."""
    run_s: Annotated[float, Field(gt=0)] | None = None
    """At its target."""
    orphan_s: Annotated[float, Field(gt=0)] = 86_400.0
    """Without an agent that could follow it, until it counts as lost with its machine."""


# --- jobs ------------------------------------------------------------------------------------------------------------


class Tracking(StrEnum):
    """Whether a run must call ``wandb.init`` to count as finished."""

    REQUIRED = "required"
    OPTIONAL = "optional"


class CodeOrigin(Model):
    """The git work tree a snapshot was taken in; for people, nothing is run from it."""

    remote: str | None = None
    """The URL of ``origin``, without what a password would be in."""
    commit: Commit | None = None
    """What ``HEAD`` was; none: nothing was committed yet."""
    branch: str | None = None
    dirty: tuple[str, ...] = ()
    """Paths, relative to the snapshot's folder, that differ from the commit or are not in it; at most 100."""
    more_dirty: int = 0
    """How many more there are."""
    diff: Digest | None = None
    """``git diff HEAD`` of the files in the snapshot, in the artifact store; none: there is nothing in it."""


class CodeSource(Model):
    """A snapshot of a directory, kept in the artifact store."""

    kind: Literal["code"] = "code"
    archive: Digest
    """sha256 of the gzip tar."""
    archive_bytes: int
    files: int
    origin: CodeOrigin | None = None
    """None: the directory was in no git work tree."""


class GitSource(Model):
    """A commit of a git repository, which the agent fetches."""

    kind: Literal["git"] = "git"
    remote: str
    """``https://host/path``, ``ssh://user@host/path`` or ``user@host:path``."""
    commit: Commit
    ref: str | None = None
    """The branch or tag that meant the commit when the job was created; for people."""
    subdirectory: str | None = None
    """The folder in the repository that is the job's root; none: all of it."""


class ImageSource(Model):
    """A container image that holds everything."""

    kind: Literal["image"] = "image"
    image: str
    digest: str | None = None
    """``sha256:…`` that the tag meant at enqueue, in a queue that resolves it there; then this is what runs."""


class CommandSource(Model):
    """No source: the command is all there is, and the target must already have what it needs."""

    kind: Literal["command"] = "command"


Source = Annotated[CodeSource | GitSource | ImageSource | CommandSource, Field(discriminator="kind")]


class JobInputs(Model):
    """What may be set at launch."""

    config: dict[str, Any] = {}
    """JSON Schema of ``wandb.config``; empty: any."""
    files: dict[str, dict[str, Any]] = {}
    """``{path of a config file in the job's code: JSON Schema of its values}``; an empty schema: any."""


class Job(Model):
    """What to run, apart from where it is kept: one version of a job, or a launch's own unnamed one."""

    source: Source
    entrypoint: tuple[str, ...] = ()
    """The command as a list; empty means the image's own."""
    python_version: str | None = None
    """``"3.11"``; none means the builder's default."""
    requirements: Digest | None = None
    """sha256 of the requirements file in the artifact store; none means nothing to install."""
    dockerfile: str | None = None
    """The Dockerfile that makes the image, a path in the job's code; none: one is generated."""
    context: str | None = None
    """The folder of the job's code that is the Dockerfile's build context; none: all of it."""
    base_image: str | None = None
    """What a generated image starts from; none: as the queue or the agent says."""
    apt: tuple[Annotated[str, matching(APT_PATTERN, "a Debian package like 'libgl1'")], ...] = ()
    """Debian packages that a generated image has installed."""
    inputs: JobInputs | None = None
    """What may be set at launch, as the job's author declares it; none: anything."""
    tracking: Tracking = Tracking.REQUIRED
    retry: RetryPolicy | None = None
    """None: as the queue says."""

    @model_validator(mode="after")
    def _has_something_to_run(self) -> Job:
        if not self.entrypoint and self.source.kind != "image":
            raise ValueError(f"a {self.source.kind} job needs an entrypoint")
        return self


Types = dict[str, Any]
"""``{key: type}``, nested as the values are: ``"number"``, ``"text"``, ``"list"``, or the types of a mapping."""


class JobTypes(Model):
    """What the first finished run of a job's version went in and out with, and what its script lets a launch set."""

    config: Types = {}
    """Of ``wandb.config``."""
    summary: Types = {}
    """Of the run's summary."""
    settable: Types | None = None
    """What ``manage_wandb_config`` lets a launch set of the config; none: everything."""
    files: dict[str, Types] = {}
    """What ``manage_config_file`` lets a launch set of each file."""
    inputs: JobInputs | None = None
    """The schemas that either was called with."""


class JobVersion(Model):
    """A job as the registry keeps it."""

    name: JobName
    version: int
    job: Job
    created_at: float
    """Unix seconds, Redis time."""
    types: JobTypes | None = None
    """Filled in by the version's first finished run, and kept apart from what never changes; none: not known yet."""

    @property
    def ref(self) -> str:
        """``name:v3``"""
        return f"{self.name}:v{self.version}"


# --- queues ----------------------------------------------------------------------------------------------------------


class Priority(IntEnum):
    """W&B Launch's four classes; the lower number goes first."""

    CRITICAL = 0
    HIGH = 1
    MEDIUM = 2
    LOW = 3

    @classmethod
    def of(cls, value: str | int | Priority) -> Priority:
        """Return the class called ``value`` (a name or its number).

        Raises:
            ConfigError: neither a name nor a number of one.
        """
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        if isinstance(value, int) and not isinstance(value, bool) and value in list(cls):
            return cls(value)
        raise ConfigError(f"priority: should be one of critical, high, medium, low, not {value!r}")

    @property
    def label(self) -> str:
        """The name as users type it."""
        return self.name.lower()


TemplateValue = StrictStr | StrictInt | StrictFloat


class TemplateVariable(Model):
    """A ``{{name}}`` in a queue's config, filled in by each launch; :mod:`launch.templates` knows the rules."""

    type: Literal["string", "integer", "number"] = "string"
    enum: tuple[TemplateValue, ...] | None = None
    """The values there are; none: any within the bounds."""
    minimum: StrictInt | StrictFloat | None = None
    maximum: StrictInt | StrictFloat | None = None
    default: TemplateValue | None = None
    """None: a launch has to give a value."""
    description: str = ""


OverrideRule = Literal["safe", "all", "none"] | tuple[str, ...]


class QueueSpec(Model):
    """A queue's settings. The resource config is versioned apart: editing it never changes a queued run."""

    name: QueueName
    resource: str
    """The target resource: a runner's name, such as ``"docker"``."""
    config: dict[str, Any] = {}
    """Default resource config, as the runner's ``Options`` checks it."""
    template_variables: dict[str, TemplateVariable] = {}
    """What the ``{{name}}`` in ``config`` stand for."""
    resolve_images: Literal["enqueue", "claim"] = "claim"
    """When an image job's tag becomes a digest."""
    overrides: OverrideRule = "safe"
    """Which keys of it a launch may override."""
    priorities: bool = False
    """Whether critical, high and low are accepted besides medium."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """The most runs of this queue at once, over all agents."""
    retry: RetryPolicy = RetryPolicy()
    limits: Limits = Limits()
    version: int = 1
    """Counts up when ``config`` changes."""
    paused: bool = False


# --- launches and runs -----------------------------------------------------------------------------------------------


class LaunchSpec(Model):
    """One launch, frozen at enqueue: the message carries it and the record keeps it."""

    schema_version: int = SCHEMA_VERSION
    run_id: RunId
    queue: QueueName
    queue_version: int = 1
    resource: str
    job: Job
    job_ref: str | None = None
    """``name:v3`` of the registered job, if it is one."""
    project: Annotated[str, StringConstraints(pattern=r"^[^/\\#?%:\x00-\x1f]{1,128}$")] = "uncategorized"
    entity: Annotated[str, StringConstraints(pattern=r"^[^/\\#?%:\x00-\x1f]{1,128}$")] = "local"
    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]*$")] | None = None
    """The run's display name."""
    author: str | None = None
    priority: Priority = Priority.MEDIUM
    args: tuple[str, ...] = ()
    """Appended to the job's entrypoint."""
    config: dict[str, Any] = {}
    """Overrides of the script's ``wandb.config``."""
    files: dict[str, dict[str, Any]] = {}
    """``{path: values}``: overrides of config files in the job's code."""
    template_variables: dict[str, TemplateValue] = {}
    """What the launch itself gives of the queue's template variables."""
    resource_args: dict[str, Any] = {}
    """The launch's own override of the queue's resource config."""
    resource_config: dict[str, Any] = {}
    """Queue default and override merged: what the runner gets."""
    retry: RetryPolicy = RetryPolicy()
    limits: Limits = Limits()
    run_limit_s: Annotated[float, Field(gt=0)] | None = None
    """The launch's own limit at its target, which is in ``limits`` too; none: the queue's alone."""
    rerun_of: RunId | None = None
    """The run whose launch this one repeats."""

    @property
    def command(self) -> tuple[str, ...]:
        """Entrypoint and arguments."""
        return self.job.entrypoint + self.args

    @property
    def title(self) -> str:
        """What people call it: the job's reference, or the start of the command or image."""
        if self.job_ref:
            return self.job_ref
        if isinstance(self.job.source, ImageSource):
            return self.job.source.image
        return " ".join(self.command)[:60]


class RunState(StrEnum):
    """Where a run is in its life; stop is a flag, not a state."""

    QUEUED = "queued"
    BUILDING = "building"
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    CRASHED = "crashed"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self in FINAL_STATES

    @property
    def is_claimed(self) -> bool:
        """Whether an agent owns it, or should."""
        return self in (RunState.BUILDING, RunState.STARTING, RunState.RUNNING)


FINAL_STATES = frozenset({RunState.FINISHED, RunState.FAILED, RunState.STOPPED, RunState.CRASHED})

LEGAL_MOVES: Mapping[RunState, frozenset[RunState]] = {
    # A run leaves the queue by a claim, or ends there: stopped by a user, or failed when its request was invalid.
    RunState.QUEUED: frozenset({RunState.BUILDING, RunState.STOPPED, RunState.FAILED}),
    # Back to the queue: preempted, retried, or the target is away. An adopter starts again at building.
    RunState.BUILDING: frozenset({RunState.BUILDING, RunState.STARTING, RunState.QUEUED}) | FINAL_STATES,
    RunState.STARTING: frozenset({RunState.BUILDING, RunState.STARTING, RunState.RUNNING, RunState.QUEUED})
    | FINAL_STATES,
    RunState.RUNNING: frozenset({RunState.RUNNING, RunState.QUEUED}) | FINAL_STATES,
    **{state: frozenset() for state in FINAL_STATES},
}


class CauseKind(StrEnum):
    """Why a run ended."""

    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OOM = "oom"
    TIMEOUT = "timeout"
    BUILD = "build"
    PULL = "pull"
    CONFIG = "config"
    PREEMPTED = "preempted"
    HOST_LOST = "host_lost"
    UNTRACKED = "untracked"
    STOPPED = "stopped"
    INTERNAL = "internal"


class Cause(Model):
    """Why a run ended, for a program (``kind``) and for a person (``message``)."""

    kind: CauseKind
    message: str
    """A whole sentence, with what to do about it where there is something to do."""
    exit_code: int | None = None
    signal: int | None = None
    log_tail: tuple[str, ...] = ()
    """The last lines the job wrote, oldest first."""


class StopRequest(Model):
    """Somebody wants the run to end."""

    by: str
    at: float
    grace_s: float = 10.0
    """Seconds between asking the job to end and killing it."""


class Fence(Model):
    """The claim a write belongs to.

    A nonce stands beside the epoch, since an epoch alone can roll back with a restored Redis.
    """

    epoch: int
    nonce: str


class AttemptRecord(Model):
    """A try that did not end its run."""

    number: int
    agent: str | None
    cause: Cause
    log_archive: Digest | None = None
    started_at: float | None = None
    ended_at: float


class RunRecord(Model):
    """A run as Redis keeps it: the truth."""

    spec: LaunchSpec
    state: RunState
    seq: int
    """Order of enqueueing over all queues."""
    attempt: int = 0
    """The try it is at; 0 before the first claim."""
    attempts: tuple[AttemptRecord, ...] = ()
    """The tries before."""
    memory_factor: float = 1.0
    """What retries have made of the memory asked for."""
    held_by: str | None = None
    """Who took it out of its queue's order."""
    due_at: float | None = None
    """When its pause before a retry ends."""
    released_at: float | None = None
    """Since when it has had no agent, if the last one let go of it."""
    submitting: bool = False
    """Whether this attempt may have been sent to its target: from then on nobody may send it a second time."""
    timed_out_s: float | None = None
    """The time limit this attempt ran into."""
    agent: str | None = None
    locality: str | None = None
    """Which agents can follow it at its target: those with the same one."""
    fence: Fence | None = None
    image: str | None = None
    """What the builder made or found: an image reference, or a virtual environment's path."""
    image_digest: str | None = None
    """``sha256:…`` of the image in its registry, where it has one."""
    handle: str | None = None
    note: str | None = None
    """What it is doing or waiting for just now, for people."""
    stop: StopRequest | None = None
    cause: Cause | None = None
    tracked: bool = False
    """Whether the script called ``wandb.init``."""
    config: dict[str, Any] = {}
    """``wandb.config`` as the script has it."""
    summary: dict[str, Any] = {}
    log_cursor: str | None = None
    """Where in the target's log the agent is."""
    log_bytes: int = 0
    """Length of the full log file at that cursor."""
    log_archive: Digest | None = None
    """The full log in the artifact store, once final."""
    created_at: float
    claimed_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def id(self) -> str:
        """The run's id."""
        return self.spec.run_id


def is_run_id(text: str) -> bool:
    """Whether the text may be a run's id."""
    return re.fullmatch(RUN_ID_PATTERN, text) is not None
