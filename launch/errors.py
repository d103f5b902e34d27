"""Every error that openlaunch raises on purpose.

The class says what to do next, the message says what was wrong and what would be right::

    LaunchError
    |-- RequestError          the caller asked for something that cannot be: change the request
    |   |-- ConfigError       a file or a value is wrong: mend it at the path the message names
    |   |-- NotFoundError     no such queue, job, version or run
    |   |-- ConflictError     it exists already, and is different
    |   `-- NewerVersionError a later version of openlaunch wrote it: update this one
    |-- TemporaryError        an engine or a service is away: it is tried again
    |   `-- BrokerAwayError   Redis is
    `-- PermanentError        this attempt cannot succeed: it ends, with a cause
        |-- BuildError        the environment or image could not be made
        `-- PullError         the image could not be fetched
    LostClaimError            another agent owns the run now: let go, touch nothing

An SDK's own error becomes one of these at the border, ``from exc``.
"""

from __future__ import annotations


class LaunchError(Exception):
    """The root of the tree: catch it to catch everything that is meant to be caught."""

    exit_code = 1


class RequestError(LaunchError):
    """The request itself was wrong; nothing was written."""

    exit_code = 2


class ConfigError(RequestError):
    """A value in a file, an option or a call is wrong; the message starts with its path."""


class NotFoundError(RequestError):
    """There is no such queue, job, version or run."""


class ConflictError(RequestError):
    """The name is taken by something different."""


class NewerVersionError(RequestError):
    """A later version of openlaunch wrote it, in a form this one does not know; nothing of it was touched."""


class TemporaryError(LaunchError):
    """Something needed is away; the same call may succeed later."""

    exit_code = 3


class BrokerAwayError(TemporaryError):
    """Redis does not answer, or takes no writes just now."""


class PermanentError(LaunchError):
    """This attempt cannot succeed, however often it is tried."""


class BuildError(PermanentError):
    """The job's environment or image could not be built."""


class PullError(PermanentError):
    """The job's image could not be fetched."""


class LostClaimError(Exception):
    """The claim named in a write is no longer the run's: stop working on it, touch nothing.

    Not a :class:`LaunchError`: it is no user's mistake and never reaches one.
    """
