"""The erasure saga: journaled, each stage idempotent, resumed after a kill at any point.

Rules of order are in `purge.stages`, the effects in `purge.steps`. A stage's intent is written before its
effect, and its result after it; requests that wait are carried on together.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from keys import (
    ALL_PURPOSES,
    FieldContext,
    Identity,
    InvalidTransition,
    Shredded,
    ShredlakeError,
    SubjectId,
)
from lake import Lake, LetterRedaction
from projections import StaleEpoch, Views, bring_back
from purge.clocks import Regime
from purge.errors import UnderHold, UnknownPurpose
from purge.journal import Journal, Request
from purge.receipt import commitment
from purge.requestseal import PLAN_PLACE, SUBJECT_CONTEXT
from purge.seeking import Seeking, Traces, nothing_stored
from purge.stages import Status, first_of, next_stage
from purge.steps import Outcomes, Plan, Steps
from purge.tlog import TransparencyLog

OPEN_STATUSES: Final = (Status.PENDING, Status.IN_PROGRESS, Status.INCOMPLETE)
_SALT_BYTES: Final = 16
_SALT_CONTEXT: Final = FieldContext(b"shredlake-salt\0\0", 0, "journal", "system", "salt", 1)
SALT_DAYS: Final = 90
"""For so long a salt is kept that nobody has fetched."""
MAX_TOGETHER: Final = 250
"""Requests that are carried on together; each holds a lock file open."""
OnStage = Callable[[str, float, Mapping[str, Any]], None]
"""Called after each stage with its name, seconds and what it found of the first request."""
OnFailure = Callable[[str, Exception], None]
"""Called with each request that could not go on, and why."""


@frozen
class Submitted:
    """A request, whether it is new, and then the salt of its commitment (hex); see `Purge.salt`."""

    request: Request
    is_new: bool
    salt: str | None


class Purge:
    """Erasure requests of one lake.

    Args:
        home: the lake's folder, for locks.
        steps: what each stage does, over the same journal and log.
    """

    def __init__(
        self,
        home: Path,
        lake: Lake,
        views: Views,
        steps: Steps,
        journal: Journal,
        log: TransparencyLog,
    ) -> None:
        self._home = home
        self._keyring = lake.keyring
        self._clock = lake.clock
        self._views = views
        self._steps = steps
        self._seeking = Seeking(lake, LetterRedaction(lake))
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
        (found,) = self._steps.plans([(ref, self.journal.is_held(self._tag(subject, ref)))], warn=True)
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
        salt = secrets.token_bytes(_SALT_BYTES)
        sealed = self._keyring.session().seal(
            SUBJECT_CONTEXT, [ref], [PLAN_PLACE], [subject.reveal().encode()]
        )[0]
        if isinstance(sealed, Shredded):
            return Submitted(self.journal.get(sealed.receipt_id), False, None)
        kept = self._sealed_salt(salt)
        request, is_new = self.journal.submit(
            subject_tag=tag,
            ref=ref,
            sealed_subject=sealed,
            commitment=commitment(salt, subject.reveal()),
            purpose=purpose,
            regime=regime,
            idempotency_key=idempotency_key,
            salt=kept,
        )
        if not is_new:
            self._keyring.drop([kept[0]])
            return Submitted(request, False, None)
        return Submitted(request, True, salt.hex())

    def salt(self, request_id: str) -> str | None:
        """The salt of a request's commitment (hex), for its requester; None once it was delivered.

        Raises:
            UnknownRequest: there is no such request.
        """
        self.journal.get(request_id)
        kept = self.journal.salt(request_id)
        if kept is None:
            return None
        ref, sealed = kept
        (opened,) = self._keyring.opener().open(_SALT_CONTEXT, [ref], [PLAN_PLACE], [sealed])
        return opened.hex() if isinstance(opened, bytes) else None

    def salt_received(self, request_id: str) -> None:
        """Destroys a salt that was delivered; repeating it is success. Raises `UnknownRequest`."""
        self.journal.get(request_id)
        kept = self.journal.salt(request_id)
        if kept is not None:
            self._keyring.drop([kept[0]])
            self.journal.forget_salt(request_id)

    def forget_old_salts(self) -> None:
        """Destroys the salts that nobody has fetched for `SALT_DAYS`."""
        for request_id in self.journal.salts_of_before(self._clock() - timedelta(days=SALT_DAYS)):
            self.salt_received(request_id)

    def _sealed_salt(self, salt: bytes) -> tuple[bytes, bytes]:
        ref = self._keyring.mint(1)[0].ref
        (sealed,) = self._keyring.session().seal(_SALT_CONTEXT, [ref], [PLAN_PLACE], [salt])
        assert isinstance(sealed, bytes), "a minted key is never fenced"
        return ref, sealed

    def run(self, request_id: str, on_stage: OnStage = lambda stage, seconds, detail: None) -> Request:
        """Carries a request on from where it stands to its receipt. Repeating it is success.

        Raises:
            UnderHold: a legal hold stands; the request waits.
            VerificationFailed: a check failed; the request is incomplete.
            KeysError, LakeError: of the stage that failed; run again to go on.
        """
        failures: list[Exception] = []
        (done,) = self.run_together([request_id], on_stage, lambda _, error: failures.append(error))
        if failures:
            raise failures[0]
        return done

    def run_together(
        self,
        request_ids: Sequence[str],
        on_stage: OnStage = lambda stage, seconds, detail: None,
        on_failure: OnFailure = lambda request_id, error: None,
    ) -> list[Request]:
        """Carries requests to their receipts together: each stage is done once for all that stand before it.

        A request that cannot go on leaves the others, and is told to `on_failure`; what failed for all, an
        outage say, is told of each. Returns the requests as they stand then, in the order asked for.
        """
        for start in range(0, len(request_ids), MAX_TOGETHER):
            some = request_ids[start : start + MAX_TOGETHER]
            with self._locked(some):
                self._carry(some, on_stage, on_failure)
        return [self.journal.get(request_id) for request_id in request_ids]

    def resume_all(
        self,
        on_stage: OnStage = lambda stage, seconds, detail: None,
        on_failure: OnFailure = lambda request_id, error: None,
    ) -> list[Request]:
        """Runs every request that waits or is not done, the one due first ahead; see `run_together`."""
        open_ = [r.request_id for r in self.journal.all() if r.status in OPEN_STATUSES]
        return self.run_together(open_, on_stage, on_failure)

    def _carry(self, request_ids: Sequence[str], on_stage: OnStage, on_failure: OnFailure) -> None:
        open_ = {one: self.journal.get(one) for one in request_ids}
        open_ = {one: r for one, r in open_.items() if r.status is not Status.CANCELLED}
        while (stage := first_of(r.stage for r in open_.values())) is not None:
            group = [one for one, r in open_.items() if next_stage(r.stage) == stage]
            begun = self.journal.begin(group, stage)
            start = time.perf_counter()
            outcomes = self._outcomes(stage, [self.journal.get(one) for one in begun])
            seconds = time.perf_counter() - start
            done = {one: found for one, found in outcomes.items() if not isinstance(found, Exception)}
            failed = {one: found for one, found in outcomes.items() if isinstance(found, Exception)}
            self.journal.complete(stage, seconds, done)
            self.journal.set_status({one: _status_of(error) for one, error in failed.items()})
            if done:
                on_stage(stage, seconds, next(iter(done.values())))
            for one, error in failed.items():
                on_failure(one, error)
            open_ = {one: r for one, r in open_.items() if one not in group or one in done}
            open_ |= {one: self.journal.get(one) for one in done}

    def _outcomes(self, stage: str, batch: Sequence[Request]) -> Outcomes:
        """What a stage found of each; where it cannot be done for all of them, for as many as it can."""
        if not batch:
            return {}
        try:
            return self._steps.run(stage, batch)
        except Exception as error:
            # An outage is nobody's fault; else one of them may be what the others must not wait for.
            if len(batch) == 1 or (isinstance(error, ShredlakeError) and error.retry_helps):
                return {request.request_id: error for request in batch}
        middle = len(batch) // 2
        return {**self._outcomes(stage, batch[:middle]), **self._outcomes(stage, batch[middle:])}

    def bring_views_back(self) -> list[str]:
        """Publishes the views that erasures had to set aside and that build again; returns them.

        Heads of tables that a publication had still to move are moved as well, and rows of dropped
        publications deleted that a killed process left.

        Raises:
            KeysError, LakeError, OSError: keys or lake do not answer.
        """
        if self._views.heads.is_due():
            with contextlib.suppress(StaleEpoch):  # whoever erased somebody meanwhile publishes
                self._views.heads.settle()
        self._views.dropping.settle_owed(one.view for one in self._views.dropping.owed())
        if not self._views.ledger.aside():
            return []
        found = bring_back(self._views, who="erasure", why="builds again")
        self.log_publications()
        return found

    # -- holds -------------------------------------------------------------------------------------

    def hold(self, subject: SubjectId, why: str) -> None:
        """Puts a person under legal hold: not destroyed, and in no view that is built from now on."""
        ref = self._ref(subject)
        tag = self._keyring.fences.subject_tag(subject)
        self.journal.place_hold(tag, ref, why)
        try:
            self._keyring.hold(ref, True)
        except InvalidTransition:  # an erasure was first, and is past the point of no return
            self.journal.release_hold(tag)
            raise
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
        """Makes every publication, and every drop of one, a leaf of the log. Returns how many were added."""
        return self._steps.log_publications()

    # -- inner -------------------------------------------------------------------------------------

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

    @contextmanager
    def _locked(self, request_ids: Sequence[str]) -> Iterator[None]:
        """One runner per request; a killed runner's locks go with it. Taken in one order by everybody."""
        folder = self._home / "purge" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for request_id in sorted(set(request_ids)):
                descriptor = os.open(folder / request_id, os.O_RDWR | os.O_CREAT, 0o600)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield


def _status_of(error: Exception) -> Status:
    return Status.HELD if isinstance(error, UnderHold) else Status.INCOMPLETE
