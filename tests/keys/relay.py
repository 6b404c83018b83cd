"""A relay in front of PostgreSQL that loses the connection at the n-th statement, in a chosen way.

It reads the frontend/backend protocol, version 3, just far enough to tell where a statement ends:
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from collections.abc import Iterator
from typing import BinaryIO

import psycopg

_SIMPLE_QUERY, _SYNC, _READY = b"Q", b"S", b"Z"


class Loss(enum.Enum):
    """How a connection is lost."""

    TERMINATED = "the server ends the session before the statement"
    UNSENT = "the statement never arrives"
    UNANSWERED = "the statement is done, its answer never arrives"


class Relay:
    """Relays each connection to a server on loopback; counts the statements of all of them.

    Args:
        dsn: the server's own address.
    """

    def __init__(self, dsn: str) -> None:
        self._admin = psycopg.connect(dsn, autocommit=True)
        self._port = self._admin.info.port
        self._mutex = threading.Lock()
        self._seen = 0
        self._at = 0
        self._loss = Loss.UNSENT
        self._lost = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = psycopg.conninfo.make_conninfo(
            dsn, port=self._listener.getsockname()[1], sslmode="disable", gssencmode="disable"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_at(self, statement: int, loss: Loss) -> None:
        """Loses the connection of the n-th statement from now, once; 0 loses none."""
        with self._mutex:
            self._seen, self._at, self._loss, self._lost = 0, statement, loss, False

    def counted(self) -> tuple[int, bool]:
        """(statements since `lose_at`, whether a connection was lost)."""
        with self._mutex:
            return self._seen, self._lost

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()
        self._admin.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._port))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms a statement
        answers = threading.Event()
        answers.set()
        back = threading.Thread(target=self._back, args=(server, client, answers), daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            reading = client.makefile("rb")
            length = reading.read(4)
            server.sendall(length + reading.read(int.from_bytes(length, "big") - 4))  # the start-up message
            for kind, message in _messages(reading):
                loss = self._loss_of_next() if kind in (_SIMPLE_QUERY, _SYNC) else None
                if loss is Loss.TERMINATED:
                    self._terminate(server)
                elif loss is Loss.UNANSWERED:
                    answers.clear()
                if loss is not Loss.UNSENT:
                    server.sendall(message)
                if loss is not None:
                    if loss is not Loss.UNSENT:
                        back.join()  # the answer, or the session's end, has come
                    break
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _back(self, server: socket.socket, client: socket.socket, answers: threading.Event) -> None:
        with contextlib.suppress(OSError):
            for kind, message in _messages(server.makefile("rb")):
                if answers.is_set():
                    client.sendall(message)
                elif kind == _READY:
                    return
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    def _loss_of_next(self) -> Loss | None:
        with self._mutex:
            self._seen += 1
            if self._seen != self._at:
                return None
            self._lost = True
            return self._loss

    def _terminate(self, server: socket.socket) -> None:
        self._admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = %s",
            (server.getsockname()[1],),
        )


def _messages(reading: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(type, whole message) until the end of the stream."""
    while head := reading.read(5):
        yield head[:1], head + reading.read(int.from_bytes(head[1:], "big") - 4)
