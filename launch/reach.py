"""Whether a tracking server answers at an address, asked from wherever this code runs.

Its text is also sent to where jobs run, as ``python3 -c <this file> <url>``: the standard library only, nothing newer
than Python 3.7, and what came of it is the exit code.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from http.client import HTTPException, InvalidURL
from socket import gaierror, timeout
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

PATIENCE_S = 3.0


class Answer(IntEnum):
    """What came of asking; a number is an exit code that neither Python nor a container engine uses."""

    REACHED = 0
    REFUSED = 41
    TIMED_OUT = 42
    NO_ROUTE = 43
    UNKNOWN_NAME = 44
    SOMETHING_ELSE = 45
    NO_ADDRESS = 46


WORDS = {
    Answer.REACHED: "it answers",
    Answer.REFUSED: "connection refused",
    Answer.TIMED_OUT: f"no answer within {PATIENCE_S:g} s",
    Answer.NO_ROUTE: "no way to that address",
    Answer.UNKNOWN_NAME: "unknown host name",
    Answer.SOMETHING_ELSE: "something else answers there",
    Answer.NO_ADDRESS: "no web address",
}


def ask(url: str) -> Answer:
    """Ask for the server's health, past any proxy; whatever happens is an answer."""
    if not url.startswith(("http://", "https://")):
        return Answer.NO_ADDRESS
    try:
        with build_opener(ProxyHandler({})).open(url.rstrip("/") + "/healthz", timeout=PATIENCE_S) as answer:
            return Answer.REACHED if b"openlaunch" in answer.read(1000) else Answer.SOMETHING_ELSE
    except HTTPError as exc:
        exc.close()
        return Answer.SOMETHING_ELSE
    except URLError as exc:
        return _meaning(exc.reason)
    except (ValueError, InvalidURL):
        return Answer.NO_ADDRESS
    except HTTPException:
        return Answer.SOMETHING_ELSE
    except OSError as exc:
        return _meaning(exc)


def _meaning(reason: object) -> Answer:
    if isinstance(reason, ConnectionRefusedError):
        return Answer.REFUSED
    if isinstance(reason, timeout):  # before Python 3.10 no TimeoutError
        return Answer.TIMED_OUT
    if isinstance(reason, gaierror):
        return Answer.UNKNOWN_NAME
    return Answer.SOMETHING_ELSE if isinstance(reason, ConnectionError) else Answer.NO_ROUTE


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1]))
