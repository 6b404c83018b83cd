"""Errors as RFC 9457 problem details. Input is never echoed: it may name a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from keys import (
    CustodianUnavailable,
    EnvelopeError,
    FenceCopyInvalid,
    RestoreGateClosed,
    ShredlakeError,
    kinds_of,
    place_of,
)
from lake import IntakeFull, SnapshotGone, UnknownBatch, UnknownEventType
from lake.errors import KeyReused
from projections import (
    LakeBehind,
    LedgerBehind,
    NotPublished,
    PublicationDropped,
    PublicationExpired,
    UnknownView,
)
from purge import (
    IdempotencyConflict,
    NotCancellable,
    UnderHold,
    UnknownRequest,
    UnknownSubject,
)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 5
_STATUS: Final[dict[type[ShredlakeError], int]] = {
    UnknownView: 404,
    UnknownRequest: 404,
    UnknownSubject: 404,
    UnknownEventType: 404,
    NotPublished: 404,
    PublicationDropped: 410,
    PublicationExpired: 410,
    SnapshotGone: 404,
    UnknownBatch: 404,
    IntakeFull: 429,
    UnderHold: 409,
    IdempotencyConflict: 409,
    KeyReused: 409,
    NotCancellable: 409,
    RestoreGateClosed: 503,
    LakeBehind: 503,
    LedgerBehind: 503,
    FenceCopyInvalid: 503,
    CustodianUnavailable: 503,
}


def problem(
    status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """A problem+json answer."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **extra}
    again = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    return JSONResponse(body, status, {**again, **(headers or {})}, MEDIA_TYPE)


def status_of(error: ShredlakeError) -> int:
    """The HTTP status of one of our errors."""
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    if error.retry_helps:
        return 503
    return 422 if error.whose_move == "caller" else 500


def install(app: FastAPI) -> None:
    """Makes every error of an app a problem."""

    @app.exception_handler(ShredlakeError)
    def _ours(_: Request, error: ShredlakeError) -> JSONResponse:
        more: dict[str, Any] = {"fault": error.fault} if isinstance(error, EnvelopeError) else {}
        return problem(
            status_of(error),
            type(error).__name__,
            error.message,
            next_step=error.next_step,
            whose_move=error.whose_move,
            retry_helps=error.retry_helps,
            **more,
        )

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"where": ".".join(_known(app, part) for part in e["loc"]), "what": e["type"]}
            for e in error.errors()
        ]
        return problem(422, "InvalidRequest", "the request does not fit its schema", errors=errors)

    @app.exception_handler(Exception)
    def _unexpected(_: Request, error: Exception) -> JSONResponse:
        return problem(500, "UnexpectedError", f"{kinds_of(error)} at {place_of(error)}")

    @app.exception_handler(HTTPException)
    def _http(_: Request, error: HTTPException) -> JSONResponse:
        answer = problem(error.status_code, "HTTPError", str(error.detail))
        answer.headers.update(error.headers or {})
        return answer


def _known(app: FastAPI, part: Any) -> str:
    """A part of a place in a request, where our schema has it; the sender's own names are not said."""
    if isinstance(part, int):
        return str(part)
    names: set[str] = getattr(app.state, "names", set())
    if not names:
        names = app.state.names = {"body", "query", "path", "header", "cookie", *_names(app.openapi())}
    return part if part in names else "…"


def _names(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        yield from (name for name in schema.get("properties", ()) if isinstance(name, str))
        if isinstance(schema.get("name"), str) and "in" in schema:
            yield schema["name"]
        for one in schema.values():
            yield from _names(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from _names(one)
