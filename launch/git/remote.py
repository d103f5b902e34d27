"""Which git remotes, refs and submodules may be named at all. Pure: nothing is looked up, and no git runs.

A remote's URL comes from whoever creates a job, or from a ``.gitmodules`` that a stranger wrote, and git gives some of
them the power to run commands (``ext::``, a host or path that looks like an option). So what may pass is described here
letter by letter, and everything else is refused before git is started.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from launch.errors import ConfigError

MAX_URL = 2048
_MAX_REF = 255
_MAX_JOB_NAME = 128

_USER = r"[A-Za-z0-9_][A-Za-z0-9_.~+%-]*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_URL = re.compile(
    rf"(?P<scheme>https|http|ssh)://(?:(?P<user>{_USER})@)?(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?/(?P<path>.+)"
)
_SCP = re.compile(rf"(?P<user>{_USER})@(?P<host>{_HOST}):(?P<path>[^-:].*)")
_FILE = re.compile(r"file:///(?P<path>.+)")
_PASSWORD = re.compile(r"(?P<before>^[a-z+]+://[^/@:]*):[^/@]*(?P<after>@)")
_DEFAULT_PORTS = {"https": "443", "http": "80", "ssh": "22"}

# Source: git check-ref-format(1)
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|^[./-]|[./]$|^@$")


@dataclass(frozen=True)
class Remote:
    """A remote that may be asked."""

    url: str
    """As git gets it."""
    transport: str
    """``https``, ``ssh``, ``http`` or ``file``."""
    host: str
    """``git.example`` or ``git.example:8443``, lower-case, without the transport's own port; empty for a file."""
    user: str | None
    path: str
    """Without the slash before it."""


def check_remote(url: str, *, allow_http: bool = False, allow_file: bool = False, where: str = "git") -> Remote:
    """Return a remote's URL, taken apart, if it may be asked.

    Args:
        url: ``https://host/path``, ``ssh://user@host/path`` or ``user@host:path``.
        allow_http: whether ``http://`` passes.
        allow_file: whether ``file:///path`` passes.
        where: what the URL is, for the message.

    Raises:
        ConfigError: it is something else; the message names it, its password apart.
    """
    shown = without_password(url)
    if shown != url:
        raise ConfigError(
            f"{where}: {shown!r} has a password in it, which everybody who sees the job could read; leave it out, and "
            "give it as a credential of that host"
        )
    _check_characters(url, where)
    found = _URL.fullmatch(url) or _SCP.fullmatch(url) or _FILE.fullmatch(url)
    if found is None:
        # What could not be taken apart may still hold a password.
        masked = re.sub(r"(://[^/@]*):.*@", r"\1:***@", url)
        raise ConfigError(f"{where}: {masked!r} is refused{_why_refused(url)}")
    parts = {name: value or "" for name, value in found.groupdict().items()}
    transport = parts.get("scheme") or ("file" if found.re is _FILE else "ssh")
    if (transport == "http" and not allow_http) or (transport == "file" and not allow_file):
        raise ConfigError(
            f"{where}: {url!r} is refused: {transport} is not allowed here; use https or ssh, or set allow_{transport} "
            f"in the git settings (--allow {transport} when a job is made)"
        )
    if ".." in parts["path"].split("/"):
        raise ConfigError(f"{where}: {url!r} is refused: its path has '..' in it; write the path it means")
    port = parts.get("port", "")
    host = parts.get("host", "").lower() + (f":{port}" if port not in ("", _DEFAULT_PORTS.get(transport)) else "")
    return Remote(url=url, transport=transport, host=host, user=parts.get("user") or None, path=parts["path"])


def without_password(url: str) -> str:
    """Return a URL that can be shown: ``https://ada:secret@host`` becomes ``https://ada:***@host``."""
    return _PASSWORD.sub(r"\g<before>:***\g<after>", url, count=1)


def _check_characters(url: str, where: str) -> None:
    shown = repr(url if len(url) <= 200 else f"{url[:200]}...")
    if not url:
        raise ConfigError(f"{where}: is empty; it should be like 'https://git.example/team/train.git'")
    if len(url) > MAX_URL:
        raise ConfigError(f"{where}: {shown} has {len(url)} characters, more than the {MAX_URL} a URL may have")
    if any(not character.isprintable() or character.isspace() for character in url):
        raise ConfigError(f"{where}: {shown} is refused: it has white space or a control character in it")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in unquote(url)):
        raise ConfigError(f"{where}: {shown} is refused: it has an encoded control character in it")
    if any(character in url for character in "\\?#\"'<>"):
        raise ConfigError(f"{where}: {shown} is refused: a repository's URL has none of \\ ? # \" ' < > in it")


def _why_refused(url: str) -> str:
    scheme = re.match(r"([A-Za-z0-9+.-]+)(::?)", url)
    allowed = "allowed are https://host/path, ssh://user@host/path and user@host:path"
    if url.startswith("-"):
        return f": it looks like an option of git; {allowed}"
    if url.startswith(("/", ".", "~")):
        return f": it is a path; {allowed}, and file:///path where the git settings allow it"
    if scheme and scheme[2] == "::":
        return f": the helper {scheme[1]!r} could run any command; {allowed}"
    if scheme and scheme[1].lower() in _DEFAULT_PORTS and url.startswith(f"{scheme[1]}://"):
        return f": it should be {scheme[1].lower()}://host/path, with a host and a path that begin with no '-'"
    if scheme and url.startswith(f"{scheme[1]}://"):
        return f": {scheme[1]!r} is no transport that is allowed; {allowed}"
    return f"; {allowed}"


def submodule_url(parent: Remote, url: str) -> str:
    """Return the URL of a submodule, which may be relative to its parent's.

    Raises:
        ConfigError: it leads above the parent's host.

    Source: git-submodule(1), "add"; git's own ``relative_url``.
    """
    if not url.startswith(("./", "../")):
        return url
    base, rest = parent.url.rstrip("/"), url
    while rest.startswith(("./", "../")):
        if rest.startswith("../"):
            base = _parent_of(base, url)
            rest = rest[3:]
        else:
            rest = rest[2:]
    return f"{base}{'' if base.endswith((':', '/')) else '/'}{rest.rstrip('/')}"


def _parent_of(base: str, url: str) -> str:
    root = re.match(r"[a-z]+://[^/]*/|[^/:]+:", base)
    assert root is not None, base
    inner = base[root.end() :].rstrip("/")
    if not inner:
        raise ConfigError(f".gitmodules: the URL {url!r} leads out of {root[0]}")
    return root[0] + inner.rpartition("/")[0]


def check_ref(ref: str, *, where: str = "ref") -> str:
    """Return the name of a branch or tag, or a commit, if git would take it.

    Raises:
        ConfigError: git would not.
    """
    if not ref or len(ref) > _MAX_REF or _REF_FORBIDDEN.search(ref) is not None:
        raise ConfigError(f"{where}: should be a branch, a tag or a commit's 40 digits, not {ref[:_MAX_REF]!r}")
    return ref


def is_commit(ref: str) -> bool:
    """Whether a ref is a commit's full id."""
    return re.fullmatch("[0-9a-f]{40}", ref) is not None


def check_inner_path(path: str, *, where: str) -> str | None:
    """Return a path inside a repository in its shortest form; none: the repository itself.

    Raises:
        ConfigError: it is absolute, leads out of it, or is no path.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise ConfigError(f"{where}: {path!r} leads out of the repository; give a path relative to its root")
    if "\0" in path or any(part.lower() == ".git" for part in parts):
        raise ConfigError(f"{where}: {path!r} is no path in a repository")
    return "/".join(parts) or None


def default_job_name(remote: Remote) -> str:
    """Return what a job of a repository is called when nobody says: ``job-train`` for ``…/team/train.git``."""
    base = remote.path.rstrip("/").rpartition("/")[2].removesuffix(".git")
    safe = re.sub(r"[^a-zA-Z0-9_.-]", "_", unquote(base)) or "git"
    return f"job-{safe}"[:_MAX_JOB_NAME]
