"""The tracking server: speaks the wandb SDK's protocol, so that an unmodified script reports to this installation.

It is apart from the agent, since agents restart while jobs run. It keeps nothing of its own: what it takes goes to
Redis and to the launch home, so it may end and start again at any time, on the same port.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from launch.errors import ConfigError

if TYPE_CHECKING:
    from launch.settings import Settings
    from launch.store import RunStore


def serve(
    settings: Settings,
    hosts: Sequence[str] = (),
    *,
    store: RunStore,
    on_ready: Callable[[list[str]], None] | None = None,
) -> None:
    """Run the tracking server in this process until SIGTERM or SIGINT.

    Args:
        settings: ``home`` and ``tracking_port`` of them.
        hosts: addresses to listen on besides loopback and the Docker bridge.
        store: the runs, connected.
        on_ready: called once with the URLs at which it answers.

    Raises:
        ConflictError: it runs already, or its port is taken by another program.
        ConfigError: one of the hosts is not an address of this machine, or the server's packages are not installed.
    """
    try:
        from launch.server import listen, sockets
        from launch.server.app import create_app
        from launch.server.blobs import add_blobs
        from launch.server.metrics import add_metrics
    except ModuleNotFoundError as exc:
        raise ConfigError(f"the tracking server needs {exc.name}: pip install 'openlaunch[server]'") from exc
    from launch.artifacts import ArtifactStore
    from launch.notify import read_hooks
    from launch.server.notifier import Notifier
    from launch.tracking import TrackingStore

    hooks = read_hooks(settings.notify, os.environ) if settings.notify else ()
    notifier = Notifier(store, hooks)
    with sockets.only_server_of(settings.home) as folder:
        bound = sockets.bind_all(folder, settings.tracking_port, hosts)
        try:
            app = create_app(TrackingStore(store.redis), settings.home)
            add_metrics(app, store)
            kept = ArtifactStore(settings.served_artifacts_url, lambda: store)
            add_blobs(app, kept, store, max_bytes=int(settings.max_blob_gb * 1e9))
            notifier.start()
            listen.run(app, store, bound, on_ready=on_ready)
        finally:
            notifier.stop()
            for _, each in bound:
                each.close()
