"""What every store over Redis is made of: a connection and its Lua scripts. See ``launch/scripts/prelude.lua``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from launch.connection import LaunchRedis
from launch.metrics import Meter

P = "launch:"
"""What every key of ours begins with."""


class Scripted:
    """Runs scripts by name, each loaded into Redis when it is first needed."""

    preludes: ClassVar[tuple[str, ...]] = ("prelude",)
    """What each script begins with."""

    def __init__(self, redis: LaunchRedis) -> None:
        # redis-py types every answer as bytes, str or a promise of either; this connection always gives strings.
        self.redis: Any = redis
        self._scripts: dict[str, Any] = {}
        self.meter = Meter()
        """What this process counts, for ``/metrics``; the next read of records hands it on."""

    def _run(self, script: str, *args: Any) -> Any:
        registered = self._scripts.get(script)
        if registered is None:
            db = self.redis.connection_pool.connection_kwargs.get("db") or 0
            source = "\n".join((f"local DB = {int(db)}", *(_text(name) for name in (*self.preludes, script))))
            registered = self._scripts[script] = self.redis.register_script(source)
        return registered(args=args)


@cache
def _text(script: str) -> str:
    return files("launch").joinpath("scripts", f"{script}.lua").read_text(encoding="utf-8")
