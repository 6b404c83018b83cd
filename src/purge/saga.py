"""The erasure saga: journaled, each stage idempotent, resumed after a kill at any point.

Rules of order are in `purge.stages`; this shell runs the effects. A stage's intent is written before
its effect, and its result after it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final

import polars as pl
from attrs import asdict, evolve, frozen

from keys import ALL_PURPOSES, Fence, FieldContext, Held, Identity, Shredded, SubjectId
from lake import Housekeeping, Lake, LetterRedaction, Needles, Upkeep, block_rows
from projections import Views
from purge.attestation import EMBEDDED_ASSURANCE, Assurance, predicate_of
from purge.clocks import Regime
from purge.errors import UnderHold, UnknownPurpose, VerificationFailed
from purge.journal import Journal, Request
from purge.receipt import commitment, pae, receipt_file, statement
from purge.seeking import Seeking, Traces, nothing_stored
from purge.stages import Status, next_stage
from purge.tlog import TransparencyLog
from purge.verification import Verification

_SUBJECT_CONTEXT: Final = FieldContext(b"shredlake-purge\0", 0, "journal", "service", "request", 1)
_PLAN_PLACE: Final = b"erasure request"
_SECONDS_FIXED: Final = 1.0  # measured on two cores: commits, fsyncs, two views of a small lake
_BYTES_PER_SECOND: Final = 50_000_000  # measured: the files concerned are read and written once
OnStage = Callable[[str, float, Mapping[str, Any]], None]
"""Called after each stage with its name, seconds and findings."""


@frozen
class Plan:
    """What an erasure would touch, before anything happens.

    Attributes:
        days: ingest days that the sweep rewrites, with `rewrite_bytes` of data files.
        views: personal views that are derived anew; `partitions` of each (buckets).
        held: a legal hold stands.
        letters, waiting_batches: dead letters that are nobody's and name them, and batches that wait.
    """

    blocks: int
    events: int
    sealed_bytes: int
    days: tuple[str, ...]
    rewrite_bytes: int
    views: tuple[str, ...]
    partitions: int
    held: bool
    estimated_seconds: float
    open_stores: tuple[dict[str, Any], ...] = ()
    letters: int = 0
    waiting_batches: int = 0


@frozen
class Submitted:
    """A request, whether it is new, and the salt of its commitment (hex), told only once."""

    request: Request
    is_new: bool
    salt: str | None


class Purge:
    """Erasure requests of one lake.

    Args:
        home: the lake's folder, for locks and the inventory.
        assurance: what receipts may say about the custodian's backups.
        copy_fences: brings the new fence to other places; returns place → what came of it, and never fails.
    """

    def __init__(
        self,
        home: Path,
        lake: Lake,
        views: Views,
        journal: Journal,
        log: TransparencyLog,
        assurance: Assurance = EMBEDDED_ASSURANCE,
        copy_fences: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._home = home
        self._copy_fences = copy_fences
        self._assurance = assurance
        self._lake = lake
        self._keyring = lake.keyring
        self._views = views
        self._upkeep = Upkeep(lake)
        self._housekeeping = Housekeeping(lake)
        self._redaction = LetterRedaction(lake)
        self._seeking = Seeking(lake, self._redaction)
        self._verification = Verification(home, lake, views)
        self.journal = journal
        self.log = log

    # -- asking ------------------------------------------------------------------------------------

    def plan(self, subject: SubjectId | Identity) -> Plan:
        """What erasing a person would touch.

        Raises:
            UnknownSubject: nothing is stored of this person; everything was looked through.
        """
        traces = self._seeking.traces(subject) if isinstance(subject, SubjectId) else Traces()
        ref = self._keyring.ref_of(subject)
        if ref is None and not (isinstance(subject, SubjectId) and traces.any):
            raise nothing_stored()
        found = self._plan(ref, self._tag(subject, ref))
        return evolve(found, letters=traces.letters, waiting_batches=traces.waiting)

    def submit(
        self,
        subject: SubjectId,
        *,
        purpose: str = ALL_PURPOSES,
        regime: Regime = "gdpr",
        idempotency_key: str | None = None,
        suppress: bool = False,
    ) -> Submitted:
        """Journals a request; the same person's second request is the first one while there is nothing new.

        Whoever has no key, but is named by a dead letter that is nobody's or by a batch that waits, is erased
        like everybody; so is an erased person of whom such a letter was stored since.

        Args:
            suppress: also of whom nothing is stored: whatever comes of them later is refused.

        Raises:
            UnknownSubject: nothing is stored of this person and nothing was erased; it was looked for.
            UnknownPurpose: the person has no key for that purpose.
            IdempotencyConflict: the key came with another person.
        """
        tag = self._keyring.fences.subject_tag(subject)
        ref = self._keyring.ref_of(subject)
        if ref is None:
            found = self._seeking.handle_or_request(subject, self.journal.find(tag), suppress)
            if isinstance(found, Request):
                return Submitted(found, False, None)
            ref = found
        if purpose != ALL_PURPOSES and purpose not in self._keyring.purposes_of(ref):
            raise UnknownPurpose("this person has no key for that purpose")
        salt = secrets.token_bytes(16)
        sealed = self._keyring.session().seal(
            _SUBJECT_CONTEXT, [ref], [_PLAN_PLACE], [subject.reveal().encode()]
        )[0]
        if isinstance(sealed, Shredded):
            return Submitted(self.journal.get(sealed.receipt_id), False, None)
        request, is_new = self.journal.submit(
            subject_tag=tag,
            ref=ref,
            sealed_subject=sealed,
            commitment=commitment(salt, subject.reveal()),
            purpose=purpose,
            regime=regime,
            idempotency_key=idempotency_key,
        )
        return Submitted(request, is_new, salt.hex() if is_new else None)

    def run(self, request_id: str, on_stage: OnStage = lambda stage, seconds, detail: None) -> Request:
        """Carries a request on from where it stands to its receipt. Repeating it is success.

        Raises:
            UnderHold: a legal hold stands; the request waits.
            VerificationFailed: a check failed; the request is incomplete.
            KeysError, LakeError, ProjectionError: of the stage that failed; run again to go on.
        """
        with self._locked(request_id):
            request = self.journal.get(request_id)
            if request.status is Status.CANCELLED:
                return request
            while (stage := next_stage(request.stage)) is not None:
                self.journal.begin(request_id, stage)
                start = time.perf_counter()
                try:
                    detail = getattr(self, f"_{stage}")(request)
                except UnderHold:
                    self.journal.set_status(request_id, Status.HELD)
                    raise
                except Exception:
                    self.journal.set_status(request_id, Status.INCOMPLETE)
                    raise
                seconds = time.perf_counter() - start
                self.journal.complete(request_id, stage, seconds, detail)
                on_stage(stage, seconds, detail)
                request = self.journal.get(request_id)
            return request

    def resume_all(self, on_stage: OnStage = lambda stage, seconds, detail: None) -> list[Request]:
        """Runs every request that is begun and not done, the one due first ahead."""
        waiting = (Status.IN_PROGRESS, Status.INCOMPLETE)
        return [self.run(r.request_id, on_stage) for r in self.journal.all() if r.status in waiting]

    # -- holds -------------------------------------------------------------------------------------

    def hold(self, subject: SubjectId, why: str) -> None:
        """Puts a person under legal hold: not destroyed, and in no view that is built from now on."""
        ref = self._ref(subject)
        self.journal.place_hold(self._keyring.fences.subject_tag(subject), ref, why)
        self._keyring.hold(ref, True)
        self._views.forget_people([ref])

    def release(self, subject: SubjectId) -> Request | None:
        """Ends a hold; a request that waited for it is returned, to be run."""
        tag = self._keyring.fences.subject_tag(subject)
        ref = self._ref(subject)
        self._keyring.hold(ref, False)
        self._views.forget_people([ref])
        self.journal.release_hold(tag)
        found = self.journal.find(tag)
        return found if found is not None and found.status is Status.PENDING else None

    # -- evidence ----------------------------------------------------------------------------------

    def log_publications(self) -> int:
        """Makes every publication a leaf of the transparency log. Returns how many were added."""
        added = 0
        for one in self._views.ledger.unlogged():
            data = json.dumps(one.as_dict(), sort_keys=True, separators=(",", ":")).encode()
            leaf = self.log.append(f"publication/{one.build_id}", data)
            self._views.ledger.mark_logged(one.publication_id, leaf)
            added += 1
        return added

    # -- stages ------------------------------------------------------------------------------------

    def _hold_checked(self, request: Request) -> dict[str, Any]:
        if self.journal.is_held(request.subject_tag):
            raise UnderHold("a legal hold stands over this person")
        return {}

    def _planned(self, request: Request) -> dict[str, Any]:
        assert request.ref is not None
        return asdict(self._plan(request.ref, request.subject_tag))

    def _fenced(self, request: Request) -> dict[str, Any]:
        assert request.ref is not None
        subject = self._subject_of(request)
        if request.sealed_ref == request.ref:
            # From the fence on the person's own key opens nothing; the next stage still needs the id.
            minted = self._keyring.mint(1, _SUBJECT_CONTEXT.purpose)[0].ref
            self.journal.reseal(request.request_id, minted, self._seal_subject(subject, minted))
        with self.journal.unless_held(request.subject_tag) as is_free:
            if not is_free:
                raise UnderHold("a legal hold was placed over this person")
            fences = self._keyring.fence([(subject, request.ref)], request.request_id, request.purpose)
        newest = fences[-1]
        self.journal.remember_fence(newest.epoch, newest.chain)
        held = self._keyring.purposes_of(request.ref)
        doomed = held if request.purpose == ALL_PURPOSES else [request.purpose]
        copies = dict(self._copy_fences())  # before anything is destroyed
        return {
            "epoch": newest.epoch,
            "chain": newest.chain.hex(),
            "key_records": len(doomed),
            "fence_copies": copies,
        }

    def _intake_drained(self, request: Request) -> dict[str, Any]:
        done = self._lake.intake.drain(self._fences(request)[-1].epoch)
        return {"batches": done.batches, "events": done.events}

    def _letters_redacted(self, request: Request) -> dict[str, Any]:
        needles = Needles(self._subject_of(request))
        in_use = self._lake.intake.letters_in_use()
        return {"letters": self._redaction.run(needles.names, in_use)}

    def _destroyed(self, request: Request) -> dict[str, Any]:
        assert request.ref is not None
        self._keyring.destroy([request.ref], self._fences(request))
        if request.sealed_ref is not None and request.sealed_ref != request.ref:
            self._keyring.drop([request.sealed_ref])
        return {"key_records": request.detail("fenced")["key_records"]}

    def _unreadable(self, request: Request) -> dict[str, Any]:
        waited = self._keyring.wait_until_unreadable(self._fences(request)[-1].epoch)
        return {"waited_seconds": round(waited, 3)}

    def _epoch_closed(self, request: Request) -> dict[str, Any]:
        closed = self._keyring.close_epoch()
        if not closed.old_wrap_refused:
            raise VerificationFailed("a key wrapped before the epoch was closed still opens")
        return {"root_version": closed.root_version, "custodian_calls": closed.custodian_calls}

    def _views_rederived(self, request: Request) -> dict[str, Any]:
        assert request.ref is not None
        buckets = self._views.forget_people([request.ref])
        release = self._views.ledger.current()
        published = set(release.entries) if release is not None else set()
        names = [name for name in self._views.personal_names() if name in published]
        orphans = published - set(self._views.registry.names())
        if orphans:
            # Without their code they cannot be derived anew, and must not go on counting the person.
            self._views.ledger.withdraw(orphans, who="erasure", why=f"no code; {request.request_id}")
        if names:
            why = f"erasure {request.request_id}"
            built = self._views.build(names, who="erasure", why=why)
            self._views.publish(built, who="erasure", why=why)
            self.log_publications()
        return {"views": names, "partitions": len(buckets), "withdrawn": sorted(orphans)}

    def _states_unreadable(self, request: Request) -> dict[str, Any]:
        """States, letters and this request's own seal: a fence covers none, so their keys are kept on."""
        return {"waited_seconds": round(self._keyring.evict_everywhere(), 3)}

    def _swept(self, request: Request) -> dict[str, Any]:
        assert request.ref is not None
        severed = written = 0
        for day in self._upkeep.days_of([request.ref]):
            done = self._upkeep.sever(day, [request.ref])
            severed += done.blocks
            written += done.bytes_written
        orphans = self._housekeeping.sweep()
        return {"severed_blocks": severed, "bytes_written": written, "orphan_files": len(orphans)}

    def _verified(self, request: Request) -> dict[str, Any]:
        assert request.ref is not None
        checks = self._verification.checks(request.purpose, request.ref, self._fences(request)[-1])
        failed = [name for name, passed in checks.items() if not passed]
        if failed:
            raise VerificationFailed(f"failed: {', '.join(failed)}")
        # Until now events of this person may have been sent, whatever the lake makes of them.
        return {"checks": sorted(checks), "open_stores": self._lake.topics.open_stores(self._lake.clock())}

    def _attested(self, request: Request) -> dict[str, Any]:
        draft = statement(request.request_id, request.commitment, predicate_of(request, self._assurance))
        payload = self.journal.put_statement(request.request_id, draft)
        leaf = self.log.append(f"receipt/{request.request_id}", payload)
        receipt = receipt_file(payload, self._keyring.sign(pae(payload)), self.log.proof(leaf))
        self.journal.put_receipt(request.request_id, receipt)
        return {"leaf": leaf}

    # -- inner -------------------------------------------------------------------------------------

    def _plan(self, ref: bytes | None, subject_tag: bytes) -> Plan:
        files = self._upkeep.days() if ref is not None else {}
        rows = {day: block_rows(self._lake.events, kept, None, [ref or b""]) for day, kept in files.items()}
        mine = {day: found for day, found in rows.items() if found.height}
        together = pl.concat(list(mine.values())) if mine else None
        rewrite = sum(f.file_size_in_bytes for day in mine for f in files[day])
        release = self._views.ledger.current()
        published = set(release.entries) if release is not None else set()
        views = tuple(name for name in self._views.personal_names() if name in published)
        return Plan(
            blocks=together.height if together is not None else 0,
            events=int(together.filter("primary")["event_count"].sum()) if together is not None else 0,
            sealed_bytes=int(together["sealed"].bin.size().sum()) if together is not None else 0,
            days=tuple(_days(mine)),
            rewrite_bytes=rewrite,
            views=views,
            partitions=len(views),
            held=self.journal.is_held(subject_tag),
            estimated_seconds=round(_SECONDS_FIXED + rewrite / _BYTES_PER_SECOND, 1),
            open_stores=tuple(self._lake.topics.open_stores(self._lake.clock())),
        )

    def _ref(self, subject: SubjectId | Identity) -> bytes:
        ref = self._keyring.ref_of(subject)
        if ref is None:
            raise nothing_stored()
        return ref

    def _tag(self, subject: SubjectId | Identity, ref: bytes | None) -> bytes:
        if isinstance(subject, SubjectId):
            return self._keyring.fences.subject_tag(subject)
        assert ref is not None
        return self._keyring.fences.ref_tag(ref)

    def _subject_of(self, request: Request) -> SubjectId:
        """The id out of the journal; readable until its key is destroyed."""
        assert request.sealed_ref is not None
        assert request.sealed_subject is not None
        opened = self._keyring.opener().open(
            _SUBJECT_CONTEXT, [request.sealed_ref], [_PLAN_PLACE], [request.sealed_subject]
        )[0]
        if isinstance(opened, Held):
            raise UnderHold("a legal hold stands over this person")
        assert isinstance(opened, bytes), "before destruction the id opens"
        return SubjectId(opened.decode())

    def _seal_subject(self, subject: SubjectId, ref: bytes) -> bytes:
        body = subject.reveal().encode()
        sealed = self._keyring.session().seal(_SUBJECT_CONTEXT, [ref], [_PLAN_PLACE], [body])[0]
        assert isinstance(sealed, bytes), "a minted key is never fenced"
        return sealed

    def _fences(self, request: Request) -> list[Fence]:
        mine = self._keyring.fences.of_tag(request.subject_tag)
        return [fence for fence in mine if fence.request_id == request.request_id]

    @contextmanager
    def _locked(self, request_id: str) -> Iterator[None]:
        """One runner per request; a killed runner's lock goes with it."""
        folder = self._home / "purge" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / request_id, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _days(mine: Mapping[date, object]) -> list[str]:
    return sorted(day.isoformat() for day in mine)
