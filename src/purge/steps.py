"""What each stage of an erasure does, for all requests that stand before it together.

One fence round, one drain, one redaction, one destruction, one rewrite of a day, one publication and one
close of the epoch serve however many requests; each is told what was found of its own. Every effect is
idempotent: a stage that was killed is repeated as a whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl
from attrs import asdict, frozen

from keys import ALL_PURPOSES, Fence, Held, KeysError, SubjectId
from lake import DEAD_LETTER, Housekeeping, Lake, LetterRedaction, Needles, Upkeep, block_rows
from lake.upkeeprules import SWEEP_GRACE_SECONDS
from projections import Views, older_records, rederive, revealing
from purge.affected import Erased, drop_affected
from purge.attestation import Assurance, predicate_of
from purge.batchscan import Look, scanned
from purge.droppedleaves import log_drops
from purge.errors import PurgeError, UnderHold, UnknownSubject, VerificationFailed
from purge.journal import Journal, Request
from purge.receipt import pae, receipt_file, statement
from purge.requestseal import PLAN_PLACE, SUBJECT_CONTEXT
from purge.tlog import TransparencyLog
from purge.verification import LETTER_KEYS, STATE_KEYS, ErasedKeys, Verification

_SECONDS_FIXED: Final = 1.0  # measured on two cores: commits, fsyncs, two views of a small lake
_BYTES_PER_SECOND: Final = 50_000_000  # measured: the files concerned are read and written once
_WHO: Final = "erasure"
Detail = Mapping[str, Any]
Outcomes = Mapping[str, Detail | Exception]
"""Request → what its stage found, or why it could not be done for this one alone."""


@frozen
class Plan:
    """What an erasure would touch, before anything happens.

    Attributes:
        days: ingest days that the sweep rewrites, with `rewrite_bytes` of data files.
        views: personal views that are derived anew; `partitions` of each (buckets).
        held: a legal hold stands.
        shown: columns in clear of published views that can show a personal value; see `Views.shown`.
        uncovered: earlier publications that today's rules do not reach; see `projections.OlderRecord`.
        revealing: of `Purge.plan` alone: views, or pairs, in which the erasure can be told by subtraction.
        events, own_letters: of the person, under their own key.
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
    shown: tuple[dict[str, Any], ...] = ()
    own_letters: int = 0
    uncovered: tuple[dict[str, Any], ...] = ()
    revealing: tuple[str, ...] = ()


class Steps:
    """The stages' effects on one lake.

    Args:
        home: the lake's folder, for the inventory.
        assurance: what receipts may say about the custodian's backups.
        copy_fences: brings new fences to other places; returns place → what came of it, and never fails.
        serve_stale: views that are served on where they cannot be derived anew; `*` stands for all.
        drop_affected: views whose publications go with an erasure where they count the person; likewise.
        look: scans the lake for the people of a batch; None where receipts say nothing of it.
    """

    def __init__(
        self,
        home: Path,
        lake: Lake,
        views: Views,
        journal: Journal,
        log: TransparencyLog,
        assurance: Assurance,
        copy_fences: Callable[[], Mapping[str, str]],
        serve_stale: Collection[str],
        drop_affected: Collection[str],
        look: Look | None = None,
    ) -> None:
        self._lake = lake
        self._keyring = lake.keyring
        self._views = views
        self._journal = journal
        self._log = log
        self._assurance = assurance
        self._copy_fences = copy_fences
        self._serve_stale = serve_stale
        self._drop_affected = drop_affected
        self._look = look
        self._upkeep = Upkeep(lake)
        self._housekeeping = Housekeeping(lake)
        self._redaction = LetterRedaction(lake)
        self._verification = Verification(home, lake, views)

    def run(self, stage: str, batch: Sequence[Request]) -> Outcomes:
        """Does a stage. Raises where it could be done for none of them: run it again to go on."""
        step: Callable[[Sequence[Request]], Outcomes] = getattr(self, f"_{stage}")
        return step(batch)

    # -- before the fence --------------------------------------------------------------------------

    def _hold_checked(self, batch: Sequence[Request]) -> Outcomes:
        return {r.request_id: _held() if self._journal.is_held(r.subject_tag) else {} for r in batch}

    def _planned(self, batch: Sequence[Request]) -> Outcomes:
        plans = self.plans([(_ref(r), self._journal.is_held(r.subject_tag)) for r in batch])
        return {r.request_id: asdict(plan) for r, plan in zip(batch, plans, strict=True)}

    def plans(self, people: Sequence[tuple[bytes | None, bool]], *, warn: bool = False) -> list[Plan]:
        """What erasing each (handle where there is one, whether it is held) would touch.

        Args:
            warn: also of views that reveal the person; asks the views' code.
        """
        refs = list({ref for ref, _ in people if ref is not None})
        files = self._upkeep.days() if refs else {}
        columns = ("subject_ref", "event_type", "primary", "event_count", "sealed")
        parts = [
            block_rows(self._lake.events, kept, None, refs)
            .select(*columns)
            .with_columns(pl.lit(day).alias("day"))
            for day, kept in files.items()
        ]
        rows = pl.concat(parts) if parts else None
        bytes_of = {day: sum(f.file_size_in_bytes for f in kept) for day, kept in files.items()}
        release = self._views.ledger.current()
        published = set(release.entries) if release is not None else set()
        views = tuple(name for name in self._views.personal_names() if name in published)
        open_stores = tuple(self._lake.topics.open_stores(self._lake.clock()))
        shown = tuple(self._views.shown())
        uncovered = tuple(one.as_dict() for one in older_records(self._views.ledger, self._lake.types))
        by_ref = {key[0]: part for key, part in rows.group_by("subject_ref")} if rows is not None else {}
        found = []
        for ref, is_held in people:
            mine = by_ref.get(ref or b"")
            days: list[date] = sorted(mine["day"].unique().to_list()) if mine is not None else []
            rewrite = sum(bytes_of[day] for day in days)
            events, letters = _counted(mine)
            found.append(
                Plan(
                    blocks=mine.height if mine is not None else 0,
                    events=events,
                    own_letters=letters,
                    sealed_bytes=int(mine["sealed"].bin.size().sum()) if mine is not None else 0,
                    days=tuple(day.isoformat() for day in days),
                    rewrite_bytes=rewrite,
                    views=views,
                    partitions=len(views),
                    held=is_held,
                    estimated_seconds=round(_SECONDS_FIXED + rewrite / _BYTES_PER_SECOND, 1),
                    open_stores=open_stores,
                    shown=shown,
                    uncovered=uncovered,
                    revealing=self._revealing(mine, published) if warn else (),
                )
            )
        return found

    def _revealing(self, mine: pl.DataFrame | None, published: Collection[str]) -> tuple[str, ...]:
        if mine is None:
            return ()
        views = [one for one in self._views.registry.all() if one.name in published]
        found = revealing(views, self._lake.types, mine["event_type"].unique().to_list())
        return tuple(f"{one.text} ({one.because})" if one.because else one.text for one in found)

    def _fenced(self, batch: Sequence[Request]) -> Outcomes:
        subjects = self._subjects(batch)
        named = [(r, s) for r in batch if isinstance(s := subjects[r.request_id], SubjectId)]
        self._reseal([(r, s) for r, s in named if r.sealed_ref == r.ref])
        outcomes: dict[str, Detail | Exception] = {
            request_id: found for request_id, found in subjects.items() if isinstance(found, PurgeError)
        }
        with self._journal.holds_kept_out() as held:
            free = [(r, s) for r, s in named if r.subject_tag not in held]
            fences = self._keyring.fence_together([(s, _ref(r), r.request_id, r.purpose) for r, s in free])
        outcomes |= {r.request_id: _held() for r, _ in named if r.subject_tag in held}
        if fences:
            newest = max(fences, key=lambda fence: fence.epoch)
            self._journal.remember_fence(newest.epoch, newest.chain)
        copies = dict(self._copy_fences()) if fences else {}  # before anything is destroyed
        states = self._views.remains.state_keys({_ref(r) for r, _ in free}) if free else {}
        for (request, _), fence in zip(free, fences, strict=True):
            records = self._keyring.purposes_of(_ref(request))
            doomed = len(records) if request.purpose == ALL_PURPOSES else 1
            outcomes[request.request_id] = {
                "epoch": fence.epoch,
                "chain": fence.chain.hex(),
                "key_records": doomed,
                "fence_copies": copies,
                STATE_KEYS: [key.hex() for key in states[_ref(request)]],
            }
        return outcomes

    def _reseal(self, people: Sequence[tuple[Request, SubjectId]]) -> None:
        """From the fence on the people's own keys open nothing; later stages still need the ids."""
        if not people:
            return
        refs = [key.ref for key in self._keyring.mint(len(people), SUBJECT_CONTEXT.purpose)]
        bodies = [subject.reveal().encode() for _, subject in people]
        sealed = self._keyring.session().seal(SUBJECT_CONTEXT, refs, [PLAN_PLACE] * len(refs), bodies)
        kept = {}
        for (request, _), ref, body in zip(people, refs, sealed, strict=True):
            assert isinstance(body, bytes), "a minted key is never fenced"
            kept[request.request_id] = (ref, body)
        self._journal.reseal(kept)

    # -- behind the fence --------------------------------------------------------------------------

    def _intake_drained(self, batch: Sequence[Request]) -> Outcomes:
        done = self._lake.intake.drain(max(self._fence(r).epoch for r in batch))
        named = self._redaction.keys_naming({one: found.names for one, found in self._needles(batch).items()})
        return {
            r.request_id: {"batches": done.batches, "events": done.events}
            | ({LETTER_KEYS: [key.hex() for key in keys]} if (keys := named.get(r.request_id)) else {})
            for r in batch
        }

    def _letters_redacted(self, batch: Sequence[Request]) -> Outcomes:
        needles = self._needles(batch)
        letters = {r.request_id: 0 for r in batch}

        def removed(lines: Sequence[bytes]) -> None:
            for request_id, one in needles.items():
                letters[request_id] += len(lines) if any(map(one.names, lines)) else 0

        in_use = self._lake.intake.letters_in_use()
        self._redaction.run(lambda raw: any(one.names(raw) for one in needles.values()), in_use, removed)
        return {request_id: {"letters": count} for request_id, count in letters.items()}

    def _destroyed(self, batch: Sequence[Request]) -> Outcomes:
        self._keyring.destroy([_ref(r) for r in batch], [self._fence(r) for r in batch])
        return {r.request_id: {"key_records": r.detail("fenced")["key_records"]} for r in batch}

    def _unreadable(self, batch: Sequence[Request]) -> Outcomes:
        waited = self._keyring.wait_until_unreadable(max(self._fence(r).epoch for r in batch))
        return _all(batch, {"waited_seconds": round(waited, 3)})

    def _views_rederived(self, batch: Sequence[Request]) -> Outcomes:
        buckets = self._views.forget_people([_ref(r) for r in batch])
        done = rederive(self._views, who=_WHO, why=_why(batch), serve_stale=self._serve_stale)
        self.log_publications()
        found = {
            "views": list(done.published),
            "partitions": len(buckets),
            "withdrawn": dict(done.withdrawn),
            "stale": dict(done.stale),
        }
        erased = [Erased(_ref(r), r.purpose, self._fence(r).epoch) for r in batch]
        gone = drop_affected(self._lake, self._views, self._drop_affected, erased)
        log_drops(self._views.ledger, self._log)
        left = scanned(self._look, self._subjects(batch)) if self._look is not None else {}
        return {
            r.request_id: found | more | left.get(r.request_id, {})
            for r, more in zip(batch, gone, strict=True)
        }

    def _states_unreadable(self, batch: Sequence[Request]) -> Outcomes:
        """States, letters and the requests' own seals: a fence covers none, so their keys are kept on."""
        own = [r.sealed_ref for r in batch if r.sealed_ref is not None and r.sealed_ref != r.ref]
        if own:  # the last that knows the ids
            self._keyring.drop(own)
        return _all(batch, {"waited_seconds": round(self._keyring.evict_everywhere(), 3)})

    def _epoch_closed(self, batch: Sequence[Request]) -> Outcomes:
        closed = self._keyring.close_epoch()
        if not closed.old_wrap_refused:
            raise VerificationFailed("a key wrapped before the epoch was closed still opens")
        return _all(batch, {"root_version": closed.root_version, "custodian_calls": closed.custodian_calls})

    def _swept(self, batch: Sequence[Request]) -> Outcomes:
        refs = list({_ref(r) for r in batch})
        severed: dict[bytes, int] = {}
        written = 0
        for day in self._upkeep.days_of(refs):
            done = self._upkeep.sever(day, refs)
            written += done.bytes_written
            for ref, blocks in done.blocks_of.items():
                severed[ref] = severed.get(ref, 0) + blocks
        self._housekeeping.forward_inputs()
        self._housekeeping.forget_rewritten()
        orphans = len(self._housekeeping.sweep())
        return {
            r.request_id: {
                "severed_blocks": severed.get(_ref(r), 0),
                "bytes_written": written,
                "orphan_files": orphans,
            }
            for r in batch
        }

    def _verified(self, batch: Sequence[Request]) -> Outcomes:
        stale = self._views.ledger.stale()
        looked_at = [ErasedKeys.of(r, _ref(r), self._fence(r)) for r in batch]
        # Until now events of these people may have been sent, whatever the lake makes of them.
        open_stores = [*self._lake.topics.open_stores(self._lake.clock()), *self._torn_files()]
        outcomes: dict[str, Detail | Exception] = {}
        for request, checks in zip(batch, self._verification.checks(looked_at, stale), strict=True):
            failed = [name for name, passed in checks.items() if not passed]
            outcomes[request.request_id] = (
                VerificationFailed(f"failed: {', '.join(failed)}")
                if failed
                else {"checks": sorted(checks), "open_stores": open_stores}
            )
        return outcomes

    def _torn_files(self) -> list[dict[str, Any]]:
        """What the sweep had to leave, because a writer may still own it."""
        found = self._redaction.torn()
        if not found:
            return []
        until = max(one.modified_at for one in found) + timedelta(seconds=SWEEP_GRACE_SECONDS)
        return [
            {
                "store": f"{len(found)} half-written data file(s) of the events table",
                "means": "no snapshot names them; a writer may own them, else a later sweep deletes them",
                "open_until": until.isoformat(timespec="seconds"),
            }
        ]

    def _attested(self, batch: Sequence[Request]) -> Outcomes:
        drafts = {
            r.request_id: statement(r.request_id, r.commitment, predicate_of(r, self._assurance))
            for r in batch
        }
        payloads = self._journal.put_statements(drafts)
        leaves = {one: self._log.append(f"receipt/{one}", body) for one, body in payloads.items()}
        proofs = self._log.proofs(leaves.values())
        receipts = {
            one: receipt_file(body, self._keyring.sign(pae(body)), proofs[leaves[one]])
            for one, body in payloads.items()
        }
        self._journal.put_receipts(receipts)
        return {one: {"leaf": leaf} for one, leaf in leaves.items()}

    def log_publications(self) -> int:
        """Makes every publication, and every drop of one, a leaf. Returns how many were added.

        They are signed for at once, so that each is proven to readers while the custodian does not answer.
        """
        added = 0
        for one in self._views.ledger.unlogged():
            data = json.dumps(one.as_dict(), sort_keys=True, separators=(",", ":")).encode()
            leaf = self._log.append(f"publication/{one.build_id}", data)
            self._views.ledger.mark_logged(one.publication_id, leaf)
            added += 1
        added += log_drops(self._views.ledger, self._log)
        if added:
            with contextlib.suppress(KeysError):  # else the first reader has it signed
                self._log.checkpoint()
        return added

    # -- inner -------------------------------------------------------------------------------------

    def _subjects(self, batch: Sequence[Request]) -> dict[str, SubjectId | PurgeError]:
        """The ids out of the journal; readable until their keys are destroyed."""
        sealed = [(r.sealed_ref, r.sealed_subject) for r in batch]
        refs = [ref for ref, _ in sealed if ref is not None]
        bodies = [body for _, body in sealed if body is not None]
        opened = self._keyring.opener().open(SUBJECT_CONTEXT, refs, [PLAN_PLACE] * len(refs), bodies)
        found: dict[str, SubjectId | PurgeError] = {}
        for request, body in zip(batch, opened, strict=True):
            if isinstance(body, Held):
                found[request.request_id] = _held()
            elif isinstance(body, bytes):
                found[request.request_id] = SubjectId(body.decode())
            else:  # another request, of the whole person say, was first
                found[request.request_id] = UnknownSubject("this person's keys are destroyed already")
        return found

    def _needles(self, batch: Sequence[Request]) -> dict[str, Needles]:
        return {
            request_id: Needles(found)
            for request_id, found in self._subjects(batch).items()
            if isinstance(found, SubjectId)
        }

    def _fence(self, request: Request) -> Fence:
        epoch = int(request.detail("fenced")["epoch"])
        return self._keyring.fences.numbered([epoch])[0]


def _held() -> UnderHold:
    return UnderHold("a legal hold stands over this person")


def _ref(request: Request) -> bytes:
    assert request.ref is not None, "the handle stays until the receipt is out"
    return request.ref


def _all(batch: Sequence[Request], detail: Detail) -> Outcomes:
    return {request.request_id: detail for request in batch}


def _why(batch: Sequence[Request]) -> str:
    more = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
    return f"erasure {batch[0].request_id}{more}"


def _counted(mine: pl.DataFrame | None) -> tuple[int, int]:
    """(events, dead letters) of a person's blocks: a letter is no event."""
    if mine is None:
        return 0, 0
    counts = (
        mine.filter("primary").group_by(pl.col("event_type") == DEAD_LETTER).agg(pl.col("event_count").sum())
    )
    by_kind = dict(counts.iter_rows())
    return int(by_kind.get(False, 0)), int(by_kind.get(True, 0))
