"""The tracking server: speaks the wandb SDK's protocol, so that an unmodified script reports to this installation.

It is apart from the agent, since agents restart while jobs run. It keeps nothing of its own: what it takes goes to
Redis and to the launch home, so it may end and start again at any time, on the same port.
"""

from __future__ import annotations

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
    except ModuleNotFoundError as exc:
        raise ConfigError(f"the tracking server needs {exc.name}: pip install 'openlaunch[server]'") from exc
    from launch.tracking import TrackingStore

    with sockets.only_server_of(settings.home) as folder:
        bound = sockets.bind_all(folder, settings.tracking_port, hosts)
        try:
            app = create_app(TrackingStore(store.redis), settings.home)
            listen.run(app, store, bound, on_ready=on_ready)
        finally:
            for _, each in bound:
                each.close()
