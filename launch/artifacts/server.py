"""Blobs that a launch server keeps, for machines that share no disk; the requests are in :mod:`launch.server.blobs`."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPException
from typing import Any, BinaryIO, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from launch.artifacts.place import CHUNK_BYTES, ChangedError, Stored, check_unchanged, digest_of
from launch.errors import ConfigError, TemporaryError

_TIMEOUT_S = 30.0
"""Without a byte from the server."""
_STORING_S = 600.0
"""The same while it passes a blob on to a store of its own."""
_PAUSES_S = (0.2, 1.0, 2.0, 4.0)
"""Long enough for a server that is started anew."""
_NOT_NOW = (408, 429, 500, 502, 503, 504)
_CHANGED = 422


class ServerPlace:
    """A :class:`~launch.artifacts.place.Place` behind a launch server.

    Args:
        url: the server's, without a slash at the end.
        key: gives what the server asks for.
    """

    def __init__(self, url: str, key: Callable[[], str]) -> None:
        self._url = url
        self._key = key

    def size(self, digest: str) -> int | None:
        """Return a blob's length; none: it is not here."""
        try:
            with closing(self._ask("HEAD", digest)) as answer:
                return int(answer.headers["Content-Length"])
        except FileNotFoundError:
            return None

    def keep(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is here and will be for a while."""
        try:
            self._ask("POST", f"{digest}?bytes={size_bytes}", data=b"").close()
        except FileNotFoundError:
            return False
        return True

    def write(self, source: BinaryIO, digest: str | None) -> str:
        """Keep what is left in a file, all or nothing, and return its digest."""
        start = source.tell()
        found = check_unchanged(digest_of(source), digest)
        size_bytes = source.tell() - start
        if digest is None and self.keep(found, size_bytes):
            return found

        def body() -> BinaryIO:
            source.seek(start)
            return source

        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        self._ask("PUT", found, data=body, headers=headers, timeout_s=_STORING_S).close()
        return found

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, from any place in it."""
        return io.BufferedReader(_Reading(self, digest), CHUNK_BYTES)

    def where(self, digest: str) -> str:
        """Return the blob's URL."""
        return f"{self._url}/blobs/sha256/{digest}"

    def read_from(self, digest: str, position: int) -> Any:
        """Return the server's answer with a blob from a place in it on; none: there is nothing left."""
        try:
            return self._ask("GET", digest, headers={"Range": f"bytes={position}-"} if position else {})
        except EOFError:
            return None

    # --- what the server itself sees to -------------------------------------------------------------------------------

    def mark(self, installation: str) -> None:
        """The server has noted who it is for."""

    def marks(self) -> list[str]:
        """Nobody but the server knows."""
        return []

    def blobs(self) -> Iterator[Stored]:
        """Nobody but the server knows."""
        return iter(())

    leftovers = blobs

    def remove(self, digest: str, *, before: float) -> bool:  # noqa: ARG002
        """Nobody but the server removes any."""
        return False

    def remove_leftover(self, name: str) -> None:
        """Nobody but the server removes any."""

    def collect(self, older_than_s: float, *, is_dry_run: bool) -> dict[str, Any]:
        """Have the server remove what nothing needs."""
        query = urlencode({"older_than_s": older_than_s, "dry_run": int(is_dry_run)})
        with closing(self._ask("POST", f"?{query}", data=b"", to="collect", timeout_s=_STORING_S)) as answer:
            return cast(dict[str, Any], json.loads(answer.read()))

    # --- requests -----------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, **what: Any) -> Any:
        """Return the server's answer, to be closed; a connection that is lost is tried again.

        Raises:
            FileNotFoundError: there is no such blob.
            EOFError: the range begins behind its end.
            ChangedError: what came has another digest.
            ConfigError: the server does not take the key, or the blob is too large for it.
            TemporaryError: it is away, or has no room.
        """
        for pause_s in (*_PAUSES_S, None):
            try:
                return self._ask_once(method, path, **what)
            except HTTPError as exc:
                with exc:
                    if pause_s is None or exc.code not in _NOT_NOW:
                        raise self._refusal(exc) from exc
            except (URLError, HTTPException, OSError) as exc:
                if pause_s is None:
                    raise self.away(exc) from exc
            time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _ask_once(
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        headers: dict[str, str] | None = None,
        to: str = "sha256",
        timeout_s: float = _TIMEOUT_S,
    ) -> Any:
        url = f"{self._url}/blobs/{to}{'/' if to == 'sha256' else ''}{path}"
        body = data() if callable(data) else data
        given = {"Authorization": f"Bearer {self._key()}", **(headers or {})}
        request = Request(url, data=body, headers=given, method=method)  # noqa: S310  # http(s) by its caller
        return urlopen(request, timeout=timeout_s)  # noqa: S310

    def _refusal(self, exc: HTTPError) -> Exception:
        said = _said(exc)
        if exc.code == 404:
            return FileNotFoundError(said)
        if exc.code == 416:
            return EOFError(said)
        if exc.code == _CHANGED:
            return ChangedError(said)
        if exc.code in (401, 403):
            return ConfigError(
                f"LAUNCH_ARTIFACTS: the server at {self._url} does not take this installation's key: it serves another "
                "one. LAUNCH_BROKER_URL and LAUNCH_ARTIFACTS should name the same installation's"
            )
        if exc.code in (409, 413):
            return ConfigError(f"LAUNCH_ARTIFACTS: {self._url}: {said}")
        if exc.code == 405:
            return ConfigError(f"LAUNCH_ARTIFACTS: what answers at {self._url} is no launch server that keeps blobs")
        return TemporaryError(f"the artifact store {self._url} cannot be used: {said}")

    def away(self, exc: Exception) -> TemporaryError:
        """Return the error for a server that does not answer."""
        reason = getattr(exc, "reason", None) or str(exc) or type(exc).__name__
        return TemporaryError(
            f"the artifact store {self._url} cannot be used: {reason}. Start it: `launch server --host ADDRESS`, with "
            "an address that this machine reaches"
        )


def _said(exc: HTTPError) -> str:
    """Return what the server says in an answer that is none."""
    text = exc.read(10_000).decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):
        return f"it answers {exc.code} {exc.reason}"


class _Reading(io.RawIOBase):
    """A blob that is read from the server, from where it is sought to on; a connection that is lost is made again."""

    def __init__(self, place: ServerPlace, digest: str) -> None:
        self._place = place
        self._digest = digest
        self._position = 0
        self._answer: Any = place.read_from(digest, 0)
        self._size = int(self._answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset != self._position:
            self._position = max(0, base + offset)
            self._drop()
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        for pause_s in (*_PAUSES_S, None):
            try:
                data = self._read(wanted) if wanted > 0 else b""
            except (HTTPException, OSError) as exc:
                self._drop()
                if pause_s is None:
                    raise self._place.away(exc) from exc
                time.sleep(pause_s)
            else:
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
        raise AssertionError("the last try returns or raises")

    def _read(self, wanted: int) -> bytes:
        if self._answer is None:
            self._answer = self._place.read_from(self._digest, self._position)
        data = b"" if self._answer is None else cast(bytes, self._answer.read(wanted))
        if not data:
            raise ConnectionError(f"blob {self._digest} ended after {self._position} of {self._size} bytes")
        return data

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def close(self) -> None:
        self._drop()
        super().close()
