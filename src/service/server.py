"""Serving: loopback by default; beyond it only with TLS or an explicit flag."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn

from service.app import create_app
from service.errors import BadInput, UnsafeBind
from service.runtime import Runtime, log_to_file


def is_loopback(host: str) -> bool:
    """Whether an address only reaches this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_server(
    runtime: Runtime, host: str | None = None, port: int | None = None, allow_insecure_bind: bool = False
) -> tuple[uvicorn.Server, socket.socket]:
    """A server and its bound socket; `server.run(sockets=[socket])` serves.

    Raises:
        UnsafeBind: the address is not loopback, and there is neither TLS nor the flag.
        BadInput: the address cannot be bound.
    """
    wanted = runtime.settings.server
    address = host or wanted.host
    tls = wanted.tls_cert is not None and wanted.tls_key is not None
    if not is_loopback(address) and not tls and not allow_insecure_bind:
        raise UnsafeBind(f"{address} can be reached from other machines, and there is no TLS")
    log_to_file(runtime.home)
    config = uvicorn.Config(
        create_app(runtime),
        log_config=None,
        access_log=False,
        ssl_certfile=wanted.tls_cert,
        ssl_keyfile=wanted.tls_key,
        timeout_graceful_shutdown=10,
    )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # The protocol by name: without it asyncio leaves Nagle's algorithm on, 40 ms per answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, wanted.port if port is None else port))
    except OSError as error:
        listener.close()
        raise BadInput(
            f"cannot listen on {address}: {error.strerror}", next_step="Choose another --port or --host."
        ) from None
    return uvicorn.Server(config), listener
