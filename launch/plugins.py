"""The contracts between an agent and what it drives: builders and runners. No SDK, no Redis here.

A **runner** talks to one kind of target; a **builder** makes what a runner starts (a container image, a virtual
environment). Both are found by entry points (``launch.runners``, ``launch.builders``), so that another package can
bring its own; a broken one hurts only the queues that name it.

A plugin's module must import without its SDK: clients validate a queue's config with the runner's ``Options`` on
machines that have no Docker. The SDK is imported where the connection is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from launch.checking import did_you_mean
from launch.errors import ConfigError
from launch.models import CauseKind

LogStream = Literal["stdout", "stderr", "build"]
MASK = "********"


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a target from working, and how to mend it."""

    what: str
    fix: str


@dataclass(frozen=True)
class Reach:
    """What came of asking the tracking server from where a target's jobs run."""

    said: str
    """One phrase for people: ``reached from a container``, ``not tested: …`` and why."""
    problem: Problem | None = None
    """Set when a job cannot reach it."""


def attempt_name(installation: str, run_id: str, number: int) -> str:
    """Return what an attempt is called at its target."""
    return f"launch-{installation}-{run_id}-{number}"


@dataclass(frozen=True)
class Attempt:
    """One try of one run, with everything a runner needs to plan it."""

    installation: str
    """Eight hex digits: whose attempt it is. Part of every name and label at every target."""
    run_id: str
    number: int
    command: tuple[str, ...]
    """Empty: the image's own command."""
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict)
    """Like ``env``; masked in every view, label and log."""
    secrets: frozenset[str] = frozenset()
    """Values of secrets that the options hold: no view, label or log may show them."""
    code: Path | None = None
    """A gzip tar of the job's code on this machine, with paths relative to the job's root."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The attempt's name at its target: the same for every try to submit it."""
        return attempt_name(self.installation, self.run_id, self.number)


@dataclass(frozen=True)
class Plan:
    """What will be sent to the target, complete: ``submit`` adds nothing to it."""

    name: str
    request: Mapping[str, Any]
    secrets: frozenset[str] = frozenset()
    """Values that no view may show."""
    code: Path | None = None

    def view(self) -> dict[str, Any]:
        """Return the request for people: secrets masked, JSON types only."""
        return {"name": self.name, **_masked(dict(self.request), self.secrets)}


def _masked(value: Any, secrets: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item, secrets) for item in value]
    if isinstance(value, bool | int | float) or value is None:
        return value
    text = str(value)
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


class Phase(StrEnum):
    """Where an attempt is, as its target sees it."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"
    """The target knows nothing of it (any more)."""


@dataclass(frozen=True)
class Status:
    """An attempt's state at its target."""

    phase: Phase
    exit_code: int | None = None
    """Once ended, where the target tells it."""
    signal: int | None = None
    """The signal that ended it, where the target tells it."""
    cause: CauseKind | None = None
    """Set when the target knows more than the exit code: ``oom``, ``preempted``, ``config`` (it could not start)."""
    message: str = ""
    """The target's own words."""

    @property
    def is_final(self) -> bool:
        """Whether it will never run again."""
        return self.phase in (Phase.ENDED, Phase.GONE)


@dataclass(frozen=True)
class LogChunk:
    """A piece of what the job wrote, in the order it was written within its stream."""

    stream: LogStream
    text: str
    """Any length, not necessarily whole lines; never half a character."""
    cursor: str
    """Give this back to ``logs`` to get what follows this chunk."""


@dataclass(frozen=True)
class TargetContext:
    """What an agent gives a runner or builder when it makes one."""

    installation: str
    home: Path
    """The launch home: a plugin keeps its files in a folder of its own name below it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The plugin's own section of the agent config."""
    secrets: frozenset[str] = frozenset()
    """Values of secrets that ``settings`` hold: no log may show them."""


class Runner(ABC):
    """Talks to one kind of target. One instance per agent and target, called from several threads.

    Every call may be repeated and must then do nothing new. A target that is away raises
    :class:`~launch.errors.TemporaryError`; a request that can never work raises a
    :class:`~launch.errors.PermanentError` or :class:`~launch.errors.ConfigError`.
    """

    name: ClassVar[str]
    """The target resource's name in a queue: ``docker``."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names of it: W&B's ``local-container``."""
    builder: ClassVar[str]
    """The builder that makes what this runner starts."""
    runs_images: ClassVar[bool] = True
    """Whether image jobs can run on it."""
    runs_bare_commands: ClassVar[bool] = False
    """Whether a command without code or requirements needs no build there."""
    Options: ClassVar[type[BaseModel]]
    """The resource config of a queue of this target; unknown keys are errors."""
    safe_overrides: ClassVar[frozenset[str]]
    """Keys of ``Options`` (canonical names) that a launch may override when the queue says ``overrides: safe``."""
    public_options: ClassVar[frozenset[str]] = frozenset()
    """Keys of ``Options`` (canonical names) that others can read at the target, such as labels and command lines: no
    secret may stand there."""
    probe_options: ClassVar[frozenset[str]] = frozenset()
    """Keys of ``Options`` (canonical names) that :meth:`probe` heeds: those that say how a job is connected."""

    def __init__(self, context: TargetContext) -> None:
        self.context = context

    @classmethod
    def canonical(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with each key under its canonical name (``shm_size`` -> ``shm-size``), values untouched."""
        return dict(config)

    @property
    @abstractmethod
    def locality(self) -> str:
        """Which agents can follow an attempt of this target: those with the same string."""

    @abstractmethod
    def check(self) -> list[Problem]:
        """Return what keeps the target from working now. A target that is away is a problem too, never an error."""

    @abstractmethod
    def tracking_host(self, options: Any) -> str | None:
        """Return the address at which a job reaches a server on this machine, or none if it cannot."""

    def probe(self, url: str, options: Any) -> Reach:  # noqa: ARG002
        """Ask the tracking server at ``url`` from where a job with these options would run, and leave nothing behind.

        May start something short-lived at the target, but fetches and builds nothing for it.
        """
        return Reach(f"not tested: the {self.name} target has no probe")

    def build_options(self, options: Any) -> Mapping[str, Any]:  # noqa: ARG002
        """Return what a queue's ``options`` say to the builder; most have nothing to say."""
        return {}

    @classmethod
    def with_memory(cls, config: Mapping[str, Any], factor: float) -> dict[str, Any]:  # noqa: ARG003
        """Return the resource config with its memory multiplied, for a retry after running out of it.

        A target whose config says nothing of memory returns it as it is.
        """
        return dict(config)

    def scratch_dir(self, attempt_name: str) -> str | None:  # noqa: ARG002
        """Return a folder at the target that the job may write and that goes with the attempt.

        None: all of the target is thrown away with the attempt, so the job may write where it likes.
        """
        return None

    @abstractmethod
    def plan(self, attempt: Attempt, image: str | None, options: Any) -> Plan:
        """Return what will be sent: pure, no connection needed.

        Args:
            attempt: what to run.
            image: what the builder made, ``None`` for a job without a source on a target that needs none.
            options: an instance of ``Options``.

        Raises:
            ConfigError: the options or the image do not fit the attempt.
        """

    @abstractmethod
    def submit(self, plan: Plan) -> str:
        """Start the attempt, or find it started, and return its handle."""

    @abstractmethod
    def status(self, handles: Sequence[str]) -> dict[str, Status]:
        """Return ``{handle: Status}`` for all of them; one the target does not know is ``gone``, never an exception."""

    @abstractmethod
    def wait(self, handle: str, timeout_s: float) -> Status:
        """Return the status as soon as it is final, or what it is after ``timeout_s``."""

    @abstractmethod
    def logs(self, handle: str, cursor: str | None = None) -> Iterator[LogChunk]:
        """Yield what the job has written since ``cursor`` (none: from the start), and then what it goes on to write.

        Ends when the job has ended and all of it was yielded. The consumer may stop at any chunk (``close``).
        Waits for more without using the processor; after half a second without any it should yield empty text: what
        may be the beginning of a secret is held back until then.
        """

    @abstractmethod
    def stop(self, handle: str, grace_s: float) -> None:
        """Ask the attempt to end, and kill it and all it started after ``grace_s``. Returns at once."""

    @abstractmethod
    def find(self) -> dict[str, str]:
        """Return ``{attempt name: handle}`` of this installation's attempts at the target, ended ones included."""

    @abstractmethod
    def remove(self, handle: str) -> None:
        """Delete every trace of an attempt at the target; called after its result and log are recorded."""


@dataclass(frozen=True)
class BuildRequest:
    """What a builder is to make."""

    image: str | None
    """An image job's reference, to be pulled."""
    requirements: str | None
    """The text of the requirements file; none: nothing to install."""
    python_version: str | None
    """``"3.11"``; none: the builder's default."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the queue says to the builder: see :meth:`Runner.build_options`."""
    digest: str | None = None
    """``sha256:…`` that ``image`` is to have."""
    code: Path | None = None
    """The job's code, as in :class:`Attempt`; what a Dockerfile is built from."""
    dockerfile: str | None = None
    """A path in ``code``; none: the builder makes its own."""
    context: str | None = None
    """The folder of ``code`` that is the Dockerfile's build context; none: all of it."""
    base_image: str | None = None
    """What the job wants its image to start from; it goes before the queue's wish."""
    apt: tuple[str, ...] = ()
    """Debian packages to install."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What an image that is made says of itself: OCI annotation keys."""


@dataclass(frozen=True)
class Build:
    """What a builder made or found."""

    image: str
    because: str
    """One line for people: ``reused, same requirements`` or ``built: first run with these requirements``."""
    reused: bool
    digest: str | None = None
    """``sha256:…`` of the image in its registry, where it has one."""
    holds_code: bool = False
    """Whether the job's code is in the image, so that nothing is put in at submit."""


class Builder(ABC):
    """Makes what a runner starts. Called from several threads and agents: one name is built once."""

    name: ClassVar[str]

    def __init__(self, context: TargetContext) -> None:
        self.context = context

    @abstractmethod
    def check(self) -> list[Problem]:
        """Return what keeps it from building now."""

    @abstractmethod
    def build(self, request: BuildRequest, log: Callable[[str], None], cancelled: Callable[[], bool]) -> Build:
        """Make it, or find it made.

        Args:
            request: what to make.
            log: called with text for people as it comes, whole lines or not.
            cancelled: asked at least once a second; true means give up and raise ``InterruptedError``.

        Raises:
            BuildError: it cannot be built; the message names the step that failed and ends with its last lines.
            PullError: the image cannot be fetched.
            TemporaryError: the engine or registry is away.
        """


def runner_class(resource: str) -> type[Runner]:
    """Return the runner for a target resource, by its name or an alias.

    Raises:
        ConfigError: there is none, or its plugin does not load.
    """
    found = _load("launch.runners", resource, "resource")
    assert issubclass(found, Runner)
    return found


def builder_class(name: str) -> type[Builder]:
    """Return the builder of that name.

    Raises:
        ConfigError: there is none, or its plugin does not load.
    """
    found = _load("launch.builders", name, "builder")
    assert issubclass(found, Builder)
    return found


def _load(group: str, name: str, what: str) -> type[Any]:
    points = {point.name: point for point in entry_points(group=group)}
    point: EntryPoint | None = points.get(name)
    if point is None:
        raise ConfigError(f"{what}: unknown {what} {name!r}{did_you_mean(name, list(points))}")
    try:
        loaded = point.load()
    except Exception as exc:
        raise ConfigError(f"{what}: the plugin for {name!r} ({point.value}) does not load: {exc}") from exc
    assert isinstance(loaded, type)
    return loaded
