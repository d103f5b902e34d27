"""What a folder of code says about the job in it: its command, Python version, requirements, Dockerfile.

The same for a work tree of the user's own and for what was exported from somebody else's git repository: see
``trusted`` in :func:`describe`. Reads files, writes nothing, runs nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from launch.checking import closest
from launch.errors import ConfigError
from launch.jobs import check_apt, check_image, check_python_version, parse_entrypoint
from launch.models import Tracking
from launch.requirements import find_requirements, requirement_notes
from launch.snapshots import NEVER

DOCKERFILES = ("Dockerfile.launch", "Dockerfile.wandb")
"""Names of Dockerfiles that count when they are beside the entrypoint's script, the first one first."""

_MAX_LISTED = 5_000
_PYTHON = re.compile(r"(?:c?python[-@]?)?(3\.\d+)(?:\.\d+\w*)?", re.ASCII | re.IGNORECASE)
_MAX_VERSION_FILE_BYTES = 4096


class CodeChoices(TypedDict, total=False):
    """What may be said of a job of code beside what its files say: keywords of :func:`describe`."""

    build_context: str | None
    """The folder in the path that is the job's root; none: all of it."""
    dockerfile: str | None
    """The Dockerfile that makes the image, relative to the job's root; none: see :func:`describe`."""
    python_version: str | None
    """``"3.11"``; none: what ``runtime.txt`` or ``.python-version`` says, or else the builder's default."""
    requirements: Path | None
    """Read instead of the folder's own: see :func:`launch.requirements.find_requirements`."""
    base_image: str | None
    """What a generated image starts from."""
    apt: Iterable[str]
    """Debian packages that a generated image has installed."""
    tracking: Tracking
    """Whether a run must call ``wandb.init`` to count as finished."""


@dataclass(frozen=True)
class JobFiles:
    """What :func:`describe` found, each value checked."""

    root: str | None
    """The folder that is the job's root, relative to the one described; none: that one itself. The rest of these
    values, and the job's command, are relative to it."""
    entrypoint: tuple[str, ...]
    python_version: str | None
    """``"3.11"``; none: the builder's default."""
    requirements: str | None
    """The text of a requirements file, complete in itself; none: nothing to install."""
    dockerfile: str | None
    """Relative to ``root``; none: one is generated."""
    base_image: str | None
    apt: tuple[str, ...]
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""

    def job_fields(self) -> dict[str, Any]:
        """Return what of it goes into a :class:`~launch.models.Job` as it is: all but root, requirements and notes."""
        names = ("entrypoint", "python_version", "dockerfile", "base_image", "apt")
        return {name: getattr(self, name) for name in names}


def describe(
    folder: Path,
    entrypoint: str | Sequence[str] | None = None,
    *,
    build_context: str | None = None,
    dockerfile: str | None = None,
    python_version: str | None = None,
    requirements: Path | None = None,
    base_image: str | None = None,
    apt: Iterable[str] = (),
    tracking: Tracking = Tracking.REQUIRED,
    trusted: bool = True,
) -> JobFiles:
    """Return what a folder's files, and the choices given, say about the job in it.

    Args:
        folder: the code.
        entrypoint: the command, as text or a list, relative to the job's root; none: ``python main.py``, if there is
            a ``main.py``.
        build_context: the folder in ``folder`` that is the job's root; none: all of it.
        dockerfile: the Dockerfile that makes the image, relative to the job's root; none: ``Dockerfile.launch`` or
            ``Dockerfile.wandb`` beside the script, and then the script's folder becomes the job's root.
        python_version: ``"3.11"``; none: what ``runtime.txt`` or ``.python-version`` says.
        requirements: a requirements file to read, wherever it is, instead of looking for one: see
            :func:`launch.requirements.find_requirements`.
        base_image: what a generated image starts from.
        apt: Debian packages that a generated image has installed.
        tracking: whether a run must call ``wandb.init``; then requirements without wandb are noted.
        trusted: whether the code is the user's own; if not, a file that leads out of the folder is refused.

    Raises:
        ConfigError: a value or a file is wrong or missing; the message names it.
    """
    notes: list[str] = []
    root = _build_context(folder, build_context)
    command = _command(folder / root, entrypoint, notes)
    image_file = _checked_dockerfile(folder / root, dockerfile) if dockerfile is not None else None
    if image_file is None and (beside := _beside_script(folder / root, command)) is not None:
        script_folder, image_file = beside
        root, command = _joined(root, script_folder), _from_within(command, script_folder)
    where = folder / root
    if not trusted:
        _check_stays(folder, where)
    try:
        text, found = find_requirements(where, requirements, inside=None if trusted else folder)
    except ConfigError as exc:
        if image_file is None or requirements is not None:
            raise
        text, found = None, [f"{exc}. The Dockerfile goes its own way; where no image is built, nothing is installed"]
    needs_wandb = tracking is Tracking.REQUIRED and image_file is None and base_image is None
    return JobFiles(
        root=root or None,
        entrypoint=command,
        python_version=_python_version(where, python_version, inside=None if trusted else folder),
        requirements=text,
        dockerfile=image_file,
        base_image=None if base_image is None else check_image(base_image, where="base_image"),
        apt=tuple(dict.fromkeys(check_apt(name) for name in apt)),
        notes=(*notes, *found, *requirement_notes(text, needs_wandb=needs_wandb)),
    )


# --- the job's root, and its Dockerfile ------------------------------------------------------------------------------


def _build_context(folder: Path, given: str | None) -> str:
    if given is None:
        return ""
    inner = _inner_path(given, "build_context", folder)
    if not (folder / inner).is_dir():
        near = closest(inner, [name.rpartition("/")[0] for name in _listed(folder) if "/" in name])
        why = "is a file, not a folder" if (folder / inner).exists() else f"there is no such folder in {folder}"
        raise ConfigError(f"build_context: {given!r}: {why}" + (f"; did you mean {near!r}?" if near else ""))
    _check_stays(folder, folder / inner)
    return inner


def _checked_dockerfile(root: Path, given: str) -> str:
    inner = _inner_path(given, "dockerfile", root)
    if not (root / inner).is_file():
        near = closest(inner, [name for name in _listed(root) if "docker" in name.lower()])
        why = "is a folder, not a file" if (root / inner).exists() else f"there is no such file in {root}"
        raise ConfigError(f"dockerfile: {given!r}: {why}" + (f"; did you mean {near!r}?" if near else ""))
    _check_stays(root, root / inner)
    return inner


def _inner_path(given: str, what: str, folder: Path) -> str:
    """Return a path in a folder in its shortest form, empty for the folder itself."""
    if "\0" in given or not given.strip():
        raise ConfigError(f"{what}: {given!r} is no path")
    if given.startswith("/") or ".." in given.split("/"):
        raise ConfigError(
            f"{what}: {given!r} leads out of the job's folder; give a path relative to {folder}, without '..'"
        )
    inner = os.path.normpath(given)
    return "" if inner == "." else inner


def _check_stays(folder: Path, path: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"path: {path} leads out of {folder}, to {path.resolve()}; a job's files are all inside")


def _beside_script(root: Path, command: Sequence[str]) -> tuple[str, str] | None:
    """Return the folder of the command's script, or the root if it is not plain which, and the Dockerfile in it."""
    folder = (script_of(command) or "").rpartition("/")[0]
    for name in DOCKERFILES:
        if (root / folder / name).is_file():
            _check_stays(root, root / folder / name)
            return folder, name
    return None


def _from_within(command: tuple[str, ...], folder: str) -> tuple[str, ...]:
    """Return the command with its script named as from the script's own folder."""
    at = _script_at(command)
    if not folder or at is None:
        return command
    name = command[at].rpartition("/")[2]
    return (*command[:at], f"./{name}" if at == 0 else name, *command[at + 1 :])


def _joined(root: str, folder: str) -> str:
    return "/".join(part for part in (root, folder) if part)


# --- the command -----------------------------------------------------------------------------------------------------


def _command(root: Path, entrypoint: str | Sequence[str] | None, notes: list[str]) -> tuple[str, ...]:
    if not entrypoint:
        if (root / "main.py").is_file():
            return ("python", "main.py")
        scripts = sorted(file.name for file in root.glob("*.py"))
        like = f"python {scripts[0]}" if scripts else "python train.py"
        raise ConfigError(f"entrypoint: is required, since {root} has no main.py; for example '{like}'")
    command = parse_entrypoint(entrypoint)
    if isinstance(entrypoint, str) and command[0] != shlex.split(entrypoint)[0]:
        notes.append(
            f"the entrypoint {entrypoint!r} has no program before the script, so it became {shlex.join(command)!r}"
        )
    _check_script(root, command)
    return command


def _check_script(root: Path, command: Sequence[str]) -> None:
    """Refuse ``python x.py`` when there is no x.py: cheaper to hear now than after a build."""
    script = script_of(command)
    if script is None or (root / script).is_file():
        return
    near = closest(script, [name for name in _listed(root) if name.endswith(".py")])
    why = "is a folder" if (root / script).is_dir() else "no such file"
    raise ConfigError(f"entrypoint: {script!r} is not in {root}: {why}" + (f"; did you mean {near!r}?" if near else ""))


def script_of(command: Sequence[str]) -> str | None:
    """Return the file in the job's folder that a command runs, relative, if it is plain which: ``python x.py``."""
    at = _script_at(command)
    return None if at is None or command[at].startswith("/") else os.path.normpath(command[at])


def _script_at(command: Sequence[str]) -> int | None:
    """Return the place of a command's script: the command itself, or what Python is given after its own options."""
    at = 0
    if re.fullmatch(r"python[\d.]*", command[0]):
        at = 1
        while at < len(command) and command[at].startswith("-") and command[at] not in ("-m", "-c", "-"):
            at += 2 if command[at] in ("-X", "-W") else 1
    return at if at < len(command) and command[at].endswith(".py") else None


def _listed(root: Path) -> Iterator[str]:
    """Yield files of a folder, relative, for a guess at what was meant: not what never is code, and not all of many."""
    seen = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - NEVER)
        for name in files:
            seen += 1
            if seen > _MAX_LISTED:
                return
            yield os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118


# --- the Python version ----------------------------------------------------------------------------------------------


def _python_version(root: Path, given: str | None, *, inside: Path | None) -> str | None:
    if given is not None:
        return check_python_version(given)
    for name in ("runtime.txt", ".python-version"):
        if (root / name).is_file():
            if inside is not None:
                _check_stays(inside, root / name)
            return _version_in(root / name)
    return None


def _version_in(file: Path) -> str:
    line = _first_line(file)
    found = _PYTHON.fullmatch(line)
    if found is None:
        like = "python-3.11.4" if file.name == "runtime.txt" else "3.11"
        raise ConfigError(
            f"python_version: {file} should say something like {like!r}, not {line[:80]!r}; correct it, or give the "
            "version yourself (--runtime 3.11)"
        )
    return found[1]


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_VERSION_FILE_BYTES).decode("utf-8-sig", "replace")
    except OSError as exc:
        raise ConfigError(f"python_version: {file} cannot be read: {exc.strerror}") from exc
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return next((line for line in lines if line), "")
