"""What a process that an agent starts may know of the agent's environment: how to find things, and no secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        # Certificates of a private authority: without them nothing behind it can be reached.
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    }
)


def base_env(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables every job gets: of ``environ``, only those that say where and in which language it runs."""
    kept = {name: value for name, value in environ.items() if name in _NAMES or name.startswith("LC_")}
    return {"PATH": os.defpath, **kept}
