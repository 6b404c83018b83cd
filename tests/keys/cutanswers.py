"""A proxy in front of a real Vault: a request arrives and is done, and its answer never comes back."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from infra.vault import Vault

_NOT_FORWARDED = ("connection", "transfer-encoding", "content-length")


class AnswerCutter:
    """Which answers are lost, and how many were.

    Attributes:
        address: of the proxy; it shows the server's own certificate.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.lost = 0
        self._path = ""
        self._left = 0
        self._mutex = threading.Lock()

    def lose(self, path: str, times: int) -> None:
        """The next answers to requests whose path ends like this."""
        with self._mutex:
            self._path, self._left, self.lost = path, times, 0

    def loses(self, path: str) -> bool:
        """Whether this one is lost; counts it."""
        with self._mutex:
            hit = self._left > 0 and path.endswith(self._path)
            self._left -= hit
            self.lost += hit
            return hit


@contextmanager
def cutting(vault: Vault) -> Iterator[AnswerCutter]:
    """A proxy to a server, on a port of its own."""
    upstream = urlsplit(vault.address()["VAULT_ADDR"])
    trusted = ssl.create_default_context(cafile=vault.address()["VAULT_CACERT"])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            there = http.client.HTTPSConnection(str(upstream.hostname), upstream.port, context=trusted)
            with contextlib.closing(there):
                there.request(self.command, self.path, body, dict(self.headers))
                answer = there.getresponse()
                content = answer.read()  # the server is done with it
            if cutter.loses(self.path):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _NOT_FORWARDED:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _pass_on

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(vault.folder / "server.pem", vault.folder / "server.key")
    server.socket = own.wrap_socket(server.socket, server_side=True)
    cutter = AnswerCutter(f"https://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cutter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
