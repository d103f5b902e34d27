"""The web application: routes, and what each kind of failure answers.

Answers to the SDK are chosen by what it does with them: 5xx is sent again (Redis is away: no row is lost), 4xx is not
(the SDK says so in the job's log and the script goes on).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from launch.errors import TemporaryError
from launch.models import is_run_id
from launch.server.files import BadNameError, Limits, place_for, save, size_of
from launch.server.tracker import Caller, Tracker
from launch.server.wandb_api import BadPostError
from launch.tracking import TrackingStore

log = logging.getLogger(__name__)


def create_app(store: TrackingStore, home: Path, *, limits: Limits | None = None) -> FastAPI:
    """Return the tracking server as an ASGI application.

    Args:
        store: where runs are.
        home: the launch home; files go to ``runs/<run id>/files`` and ``artifacts`` below it.
        limits: how much a run may keep there.
    """
    tracker = Tracker(store, home, limits or Limits())
    app = FastAPI(title="openlaunch", docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_pages(app)
    _add_ingest(app, tracker)
    _add_uploads(app, tracker)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, exc: HTTPException) -> Response:
        log.info("%s %s: %d %s", request.method, request.url.path, exc.status_code, exc.detail)
        body = {"error": exc.detail, "errors": [{"message": exc.detail}]}
        headers = {"WWW-Authenticate": "Basic"} if exc.status_code == 401 else None
        return JSONResponse(body, exc.status_code, headers=headers)

    @app.exception_handler(TemporaryError)
    async def away(request: Request, exc: TemporaryError) -> Response:
        log.warning("%s %s: %s", request.method, request.url.path, exc)
        return JSONResponse({"error": str(exc)}, 503)

    @app.exception_handler(BadPostError)
    @app.exception_handler(BadNameError)
    async def malformed(request: Request, exc: Exception) -> Response:
        log.warning("%s %s: %s", request.method, request.url.path, exc)
        return JSONResponse({"error": str(exc), "errors": [{"message": str(exc)}]}, 400)


def _add_pages(app: FastAPI) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"ok": True, "name": "openlaunch"}

    # The SDK prints this URL at the start and end of a run.
    @app.get("/{entity}/{project}/runs/{run_id}")
    async def run_page(run_id: str) -> Response:
        if not is_run_id(run_id):
            raise HTTPException(404, "no such page")
        return PlainTextResponse(f"launch show {run_id}\nlaunch logs {run_id} --follow\n")

    @app.get("/{entity}/{project}")
    async def project_page() -> Response:
        return PlainTextResponse("launch runs\n")


def _add_ingest(app: FastAPI, tracker: Tracker) -> None:
    @app.post("/graphql")
    async def graphql(request: Request) -> Response:
        caller = await _caller(tracker, request)
        body = await _body(request, tracker.limits.body_bytes)
        return JSONResponse(await run_in_threadpool(tracker.graphql, caller, body, str(request.base_url)))

    @app.post("/files/{entity}/{project}/{run_id}/file_stream")
    async def file_stream(request: Request, run_id: str) -> Response:
        caller = await _caller(tracker, request, run_id)
        body = await _body(request, tracker.limits.body_bytes)
        return JSONResponse(await run_in_threadpool(tracker.file_stream, caller, body))

    # The SDK's telemetry of itself: taken, so that it does not try again, and dropped.
    @app.post("/sdk/otel/{path:path}")
    async def telemetry() -> dict[str, Any]:
        return {}


def _add_uploads(app: FastAPI, tracker: Tracker) -> None:
    @app.put("/files/{entity}/{project}/{run_id}/{name:path}")
    async def put_file(request: Request, run_id: str, name: str) -> Response:
        return await upload(request, run_id, "files", name)

    @app.put("/artifacts/{run_id}/{name:path}")
    async def put_artifact(request: Request, run_id: str, name: str) -> Response:
        return await upload(request, run_id, "artifacts", name)

    @app.get("/artifacts/{run_id}/{name:path}")
    async def get_artifact(request: Request, run_id: str, name: str) -> Response:
        await _caller(tracker, request, run_id)
        place = place_for(tracker.folder(run_id) / "artifacts", name)
        if not place.is_file():
            raise HTTPException(404, f"run {run_id} has no artifact file {name}")
        return FileResponse(place)

    async def upload(request: Request, run_id: str, folder: str, name: str) -> Response:
        caller = await _caller(tracker, request, run_id)
        place = place_for(tracker.folder(run_id) / folder, name)
        size = _announced_size(request)
        await run_in_threadpool(tracker.reserve, caller, size)
        try:
            replaced = await run_in_threadpool(size_of, place)
            await _saved(save(request.stream(), place, size_bytes=size), name)
        except BaseException:
            await run_in_threadpool(tracker.give_back, caller, size)
            raise
        await run_in_threadpool(tracker.give_back, caller, replaced)
        return JSONResponse({})


async def _caller(tracker: Tracker, request: Request, run_id: str | None = None) -> Caller:
    # Before the body is read: nobody without a key makes the server hold one.
    return await run_in_threadpool(tracker.caller, request.headers.get("authorization"), run_id)


async def _saved(saving: Awaitable[None], name: str) -> None:
    try:
        await saving
    except EOFError as exc:
        raise HTTPException(400, str(exc)) from exc
    except BadNameError:
        raise
    except OSError as exc:
        log.error("file %s cannot be written: %s", name, exc)
        raise HTTPException(507, f"{name} cannot be written: {exc.strerror}") from exc


def _announced_size(request: Request) -> int:
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise HTTPException(411, "An upload needs a Content-Length")
    return int(length)


async def _body(request: Request, limit_bytes: int) -> bytes:
    """Return a request's body, unpacked; 413 when it is longer than the limit in either form."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit_bytes:
            raise HTTPException(413, f"A request may have {limit_bytes} bytes")
    packing = request.headers.get("content-encoding", "identity").lower()
    if packing == "identity":
        return bytes(received)
    if packing not in ("gzip", "deflate"):
        raise HTTPException(415, f"Content-Encoding {packing!r} is not understood; gzip is")
    return await run_in_threadpool(_unpacked, bytes(received), limit_bytes)


def _unpacked(packed: bytes, limit_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=47)  # 32 for "gzip or zlib, whichever it is", 15 for the largest window
    try:
        body = unpacker.decompress(packed, limit_bytes + 1)
    except zlib.error as exc:
        raise HTTPException(400, f"The body does not unpack: {exc}") from exc
    if len(body) > limit_bytes:
        raise HTTPException(413, f"A request may have {limit_bytes} bytes, unpacked")
    return body
