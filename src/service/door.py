"""What a request passes before its route: the token, then limits on how much it sends and how slowly.

The token is looked at before a byte of the body is read. Everything that is refused is a problem, and nothing
that a client does while it sends (too much, too slowly, going away) is an error of ours.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem

OPEN_PATHS: Final = ("/openapi.json", "/v1/health/live", "/v1/health/ready")
LARGE_BODIES: Final = {("POST", "/v1/events"): 64 * 1024 * 1024}
MAX_BODY_BYTES: Final = 64 * 1024
"""Of every route that is not among `LARGE_BODIES`: their bodies name a person and say what to do."""
BODY_SECONDS: Final = 30.0
LEAST_BYTES_PER_SECOND: Final = 64 * 1024


class Door:
    """An ASGI application behind it.

    Args:
        token: bearer token.
        clock_seconds: monotonic.
        body_seconds: a body may take so long, and a second more for each `LEAST_BYTES_PER_SECOND` that came.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        clock_seconds: Callable[[], float] = time.monotonic,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._credentials = b"bearer " + token.encode()
        self._clock_seconds = clock_seconds
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN_PATHS and not self._knows(headers.get(b"authorization", b"")):
            challenge = {"WWW-Authenticate": "Bearer"}
            refused = problem(401, "HTTPError", "the bearer token is missing or wrong", headers=challenge)
            await refused(scope, receive, _closing(send))
            return
        most = LARGE_BODIES.get((scope["method"], scope["path"]), MAX_BODY_BYTES)
        told = headers.get(b"content-length", b"0")
        if not told.isdigit() or len(told) > 18 or int(told) > most:
            too_large = problem(413, "HTTPError", _too_large(most))
            await too_large(scope, receive, _closing(send))
            return
        await self._app(scope, self._limited(receive, most), send)

    def _knows(self, given: bytes) -> bool:
        scheme, _, token = given.partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + token.strip(), self._credentials)

    def _limited(self, receive: Receive, most: int) -> Receive:
        began, size, is_whole = self._clock_seconds(), 0, False

        async def limited() -> Message:
            nonlocal size, is_whole
            if is_whole:
                return await receive()  # that the client goes away; a wait of ours is no slowness of it
            until = began + self._body_seconds + size / LEAST_BYTES_PER_SECOND
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - self._clock_seconds()))
            except TimeoutError:
                raise HTTPException(408, "the body came too slowly", {"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "the client went away before its body was whole")
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > most:
                raise HTTPException(
                    413, f"a body may have at most {most} bytes here", {"Connection": "close"}
                )
            return message

        return limited


def _closing(send: Send) -> Send:
    """The rest of the body is not waited for."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return closing


def _too_large(most: int) -> str:
    return f"a body may have at most {most} bytes here"
