"""Build arguments and pip settings of an agent's config, as shell text that a build's commands carry out. No SDK here.

The text is the value of a predefined build argument: see :mod:`workers.builders._dockerfile`.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from launch.errors import ConfigError
from workers.docker_settings import EngineSettings, PipSettings

MAX_CERT_BYTES = 64_000
"""Linux takes no variable of over 128 KiB."""

_CA_FILE = "/tmp/.launch-ca-$$.pem"  # noqa: S108  # in the container, for the length of one command


def shell_text(settings: EngineSettings, channel: str) -> str:
    """Return the commands that put the settings into force; nothing when there are none.

    Args:
        settings: the agent's.
        channel: the variable that brings the text, which is to look untouched afterwards.

    Raises:
        ConfigError: the certificates cannot be used.
    """
    variables = {**_pip_variables(settings.pip), **settings.build_args}
    own = variables.pop(channel, None)
    parts = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    if settings.pip.cert is not None:
        parts.append(_trust(_certificates(settings.pip.cert)))
    if not parts and own is None:
        return ""
    return "; ".join([*parts, f"export {channel}={shlex.quote(own)}" if own is not None else f"unset {channel}"])


def _pip_variables(pip: PipSettings) -> dict[str, str]:
    values = {
        "PIP_INDEX_URL": pip.index_url,
        "PIP_EXTRA_INDEX_URL": " ".join(pip.extra_index_urls),
        "PIP_TRUSTED_HOST": " ".join(pip.trusted_hosts),
    }
    return {name: value for name, value in values.items() if value}


def _certificates(path: Path) -> str:
    try:
        text = path.expanduser().read_text("ascii")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"pip/cert: {path} cannot be read as a PEM file: {exc}") from exc
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ConfigError(f"pip/cert: {path} holds no certificate; it should be a PEM file")
    if len(text) > MAX_CERT_BYTES:
        raise ConfigError(
            f"pip/cert: {path} is {len(text):,} bytes, more than {MAX_CERT_BYTES:,}: name a file with your own "
            "authorities alone; those that the image trusts already stay"
        )
    return text


def _trust(pem: str) -> str:
    """Return the commands that let pip trust what the image trusts and these as well, for as long as the shell runs."""
    own_bundle = "$(python3 -c 'from pip._vendor import certifi; print(certifi.where())' 2>/dev/null)"
    return (
        f"export PIP_CERT={_CA_FILE}; trap 'rm -f {_CA_FILE}' EXIT; "
        f'cat "${{SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}" "{own_bundle}" >{_CA_FILE} 2>/dev/null; '
        f"printf '%s\\n' {shlex.quote(pem)} >>{_CA_FILE}"
    )


def passwords(settings: EngineSettings) -> frozenset[str]:
    """Return what no log may show: the passwords in URLs, and those of registries."""
    urls = [settings.pip.index_url or "", *settings.pip.extra_index_urls, *settings.build_args.values()]
    found = {password for url in urls if (password := _password(url))}
    found |= {unquote(password) for password in found}
    return frozenset(found | {login.password for login in settings.registries.values()}) - {""}


def _password(url: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts.password or parts.username  # a token may stand alone: https://token@host
