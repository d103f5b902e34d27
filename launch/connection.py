"""The connection to Redis: one way to make it, one kind of error when it is away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from launch.errors import BrokerAwayError, ConfigError
from launch.settings import redis_py_url, sentinels_of

# A command may have been carried out although its answer was lost, and redis-py then sends it again: every script of
# openlaunch may be repeated (see each one's head).
_RETRIES = 3
_NOT_PERMITTED = ("ACL failure in script", "The user executing the script can't")
"""What is said of a script that was permitted, unlike a command in it: by Valkey, by Redis."""
_UNWILLING = ("MISCONF ", "NOREPLICAS ", "BUSY ", "UNBLOCKED ")


def masked(url: str) -> str:
    """Return a URL for people: the password replaced."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:********@", url)


class _Translated:
    """Turns redis-py's errors of a lost or unwilling server into ours."""

    launch_url = "redis"

    def _translate(self, exc: Exception) -> Exception:
        if isinstance(exc, BusyLoadingError):
            return BrokerAwayError(f"Redis at {self.launch_url} is still loading its data; try again in a moment")
        if isinstance(exc, ReadOnlyError):
            return BrokerAwayError(f"Redis at {self.launch_url} is read-only (a replica?); name its primary")
        if isinstance(exc, OutOfMemoryError):
            return BrokerAwayError(
                f"Redis at {self.launch_url} is full (maxmemory) and takes nothing new: give it more, such as "
                f"`redis-cli CONFIG SET maxmemory 2gb`; `launch doctor` shows how full it is"
            )
        if isinstance(exc, AuthenticationError | AuthorizationError):
            return BrokerAwayError(
                f"Redis at {self.launch_url} does not let us in: {str(exc).rstrip('.')}. Give user and password in "
                "LAUNCH_BROKER_URL, such as redis://user:password@host:6379/0"
            )
        if isinstance(exc, NoPermissionError) or any(words in str(exc) for words in _NOT_PERMITTED):
            return BrokerAwayError(
                f"Redis at {self.launch_url} does not permit it: {str(exc).rstrip('.')}. Name another user in "
                "LAUNCH_BROKER_URL; deploy/redis/users.acl has the rights that each part of openlaunch needs"
            )
        if isinstance(exc, InvalidResponse):
            return BrokerAwayError(f"what answers at {self.launch_url} is no Redis; name one with LAUNCH_BROKER_URL")
        if isinstance(exc, ConnectionError | TimeoutError):
            reason = str(exc).rstrip(".")
            return BrokerAwayError(
                f"Redis at {self.launch_url} is away: {reason}. Start it, or name another with LAUNCH_BROKER_URL"
            )
        # redis-py takes the code off some errors and makes a class of it.
        is_unwilling = isinstance(exc, ResponseError) and any(code in str(exc) for code in _UNWILLING)
        if is_unwilling or isinstance(exc, ClusterError | TryAgainError):
            return BrokerAwayError(f"Redis at {self.launch_url} takes no commands now: {exc}")
        return exc


class _Pipeline(_Translated, Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            return super().execute(raise_on_error)
        except RedisError as exc:
            raise self._translate(exc) from exc

    def execute_first(self, count: int) -> list[Any]:
        """Return the first so many answers; the commands behind them may fail, a full Redis refusing them."""
        found = self.execute(raise_on_error=False)[:count]
        for answer in found:
            if isinstance(answer, RedisError):
                raise self._translate(answer) from answer
        return found


class LaunchRedis(_Translated, Redis):
    """redis-py's client, with strings in and out, whose lost connection is a :class:`BrokerAwayError`."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisError as exc:
            raise self._translate(exc) from exc

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Do the same for what redis-py does beside its commands: subscriptions."""
        try:
            yield
        except RedisError as exc:
            raise self._translate(exc) from exc

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        pipe = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.launch_url = self.launch_url
        return pipe


def connect(url: str, *, timeout_s: float = 5.0) -> LaunchRedis:
    """Return a connection to Redis that has answered once.

    Args:
        url: as kombu takes it; see :attr:`launch.settings.Settings.broker_url`.
        timeout_s: for connecting, and for each answer.

    Raises:
        ConfigError: it is no such URL.
        BrokerAwayError: nothing answers there; the message names the URL without its password.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        # Anybody can put bytes that are no text on a queue's list; they must come back as they are to be removed.
        "encoding_errors": "surrogateescape",
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "health_check_interval": 30,
        # Nobody waits several times for a server that accepts connections and does not answer.
        "retry": Retry(NoBackoff(), retries=0),
    }
    client = LaunchRedis(connection_pool=_pool(url, options))
    client.auto_close_connection_pool = True  # the pool is nobody else's: closing the client closes its sockets
    client.launch_url = masked(url)
    client.ping()
    client.set_retry(Retry(ExponentialBackoff(cap=0.2, base=0.01), retries=_RETRIES))
    return client


def _pool(url: str, options: dict[str, Any]) -> ConnectionPool:
    sentinels = sentinels_of(url)
    if sentinels is not None:
        # redis-py has no types for these two.
        asked: Any = Sentinel(sentinels.hosts, sentinel_kwargs={"socket_timeout": options["socket_timeout"]})  # type: ignore[no-untyped-call]
        who = {"username": sentinels.username, "password": sentinels.password, "db": sentinels.db}
        return SentinelConnectionPool(sentinels.master_name, asked, **options, **who)  # type: ignore[no-untyped-call]
    try:
        return ConnectionPool.from_url(redis_py_url(url), **options)
    except ValueError as exc:
        raise ConfigError(
            f"LAUNCH_BROKER_URL: should be like redis://host:6379/0 or redis+socket:///path, not {masked(url)!r}"
        ) from exc
