"""Where an agent gets the secrets that ``${secret:NAME}`` stands for: its environment, files, AWS Secrets Manager.

The sources are asked in the order the agent's config lists them; the first that has a name gives its value. A source
that is away is waited for rather than passed over, since the next one may hold an older value. Nothing is written down
here: values are in this process's memory, and no message names one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from launch.checking import Model, readable_by
from launch.errors import ConfigError, TemporaryError
from launch.secrets import check_name, render
from workers.redact import MIN_CHARS

log = logging.getLogger(__name__)

MAX_SECRET_BYTES = 65_536
"""As large as AWS Secrets Manager's."""


class MissingError(Exception):
    """A source does not have a name; the text says why, if there is more to say."""


# --- settings ---------------------------------------------------------------------------------------------------------


SecretName = Annotated[str, readable_by(check_name)]


class EnvSettings(Model):
    """Secrets that are variables of the agent's environment."""

    names: tuple[SecretName, ...] = ()
    """Variables that are secrets under their own names; no other is read."""
    prefix: str | None = None
    """With ``JOB_SECRET_``, the secret ``X`` is the variable ``JOB_SECRET_X``."""

    @model_validator(mode="after")
    def _names_something(self) -> EnvSettings:
        if not self.names and not self.prefix:
            raise ValueError("give names, a prefix, or both: not all of the agent's environment can be secrets")
        return self


class FileSettings(Model):
    """Secrets that are files, one each, named as the secret: what Docker and Kubernetes mount."""

    folder: Path
    """An absolute path."""

    @field_validator("folder")
    @classmethod
    def _is_absolute(cls, folder: Path) -> Path:
        if not folder.is_absolute():
            raise ValueError(f"should be an absolute path, such as '/run/secrets', not {str(folder)!r}")
        return folder


class AwsSettings(Model):
    """Secrets in AWS Secrets Manager; boto3 finds its credentials as always. Needs the extra ``aws``."""

    region: str | None = None
    """None: as boto3 is configured."""
    profile: str | None = None
    """A profile of the AWS config file."""
    endpoint: str | None = None
    """Another URL than AWS's own, such as a VPC endpoint's."""
    prefix: str = ""
    """With ``launch/``, the secret ``X`` is called ``launch/X`` there."""
    ttl_s: Annotated[float, Field(ge=0)] = 60.0
    """How long a value is used before it is asked for again."""


class SourceSettings(Model):
    """One source: one of the three."""

    env: EnvSettings | None = None
    files: FileSettings | None = None
    aws: AwsSettings | None = None

    @model_validator(mode="after")
    def _is_one(self) -> SourceSettings:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError("should be one source: env, files or aws; write each as an item of its own")
        return self


class SecretSettings(Model):
    """The ``secrets`` section of the agent config."""

    sources: tuple[SourceSettings, ...] = ()
    """Where secrets are looked up, the first that has a name first."""
    launchable: tuple[SecretName, ...] = ()
    """Secrets that a launch itself may name. Whoever can launch can print them."""

    def may_launch(self, name: str) -> bool:
        """Whether a launch itself may name a secret; a secret listed without a key is listed with all of its keys."""
        return name in self.launchable or name.partition("#")[0] in self.launchable


# --- sources ----------------------------------------------------------------------------------------------------------


class Source(ABC):
    """One place where secrets are."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is called in messages."""

    @abstractmethod
    def get(self, name: str) -> str:
        """Return a secret.

        Raises:
            MissingError: it is not there.
            TemporaryError: the source is away.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the secrets there.

        Raises:
            MissingError: the source does not tell.
            TemporaryError: the source is away.
        """

    def warning(self, name: str) -> str | None:  # noqa: ARG002
        """Return what is unsafe about how a secret is kept there, and the fix."""
        return None


class EnvSource(Source):
    """The agent's environment, as far as it is listed."""

    def __init__(self, settings: EnvSettings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ

    @property
    def label(self) -> str:
        """``env``"""
        return "env"

    def get(self, name: str) -> str:
        """Return the variable of that name, if it is listed, or of that name behind the prefix."""
        variables = [name] if name in self._settings.names else []
        if self._settings.prefix:
            variables.append(self._settings.prefix + name)
        for variable in variables:
            if variable in self._environ:
                return self._environ[variable]
        raise MissingError(f"{' and '.join(variables)} not set" if variables else "not listed under names")

    def names(self) -> list[str]:
        """Return those that are set."""
        prefix = self._settings.prefix
        behind = {key.removeprefix(prefix) for key in self._environ if key.startswith(prefix)} if prefix else set()
        return sorted({name for name in self._settings.names if name in self._environ} | behind - {""})


class FileSource(Source):
    """A folder of files. Links are followed as long as they stay in it, as those of Kubernetes do."""

    def __init__(self, settings: FileSettings) -> None:
        self._folder = settings.folder

    @property
    def label(self) -> str:
        """``files /run/secrets``"""
        return f"files {self._folder}"

    def get(self, name: str) -> str:
        """Return a file's text, one newline at its end left out."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_SECRET_BYTES + 1)
        except OSError as exc:
            raise MissingError(exc.strerror or str(exc)) from exc
        if len(data) > MAX_SECRET_BYTES:
            raise MissingError(f"of more than {MAX_SECRET_BYTES:,} bytes")
        return _text(data).removesuffix("\n").removesuffix("\r")

    def names(self) -> list[str]:
        """Return the files' names."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.is_file() and path.name[0] != ".")
        except OSError as exc:
            raise MissingError(exc.strerror or str(exc)) from exc

    def warning(self, name: str) -> str | None:
        """Say so when every user of the machine may read it."""
        path = self._path(name)
        if path.stat().st_mode & 0o004:
            return f"{path} can be read by every user of this machine; chmod o-r {path}"
        return None

    def _path(self, name: str) -> Path:
        folder = self._folder.resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise MissingError(f"leads out of {folder}")
        if not path.is_file():
            raise MissingError("no such file")
        return path


class AwsSource(Source):
    """AWS Secrets Manager. A value is remembered for a while: each request there costs money and time."""

    _MISSING = frozenset(
        {
            "AccessDeniedException",
            "DecryptionFailure",
            "InvalidParameterException",
            "InvalidRequestException",
            "ResourceNotFoundException",
            "ValidationException",
        }
    )

    def __init__(self, settings: AwsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._client = _aws_client(settings)
        self._held: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """``aws eu-central-1``"""
        return " ".join(filter(None, ("aws", self._settings.region, self._settings.endpoint)))

    def get(self, name: str) -> str:
        """Return a secret's current value."""
        with self._lock:
            asked_at, value = self._held.get(name, (0.0, ""))
            if name not in self._held or self._clock() - asked_at >= self._settings.ttl_s:
                value = self._ask_for(name)
                self._held[name] = (self._clock(), value)
            return value

    def names(self) -> list[str]:
        """Return those under the prefix."""
        prefix = self._settings.prefix
        filters = [{"Key": "name", "Values": [prefix]}] if prefix else []

        def listed(client: Any) -> list[str]:
            pages = client.get_paginator("list_secrets").paginate(Filters=filters)
            return [item["Name"] for page in pages for item in page["SecretList"]]

        return sorted(name.removeprefix(prefix) for name in self._ask(listed) if name.startswith(prefix))

    def _ask_for(self, name: str) -> str:
        found = self._ask(lambda client: client.get_secret_value(SecretId=self._settings.prefix + name))
        text: str | None = found.get("SecretString")
        return _text(found["SecretBinary"]) if text is None else text

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return question(self._client)
        except ClientError as exc:
            code = exc.response.get("Error", {}).get("Code", "unknown error")
            if code in self._MISSING:
                raise MissingError("no such secret" if code == "ResourceNotFoundException" else code) from exc
            raise TemporaryError(f"secrets: {self.label} does not answer: {code}") from exc
        except BotoCoreError as exc:
            raise TemporaryError(f"secrets: {self.label} does not answer: {exc}") from exc


def _aws_client(settings: AwsSettings) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as exc:
        raise ConfigError("secrets: the source aws needs boto3: pip install 'openlaunch[aws]'") from exc
    limits = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})
    try:
        session = boto3.session.Session(profile_name=settings.profile, region_name=settings.region)
        return session.client("secretsmanager", endpoint_url=settings.endpoint, config=limits)
    except (BotoCoreError, ValueError) as exc:
        raise ConfigError(f"secrets: the source aws cannot be set up: {exc}") from exc


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise MissingError("is no text in UTF-8; store it as base64") from exc


def _make(settings: SourceSettings, environ: Mapping[str, str]) -> Source:
    if settings.env is not None:
        return EnvSource(settings.env, environ)
    if settings.files is not None:
        return FileSource(settings.files)
    assert settings.aws is not None
    return AwsSource(settings.aws)


# --- all of them ------------------------------------------------------------------------------------------------------


class Secrets:
    """An agent's secrets: looked up when they are needed, and remembered only to be masked.

    Args:
        settings: the ``secrets`` section of the agent config.
        environ: the agent's environment.

    Raises:
        ConfigError: a source cannot work here.
    """

    def __init__(self, settings: SecretSettings, environ: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.in_hand: frozenset[str] = frozenset()
        """Every value this agent has put in anywhere; replaced when it grows, never changed."""
        environ = os.environ if environ is None else environ
        self.sources = tuple(_make(source, environ) for source in settings.sources)
        self._warned: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def render(self, value: Any, *, rest: Callable[[str], str] = str) -> tuple[Any, frozenset[str]]:
        """Return the value with its references filled in, and the values put in: see :func:`launch.secrets.render`.

        Raises:
            ConfigError: no source has one of them, or it is not what it should be.
            TemporaryError: a source is away.
        """
        return render(value, self.get, rest=rest)

    def get(self, name: str) -> str:
        """Return the secret ``NAME`` or ``NAME#key``, which is masked from now on.

        Raises:
            ConfigError: no source has it; the message says what each answered, and holds no value.
            TemporaryError: a source is away.
        """
        whole, _, key = check_name(name).partition("#")
        value, source = self._look_up(whole)
        if key:
            value = _item(value, whole, key)
        problem = _problem(value)
        if problem:
            raise ConfigError(f"secret {name!r} {problem} in {source.label}; give it a value that a variable can have")
        if len(value) < MIN_CHARS:
            self._warn(name, f"of fewer than {MIN_CHARS} characters, it cannot be masked in logs; use a longer one")
        with self._lock:
            self.in_hand |= {value}
        return value

    def where(self, name: str) -> Iterator[tuple[Source, str | None]]:
        """Yield each source with why it does not have a secret; none: it has it."""
        for source in self.sources:
            try:
                source.get(name.partition("#")[0])
                yield source, None
            except (MissingError, TemporaryError) as exc:
                yield source, str(exc)

    def _look_up(self, name: str) -> tuple[str, Source]:
        answers = []
        for source in self.sources:
            try:
                value = source.get(name)
            except MissingError as exc:
                answers.append(f"{source.label}: {exc}")
                continue
            if warning := source.warning(name):
                self._warn(name, warning)
            return value, source
        if not answers:
            raise ConfigError(
                f"secret {name!r}: this agent has no sources; list them under secrets/sources in its config"
            )
        raise ConfigError(
            f"secret {name!r}: no source of this agent has it ({'; '.join(answers)}); "
            f"put it there, and try `launch secret check {name}` on the agent's machine"
        )

    def _warn(self, name: str, warning: str) -> None:
        """Say it once."""
        if (name, warning) not in self._warned:
            self._warned.add((name, warning))
            log.warning("secret %s: %s", name, warning)


def _problem(value: str) -> str | None:
    if not value:
        return "is empty"
    if "\0" in value:
        return "holds a NUL character"
    return "is no text in UTF-8" if value.encode("utf-8", "replace").decode() != value else None


def _item(text: str, name: str, key: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        value = None  # its text must not get into a traceback
    if not isinstance(value, dict):
        raise ConfigError(f"secret {name!r} is no JSON object, so it has no key {key!r}; refer to ${{secret:{name}}}")
    item = value.get(key)
    if item is None or isinstance(item, dict | list):
        keys = ", ".join(sorted(value)) or "none"
        raise ConfigError(f"secret {name!r} has no text under the key {key!r}; its keys are: {keys}")
    return item if isinstance(item, str) else json.dumps(item)
