"""The resource config of a Docker queue: ``docker run``'s options by their own names, checked. No I/O, no SDK here.

Source: https://docs.docker.com/reference/cli/docker/container/run/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from launch.checking import Model, known_keys, readable_by
from launch.references import parse_reference
from workers.docker_settings import Destination

MIN_MEMORY_BYTES = 6 << 20
"""The engine refuses less."""

_SHORT = {
    "e": "env",
    "m": "memory",
    "w": "workdir",
    "v": "volume",
    "u": "user",
    "h": "hostname",
    "c": "cpu-shares",
    "l": "label",
    "p": "publish",
    "cpu": "cpus",
    "net": "network",
    "volumes": "volume",
    "ulimits": "ulimit",
    "dns-opt": "dns-option",
}
_REFUSED = {
    "rm": "a container is removed once its result and log are recorded",
    "detach": "every container runs detached",
    "d": "every container runs detached",
    "name": "a container is named by installation, run and attempt, so that it is found again",
    "restart": "an attempt is started once; a restarted container would run the job again",
    "interactive": "nobody is there to type",
    "i": "nobody is there to type",
    "tty": "a terminal mixes stdout and stderr",
    "t": "a terminal mixes stdout and stderr",
    "it": "nobody is there to type",
    "log-driver": "the log driver is chosen so that logs can be read while the job runs",
    "env-file": "it would be a file of the agent's machine; use env",
    "cidfile": "the container's id is the run's handle",
    "sig-proxy": "every container runs detached",
    "command": "the job's own entrypoint and arguments are the command",
}
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def canonical_key(key: str) -> str:
    """Return an option's name in ``docker run``: ``--shm_size`` -> ``shm-size``, ``m`` -> ``memory``."""
    name = key.strip().lstrip("-").replace("_", "-").lower()
    return _SHORT.get(name, name)


def parse_memory(value: str | int) -> int:
    """Return a memory size in bytes.

    Args:
        value: a number and an optional suffix, ``"512m"``, ``"1.5g"`` or ``"2GiB"``; none means bytes.

    Raises:
        ValueError: unknown suffix, or a negative number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", str(value).strip().lower())
    if isinstance(value, bool) or match is None:
        raise ValueError(f"should be a size such as '512m' or '2g', not {value!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def with_memory(config: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return a canonical resource config with its memory limits multiplied; unlimited swap stays unlimited."""
    limits = ("memory", "memory-reservation", "memory-swap")
    given = {name: config[name] for name in limits if str(config.get(name, "-1")).strip() != "-1"}
    return {**config, **{name: int(parse_memory(value) * factor) for name, value in given.items()}}


def _memory_limit(value: Any) -> int:
    size = parse_memory(value)
    if size < MIN_MEMORY_BYTES:
        hint = f"; did you mean '{value}m'?" if str(value).isdigit() else ""
        raise ValueError(f"{value!r} is {size} bytes, below Docker's minimum of 6m{hint}")
    return size


def _memory_swap(value: Any) -> int:
    return -1 if str(value).strip() == "-1" else _memory_limit(value)


def _words(value: Any) -> Any:
    """Return one word or several as a list: what the command line takes by repeating an option."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return (str(value),)
    if not isinstance(value, list | tuple):
        raise ValueError(f"should be a string or a list of strings, not {value!r}")
    return tuple(str(item) if isinstance(item, int | float) and not isinstance(item, bool) else item for item in value)


def _assignments(value: Any) -> Any:
    """Return a mapping, a list of ``K=V`` or one of them as ``(K=V, ...)``."""
    if not isinstance(value, Mapping):
        return _words(value)
    return tuple(str(key) if item is None else f"{key}={_scalar(key, item)}" for key, item in value.items())


def _scalar(key: Any, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"{key}: should be a string or a number, not {value!r}")


def _checked(pattern: str, form: str, value: Any) -> Any:
    for word in _words(value):
        if not isinstance(word, str) or re.fullmatch(pattern, word) is None:
            raise ValueError(f"should be {form}, not {word!r}")
    return value


def _env(value: Any) -> Any:
    return _assignments_like(r"(?s)[^=\x00]+(=[^\x00]*)?", "KEY=value, or KEY alone for one of the agent's own", value)


def _pairs(value: Any) -> Any:
    return _assignments_like(r"(?s)[^=]+=.*", "key=value", value)


def _labels(value: Any) -> Any:
    words = _assignments_like(r"(?s)[^=]+(=.*)?", "key=value", value)
    if any(word.startswith("ai.openlaunch.") for word in words):
        raise ValueError("labels that start with 'ai.openlaunch.' are how containers are found again: choose another")
    return words


def _assignments_like(pattern: str, form: str, value: Any) -> Any:
    words = _assignments(value)
    _checked(pattern, form, words)
    return words


def _ulimits(value: Any) -> Any:
    words = _assignments(value)
    _checked(r"[a-z]+=(-1|\d+)(:(-1|\d+))?", "name=soft[:hard], such as 'nofile=1024:2048'", words)
    return words


def _gpus(value: Any) -> Any:
    text = "" if isinstance(value, bool) else str(value).strip().strip("\"'")
    if not re.fullmatch(r"all|[1-9]\d*|device=[A-Za-z0-9-]+(,[A-Za-z0-9-]+)*", text):
        raise ValueError(f"should be 'all', a number of GPUs or 'device=0,2', not {value!r}")
    return text


def _volumes(value: Any) -> Any:
    words = _words(value)
    _checked(
        r"(/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]*):/[^:]*(:[A-Za-z,]+)?",
        "source:/target[:ro], the source an absolute path or a volume's name",
        words,
    )
    return words


def _tmpfs(value: Any) -> Any:
    words = _words(value)
    _checked(r"/[^:]*(:.+)?", "/path[:options], such as '/scratch:size=1g'", words)
    return words


def _devices(value: Any) -> Any:
    words = _words(value)
    _checked(r"/[^:]+(:/[^:]+)?(:[rwm]{1,3})?", "/dev/on-host[:/dev/in-container][:rwm]", words)
    return words


def _published(value: Any) -> Any:
    words = _words(value)
    _checked(r"(([\d.]+:)?\d*:)?\d+(/(tcp|udp))?", "[[address:]host-port:]port[/udp]", words)
    return words


def _hosts(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = [f"{name}:{address}" for name, address in value.items()]
    words = _words(value)
    _checked(r"[^:=\s]+[:=].+", "name:address", words)
    return words


Size = Annotated[int, BeforeValidator(parse_memory)]
Limit = Annotated[int, BeforeValidator(_memory_limit)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Text = Annotated[str, Field(min_length=1)]
CpuSet = Annotated[str, Field(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$"), BeforeValidator(str)]
Platform = Annotated[str, Field(pattern=r"^[a-z]+(/[a-z0-9_]+){0,2}$")]
PullPolicy = Literal["missing", "always", "never"]
ImageName = Annotated[str, readable_by(parse_reference, said_by_path="image: ")]


class Accelerator(Model):
    """W&B's way to name another base image for GPU jobs."""

    base_image: ImageName


class BuilderOptions(Model):
    """How the image of a code job is made."""

    base_image: ImageName | None = None
    """A Debian-like image, ``nvidia/cuda:12.4.1-runtime-ubuntu22.04``; Python is installed where it is missing."""
    accelerator: Accelerator | None = None
    """The same in W&B's spelling: ``{accelerator: {base_image: …}}``."""
    cuda: Accelerator | None = None
    """Its older one."""
    destination: Destination | None = None
    """``host:5000/team/repo``: where images are pushed to, instead of what the agent's config says."""
    pull: PullPolicy = "missing"
    """When to fetch images from their registry."""
    platform: Platform | None = None
    """``linux/amd64``; none: the engine's own."""

    @model_validator(mode="before")
    @classmethod
    def _use_one_spelling(cls, data: Any) -> Any:
        return {str(k).replace("-", "_"): v for k, v in data.items()} if isinstance(data, Mapping) else data

    @property
    def base(self) -> str | None:
        """The base image, in whichever way it was given."""
        given = self.accelerator or self.cuda
        return self.base_image or (given.base_image if given else None)


class DockerOptions(Model):
    """Options of ``docker run``, under the names they have there.

    Lists may be given as one string, ``env``, ``label``, ``sysctl`` and ``ulimit`` as mappings too: mappings of a
    queue and a launch merge, lists replace each other.
    """

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"), frozen=True, extra="forbid")

    # limits
    cpus: Annotated[float, Field(gt=0)] | None = None
    cpu_shares: Annotated[int, Field(ge=2)] | None = None
    cpu_period: Annotated[int, Field(ge=1000, le=1_000_000)] | None = None
    cpu_quota: Annotated[int, Field(ge=1000)] | None = None
    cpuset_cpus: CpuSet | None = None
    cpuset_mems: CpuSet | None = None
    memory: Limit | None = None
    memory_reservation: Limit | None = None
    memory_swap: Annotated[int, BeforeValidator(_memory_swap)] | None = None
    """Memory and swap together; none: as much as ``memory``, so that it is a real limit. ``-1``: unlimited swap."""
    memory_swappiness: Annotated[int, Field(ge=0, le=100)] | None = None
    shm_size: Size | None = None
    pids_limit: Annotated[int, Field(ge=-1)] | None = None
    ulimit: Annotated[tuple[str, ...], BeforeValidator(_ulimits)] = ()
    blkio_weight: Annotated[int, Field(ge=10, le=1000)] | None = None
    oom_score_adj: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    storage_opt: Annotated[tuple[str, ...], BeforeValidator(_pairs)] = ()
    # what the job sees
    env: Annotated[tuple[str, ...], BeforeValidator(_env)] = ()
    """``K`` without a value takes the agent's own, where its config's ``targets/docker/pass_env`` lists it."""
    gpus: Annotated[str, BeforeValidator(_gpus)] | None = None
    workdir: Text | None = None
    user: Annotated[str, Field(min_length=1), BeforeValidator(str)] | None = None
    group_add: Words = ()
    hostname: Text | None = None
    domainname: Text | None = None
    entrypoint: Words | None = None
    """Instead of the image's; the job's command becomes its arguments."""
    label: Annotated[tuple[str, ...], BeforeValidator(_labels)] = ()
    stop_signal: Text | None = None
    init: bool = True
    """Whether a tiny init is process 1: it reaps children and passes signals on."""
    # files and devices
    volume: Annotated[tuple[str, ...], BeforeValidator(_volumes)] = ()
    tmpfs: Annotated[tuple[str, ...], BeforeValidator(_tmpfs)] = ()
    device: Annotated[tuple[str, ...], BeforeValidator(_devices)] = ()
    read_only: bool = False
    # network
    network: Text | None = None
    publish: Annotated[tuple[str, ...], BeforeValidator(_published)] = ()
    add_host: Annotated[tuple[str, ...], BeforeValidator(_hosts)] = ()
    dns: Words = ()
    dns_search: Words = ()
    dns_option: Words = ()
    # privileges and namespaces
    privileged: bool = False
    cap_add: Words = ()
    cap_drop: Words = ()
    security_opt: Words = ()
    sysctl: Annotated[tuple[str, ...], BeforeValidator(_pairs)] = ()
    ipc: Text | None = None
    pid: Text | None = None
    userns: Text | None = None
    cgroup_parent: Text | None = None
    runtime: Text | None = None
    # the image
    platform: Platform | None = None
    pull: PullPolicy | None = None
    """The same as ``builder: {pull: …}``, where ``docker run`` has it."""
    builder: BuilderOptions = BuilderOptions()

    @model_validator(mode="before")
    @classmethod
    def _use_one_spelling(cls, data: Any) -> Any:
        return canonical(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _fit_together(self) -> DockerOptions:
        if self.cpus is not None and (self.cpu_quota is not None or self.cpu_period is not None):
            raise ValueError("cpus: is a cpu-quota of its own; give either cpus, or cpu-period and cpu-quota")
        if self.memory_swap is not None and self.memory is None:
            raise ValueError("memory-swap: needs memory too; it is the sum of both")
        if self.memory_swap is not None and self.memory is not None and 0 <= self.memory_swap < self.memory:
            raise ValueError("memory-swap: is memory and swap together, so it cannot be less than memory")
        if self.memory_reservation is not None and self.memory is not None and self.memory_reservation > self.memory:
            raise ValueError("memory-reservation: cannot be more than memory")
        return self

    @property
    def build_options(self) -> dict[str, Any]:
        """What the builder is to be told: its own section, with this level's ``pull`` and ``platform``."""
        level = {"pull": self.pull, "platform": self.platform}
        return self.builder.model_dump(exclude_unset=True) | {key: item for key, item in level.items() if item}


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resource config with each option under its name in ``docker run``.

    Raises:
        ValueError: an option that a launch cannot have, with the reason, or one given twice.
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        name = canonical_key(str(key))
        if name in _REFUSED:
            raise ValueError(f"{key}: cannot be set, since {_REFUSED[name]}; leave it out")
        if name in result:
            raise ValueError(f"{key}: {name} is given twice")
        result[name] = value
    return result


SAFE_OVERRIDES = frozenset(
    {
        *(
            "cpus",
            "cpu-shares",
            "cpu-period",
            "cpu-quota",
            "cpuset-cpus",
            "cpuset-mems",
            "gpus",
            "ulimit",
            "pids-limit",
        ),
        *("memory", "memory-reservation", "memory-swap", "shm-size"),
        *("env", "workdir", "hostname", "label", "init", "stop-signal", "platform"),
    }
)
"""What a launch may set where the queue says ``overrides: safe``: sizes and variables, nothing of the host."""

PUBLIC_OPTIONS = frozenset(known_keys(DockerOptions)) - {"env"}
"""Where no secret may stand: labels, mounts and command lines are listed by ``docker ps``, ``mount`` and ``ps``."""
