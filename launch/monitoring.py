"""Whether what watches an installation works: Flower, ``/metrics``, hooks. Asks, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener

from launch.connection import masked
from launch.errors import ConfigError
from launch.findings import Check, Finding
from launch.notify import read_hooks
from launch.reach import Answer, ask
from launch.settings import Settings

FLOWER_URL = "http://127.0.0.1:5555"
"""Where Flower listens unless told otherwise."""
_PATIENCE_S = 3.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_monitoring(settings: Settings, server_urls: Sequence[str], *, flower_url: str = FLOWER_URL) -> Check:
    """Return what is wrong with those who look on.

    Args:
        settings: of this installation.
        server_urls: where the tracking server says it listens; one that does not answer is not this check's business.
        flower_url: where Flower is looked for, if the settings do not say.
    """
    found = [*_flower(settings.flower_url, flower_url), *_metrics(server_urls), *_hooks(settings)]
    said = [item for item in found if isinstance(item, str)]
    return Check("watching", "; ".join(said) or "nobody", tuple(item for item in found if isinstance(item, Finding)))


def _flower(given: str | None, default: str) -> Iterator[str | Finding]:
    url = (given or default).rstrip("/")
    if not _is_flower(url):
        if given is not None:
            why = "LAUNCH_FLOWER_URL says that it is there. Runs do not need it."
            yield Finding(f"Flower does not answer at {masked(url)}.", why, "celery -A workers.app flower")
        return
    yield f"Flower at {url}"
    fix = "start it with --basic_auth=USER:PASSWORD or an OAuth option, and without FLOWER_UNAUTHENTICATED_API"
    if _status(f"{url}/api/workers") == 200:
        why = "Whoever reaches it can end runs, and change what agents take."
        yield Finding(f"Flower's API at {url} asks for no login.", why, fix)
    elif _status(f"{url}/workers") == 200 and urlsplit(url).hostname not in _LOOPBACK:
        why = "Whoever reaches them sees every run's name, queue and config."
        yield Finding(f"Flower's pages at {url} ask for no login.", why, fix)


def _is_flower(url: str) -> bool:
    """Whether it is Flower that answers there: something else may have its port."""
    answer = _get(f"{url}/healthcheck")
    return answer is not None and answer[:2] == (200, b"OK") and answer[2].get("Server", "").startswith("Tornado")


def _metrics(server_urls: Sequence[str]) -> Iterator[str | Finding]:
    url = next((url for url in server_urls if ask(url) is Answer.REACHED), None)
    if url is None:
        return
    answer = _get(f"{url}/metrics")
    if answer is not None and answer[0] == 200 and b"launch_agents" in answer[1]:
        yield f"metrics at {url}/metrics"
        return
    came = "nothing" if answer is None else f"status {answer[0]}"
    why = "Prometheus sees nothing of this installation, and no alert is raised."
    fix = "its log says why: run/server.log in the launch home"
    yield Finding(f"The tracking server answers {url}/metrics with {came}.", why, fix)


def _hooks(settings: Settings) -> Iterator[str | Finding]:
    if settings.notify is None:
        return
    try:
        hooks = read_hooks(settings.notify, _AnySecret())
    except ConfigError as exc:
        why = "A tracking server that is started with it ends at once."
        yield Finding(f"{exc}.", why, f"see config/notify.yaml, which has every key; edit {settings.notify}")
        return
    yield f"{len(hooks)} hook(s): {', '.join(hook.name for hook in hooks) or 'none'}"


class _AnySecret(dict[str, str]):
    """Stands for the environment of the server, whose secrets are not ours to know."""

    def __missing__(self, name: str) -> str:
        return "https://secret.invalid"

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        return self[name]


# --- asking -----------------------------------------------------------------------------------------------------------


def _status(url: str) -> int | None:
    answer = _get(url)
    return None if answer is None else answer[0]


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: a page that leads to a login is not open, though the login's own page is."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _get(url: str) -> tuple[int, bytes, Message[str, str]] | None:
    """Return ``(status, body, headers)``, asked past any proxy; none if nothing answers."""
    try:
        with build_opener(ProxyHandler({}), _Stay()).open(url, timeout=_PATIENCE_S) as answer:
            return answer.status, answer.read(10_000_000), answer.headers
    except HTTPError as exc:
        exc.close()
        return exc.code, b"", exc.headers
    except (OSError, ValueError, HTTPException):
        return None
