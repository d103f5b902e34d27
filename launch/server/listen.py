"""Serving, and for how long: listeners that come and go with their addresses, announcements, signals.

It listens on loopback for jobs on this machine and on the gateway address of the Docker bridge, if there is one, for
jobs in containers. Docker may be started later, so the bridge is looked for again and again. Never on all addresses
unless ``--host`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import uvicorn

from launch.errors import LaunchError
from launch.server.sockets import ANYWHERE, BRIDGE, LOOPBACK, bind, bridge_address

if TYPE_CHECKING:
    from fastapi import FastAPI

    from launch.store import RunStore

log = logging.getLogger(__name__)

ANNOUNCE_S = 3.0
"""The store forgets a server that has not announced itself for 10 s."""
_DRAIN_S = 0.5
_FORCE_S = 0.9


class _Listener(uvicorn.Server):
    """uvicorn on one address, whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listeners:
    """The addresses the server answers at."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self._app = app
        self._port = port
        self._open: dict[str, tuple[_Listener, asyncio.Task[None]]] = {}
        self._wished: dict[str, None] = {}
        self._complained: set[str] = set()

    def open(self, host: str, bound: socket.socket) -> None:
        """Answer at a bound socket."""
        config = uvicorn.Config(
            self._app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            # Longer than the heartbeat of the SDK, which then keeps its connection.
            timeout_keep_alive=75,
        )
        listener = _Listener(config)
        self._open[host] = (listener, asyncio.create_task(listener.serve(sockets=[bound])))

    def open_if_possible(self, host: str) -> None:
        """Answer at an address too, or say once why not."""
        self._wished.setdefault(host)
        if host in self._open or any(everywhere in self._open for everywhere in ANYWHERE):
            return
        try:
            self.open(host, bind(host, self._port))
        except OSError as exc:
            if host not in self._complained:
                log.warning("not listening on %s:%d yet: %s", host, self._port, exc.strerror)
            self._complained.add(host)

    @property
    def urls(self) -> list[str]:
        """Where it answers, loopback first."""
        hosts = list(self._open)
        if any(host in ANYWHERE for host in hosts):
            hosts = [LOOPBACK, *self._wished]
        return [f"http://{f'[{host}]' if ':' in host else host}:{self._port}" for host in hosts]

    async def ready(self) -> None:
        """Wait until all answer."""
        while not all(listener.started for listener, _ in self._open.values()):
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Take no more connections, and end as soon as the requests that came are answered, or in half a second."""
        for listener, _ in self._open.values():
            listener.should_exit = True
        tasks = [task for _, task in self._open.values()]
        await asyncio.wait(tasks, timeout=_DRAIN_S)
        for listener, _ in self._open.values():
            listener.force_exit = True
        await asyncio.wait(tasks, timeout=_DRAIN_S / 2)


def run(
    app: FastAPI,
    store: RunStore,
    sockets: Sequence[tuple[str, socket.socket]],
    *,
    bridge: str | None = BRIDGE,
    on_ready: Callable[[list[str]], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, which end it within a second.

    Args:
        app: the application.
        store: told every three seconds where the server is.
        sockets: ``[(host, bound socket)]``, all at the same port.
        bridge: a network interface to listen on as well whenever it is there.
        on_ready: called with the URLs once they answer.
    """
    asyncio.run(_run(app, store, sockets, bridge, on_ready))


async def _run(
    app: FastAPI,
    store: RunStore,
    sockets: Sequence[tuple[str, socket.socket]],
    bridge: str | None,
    on_ready: Callable[[list[str]], None] | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_soon, stop)
    listeners = Listeners(app, sockets[0][1].getsockname()[1])
    for host, bound in sockets:
        listeners.open(host, bound)
    _look_for_bridge(listeners, bridge)
    await listeners.ready()
    await _announce(store, listeners)
    if on_ready is not None:
        on_ready(listeners.urls)
    while not await _is_set_within(stop, ANNOUNCE_S):
        _look_for_bridge(listeners, bridge)
        await _announce(store, listeners)
    await _withdraw(store)
    await listeners.close()


def _stop_soon(stop: asyncio.Event) -> None:
    stop.set()
    # A request may hang in a Redis that does not answer; all it has not written yet is posted again by the SDK.
    timer = threading.Timer(_FORCE_S, os._exit, args=(0,))
    timer.daemon = True
    timer.start()


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _look_for_bridge(listeners: Listeners, bridge: str | None) -> None:
    address = bridge_address(bridge) if bridge else None
    if address is not None:
        listeners.open_if_possible(address)


async def _announce(store: RunStore, listeners: Listeners) -> None:
    try:
        await asyncio.to_thread(store.announce_server, listeners.urls)
    except LaunchError as exc:
        log.warning("the server cannot be announced: %s", exc)


async def _withdraw(store: RunStore) -> None:
    with contextlib.suppress(LaunchError, TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(store.withdraw_server), _DRAIN_S)
