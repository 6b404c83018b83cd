"""`POST /v1/events` and what became of it. A batch is durable before it is answered."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lake import Batch, Intake
from service.intake import IntakeWorker
from service.models import BatchView

MAX_BATCH_EVENTS: Final = 10_000
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
LONGEST_WAIT_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.02
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)
_CLOUD_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "source", "type", "subject", "time", "data"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "description": "known together with source: duplicates are dropped"},
        "source": {"type": "string"},
        "type": {"type": "string", "description": "a registered event type"},
        "subject": {"type": "string", "description": "id of the data subject"},
        "time": {"type": "string", "format": "date-time"},
        "schemaversion": {"type": "integer", "description": "default: the newest"},
        "revision": {"type": "integer", "description": "orders corrections of one id; default 0"},
        "data": {"type": "object"},
    },
}
_EVENTS_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [_CLOUD_EVENT, {"type": "array", "items": _CLOUD_EVENT}]}
            }
        },
    }
}


def batch_routes(intake: Intake, worker: IntakeWorker) -> APIRouter:
    """Takes events, and tells what became of them."""
    router = APIRouter()

    @router.post("/events", status_code=202, openapi_extra=_EVENTS_BODY)
    async def post_events(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
        prefer: Annotated[str | None, Header(description="`wait=5`: for the commit, at most so long")] = None,
    ) -> BatchView:
        """Takes one CloudEvent (structured JSON) or an array of them; answers when they are durable.

        The same `Idempotency-Key` with the same body is one batch. What became of each event is known
        once the batch is committed: ask the `Location`, or wait for it with `Prefer: wait=SECONDS`.
        """
        raw = await _body(request)
        batch, is_new = await run_in_threadpool(_take, intake, raw, idempotency_key)
        worker.taken()
        wait_seconds = wait_of(prefer)
        if wait_seconds:
            response.headers["Preference-Applied"] = f"wait={wait_seconds:g}"
            if batch.state == "waiting":
                worker.hurry()
                batch = await _committed(intake, batch, wait_seconds)
        response.headers["Location"] = f"/v1/batches/{batch.batch_id}"
        if not is_new:
            response.headers["Idempotency-Replayed"] = "true"
        return BatchView.of(batch)

    @router.get("/batches/{batch_id}")
    def get_batch(batch_id: str) -> BatchView:
        """What became of a batch; known for `ingest.idempotency_hours` after its commit."""
        return BatchView.of(intake.get(batch_id))

    return router


def wait_of(prefer: str | None) -> float:
    """Seconds that a `Prefer` header (RFC 7240) asks to wait, cut to what is granted; 0 without one."""
    found = _WAIT.search(prefer or "")
    return min(float(found[1]), LONGEST_WAIT_SECONDS) if found else 0.0


async def _body(request: Request) -> bytes:
    """The whole body. One that is too large is not read to its end."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, f"a batch may have at most {MAX_BODY_BYTES} bytes")
    return b"".join(parts)


def _take(intake: Intake, raw: bytes, idempotency_key: str | None) -> tuple[Batch, bool]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise HTTPException(400, "the body is not JSON") from None
    events = len(body) if isinstance(body, list) else 1
    if not 1 <= events <= MAX_BATCH_EVENTS:
        raise HTTPException(413, f"a batch has 1 to {MAX_BATCH_EVENTS} events")
    return intake.put(raw, events, idempotency_key)


async def _committed(intake: Intake, batch: Batch, wait_seconds: float) -> Batch:
    """The batch as it is when it is committed, by whichever process, or when the time is over."""
    until = time.monotonic() + wait_seconds
    while batch.state == "waiting" and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        batch = await run_in_threadpool(intake.get, batch.batch_id)
    return batch
