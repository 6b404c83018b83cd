"""The HTTP API, /v1. Every route but health asks for the bearer token."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from attrs import asdict
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from keys import KeysError, SubjectId
from purge import verifier_keys
from service import problems
from service.batches import batch_routes
from service.consumers import troubles
from service.door import Door
from service.errors import NearestRefused
from service.gatekeeper import Gatekeeper
from service.intake import IntakeWorker
from service.jobs import job_scheduler
from service.models import (
    ConsumerView,
    ErasureRequested,
    ErasureView,
    Health,
    Named,
    PlanView,
    QueueView,
    SaltView,
    StuckView,
    ViewAnswer,
    ViewSummary,
    publication_body,
)
from service.readiness import Readiness, Watch, needs_of
from service.runtime import Runtime, shredded_text
from service.scheduler import Scheduler
from service.worker import ErasureWorker

DEFAULT_ROWS: Final = 1000
STUCK_SHOWN: Final = 20
_BEARER: Final = HTTPBearer(auto_error=False, description="the token that `shredlake init` made")
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"description": text, "content": {problems.MEDIA_TYPE: {}}}
    for code, text in (
        (400, "the body is not what it says it is"),
        (401, "no or wrong token"),
        (404, "not there; the detail says what is"),
        (408, "the body came too slowly"),
        (409, "the idempotency key came with another body, or the state does not allow it"),
        (413, "the body is too large"),
        (422, "does not fit"),
        (429, "too much waits to be committed; try again later"),
        (503, "try again later"),
    )
}


_Nearest = Annotated[str | None, Query(description="refused: what was published is no other moment's")]


def create_app(runtime: Runtime) -> FastAPI:
    """The application over an open lake; its lifespan runs erasures, commits and the scheduler."""
    worker = ErasureWorker(runtime.purge)
    intake = IntakeWorker(runtime.lake.intake)
    scheduler = job_scheduler(runtime)
    gatekeeper = Gatekeeper(runtime.keyring)
    background = _Background(worker, intake, scheduler)
    readiness = Readiness(needs_of(runtime, gatekeeper))
    watch = Watch(readiness)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gatekeeper.start(background.start)
        watch.start()
        yield
        watch.stop()
        gatekeeper.stop()
        background.stop()

    app = FastAPI(
        title="Shredlake",
        version="1",
        description="An event lake that can forget.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    problems.install(app)
    app.add_middleware(Door, token=runtime.token)
    app.include_router(_health(runtime, readiness), prefix="/v1/health", tags=["health"])
    guarded = [Depends(_BEARER)]  # for the document; the door has looked at it
    behind_gate = [*guarded, Depends(gatekeeper.check)]
    for router, tag, checks in (
        (batch_routes(runtime.lake.intake, intake), "events", behind_gate),
        (_erasures(runtime, worker), "erasures", behind_gate),
        (_views(runtime), "views", behind_gate),
        (_log(runtime), "evidence", guarded),
    ):
        app.include_router(router, prefix="/v1", tags=[tag], dependencies=checks, responses=_PROBLEMS)
    return app


class _Background:
    """What runs beside the requests, once it is safe to read."""

    def __init__(self, worker: ErasureWorker, intake: IntakeWorker, scheduler: Scheduler) -> None:
        self._worker = worker
        self._intake = intake
        self._scheduler = scheduler
        self._runs = False

    def start(self) -> None:
        self._worker.start()
        self._intake.start()
        threading.Thread(target=self._scheduler.forever, name="scheduler", daemon=True).start()
        self._runs = True

    def stop(self) -> None:
        self._scheduler.stop()
        if self._runs:
            self._intake.stop()
            self._worker.stop()


def _health(runtime: Runtime, readiness: Readiness) -> APIRouter:
    router = APIRouter()

    @router.get("/live")
    def live() -> Health:
        """Whether the process answers."""
        return Health(status="live")

    @router.get("/ready", responses={503: {"model": Health}})
    def ready(response: Response) -> Health:
        """Whether it is safe to read, and what reading needs answers: gate, custodian, catalog, store."""
        failures = readiness.failures()
        stuck = runtime.purge.journal.stuck()
        found = Health(
            status="ready",
            intake=QueueView.of(
                runtime.lake.intake.queue(), time.time(), runtime.lake.intake.asides.trouble()
            ),
            consumers=[ConsumerView.of(one) for one in troubles(runtime.lake.consumers.all(), time.time())],
            changed_results=len(runtime.views.ledger.open_alarms()),
            stuck_erasures=len(stuck),
            stuck=[StuckView(**asdict(one)) for one in stuck[:STUCK_SHOWN]],
        )
        if not failures:
            return found
        response.status_code = 503
        shut = next(iter(failures.values()))
        needs = {name: error.message for name, error in failures.items()}
        why = {"status": "not_ready", "why": shut.message, "next_step": shut.next_step, "needs": needs}
        return found.model_copy(update=why)

    return router


def _erasures(runtime: Runtime, worker: ErasureWorker) -> APIRouter:
    router = APIRouter()
    purge = runtime.purge

    @router.post("/erasure-requests", status_code=202, response_model=None)
    def post_erasure(
        wanted: ErasureRequested,
        response: Response,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    ) -> ErasureView | JSONResponse:
        """Asks for an erasure; `dry_run` answers 200 with the plan instead."""
        subject = SubjectId(wanted.subject)
        if wanted.dry_run:
            return JSONResponse(PlanView.of(purge.plan(subject)).model_dump(mode="json"), 200)
        done = purge.submit(
            subject,
            purpose=wanted.purpose,
            regime=wanted.regime,
            idempotency_key=idempotency_key,
            suppress=wanted.suppress,
        )
        response.headers["Location"] = f"/v1/erasure-requests/{done.request.request_id}"
        worker.wake()
        return ErasureView.of(done.request, done.salt)

    @router.get("/erasure-requests")
    def list_erasures() -> list[ErasureView]:
        """Every request, the one due first ahead."""
        return [ErasureView.of(request) for request in purge.journal.all()]

    @router.get("/erasure-requests/{request_id}")
    def get_erasure(request_id: str) -> ErasureView:
        """One request with every stage and its time."""
        return ErasureView.of(purge.journal.get(request_id))

    @router.get("/erasure-requests/{request_id}/supplements/{number}", response_class=Response)
    def get_supplement(request_id: str, number: int) -> Response:
        """The signed supplement of this number, from 1: what the receipt had not covered, found out later."""
        found = runtime.supplements.of(purge.journal.get(request_id).request_id)
        if not 1 <= number <= len(found):
            return problems.problem(404, "UnknownSupplement", f"the receipt has {len(found)} supplements")
        return Response(runtime.supplements.document(found[number - 1]), media_type="application/json")

    @router.get("/erasure-requests/{request_id}/receipt", response_class=Response)
    def get_receipt(request_id: str) -> Response:
        """The signed receipt, byte for byte as it verifies."""
        receipt = purge.journal.get(request_id).receipt
        if receipt is None:
            raise HTTPException(404, "the erasure is not attested yet")
        return Response(receipt, media_type="application/json")

    @router.get("/erasure-requests/{request_id}/salt")
    def get_salt(request_id: str) -> SaltView:
        """The salt of the receipt's commitment, again until its receipt was confirmed by DELETE."""
        found = purge.salt(request_id)
        if found is None:
            raise HTTPException(404, "the salt was received, or nobody fetched it in time; it is not kept")
        return SaltView(request_id=request_id, salt=found)

    @router.delete("/erasure-requests/{request_id}/salt", status_code=204)
    def salt_received(request_id: str) -> None:
        """Confirms that the salt has arrived: it is destroyed here."""
        purge.salt_received(request_id)

    @router.post("/erasure-requests/{request_id}/cancel")
    def cancel(request_id: str) -> ErasureView:
        """Takes a request back while nothing is fenced."""
        return ErasureView.of(purge.journal.cancel(request_id))

    @router.post("/legal-holds", status_code=204)
    def hold(named: Named) -> None:
        """Puts a person under legal hold."""
        purge.hold(SubjectId(named.subject), named.why)

    @router.post("/legal-holds/release", status_code=204)
    def release(named: Named) -> None:
        """Ends a hold; a waiting erasure goes on by itself."""
        purge.release(SubjectId(named.subject))
        worker.wake()

    return router


def _views(runtime: Runtime) -> APIRouter:
    router = APIRouter()
    views = runtime.views

    def proof(leaf: int) -> str | None:
        try:
            return runtime.purge.log.proof(leaf)
        except KeysError as error:
            if not error.retry_helps:
                raise
            return None  # published a moment ago, and the custodian does not answer: its rows are known

    def answer(name: str, mode: Any, rows: Any, publication: Any, **more: Any) -> ViewAnswer:
        leaf = views.ledger.leaf_of(publication.publication_id)
        limit = more.pop("limit")
        return ViewAnswer(
            view=name,
            mode=mode,
            rows=rows.head(limit).to_dicts(),
            total_rows=rows.height,
            publication=publication_body(publication),
            log_leaf=leaf,
            proof=proof(leaf) if leaf is not None else None,
            **more,
        )

    @router.get("/views")
    def list_views() -> list[ViewSummary]:
        """Defined views and what readers see of them."""
        release = views.ledger.current()
        found = []
        personal = set(views.personal_names())
        for name in views.registry.names():
            entry = release.entries.get(name) if release else None
            published = publication_body(views.ledger.publication(entry)) if entry else None
            found.append(ViewSummary(name=name, personal=name in personal, published=published))
        return found

    @router.get("/views/{name}")
    def get_view(
        name: str,
        as_of: Annotated[datetime | None, Query(description="a moment with its time zone")] = None,
        nearest: _Nearest = None,
        mode: Literal["as_reported", "as_recomputed", "reconcile"] = "as_reported",
        limit: Annotated[int, Query(ge=1, le=100_000)] = DEFAULT_ROWS,
    ) -> ViewAnswer:
        """Rows of a view, now or as of a moment, with their publication and its proof."""
        _refuse_nearest(nearest)
        if mode == "reconcile":
            between = views.reconcile(name, as_of)
            why = {"erased_events": between.erased_events, "residual": between.residual}
            told = {"explanation": why, "withheld": between.withheld}
            return answer(name, mode, between.differences, between.publication, limit=limit, **told)
        ask = views.as_reported if mode == "as_reported" else views.as_recomputed
        rows = ask(name, as_of)
        more = {"shredded": rows.shredded, "withheld": rows.withheld, "stale": rows.stale}
        return answer(name, mode, rows.rows, rows.publication, limit=limit, **more)

    @router.post(
        "/views/{name}/row",
        response_model=None,
        responses={409: {"description": "held"}, 410: {"description": "erased"}},
    )
    def get_row(
        name: str, named: Named, as_of: datetime | None = None, nearest: _Nearest = None
    ) -> dict[str, Any] | JSONResponse:
        """One person's row; of an erased person 410 with the receipt's id, under a legal hold 409."""
        _refuse_nearest(nearest)
        found = views.person(name, SubjectId(named.subject), as_of)
        if found.row is not None:
            return {"view": name, "row": found.row, "rows": list(found.rows)}
        if found.shredded is not None:
            receipt = found.shredded.receipt_id
            return problems.problem(
                410, "Shredded", shredded_text(runtime.purge.journal, receipt), receipt_id=receipt
            )
        if found.held:
            return problems.problem(409, "Held", "a legal hold stands over this person: no row is shown")
        raise HTTPException(404, "the view has no row of this person")

    return router


def _refuse_nearest(nearest: str | None) -> None:
    if nearest is not None:
        raise NearestRefused


def _log(runtime: Runtime) -> APIRouter:
    router = APIRouter()

    @router.get("/log/checkpoint", response_class=Response)
    def checkpoint() -> Response:
        """The transparency log's newest signed checkpoint, a signed note."""
        return Response(runtime.purge.log.published().note, media_type="text/plain; charset=utf-8")

    @router.get("/log/key", response_class=Response)
    def key() -> Response:
        """The keys that receipts and checkpoints verify with, one a line; one per rotation."""
        keys = verifier_keys(runtime.purge.log.signers())
        return Response(keys, media_type="text/plain")

    return router
