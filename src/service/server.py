"""Serving: loopback by default; beyond it only with TLS or an explicit flag."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path

import uvicorn

from service.app import create_app
from service.errors import BadInput, BadSettings, UnsafeBind
from service.runtime import Runtime, log_to_file
from service.slowness import PatientProtocol


def is_loopback(host: str) -> bool:
    """Whether an address only reaches this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_tls(certificate: Path | None, key: Path | None) -> bool:
    """Whether there is TLS; what the server would need is tried before it listens.

    Raises:
        BadSettings: one of the two is missing, cannot be read, is not PEM, or they do not belong together.
    """
    if certificate is None and key is None:
        return False
    if certificate is None or key is None:
        given, missing = ("key", "cert") if certificate is None else ("cert", "key")
        raise BadSettings(
            f"server.tls_{given} is set and server.tls_{missing} is not",
            next_step="Set both, or neither to serve without TLS on this machine.",
        )
    for name, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise BadSettings(
                f"server.{name} cannot be read: {error.strerror}",
                next_step="Name a PEM file that this user may read.",
            ) from None
    locked = b"ENCRYPTED" in key.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        raise BadSettings(
            f"TLS cannot be served with server.tls_cert and server.tls_key: {_why(error, locked)}",
            next_step="Name a certificate chain and its private key, both PEM, the key without a password.",
        ) from None
    return True


def _why(error: ssl.SSLError, locked: bool) -> str:
    if locked:
        return "the key has a password"
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's"
    return (error.reason or "not PEM, or damaged").replace("_", " ")


def make_server(
    runtime: Runtime, host: str | None = None, port: int | None = None, allow_insecure_bind: bool = False
) -> tuple[uvicorn.Server, socket.socket]:
    """A server and its bound socket; `server.run(sockets=[socket])` serves.

    Raises:
        UnsafeBind: the address is not loopback, and there is neither TLS nor the flag.
        BadInput: the address cannot be bound.
        BadSettings: TLS cannot be served with the certificate and key of the settings.
    """
    wanted = runtime.settings.server
    address = host or wanted.host
    tls = check_tls(wanted.tls_cert, wanted.tls_key)
    if not is_loopback(address) and not tls and not allow_insecure_bind:
        raise UnsafeBind(f"{address} can be reached from other machines, and there is no TLS")
    log_to_file(runtime.home)
    config = uvicorn.Config(
        create_app(runtime),
        http=PatientProtocol,
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
