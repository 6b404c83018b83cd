"""A proxy before a REST catalog that answers wrongly when it is told to."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Faults:
    """What happens to the next commits.

    Attributes:
        planned: `409` is answered instead of asking; `500`, `lost` and `409 after landing` after the
            catalog has done it; `500 before` and `503` instead of asking.
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
