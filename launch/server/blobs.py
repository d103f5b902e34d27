"""The artifact store over HTTP, for agents and clients that share no disk with the server.

Below ``/blobs``, apart from what the wandb SDK asks for::

    HEAD, GET  /sha256/<digest>           a blob, or a part of it (Range)
    POST       /sha256/<digest>?bytes=N   204: it is here with that length, and will be for a while; 404: send it
    PUT        /sha256/<digest>           keep it; 422: what came has another digest, and nothing was kept
    POST       /collect?older_than_s=S&dry_run=0

Jobs reach this server too, so each request carries the installation's artifact key, which agents and clients have from
Redis and jobs never see.
"""

from __future__ import annotations

import hmac
import io
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from launch.artifacts import DIGEST_PATTERN, ArtifactStore
from launch.artifacts.place import CHUNK_BYTES, ChangedError
from launch.errors import ConfigError, PermanentError, TemporaryError
from launch.store import RunStore

T = TypeVar("T")

_AT_ONCE = 8
"""Threads for blobs: what a slow sender holds must not be the threads that rows of metrics need."""
_SILENCE_S = 60.0
"""How long a sender may be silent."""


def add_blobs(app: FastAPI, artifacts: ArtifactStore, store: RunStore, *, max_bytes: int) -> None:
    """Let an application answer for blobs.

    Args:
        app: the server's.
        artifacts: where they are kept.
        store: has the key, and what is needed of them.
        max_bytes: the most a blob may have.
    """
    blobs = _Blobs(artifacts, store, max_bytes)
    app.add_api_route("/blobs/sha256/{digest}", blobs.head, methods=["HEAD"])
    app.add_api_route("/blobs/sha256/{digest}", blobs.get, methods=["GET"])
    app.add_api_route("/blobs/sha256/{digest}", blobs.keep, methods=["POST"])
    app.add_api_route("/blobs/sha256/{digest}", blobs.put, methods=["PUT"])
    app.add_api_route("/blobs/collect", blobs.collect, methods=["POST"])


class _Blobs:
    def __init__(self, artifacts: ArtifactStore, store: RunStore, max_bytes: int) -> None:
        self._artifacts = artifacts
        self._store = store
        self._max_bytes = max_bytes
        self._threads: anyio.CapacityLimiter | None = None

    async def head(self, request: Request, digest: str) -> Response:
        size = await self._size(request, digest)
        return Response(headers={"Content-Length": str(size), "Accept-Ranges": "bytes"})

    async def get(self, request: Request, digest: str) -> Response:
        size = await self._size(request, digest)
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = request.headers.get("range")
        if wanted is None:
            headers["Content-Length"] = str(size)
            return StreamingResponse(self._read(digest, 0, size), headers=headers)
        start, end = _range(wanted, size)
        headers |= {"Content-Length": str(end - start), "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        return StreamingResponse(self._read(digest, start, end), 206, headers=headers)

    async def keep(self, request: Request, digest: str, bytes: int) -> Response:
        await self._check(request, digest)
        self._check_size(bytes)
        if await self._run(lambda: self._artifacts.keep(digest, bytes)):
            return Response(status_code=204)
        return JSONResponse({"error": f"blob {digest} is not here"}, 404)

    async def put(self, request: Request, digest: str) -> Response:
        await self._check(request, digest)
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            raise HTTPException(411, "A blob needs a Content-Length")
        self._check_size(int(length))
        body = request.stream()
        try:
            await self._run(lambda: self._artifacts.write(io.BufferedReader(_Incoming(body), CHUNK_BYTES), digest))
        except ChangedError as exc:
            return await _refused(body, 422, str(exc))
        except (TemporaryError, ConfigError) as exc:  # 507 is not tried again, with all that would be sent
            return await _refused(body, 507, str(exc))
        except (ClientDisconnect, TimeoutError):
            return Response(status_code=408)
        return Response(status_code=204)

    async def collect(self, request: Request, older_than_s: float, dry_run: bool) -> Response:
        await self._check(request, "")
        from launch.artifacts_gc import Collected, collect

        def work() -> Collected:
            return collect(self._store, self._artifacts, older_than_s=older_than_s, is_dry_run=dry_run)

        try:
            return JSONResponse(asdict(await self._run(work)))
        except ConfigError as exc:
            return JSONResponse({"error": str(exc)}, 409)

    async def _check(self, request: Request, digest: str) -> None:
        """Refuse who has not the key, before anything is read; then what is no digest."""
        kind, _, said = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            raise HTTPException(401, "Blobs need the installation's artifact key")
        key = await self._run(self._store.artifact_key)
        if not hmac.compare_digest(said.strip().encode(), key.encode()):
            raise HTTPException(403, "That is not this installation's artifact key")
        if digest and not re.fullmatch(DIGEST_PATTERN, digest):
            raise HTTPException(404, "A blob's name is 64 lower-case hexadecimal digits")

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            limit = f"the server's LAUNCH_MAX_BLOB_GB, {self._max_bytes / 1e9:g}"
            raise HTTPException(413, f"a blob of {size_bytes / 1e9:.1f} GB is over {limit}")

    async def _size(self, request: Request, digest: str) -> int:
        await self._check(request, digest)
        try:
            return await self._run(lambda: self._artifacts.size(digest))
        except PermanentError as exc:
            raise HTTPException(404, str(exc)) from exc

    async def _read(self, digest: str, start: int, end: int) -> AsyncIterator[bytes]:
        file = await self._run(lambda: self._artifacts.open(digest))
        try:
            await self._run(lambda: file.seek(start))
            while start < end:
                wanted = min(CHUNK_BYTES, end - start)
                chunk = await self._run(lambda wanted=wanted: file.read(wanted))  # type: ignore[misc]
                if not chunk:
                    return  # shorter than it was: the connection ends before what was announced
                start += len(chunk)
                yield chunk
        finally:
            file.close()

    async def _run(self, work: Callable[[], T]) -> T:
        self._threads = self._threads or anyio.CapacityLimiter(_AT_ONCE)  # belongs to the event loop
        return await anyio.to_thread.run_sync(work, limiter=self._threads)


def _range(text: str, size: int) -> tuple[int, int]:
    """Return the first place of a range and the one behind it."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", text.strip())
    if found is None:
        raise HTTPException(400, f"Range: should be like bytes=100- or bytes=100-199, not {text!r}")
    start = int(found[1])
    end = min(size, int(found[2]) + 1) if found[2] else size
    if start >= end:
        raise HTTPException(416, f"The blob has {size} bytes")
    return start, end


async def _refused(body: AsyncIterator[bytes], code: int, why: str) -> Response:
    # What is still on its way is taken, or else the sender would see a broken pipe, not the answer.
    try:
        async for _ in body:
            pass
    except (ClientDisconnect, RuntimeError):
        pass
    return JSONResponse({"error": why}, code)


class _Incoming(io.RawIOBase):
    """A request's body as a file, for a thread that the event loop waits for."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(anyio.from_thread.run(self._next))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _next(self) -> bytes:
        with anyio.fail_after(_SILENCE_S):
            async for chunk in self._body:
                if chunk:
                    return chunk
        return b""
