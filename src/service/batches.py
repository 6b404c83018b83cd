"""`POST /v1/events` and what became of it. A batch is durable before it is answered."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from typing import Annotated, Any, Final

import orjson
from attrs import field, frozen
from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lake import Batch, Intake
from lake.attributes import extensions
from lake.batches import Outcome
from lake.binarymode import event_of, header_value, media_type, mode_of
from service.intake import IntakeWorker
from service.models import BatchView

MAX_BATCH_EVENTS: Final = 10_000
LONGEST_WAIT_SECONDS: Final = 60.0
MAX_NAMED: Final = 20
EMPTY_ID: Final = "empty"
"""The batch without events: there is only one."""
_LOOK_SECONDS: Final = 0.02
_JSON_FORMS: Final = ("application/cloudevents+json", "application/cloudevents-batch+json")
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)
_CLOUD_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type", "subject", "time"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "description": "known together with source: duplicates are dropped"},
        "source": {"type": "string"},
        "type": {"type": "string", "description": "a registered event type"},
        "subject": {"type": "string", "description": "id of the data subject"},
        "time": {"type": "string", "format": "date-time"},
        "schemaversion": {"type": "integer", "description": "default: the newest"},
        "revision": {"type": "integer", "description": "orders corrections of one id; default 0"},
        "datacontenttype": {"type": "string"},
        "dataschema": {"type": "string", "format": "uri"},
        "data": {"type": "object", "description": "default: no data"},
        "data_base64": {"type": "string", "description": "instead of data: the same JSON as base64"},
    },
}
_EVENTS_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [_CLOUD_EVENT, {"type": "array", "items": _CLOUD_EVENT}]}
            },
            "application/cloudevents+json": {"schema": _CLOUD_EVENT},
            "application/cloudevents-batch+json": {"schema": {"type": "array", "items": _CLOUD_EVENT}},
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
        """Takes CloudEvents in any mode of the HTTP binding; answers when they are durable.

        Structured JSON, an array of such (`application/cloudevents-batch+json`, or plain JSON), or binary
        mode: attributes in `ce-` headers and the data as the body. Headers hold, whatever the body says.

        The same `Idempotency-Key` with the same body is one batch. What became of each event is known
        once the batch is committed: ask the `Location`, or wait for it with `Prefer: wait=SECONDS`.
        """
        sent = await run_in_threadpool(posted, request.headers.raw, await request.body())
        if sent.events == 0:
            response.headers["Location"] = f"/v1/batches/{EMPTY_ID}"
            return BatchView.of(_nothing())
        batch, is_new = await run_in_threadpool(intake.put, sent.body, sent.events, idempotency_key)
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
        return BatchView.of(batch, sent.not_kept)

    @router.get("/batches/{batch_id}")
    def get_batch(batch_id: str) -> BatchView:
        """What became of a batch; known for `ingest.idempotency_hours` after its commit."""
        return BatchView.of(_nothing() if batch_id == EMPTY_ID else intake.get(batch_id))

    return router


def wait_of(prefer: str | None) -> float:
    """Seconds that a `Prefer` header (RFC 7240) asks to wait, cut to what is granted; 0 without one."""
    found = _WAIT.search(prefer or "")
    return min(float(found[1]), LONGEST_WAIT_SECONDS) if found else 0.0


@frozen
class Posted:
    """What was sent, as JSON of one event or an array of them.

    Attributes:
        not_kept: names of extension attributes, which the lake has no place for.
    """

    body: bytes = field(repr=False)
    events: int
    not_kept: tuple[str, ...] = field(repr=False)


def posted(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Posted:
    """Reads a request in any mode of the HTTP binding. Pure.

    Args:
        headers: as they came; in binary mode the attributes are in them.

    Raises:
        HTTPException: 400 where the body is no JSON, 413 too many events, 415 another form of CloudEvents.
    """
    attributes = [(k[3:].decode("latin-1"), header_value(v)) for k, v in headers if k.startswith(b"ce-")]
    described = next((value for name, value in headers if name == b"content-type"), None)
    text = None if described is None else described.decode("latin-1")
    mode = mode_of(text, (name for name, _ in attributes))
    if mode == "binary":
        found = attributes if described is None else [*attributes, ("datacontenttype", described)]
        body = event_of(found, body)
    elif media_type(text) not in _JSON_FORMS and media_type(text).startswith("application/cloudevents"):
        raise HTTPException(415, "of the forms of CloudEvents, JSON and binary mode are taken")
    try:
        events = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HTTPException(400, "the body is not JSON") from None
    events = events if isinstance(events, list) else [events]
    if len(events) > MAX_BATCH_EVENTS:
        raise HTTPException(413, f"a batch has at most {MAX_BATCH_EVENTS} events")
    names = {name for event in events if isinstance(event, dict) for name in extensions(event)}
    return Posted(body, len(events), tuple(sorted(names)[:MAX_NAMED]))


def _nothing() -> Batch:
    """What became of a batch without events: nothing was to do."""
    now = time.time()
    return Batch(EMPTY_ID, 0, now, now, Outcome(0, 0, 0))


async def _committed(intake: Intake, batch: Batch, wait_seconds: float) -> Batch:
    """The batch as it is when it is committed, by whichever process, or when the time is over."""
    until = time.monotonic() + wait_seconds
    while batch.state == "waiting" and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        batch = await run_in_threadpool(intake.get, batch.batch_id)
    return batch
