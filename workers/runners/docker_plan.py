"""What is sent to the engine for an attempt, as data: the body of ``POST /containers/create``. No I/O, no SDK here.

Source: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerCreate
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from launch.errors import ConfigError
from launch.plugins import Attempt
from workers.docker_settings import EngineSettings
from workers.runners.docker_code import CODE_DIR, HOME_DIR, LAUNCH_DIR
from workers.runners.docker_options import DockerOptions

INSTALLATION_LABEL = "ai.openlaunch.installation"
RUN_LABEL = "ai.openlaunch.run"
ATTEMPT_LABEL = "ai.openlaunch.attempt"
NAME_LABEL = "ai.openlaunch.name"

LOG_CONFIG = {"Type": "local", "Config": {"max-size": "1000g", "max-file": "1", "compress": "false"}}
"""Readable while the job runs, byte for byte, and never rotated: ``docker logs`` works, and no line is lost.

It goes with the container, which is removed once its log is recorded.
"""


def container_body(
    attempt: Attempt, image: str, options: DockerOptions, settings: EngineSettings, environ: Mapping[str, str]
) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the request's body and the values in it that no view may show.

    Raises:
        ConfigError: options that do not fit the attempt or the agent.
    """
    if attempt.code is not None:
        _check_room_for_code(options)
    given, passed = _environment(options.env, settings, environ)
    home = {"HOME": HOME_DIR} if attempt.code is not None and options.user else {}
    env = {**home, **given, **passed, **attempt.env, **attempt.secret_env}
    body = {
        "Image": image,
        **_command(attempt, options),
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": _labels(attempt, options),
        "WorkingDir": _workdir(attempt, options),
        "User": options.user,
        "Hostname": options.hostname,
        "Domainname": options.domainname,
        "StopSignal": options.stop_signal,
        "ExposedPorts": {port: {} for port in _ports(options.publish)},
        "HostConfig": _filled(_host_config(options)),
        # The engine takes it from the query: it is moved there when the request is sent.
        "Platform": options.platform,
    }
    secrets = {*attempt.secret_env.values(), *attempt.secrets, *passed.values()} - {""}
    return _filled(body), frozenset(secrets)


def connection_of(options: DockerOptions) -> dict[str, Any]:
    """Return the part of a container's ``HostConfig`` that says how it is connected."""
    names = ("NetworkMode", "ExtraHosts", "Dns", "DnsSearch", "DnsOptions", "Runtime", "UsernsMode")
    whole = _host_config(options)
    return _filled({name: whole[name] for name in names})


def _check_room_for_code(options: DockerOptions) -> None:
    if options.read_only:
        raise ConfigError(
            "read-only: a code job's files are put into the container, which cannot be read-only; "
            "use an image job, or leave read-only out"
        )
    places = {"tmpfs": [item.split(":")[0] for item in options.tmpfs]}
    places["volume"] = [item.split(":")[1] for item in options.volume]
    for option, targets in places.items():
        for target in targets:
            if PurePosixPath(CODE_DIR).is_relative_to(PurePosixPath(target)):
                raise ConfigError(f"{option}: {target!r} would cover {LAUNCH_DIR}, where the job's code is put")


def _environment(
    given: tuple[str, ...], settings: EngineSettings, environ: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables with a value, and those taken from the agent's environment."""
    plain = dict(item.split("=", 1) for item in given if "=" in item)
    names = [item for item in given if "=" not in item]
    for name in names:
        if name not in settings.pass_env:
            raise ConfigError(
                f"env: {name!r} has no value, and this agent does not pass on its own; write {name}=value, "
                f"or list {name} under targets/docker/pass_env in the agent's config"
            )
    return plain, {name: environ[name] for name in names if name in environ}


def _command(attempt: Attempt, options: DockerOptions) -> dict[str, Any]:
    """Return entrypoint and arguments: a command of the run's own takes the place of both of the image's."""
    if options.entrypoint:
        return {"Entrypoint": list(options.entrypoint), "Cmd": list(attempt.command)}
    if attempt.command:
        return {"Entrypoint": [attempt.command[0]], "Cmd": list(attempt.command[1:])}
    return {}


def _labels(attempt: Attempt, options: DockerOptions) -> dict[str, str]:
    given = {name: value for name, _, value in (item.partition("=") for item in options.label)}
    ours = {
        INSTALLATION_LABEL: attempt.installation,
        RUN_LABEL: attempt.run_id,
        ATTEMPT_LABEL: str(attempt.number),
        NAME_LABEL: attempt.name,
    }
    return {**attempt.labels, **given, **ours}


def _workdir(attempt: Attempt, options: DockerOptions) -> str | None:
    if attempt.code is not None:
        return str(PurePosixPath(CODE_DIR, options.workdir or ""))
    if options.workdir and not options.workdir.startswith("/"):
        raise ConfigError(f"workdir: should start with '/' for a job without code of its own, not {options.workdir!r}")
    return options.workdir


def _host_config(options: DockerOptions) -> dict[str, Any]:
    swap = options.memory if options.memory_swap is None else options.memory_swap
    return {
        "Init": options.init,
        "LogConfig": LOG_CONFIG,
        "NanoCpus": None if options.cpus is None else round(options.cpus * 1e9),
        "CpuShares": options.cpu_shares,
        "CpuPeriod": options.cpu_period,
        "CpuQuota": options.cpu_quota,
        "CpusetCpus": options.cpuset_cpus,
        "CpusetMems": options.cpuset_mems,
        "Memory": options.memory,
        "MemoryReservation": options.memory_reservation,
        "MemorySwap": swap,
        "MemorySwappiness": options.memory_swappiness,
        "ShmSize": options.shm_size,
        "PidsLimit": options.pids_limit,
        "Ulimits": [_ulimit(item) for item in options.ulimit],
        "BlkioWeight": options.blkio_weight,
        "OomScoreAdj": options.oom_score_adj,
        "StorageOpt": _mapping(options.storage_opt),
        "DeviceRequests": [_gpus(options.gpus)] if options.gpus else [],
        "GroupAdd": list(options.group_add),
        "Binds": list(options.volume),
        "Tmpfs": {path: rest for path, _, rest in (item.partition(":") for item in options.tmpfs)},
        "Devices": [_device(item) for item in options.device],
        "ReadonlyRootfs": options.read_only or None,
        "NetworkMode": options.network,
        "PortBindings": _ports(options.publish),
        "ExtraHosts": [item.replace("=", ":", 1) if ":" not in item else item for item in options.add_host],
        "Dns": list(options.dns),
        "DnsSearch": list(options.dns_search),
        "DnsOptions": list(options.dns_option),
        "Privileged": options.privileged or None,
        "CapAdd": list(options.cap_add),
        "CapDrop": list(options.cap_drop),
        "SecurityOpt": list(options.security_opt),
        "Sysctls": _mapping(options.sysctl),
        "IpcMode": options.ipc,
        "PidMode": options.pid,
        "UsernsMode": options.userns,
        "CgroupParent": options.cgroup_parent,
        "Runtime": options.runtime,
    }


def _filled(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body without what was not given: the engine's default stands."""
    return {key: value for key, value in body.items() if value is not None and value not in ([], {})}


def _mapping(items: tuple[str, ...]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in items)


def _ulimit(item: str) -> dict[str, Any]:
    name, _, limits = item.partition("=")
    soft, _, hard = limits.partition(":")
    return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}


def _gpus(text: str) -> dict[str, Any]:
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]], "Options": {}}
    if text.startswith("device="):
        return {**request, "DeviceIDs": text.removeprefix("device=").split(",")}
    return {**request, "Count": -1 if text == "all" else int(text)}


def _device(item: str) -> dict[str, str]:
    parts = item.split(":")
    mode = parts.pop() if len(parts) > 1 and not parts[-1].startswith("/") else "rwm"
    return {"PathOnHost": parts[0], "PathInContainer": parts[-1], "CgroupPermissions": mode}


def _ports(published: tuple[str, ...]) -> dict[str, list[dict[str, str]]]:
    """Return ``{"80/tcp": [{"HostIp": …, "HostPort": …}]}``."""
    result: dict[str, list[dict[str, str]]] = {}
    for item in published:
        mapping, _, protocol = item.partition("/")
        parts = mapping.split(":")
        address, host_port = ["", "", *parts[:-1]][-2:]
        result.setdefault(f"{parts[-1]}/{protocol or 'tcp'}", []).append({"HostIp": address, "HostPort": host_port})
    return result
