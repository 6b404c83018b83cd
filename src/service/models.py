"""Bodies of the HTTP API. Pydantic lives here, at the edge, and nowhere else but the settings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from keys import ALL_PURPOSES
from lake import Batch, Queue, Trouble
from projections import Publication
from purge import Plan, Request
from service.consumers import ConsumerTrouble


class Body(BaseModel):
    """A JSON body; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class EventResult(Body):
    """What became of one posted event."""

    index: int
    status: Literal["accepted", "rejected", "suppressed"]
    reason: str | None = Field(None, description="the broken rule, of a rejected event")
    field: str | None = None


class BatchView(Body):
    """A batch of events: durable before it is sent; counts and results once it is committed."""

    batch_id: str
    state: Literal["waiting", "committed", "unknown"] = Field(
        description="unknown: it waits no more, and keys or spool were restored from a copy"
    )
    events: int
    received_at: datetime
    committed_at: datetime | None = None
    accepted: int | None = None
    rejected: int | None = None
    suppressed: int | None = Field(None, description="events of erased people: refused and not stored")
    already: int = Field(0, description="always 0: a repeated key gets the answer of the first time")
    results: list[EventResult] = []
    not_kept: list[str] = Field(
        [], description="extension attributes that were sent now, which the lake has no place for"
    )

    @classmethod
    def of(cls, batch: Batch, not_kept: Sequence[str] = ()) -> BatchView:
        """The view of a batch in the spool."""
        outcome, done = batch.outcome, batch.committed_at
        notes = {note.at: note for note in outcome.notes} if outcome is not None else {}
        results = [
            EventResult(index=n, status=notes[n].status, reason=notes[n].reason, field=notes[n].field)
            if n in notes
            else EventResult(index=n, status="accepted", reason=None)
            for n in range(batch.events if outcome is not None else 0)
        ]
        return cls(
            batch_id=batch.batch_id,
            state=batch.state,
            events=batch.events,
            received_at=datetime.fromtimestamp(batch.received_at, UTC),
            committed_at=None if done is None else datetime.fromtimestamp(done, UTC),
            accepted=None if outcome is None else outcome.accepted,
            rejected=None if outcome is None else outcome.rejected,
            suppressed=None if outcome is None else outcome.suppressed,
            results=results,
            not_kept=list(not_kept),
        )


class ErasureRequested(Body):
    """Whom to erase. The id travels in the body, so that it reaches no path and no log."""

    subject: str
    purpose: str = Field(ALL_PURPOSES, description="one purpose, or * for the whole person")
    regime: Literal["gdpr", "ccpa", "lgpd"] = "gdpr"
    dry_run: bool = Field(False, description="only say what would be touched")
    suppress: bool = Field(
        False, description="also of whom nothing is stored: refuse whatever comes of them later"
    )


class Named(Body):
    """A person, by id."""

    subject: str
    why: str = ""


class StageView(Body):
    """One stage of an erasure."""

    stage: str
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    detail: dict[str, Any]


class ErasureView(Body):
    """An erasure request; holds no identifier."""

    request_id: str
    status: str
    stage: str
    received_at: datetime
    due_at: datetime
    regime: str
    purpose: str
    stages: list[StageView]
    receipt_url: str | None
    salt: str | None = Field(
        None,
        description="salt of the commitment; GET …/salt tells it again until DELETE confirms it",
    )

    @classmethod
    def of(cls, request: Request, salt: str | None = None) -> ErasureView:
        """The view of a journaled request."""
        stages = [
            StageView(
                stage=s.stage,
                started_at=datetime.fromisoformat(s.started_at),
                finished_at=datetime.fromisoformat(s.finished_at) if s.finished_at else None,
                seconds=s.seconds,
                detail=dict(s.detail),
            )
            for s in request.stages
        ]
        done = request.receipt is not None
        return cls(
            request_id=request.request_id,
            status=request.status.value,
            stage=request.stage,
            received_at=request.received_at,
            due_at=request.due_at,
            regime=request.regime,
            purpose=request.purpose,
            stages=stages,
            receipt_url=f"/v1/erasure-requests/{request.request_id}/receipt" if done else None,
            salt=salt,
        )


class SaltView(Body):
    """What proves that a receipt's commitment is of an id: SHA-256(salt ‖ id)."""

    request_id: str
    salt: str = Field(description="hex")


class PlanView(Body):
    """What an erasure would touch."""

    blocks: int
    events: int
    sealed_bytes: int
    days: list[str]
    rewrite_bytes: int
    views: list[str]
    partitions: int
    held: bool
    estimated_seconds: float
    letters: int = Field(0, description="dead letters that are nobody's and name the person")
    own_letters: int = Field(0, description="dead letters under the person's own key")
    shown: list[dict[str, Any]] = Field(
        default_factory=list, description="columns of published views that can show a personal value in clear"
    )
    uncovered: list[dict[str, Any]] = Field(
        default_factory=list, description="earlier publications that today's rules do not reach"
    )
    revealing: list[str] = Field(
        default_factory=list,
        description="views and pairs of views in which the erasure can be told by subtraction",
    )
    waiting_batches: int = Field(0, description="batches that name the person and wait to be committed")
    open_stores: list[dict[str, str | None]] = Field(
        description="places outside of the lake that an erasure does not reach, and until when"
    )

    @classmethod
    def of(cls, plan: Plan) -> PlanView:
        """The view of a plan."""
        return cls(
            blocks=plan.blocks,
            events=plan.events,
            sealed_bytes=plan.sealed_bytes,
            days=list(plan.days),
            rewrite_bytes=plan.rewrite_bytes,
            views=list(plan.views),
            partitions=plan.partitions,
            held=plan.held,
            estimated_seconds=plan.estimated_seconds,
            letters=plan.letters,
            own_letters=plan.own_letters,
            shown=list(plan.shown),
            uncovered=list(plan.uncovered),
            revealing=list(plan.revealing),
            waiting_batches=plan.waiting_batches,
            open_stores=list(plan.open_stores),
        )


class ViewAnswer(Body):
    """Rows of a view with everything an auditor asks about them."""

    view: str
    mode: Literal["as_reported", "as_recomputed", "reconcile"]
    rows: list[dict[str, Any]]
    total_rows: int
    shredded: int = Field(0, description="rows of erased people, left out")
    withheld: int = Field(
        0,
        description="rows left out: subtracted from earlier ones they would tell what few erased people did",
    )
    stale: str | None = Field(None, description="why it is of before an erasure and still served")
    explanation: dict[str, Any] | None = None
    publication: dict[str, Any]
    log_leaf: int | None
    proof: str | None = Field(
        None, description="C2SP tlog-proof of the publication; null until the custodian could sign for it"
    )


class ViewSummary(Body):
    """A defined view and whether readers see it."""

    name: str
    personal: bool
    published: dict[str, Any] | None


class QueueView(Body):
    """What came over HTTP and is not in the table yet."""

    batches: int
    events: int
    size_bytes: int = Field(description="of the bodies")
    oldest_seconds: float = Field(description="how long the oldest has waited; 0 when nothing waits")
    failing: str | None = Field(None, description="the error that keeps it from being committed")
    failed_commits: int = Field(0, description="since the last one that went well")
    next_step: str | None = Field(None, description="what an operator can do")

    @classmethod
    def of(cls, queue: Queue, now: float, trouble: Trouble | None = None) -> QueueView:
        """The view of a queue at a moment, in seconds since the epoch."""
        return cls(
            batches=queue.batches,
            events=queue.events,
            size_bytes=queue.size_bytes,
            oldest_seconds=0.0 if queue.oldest_at is None else round(max(0.0, now - queue.oldest_at), 3),
            failing=None if trouble is None else trouble.error,
            failed_commits=0 if trouble is None else trouble.attempts,
            next_step=None if trouble is None else "Run `shredlake doctor`; `shredlake ingest skip --help`.",
        )


class ConsumerView(Body):
    """A consumer of Kafka topics that does not bring what they have; it wrote this down itself."""

    state: Literal["waits", "stuck", "silent", "ended"]
    error: str | None = Field(None, description="what it waits for, or what ended it")
    seconds: float = Field(description="for how long")
    partitions: list[str] = Field([], description="`topic/number`, with `@offset` where that is known")
    next_step: str = Field(description="what it is, and what an operator can do")

    @classmethod
    def of(cls, found: ConsumerTrouble) -> ConsumerView:
        """The view of one."""
        places = [
            f"{one.topic}/{one.number}" + ("" if one.offset is None else f"@{one.offset}")
            for one in found.partitions
        ]
        return cls(
            state=found.kind,
            error=found.error,
            seconds=round(found.seconds, 3),
            partitions=places,
            next_step=found.text(),
        )


class StuckView(Body):
    """An erasure whose last run failed; it is tried again by itself."""

    request_id: str
    stage: str = Field(description="the last stage that is done")
    due_at: datetime


class Health(Body):
    """Answer of the health checks."""

    status: Literal["live", "ready", "not_ready"]
    why: str | None = None
    next_step: str | None = Field(None, description="what opens it")
    needs: dict[str, str] = Field({}, description="what is needed and does not answer, and why")
    intake: QueueView | None = Field(None, description="how much waits to be committed")
    consumers: list[ConsumerView] = Field([], description="consumers of topics that bring nothing")
    changed_results: int = Field(
        0, description="views that gave another result over the same input, and nobody settled it"
    )
    stuck_erasures: int = Field(0, description="erasures whose last run failed")
    stuck: list[StuckView] = Field([], description="those that are due first, twenty at the most")


def publication_body(publication: Publication) -> dict[str, Any]:
    """A publication as JSON."""
    return publication.as_dict()
