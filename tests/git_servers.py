"""Real git servers for tests, each private to a test module: nginx with ``git http-backend`` over TLS, and an sshd.

Repositories are bare, below one folder, which nginx serves in several ways; ``repository`` makes them.
"""

from __future__ import annotations

import base64
import getpass
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from services import free_port, need_program, wait_until

USER, PASSWORD = "ada", "s3cret-t0ken-of-ada"
_AUTHOR = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@x", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@x"}


def git(*words: str | Path, cwd: Path, data: bytes | None = None, **env: str) -> str:
    """Run git as the author of a repository and return what it writes."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *map(str, words)],
        cwd=cwd,
        env={**known, **_AUTHOR, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **env},
        input=data,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="replace").strip()


class Repository:
    """A bare repository that a server serves; commits are written into it directly."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        git("init", "--quiet", "--bare", cwd=path)

    def blob(self, content: bytes) -> str:
        """Add a file's content and return its id."""
        return git("hash-object", "-w", "--stdin", cwd=self.path, data=content)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """Add a tree of ``(mode, name, id)``, whatever they are, and return its id."""
        ordered = sorted(entries, key=lambda entry: entry[1] + "/" * (entry[0] == "40000"))
        raw = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in ordered)
        return git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", cwd=self.path, data=raw)

    def commit_tree(self, tree: str, branch: str = "main") -> str:
        """Let a branch point to a new commit of a tree and return the commit's id."""
        parents = git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}", cwd=self.path).split()
        words = [word for parent in parents for word in ("-p", parent)]
        commit = git("commit-tree", tree, *words, "-m", "change", cwd=self.path)
        git("update-ref", f"refs/heads/{branch}", commit, cwd=self.path)
        git("update-server-info", cwd=self.path)  # for servers that only know files
        return commit

    def commit(
        self,
        files: Mapping[str, str | bytes],
        branch: str = "main",
        *,
        links: Mapping[str, str] | None = None,
        submodules: Mapping[str, tuple[str, str]] | None = None,
        gitmodules: str | None = None,
    ) -> str:
        """Commit files and return the commit's id.

        Args:
            files: ``{path: content}``, all there are.
            branch: which branch then points to it.
            links: ``{path: what it says}``.
            submodules: ``{path: (url, commit)}``.
            gitmodules: instead of what ``submodules`` would make of it.
        """
        index = {"GIT_INDEX_FILE": str(self.path / "test-index")}
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
        texts = {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
        entries = [("100755" if name.endswith(".sh") else "100644", name, text) for name, text in texts.items()]
        entries += [("120000", name, target.encode()) for name, target in (links or {}).items()]
        if submodules:
            made = "".join(f'[submodule "{at}"]\n\tpath = {at}\n\turl = {url}\n' for at, (url, _) in submodules.items())
            entries.append(("100644", ".gitmodules", (made if gitmodules is None else gitmodules).encode()))
        lines = [f"{mode} {self.blob(content)}\t{name}" for mode, name, content in entries]
        lines += [f"160000 {commit}\t{at}" for at, (_, commit) in (submodules or {}).items()]
        text = "".join(f"{line}\n" for line in lines).encode()
        git("update-index", "--add", "--index-info", cwd=self.path, data=text, **index)
        return self.commit_tree(git("write-tree", cwd=self.path, **index), branch)


@dataclass(frozen=True)
class GitServer:
    """Where the repositories below ``folder`` are served."""

    folder: Path
    https_port: int
    http_port: int
    ca_file: Path
    thief_port: int
    """Where ``moved`` leads to, with nobody there unless a test puts somebody."""

    def repository(self, name: str) -> Repository:
        """Make a repository."""
        return Repository(self.folder / f"{name}.git")

    def https(self, name: str, how: str = "public") -> str:
        """Return a URL: ``public``, ``private`` (wants :data:`USER`), ``old`` (protocol 0) or ``dumb`` (only files)."""
        return f"https://localhost:{self.https_port}/{how}/{name}.git"

    def http(self, name: str, how: str = "public") -> str:
        """Return the same without TLS."""
        return f"http://127.0.0.1:{self.http_port}/{how}/{name}.git"

    @property
    def host(self) -> str:
        """The host as credentials name it."""
        return f"localhost:{self.https_port}"


_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log; client_body_temp_path {folder}/body; fastcgi_temp_path {folder}/fastcgi;
    proxy_temp_path {folder}/proxy; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{http_port};
        listen 127.0.0.1:{https_port} ssl;
        ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
        location ~ ^/public(/.*)$ {{
            include {folder}/fastcgi.conf; fastcgi_param GIT_PROTOCOL $http_git_protocol; fastcgi_pass {fcgi};
        }}
        location ~ ^/old(/.*)$ {{
            include {folder}/fastcgi.conf; fastcgi_param HTTP_GIT_PROTOCOL ""; fastcgi_pass {fcgi};
        }}
        location ~ ^/private(/.*)$ {{
            auth_basic "git"; auth_basic_user_file {folder}/users;
            include {folder}/fastcgi.conf; fastcgi_param GIT_PROTOCOL $http_git_protocol; fastcgi_pass {fcgi};
        }}
        location /dumb/ {{ alias {root}/; }}
        location ~ ^/moved(/.*)$ {{ return 302 https://localhost:{thief_port}$1?$query_string; }}
        location ~ ^/downgraded(/.*)$ {{ return 302 http://127.0.0.1:{http_port}/public$1?$query_string; }}
        location /broken/ {{ return 503; }}
    }}
}}
"""

# Whole in each place, since one that has any of its own inherits none.
_FASTCGI = """
fastcgi_param SCRIPT_FILENAME {backend}; fastcgi_param GIT_PROJECT_ROOT {root}; fastcgi_param GIT_HTTP_EXPORT_ALL 1;
fastcgi_param QUERY_STRING $query_string; fastcgi_param REQUEST_METHOD $request_method; fastcgi_param PATH_INFO $1;
fastcgi_param CONTENT_TYPE $content_type; fastcgi_param CONTENT_LENGTH $content_length;
fastcgi_param REMOTE_USER $remote_user;
"""


@pytest.fixture(scope="module")
def git_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """An nginx of this module's own."""
    with a_git_server(tmp_path_factory.mktemp("git")) as server:
        yield server


@contextmanager
def a_git_server(folder: Path) -> Iterator[GitServer]:
    """Yield an nginx that serves repositories through fcgiwrap and ``git http-backend``."""
    nginx, fcgiwrap = need_program("nginx"), need_program("fcgiwrap")
    need_program("openssl")
    backend = Path(git("--exec-path", cwd=folder)) / "git-http-backend"
    root = folder / "repositories"
    root.mkdir()
    with ExitStack() as stack:
        # A unix socket's path must be short.
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="git-")))
        http_port, https_port, thief_port = free_port(), free_port(), free_port()
        _make_certificate(folder)
        digest = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], capture_output=True, text=True, check=True)
        (folder / "users").write_text(f"{USER}:{digest.stdout.strip()}\n")
        config = _NGINX.format(
            folder=folder,
            root=root,
            fcgi=f"unix:{sockets}/fcgi",
            http_port=http_port,
            https_port=https_port,
            thief_port=thief_port,
        )
        (folder / "fastcgi.conf").write_text(_FASTCGI.format(backend=backend, root=root))
        (folder / "nginx.conf").write_text("user root;" * (os.geteuid() == 0) + config)
        stack.enter_context(_running([fcgiwrap, "-c", "4", "-s", f"unix:{sockets}/fcgi"], folder / "fcgi.log"))
        wait_until((sockets / "fcgi").exists, "fcgiwrap listens")
        words = [nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        stack.enter_context(_running(words, folder / "nginx.log"))
        wait_until(lambda: _listens("127.0.0.1", https_port), "nginx listens")
        yield GitServer(root, https_port, http_port, folder / "cert.pem", thief_port)


def _make_certificate(folder: Path) -> None:
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)


@dataclass(frozen=True)
class SshServer:
    """An sshd that lets one key in."""

    usual_address: str
    """Where it listens on ssh's own port too, of which there is one for each loopback address."""
    address: str
    port: int
    key: Path
    other_key: Path
    known_hosts: Path

    def url(self, path: Path) -> str:
        """Return an ssh:// URL of a repository."""
        return f"ssh://{getpass.getuser()}@{self.address}:{self.port}{path}"

    def scp_like(self, path: Path) -> str:
        """Return ``user@host:path``, which has no place for a port."""
        return f"{getpass.getuser()}@{self.usual_address}:{path}"

    @property
    def host(self) -> str:
        """The host as credentials name it."""
        return f"{self.address}:{self.port}"


@pytest.fixture(scope="module")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An sshd of this module's own."""
    sshd = need_program("sshd")
    need_program("ssh-keygen")
    folder = tmp_path_factory.mktemp("ssh")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host_key", "key", "other_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True, capture_output=True)
    address, port = "127.0.0.1", free_port()
    usual = f"127.{os.getpid() >> 16 & 0xFF}.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF | 2}"
    (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[{address}]:{port} {host_key}")
    config = {
        "ListenAddress": f"{address}:{port}",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "AcceptEnv": "GIT_PROTOCOL",
    }
    if os.geteuid() == 0:
        config |= {"listenaddress": f"{usual}:22"}  # once more: names are read in any case
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))
    with _running([sshd, "-D", "-e", "-f", str(folder / "config")], folder / "log"):
        wait_until(lambda: _listens(address, port), "sshd listens")
        yield SshServer(usual, address, port, folder / "key", folder / "other_key", folder / "known_hosts")


@contextmanager
def silent_server() -> Iterator[int]:
    """Yield the port of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def thief(server: GitServer) -> Iterator[list[str]]:
    """Put somebody where ``moved`` leads to, who asks everybody for a password; yield what they are told."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization", "")
            told.append(base64.b64decode(authorization.partition(" ")[2]).decode() if authorization else "")
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.ca_file, server.ca_file.with_name("key.pem"))
    with HTTPServer(("127.0.0.1", server.thief_port), Handler) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield told
        listening.shutdown()
        thread.join()


@contextmanager
def _running(words: list[str], log: Path) -> Iterator[int]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0
