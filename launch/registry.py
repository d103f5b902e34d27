"""Asks a container registry what an image's tag means now. Standard library only; nothing is kept.

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md and
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import ConfigError, LaunchError, TemporaryError
from launch.references import Reference, parse_reference
from launch.registry_login import Login, login_for

CERTIFICATES = Path("/etc/docker/certs.d")
"""Where Docker keeps its registries' authorities: ``<host:port>/*.crt``."""
_TIMEOUT_S = 10.0
_MANIFESTS = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)
_CLIENT = "openlaunch"


def resolve_digest(
    image: str,
    *,
    default_registry: str | None = None,
    environ: Mapping[str, str] | None = None,
    certificates: Path = CERTIFICATES,
) -> str:
    """Return the digest of what an image's reference means now, ``sha256:…``.

    Args:
        image: the reference; one that has a digest means that.
        default_registry: the registry of images that name none.
        environ: where ``DOCKER_CONFIG``, ``HOME`` and ``PATH`` are read; none: this process's environment.
        certificates: a folder of folders of authorities, by registry.

    Raises:
        ConfigError: there is no such image, no login for it, or it names no registry.
        TemporaryError: its registry does not answer.
    """
    reference = parse_reference(image)
    if reference.digest is not None:
        return reference.digest
    host = reference.registry or default_registry
    if host is None:
        raise ConfigError(
            f"image: {image!r} names no registry, so its tag cannot be resolved at enqueue: begin it with the "
            "registry's address, set LAUNCH_DEFAULT_REGISTRY, or let the queue resolve images at claim"
        )
    return _Asker(host, reference, image, login_for(host, environ), certificates).digest()


@dataclass
class _Asker:
    """One question to one registry."""

    host: str
    reference: Reference
    image: str
    login: Login | None
    certificates: Path

    def digest(self) -> str:
        answer = self._manifest("HEAD")
        found = answer.headers.get("Docker-Content-Digest", "")
        if not re.fullmatch("sha256:[0-9a-f]{64}", found):
            # Some registries say it only of what they send.
            found = f"sha256:{hashlib.sha256(self._manifest('GET').body).hexdigest()}"
        return found

    def _manifest(self, method: str) -> _Answer:
        repository, tag = self.reference.repository, self.reference.tag or "latest"
        answer = self._ask(method, f"/v2/{repository}/manifests/{tag}", {})
        if answer.status == 401:
            header = self._authorization(answer.headers.get("WWW-Authenticate", ""))
            answer = self._ask(method, f"/v2/{repository}/manifests/{tag}", header)
        if answer.status != 200:
            raise self._refusal(answer)
        return answer

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> _Answer:
        headers = {"Accept": _MANIFESTS, **headers}
        try:
            return self._send(method, f"https://{self.host}{path}", headers)
        except ssl.SSLCertVerificationError as exc:
            raise ConfigError(
                f"image: {self.image!r}: the certificate of registry {self.host} is not trusted "
                f"({exc.verify_message}): put its authority into {self.certificates / self.host}/ca.crt"
            ) from exc
        except OSError as exc:
            if not _is_loopback(self.host):
                raise self._away(exc) from exc
        try:
            # As Docker does: a registry of this machine needs no encryption.
            return self._send(method, f"http://{self.host}{path}", headers)
        except OSError as exc:
            raise self._away(exc) from exc

    def _send(self, method: str, url: str, headers: Mapping[str, str], data: bytes | None = None) -> _Answer:
        request = urllib.request.Request(url, data, dict(headers), method=method)  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=self._trust()), _NoRedirectWithLogin())
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as response:
                return _Answer(response.status, dict(response.headers.items()), response.read())
        except urllib.error.HTTPError as exc:
            with exc:
                return _Answer(exc.code, dict(exc.headers.items()), exc.read())
        except urllib.error.URLError as exc:
            raise exc.reason if isinstance(exc.reason, OSError) else exc from exc

    def _trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        for path in sorted((self.certificates / self.host).glob("*.crt")):
            context.load_verify_locations(path)
        return context

    def _authorization(self, challenge: str) -> dict[str, str]:
        """Return the header that answers a ``WWW-Authenticate``."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self.login is not None:
            return {"Authorization": self.login.basic}
        if scheme.lower() == "bearer":
            return {"Authorization": f"Bearer {self._token(_parameters(rest))}"}
        raise self._no_login()

    def _token(self, asked: Mapping[str, str]) -> str:
        realm = asked.get("realm", "")
        parts = urllib.parse.urlsplit(realm)
        # A login is not given away unencrypted because a registry says so.
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.netloc)):
            raise ConfigError(
                f"image: {self.image!r}: registry {self.host} wants logins at {realm!r}, which is no https"
            )
        scope = asked.get("scope") or f"repository:{self.reference.repository}:pull"
        wanted = {"service": asked.get("service", ""), "scope": scope}
        try:
            if self.login is not None and self.login.identity_token:
                wanted |= {"grant_type": "refresh_token", "client_id": _CLIENT}
                data = urllib.parse.urlencode({**wanted, "refresh_token": self.login.identity_token}).encode()
                answer = self._send("POST", realm, {}, data)
            else:
                headers = {"Authorization": self.login.basic} if self.login is not None else {}
                answer = self._send("GET", f"{realm}?{urllib.parse.urlencode(wanted)}", headers)
        except OSError as exc:
            raise self._away(exc) from exc
        if answer.status in (400, 401, 403):
            raise self._no_login()
        found = answer.json()
        token = found.get("token") or found.get("access_token")
        if answer.status != 200 or not token:
            raise TemporaryError(f"image: {self.image!r}: {parts.netloc} gives no token: status {answer.status}")
        return str(token)

    def _refusal(self, answer: _Answer) -> LaunchError:
        if answer.status == 404:
            repository, tag = self.reference.repository, self.reference.tag or "latest"
            return ConfigError(
                f"image: {self.image!r}: registry {self.host} has no tag {tag!r} of {repository!r}; "
                "look for a misspelt name or tag, or push it first"
            )
        if answer.status in (401, 403):
            return self._no_login()
        message = f"image: {self.image!r}: registry {self.host} answers with status {answer.status}"
        return TemporaryError(message) if answer.status in (429,) or answer.status >= 500 else ConfigError(message)

    def _no_login(self) -> ConfigError:
        if self.login is None:
            why = f"registry {self.host} wants a login, and Docker's config has none"
        else:
            why = f"registry {self.host} refuses the login of {self.login.username or 'Docker’s config'}"
        return ConfigError(f"image: {self.image!r}: {why}: `docker login {self.host}`")

    def _away(self, exc: OSError) -> TemporaryError:
        return TemporaryError(f"image: {self.image!r}: registry {self.host} does not answer: {exc}")


@dataclass(frozen=True)
class _Answer:
    status: int
    headers_: Mapping[str, str]
    body: bytes

    @property
    def headers(self) -> Mapping[str, str]:
        """By their usual spelling, whichever way the registry spells them."""
        known = {"docker-content-digest": "Docker-Content-Digest", "www-authenticate": "WWW-Authenticate"}
        return {known.get(name.lower(), name): value for name, value in self.headers_.items()}

    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class _NoRedirectWithLogin(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and leaves the login behind: it is the registry's alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None:
            followed.remove_header("Authorization")
        return followed


def _parameters(text: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', text))


def _is_loopback(address: str) -> bool:
    host = urllib.parse.urlsplit(f"//{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
