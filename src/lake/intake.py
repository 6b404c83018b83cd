"""Batches that came over HTTP: sealed and written ahead, then committed many at a time, exactly once.

The key that seals what waits belongs to nobody. It is rotated, and destroyed when everything it sealed is
in the table, so that neither the file nor a copy of it can be read later (docs/adr/0015).
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from keys import Effects, FieldContext, KeyRecordMissing, Keyring, Opener, SealSession
from keys.quiet import no_collections
from lake.asides import AsideBook
from lake.batches import Arrival, Batch, Note, Outcome, Queue, Waiting
from lake.cloudevents import parse_cloud_events
from lake.errors import CorruptBlock, IntakeUnreadable, Unsealable
from lake.ingest import Ingestor, Prepared
from lake.parsed import Rejected
from lake.rawjson import elements
from lake.sealer import LETTER_PURPOSE
from lake.spool import Spool, SpoolKeyClosed
from lake.typeregistry import TypeRegistry
from lake.validate import Flaw

_PURPOSE: Final = "system"
INTAKE_CONTEXT: Final = FieldContext(b"shredlake-intake", 0, "intake", _PURPOSE, "batch", 1)
_SECONDS_PER_HOUR: Final = 3600.0


@frozen
class IntakeRule:
    """How much may wait, and when it is committed: by time, events or bytes, whichever is first.

    Attributes:
        commit_seconds, commit_events, commit_bytes: a commit is due when the oldest batch has waited so
            long, or so much waits; a commit takes so much at the most.
        queue_events, queue_bytes: nothing more is taken while so much waits.
        idempotency_hours: how long a committed batch is remembered.
        key_seconds, key_batches: a sealing key takes batches for so long, and so many.
    """

    commit_seconds: float = 1.0
    commit_events: int = 200_000
    commit_bytes: int = 128 * 1024 * 1024
    queue_events: int = 1_000_000
    queue_bytes: int = 512 * 1024 * 1024
    idempotency_hours: float = 24.0
    key_seconds: float = 300.0
    key_batches: int = 10_000


@frozen
class Drained:
    """What one drain committed."""

    batches: int
    events: int


class Intake:
    """What comes over HTTP into one lake.

    Args:
        folder: of spool and lock.
        ingestor: makes the writer of the events table; called when something is committed.
        clock_seconds: seconds since the epoch.

    Attributes:
        asides: what an operator has set aside, and what stands in the way of a commit.
    """

    def __init__(
        self,
        folder: Path,
        keyring: Keyring,
        types: TypeRegistry,
        ingestor: Callable[[], Ingestor],
        effects: Effects,
        rule: IntakeRule,
        clock_seconds: Callable[[], float] = time.time,
    ) -> None:
        self.asides = AsideBook(folder / "topics.db", clock_seconds)
        self._lock = folder / "intake.lock"
        self._keyring = keyring
        self._types = types
        self._make_ingestor = ingestor
        self._effects = effects
        self._rule = rule
        self._clock = clock_seconds
        self._ingestor: Ingestor | None = None
        self._local = threading.local()
        self._minting = threading.Lock()
        self._digest_key: bytes | None = None
        self._spool = Spool(
            folder / "intake.db",
            keyring.epoch,
            clock_seconds,
            max_events=rule.queue_events,
            max_bytes=rule.queue_bytes,
        )

    # -- taking ------------------------------------------------------------------------------------

    def put(self, body: bytes, events: int, idempotency_key: str | None = None) -> tuple[Batch, bool]:
        """Takes a batch durably. Returns (it, whether it is new).

        Args:
            body: JSON of one event or an array of `events` of them.

        Raises:
            KeyReused: the idempotency key came with another body.
            IntakeFull: too much waits; nothing was written.
            StorageFailed, KeysError: nothing was written.
        """
        named = body_named = None
        if idempotency_key is not None:
            named, body_named = self._digest(b"key|", idempotency_key.encode()), self._digest(b"body|", body)
            earlier = self._spool.known(named, body_named)
            if earlier is not None:
                return earlier, False
        self._spool.refuse_if_full()
        batch = uuid.uuid4()
        while True:
            ref = self._sealing_key()
            try:
                sealed = self._session().seal(INTAKE_CONTEXT, [ref], [batch.bytes], [body])[0]
            except KeyRecordMissing:  # destroyed this moment, or the key pages came from a copy
                self._spool.close_keys(_only(ref))
                continue
            assert isinstance(sealed, bytes), "a key of nobody is never fenced"
            one = Arrival(batch.hex, events, len(body), ref, sealed, named, body_named)
            with contextlib.suppress(SpoolKeyClosed), self._effects("intake.put"):
                return self._spool.put(one)

    def get(self, batch_id: str) -> Batch:
        """A batch by its id. Raises `UnknownBatch`."""
        return self._spool.get(batch_id)

    def queue(self) -> Queue:
        """How much waits."""
        return self._spool.queue()

    def oldest_batch(self) -> str | None:
        """Id of the batch that waits longest."""
        return self._spool.oldest_batch()

    def seconds_until_due(self) -> float | None:
        """Until a commit is due, 0 where it is; None when nothing waits."""
        queue = self._spool.queue()
        if queue.oldest_at is None:
            return None
        if queue.events >= self._rule.commit_events or queue.size_bytes >= self._rule.commit_bytes:
            return 0.0
        waited = self._clock() - queue.oldest_at
        # A clock that was set back must not make it wait for ever.
        return max(0.0, self._rule.commit_seconds - waited) if waited >= 0 else 0.0

    def _sealing_key(self) -> bytes:
        with self._minting:
            oldest = self._clock() - self._rule.key_seconds
            found = self._spool.open_key(oldest, self._rule.key_batches)
            if found is None:
                found = self._keyring.mint(1, _PURPOSE)[0].ref
                with self._effects("intake.key"):
                    self._spool.add_key(found)
            return found

    def _session(self) -> SealSession:
        if not hasattr(self._local, "session"):
            self._local.session = self._keyring.session()
        session: SealSession = self._local.session
        return session

    def _digest(self, what: bytes, value: bytes) -> bytes:
        """Keyed: a plain digest of a body would tell whoever can guess it that it was sent."""
        if self._digest_key is None:
            self._digest_key = self._keyring.custodian.secret("intake")
        return hmac.digest(self._digest_key, what + value, "sha256")

    # -- committing --------------------------------------------------------------------------------

    def commit(self, *, wait: bool = False) -> Drained | None:
        """Commits what is next. None when another process or thread is at it.

        Args:
            wait: until the other one is done.

        Raises:
            CatalogUnavailable, StorageFailed, CommitConflict, Fenced, KeysError: what waits goes on waiting.
        """
        with self._claimed(wait) as mine:
            if not mine:
                return None
            try:
                done = self._commit_next()
            except Exception as error:
                with contextlib.suppress(Exception):  # it must not hide the error
                    self.asides.failed(error)
                raise
            self.asides.went_well()
            return done

    def drain(self, before_epoch: int | None = None) -> Drained:
        """Commits all that waits, or what came before a fence, and destroys the keys that sealed it.

        Raises:
            CatalogUnavailable, StorageFailed, CommitConflict, KeysError: run again to go on.
        """
        # Closed first: what is taken meanwhile is sealed under a younger key and does not prolong this.
        self._spool.close_keys(lambda ref, epoch, made_at: before_epoch is None or epoch < before_epoch)
        batches = events = 0
        while self._spool.closed_waits():
            done = self.commit(wait=True)
            assert done is not None
            batches, events = batches + done.batches, events + done.events
        self._destroy_finished_keys()
        return Drained(batches, events)

    def give_up(self) -> int:
        """Drops what waits under keys that are gone; nothing can open it. Returns batches.

        Raises:
            CatalogUnavailable, KeysError: nothing was dropped.
        """
        with self._claimed(True):
            self._reconcile(self._writer().offsets())
            before = self._spool.queue().batches
            if gone := self._gone_keys():
                with self._effects("intake.anew"):
                    self._spool.begin_anew(gone)
            return before - self._spool.queue().batches

    def holds_before(self, epoch: int) -> bool:
        """Whether something waits that came before a fence, or a key lives that sealed such."""
        return self._spool.holds_before(epoch)

    def count_naming(self, holds: Callable[[bytes], bool]) -> int:
        """How many of the batches that wait `holds` recognises; nothing is parsed or changed.

        Raises:
            IntakeUnreadable: a batch that waits cannot be opened by any key.
        """
        opener = self._keyring.opener()
        return sum(holds(self._body_of(opener, *row)) for row in self._spool.waiting())

    def tidy(self) -> None:
        """Destroys keys that are old and have nothing left to open, and forgets old batches."""
        now = self._clock()
        oldest = now - self._rule.key_seconds
        if self._spool.has_key_of_before(oldest):
            self._spool.close_keys(lambda ref, epoch, made_at: made_at <= oldest)
        self._destroy_finished_keys()
        self._spool.forget(now - self._rule.idempotency_hours * _SECONDS_PER_HOUR)

    def letters_in_use(self) -> list[bytes]:
        """The handle that a commit which was begun, and may have to be repeated, seals letters under."""
        found = self._spool.letters_key()
        return [] if found is None else [found]

    def close(self) -> None:
        """Closes the spool."""
        self._spool.close()
        self.asides.close()

    def _commit_next(self) -> Drained:
        if self._spool.queue().batches == 0:
            return Drained(0, 0)
        ingestor = self._writer()
        self._reconcile(ingestor.offsets())
        batches = self._spool.take(self._rule.commit_events, self._rule.commit_bytes)
        if not batches:
            return Drained(0, 0)
        start, end = batches[0].start, batches[-1].end
        source, lines = self._spool.queue().source, self._lines(batches)
        aside: dict[int, Flaw] = {}
        for batch in batches:
            for flaw in self.asides.of_batch(batch.batch_id).values():
                aside |= dict.fromkeys(range(batch.start, batch.end), flaw)
        while True:
            with no_collections():
                parsed = parse_cloud_events(lines, self._types, start, end, aside)

            def about_to(prepared: Prepared, rejected: Sequence[Rejected] = parsed.rejected) -> None:
                outcomes = outcomes_of(batches, rejected, prepared.suppressed_lines)
                with self._effects("intake.intend"):
                    self._spool.intend(end, outcomes)

            nobody = self._letters_key() if any(one.subject is None for one in parsed.rejected) else None
            try:
                ingestor.land([(source, parsed)], about_to, nobody)
                break
            except Unsealable as error:
                aside |= error.places[source]
        with self._effects("intake.settle"):
            settled = self._spool.settle(end)
        return Drained(settled, end - start)

    def _letters_key(self) -> bytes:
        """The same for every attempt: a killed one leaves a data file that a redaction must reach."""
        found = self._spool.letters_key()
        if found is None or not self._keyring.purposes_of(found):
            found = self._keyring.mint(1, LETTER_PURPOSE)[0].ref
            with self._effects("intake.letters-key"):
                self._spool.keep_letters_key(found)
        return found

    def _reconcile(self, offsets: dict[str, int]) -> None:
        """Settles what landed before a kill, and begins anew where spool or table came from a copy."""
        queue = self._spool.queue()
        at = offsets.get(queue.source, 0)
        if at == queue.settled:
            return
        if at == queue.intended:
            with self._effects("intake.settle"):
                self._spool.settle(at)
            return
        with self._effects("intake.anew"):
            self._spool.begin_anew(self._gone_keys())

    def _gone_keys(self) -> list[bytes]:
        return [ref for ref in self._spool.waiting_keys() if not self._keyring.purposes_of(ref)]

    def _writer(self) -> Ingestor:
        if self._ingestor is None:
            self._ingestor = self._make_ingestor()
        return self._ingestor

    def _lines(self, batches: Sequence[Waiting]) -> list[tuple[int, bytes]]:
        opener = self._keyring.opener()
        lines: list[tuple[int, bytes]] = []
        for batch in batches:
            body = self._body_of(opener, batch.key_ref, batch.batch_id, batch.sealed)
            found = lines_of(body)
            if len(found) != batch.events:
                raise CorruptBlock(f"a waiting batch holds {len(found)} events, not {batch.events}")
            lines += enumerate(found, start=batch.start)
        return lines

    def _body_of(self, opener: Opener, key_ref: bytes, batch_id: str, sealed: bytes) -> bytes:
        try:
            return _opened(opener, key_ref, batch_id, sealed)
        except KeyRecordMissing:
            raise IntakeUnreadable("the key of a batch that waits is not in the key pages") from None

    def _destroy_finished_keys(self) -> None:
        finished = self._spool.finished_keys()
        if finished:
            self._keyring.drop(finished)
            with self._effects("intake.drop-keys"):
                self._spool.drop_keys(finished)

    @contextlib.contextmanager
    def _claimed(self, wait: bool) -> Iterator[bool]:
        """One committer at a time; a killed one's lock goes with it."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def _only(ref: bytes) -> Callable[[bytes, int, float], bool]:
    return lambda key, epoch, made_at: key == ref


def lines_of(body: bytes) -> list[bytes]:
    """Each event of a body as the bytes that were sent; the body was JSON when it was taken."""
    return elements(body)


def outcomes_of(
    batches: Sequence[Waiting], rejected: Sequence[Rejected], suppressed: Sequence[int]
) -> list[tuple[str, Outcome]]:
    """What becomes of each batch, by the numbers of the events that are not accepted. Pure."""
    notes: dict[int, tuple[Any, ...]] = {r.line: ("rejected", r.flaw.reason, r.flaw.field) for r in rejected}
    notes.update(dict.fromkeys(suppressed, ("suppressed", None, None)))
    ordered = sorted(notes)
    found, at = [], 0
    for batch in batches:
        mine: list[Note] = []
        while at < len(ordered) and ordered[at] < batch.end:
            line = ordered[at]
            mine.append(Note(line - batch.start, *notes[line]))
            at += 1
        refused = sum(note.status == "suppressed" for note in mine)
        counts = batch.events - len(mine), len(mine) - refused, refused
        found.append((batch.batch_id, Outcome(*counts, tuple(mine))))
    return found


def _opened(opener: Opener, ref: bytes, batch_id: str, sealed: bytes) -> bytes:
    body = opener.open(INTAKE_CONTEXT, [ref], [bytes.fromhex(batch_id)], [sealed])[0]
    assert isinstance(body, bytes), "a key of nobody is neither fenced nor held"
    return body
