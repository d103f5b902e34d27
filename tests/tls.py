"""A certificate authority of a test, and what it vouches for: servers with TLS, registries, package indexes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import ssl
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from services import PrivateRegistry, free_port, need_program, wait_until

USER, PASSWORD = "ada", "registry-pass-7"
HTPASSWD = f"{USER}:$2b$05$18/8tbWHQioswkglMPOtbeAb6aMPlnOag6yRqVW.76yMRinf1ZOEK\n"
"""The registry takes bcrypt only, which the standard library has no more."""


@dataclass(frozen=True)
class Certificates:
    """An authority, and the certificate of one server."""

    authority: Path
    server: Path
    key: Path


def make_certificates(folder: Path, address: str) -> Certificates:
    """Make an authority and a certificate for an IP address."""
    openssl = need_program("openssl")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], check=True, capture_output=True, cwd=folder)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    run(*new, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt")
    run("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    (folder / "ext").write_text(f"subjectAltName=IP:{address}\n")
    signed = ("x509", "-req", "-days", "2", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext")
    run(*signed, "-in", "server.csr", "-out", "server.crt")
    return Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")


@contextlib.contextmanager
def secured_registry(folder: Path, address: str) -> Iterator[str]:
    """Run a registry with TLS and a login; yields ``address:port``."""
    made = make_certificates(folder, address)
    (folder / "htpasswd").write_text(HTPASSWD)
    port = free_port()
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
        f"http: {{addr: '{address}:{port}', tls: {{certificate: {made.server}, key: {made.key}}}}}\n"
    )
    with (folder / "log").open("wb") as log:
        words = [need_program("docker-registry"), "serve", str(config)]
        process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: PrivateRegistry(folder, port).answers(address), "the registry answers")
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait(20)


# --- a package index -------------------------------------------------------------------------------------------------


def a_wheel(name: str, version: str) -> bytes:
    """Return a wheel with one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return buffer.getvalue()


@contextlib.contextmanager
def package_index(folder: Path, address: str, login: str, packages: dict[str, str]) -> Iterator[str]:
    """Serve a package index with TLS to whoever has the login, ``user:password``; yields ``address:port``."""
    made = make_certificates(folder, address)
    wheels = {f"{name}-{version}-py3-none-any.whl": a_wheel(name, version) for name, version in packages.items()}
    expected = f"Basic {base64.b64encode(login.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rstrip("/").rpartition("/")[2]
            if self.headers.get("Authorization") != expected:
                self._answer(401, b"", {"WWW-Authenticate": 'Basic realm="index"'})
            elif name in wheels:
                self._answer(200, wheels[name], {"Content-Type": "application/zip"})
            else:
                listed = (file for file in wheels if file.startswith(f"{name}-"))
                links = "".join(
                    f'<a href="/{file}#sha256={hashlib.sha256(wheels[file]).hexdigest()}">{file}</a>' for file in listed
                )
                self._answer(200 if links else 404, links.encode(), {"Content-Type": "text/html"})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server, made.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
