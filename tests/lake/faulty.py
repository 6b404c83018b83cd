"""Proxies before catalogs that answer wrongly when they are told to: one for REST, one for PostgreSQL."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Faults:
    """What happens to the next commits.

    Attributes:
        planned: `409` is answered instead of asking; `500`, `lost` and `409 after landing` after the
            catalog has done it; `500 before` and `503` instead of asking; `stalled` is no answer for as long
            as the client waits, after the catalog has done it.
        met: what has happened.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.planned: list[str] = []
        self.met: list[str] = []


@contextmanager
def faulty(catalog_uri: str) -> Iterator[tuple[str, Faults]]:
    """(the proxy's address, what it shall do wrong)."""
    faults = Faults(catalog_uri)
    handler = type("Handler", (_Handler,), {"faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    faults: Faults

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = ""
        if self.command == "POST" and self.path.endswith("/tables/events") and self.faults.planned:
            fault = self.faults.planned.pop(0)
            self.faults.met.append(fault)
        if fault in ("409", "503", "500 before"):
            self._answer(int(fault[:3]), b"{}")
            return
        status, answer = self._ask(body)
        if fault == "lost":
            self.connection.close()
        elif fault == "stalled":
            self.connection.recv(1)  # until the client has hung up
            self.close_connection = True
        elif fault in ("500", "409 after landing"):
            self._answer(int(fault[:3]), b"{}")
        else:
            self._answer(status, answer)

    do_GET = do_POST = do_HEAD = do_DELETE = _pass

    def _ask(self, body: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.faults.uri + self.path,
            data=body or None,
            method=self.command,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


class CommitsToPostgres:
    """What happens to the next commit that moves a table's head, on its way to PostgreSQL.

    Attributes:
        before: called when the client has sent its COMMIT and the server has not got it yet.
        after: called when the server has committed; the client's connection then ends without an answer.
        met: how many commits something happened to.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.before: Callable[[], None] | None = None
        self.after: Callable[[], None] | None = None
        self.met = 0


@contextmanager
def before_postgres(port: int) -> Iterator[tuple[int, CommitsToPostgres]]:
    """(the proxy's port, what it shall do)."""
    faults = CommitsToPostgres(port)
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=_PostgresLink(client, faults).run, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1], faults
    finally:
        listening.close()


class _PostgresLink:
    """One connection; one that has sent the catalog's UPDATE moves heads (its text is sent the first times only)."""

    def __init__(self, client: socket.socket, faults: CommitsToPostgres) -> None:
        self._client = client
        self._faults = faults
        self._moves = False

    def run(self) -> None:
        """Until either side has ended."""
        try:
            server = socket.create_connection(("127.0.0.1", self._faults.port))
        except OSError:
            self._client.close()
            return
        with self._client, server, contextlib.suppress(OSError):
            threading.Thread(target=self._answers, args=(server,), daemon=True).start()
            while data := self._client.recv(1 << 16):
                self._moves |= b"UPDATE iceberg_tables" in data
                if self._moves and b"COMMIT\0" in data and (act := self._faults.before):
                    self._faults.before = None
                    self._faults.met += 1
                    act()
                server.sendall(data)

    def _answers(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if self._moves and b"COMMIT\0" in data and (act := self._faults.after):
                    self._faults.after = None
                    self._faults.met += 1
                    act()
                    break
                self._client.sendall(data)
            self._client.shutdown(socket.SHUT_RDWR)
