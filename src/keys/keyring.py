"""The keyring: what the other packages call. Seals, opens, provisions, destroys; the key agent's object.

Three answers are never mixed: the value, `Shredded`, or an error. "Shredded" comes from the fence log
alone; a missing page, a silent custodian or a damaged envelope is an error.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import frozen

from keys import lifecycle, tree
from keys.custodian import Custodian, Signature
from keys.effects import Effects
from keys.errors import InvalidTransition, KeyRecordMissing, SubjectErased
from keys.fencelog import ALL_PURPOSES, Fence, FenceLog
from keys.keytree import EpochClose, KeyTree, NewKey, page_ids_of
from keys.leases import Lease, LeaseBook
from keys.lifecycle import Life
from keys.pagestore import BlindRow, PageStore, PageWriter
from keys.restoregate import GateStatus, compare
from keys.sealing import Dek, Opener, SealSession
from keys.subjects import DEFAULT_PURPOSE, REF_BYTES, Identity, Shredded, SubjectId, check_purpose

MAX_CACHED_KEYS: Final = 4_000_000
_HOLDS: Final = "hold_changes"
_BULK_FROM: Final = 256
_BULK_SHARE: Final = 4  # more refs than records / 4: open every page instead of asking for each


@frozen
class Provisioned:
    """A key that can seal.

    Attributes:
        ref: the subject's random handle.
        generation: of the DEK.
        created: whether this call made it.
    """

    ref: bytes
    generation: int
    created: bool


class Keyring:
    """Keys of all data subjects of one lake.

    Args:
        custodian, store, fences, leases: the four collaborators; `open_embedded` makes them from a folder.
        random_bytes: source of salts and nonces.
        clock_seconds: monotonic; ages writer sessions.
        effects: the gate of durable effects.
    """

    def __init__(
        self,
        custodian: Custodian,
        store: PageStore,
        fences: FenceLog,
        leases: LeaseBook,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        clock_seconds: Callable[[], float] = time.monotonic,
        effects: Effects | None = None,
    ) -> None:
        self._effects = effects or Effects()
        self.custodian = custodian
        self.fences = fences
        self.leases = leases
        self.tree = KeyTree(store, custodian, random_bytes)
        self._store = store
        self._random = random_bytes
        self._clock_seconds = clock_seconds
        self._mutex = threading.RLock()
        self._keys: dict[bytes, Dek] = {}  # by locator
        self._lease = Lease(leases, self._look_around, self._evict)
        self._seen_holds = 0

    # -- provisioning ------------------------------------------------------------------------------

    def provision(
        self, subjects: Sequence[SubjectId], purpose: str = DEFAULT_PURPOSE
    ) -> list[Provisioned | SubjectErased]:
        """A key for each (subject, purpose): found or made, all new ones in one transaction.

        An erased subject's place holds the error instead of raising, so that one late event of an
        erased person does not stop a batch.
        """
        check_purpose(purpose)
        values = [subject.reveal() for subject in subjects]
        blinds = self.tree.blind("subject", values)
        found = self._active(self.tree.find_blinds(blinds), purpose)
        if all(item is not None for item in found):
            return [item for item in found if item is not None]
        with self._store.transaction() as writer:
            code = self._purpose_code(purpose, writer)
            refs = self.tree.find_blinds(blinds)
            found = self._active(refs, purpose)
            missing: dict[str, tuple[SubjectId, bytes, bytes | None]] = {}
            for subject, value, blind, ref, item in zip(subjects, values, blinds, refs, found, strict=True):
                if item is None:
                    missing.setdefault(value, (subject, blind, ref))
            check_fences = not self.fences.is_empty()
            plan: dict[str, NewKey | SubjectErased] = {}
            for value, (subject, blind, ref) in missing.items():
                life = self.fences.life(subject, purpose) if check_fences else Life()
                try:
                    life = lifecycle.provision(life)
                except SubjectErased as refused:
                    plan[value] = refused
                    continue
                names = () if ref is not None else (blind,)
                plan[value] = NewKey(ref or self._random(REF_BYTES), code, life.generation, names)
            new = [key for key in plan.values() if isinstance(key, NewKey)]
            if new:
                with self._effects("keys.provision"):
                    self.tree.create(writer, new)
        return [
            item if item is not None else _outcome(plan[value])
            for value, item in zip(values, found, strict=True)
        ]

    def add_identities(self, pairs: Sequence[tuple[bytes, Identity]]) -> None:
        """Names a provisioned subject's further identities in the blind index; none of a destroyed one."""
        names = self.tree.sealed_names([ref for ref, _ in pairs])
        blinds = [self.tree.blind(one.kind, [one.normalised()])[0] for _, one in pairs]
        with self._store.transaction() as writer:
            pages = dict(self._store.pages_of([ref for ref, _ in pairs]))
            writer.add_blind(
                BlindRow(blind, pages[ref], name)
                for (ref, _), blind, name in zip(pairs, blinds, names, strict=True)
                if ref in pages
            )

    def ref_of(self, subject: SubjectId | Identity) -> bytes | None:
        """The handle of a subject or identity; None when unknown or destroyed."""
        if isinstance(subject, Identity):
            return self.tree.find(subject.kind, [subject.normalised()])[0]
        return self.tree.find("subject", [subject.reveal()])[0]

    def erased(self, subject: SubjectId) -> Shredded | None:
        """The newest fence over the whole person, or None."""
        self.fences.refresh()
        tag = self.fences.subject_tag(subject)
        mine = [f for f in self.fences.all() if f.subject_tag == tag and f.purpose == ALL_PURPOSES]
        return Shredded(mine[-1].request_id, mine[-1].epoch) if mine else None

    def authorize_return(self, subject: SubjectId, purpose: str = DEFAULT_PURPOSE) -> None:
        """Lets an erased person be provisioned anew.

        Raises:
            InvalidTransition: never erased, or fenced and not yet destroyed: a key made now would die too.
        """
        tag, pending = self.fences.subject_tag(subject), set(self.gate().trusted().pending_epochs)
        fences = [f for f in self.fences.all() if f.subject_tag == tag and f.covers(purpose)]
        if any(f.epoch in pending for f in fences):
            raise InvalidTransition("the erasure of this data subject is not finished")
        self.fences.authorize_return(subject, purpose)

    def mint(self, count: int, purpose: str = "system") -> list[Provisioned]:
        """Keys that belong to no person (view state, dead letters), each with a fresh ref."""
        with self._effects("keys.mint"), self._store.transaction() as writer:
            code = self._purpose_code(purpose, writer)
            made = self.tree.create(writer, [NewKey(self._random(REF_BYTES), code, 1) for _ in range(count)])
        return [Provisioned(record.ref, record.generation, True) for record in made]

    def drop(self, refs: Sequence[bytes]) -> int:
        """Destroys minted keys; what they sealed is unreadable in every copy after the epoch closes."""
        with self._effects("keys.drop"), self._store.transaction() as writer:
            gone = self.tree.remove(writer, refs, None)
        self._store.flush_deleted()
        purposes = len((self._store.meta("purposes") or "").split())
        with self._mutex:
            for ref in refs:
                for code in range(1, purposes + 1):
                    self._keys.pop(tree.locator(ref, code), None)
        return gone

    # -- destroying --------------------------------------------------------------------------------

    def hold(self, ref: bytes, held: bool) -> None:
        """Seals a subject off for a legal hold, or releases it."""
        with self._store.transaction() as writer:
            writer.set_meta(_HOLDS, str(self.hold_changes() + 1))
            self.tree.set_state(writer, [ref], tree.STATE_HELD if held else tree.STATE_ACTIVE)
        with self._mutex:
            self._keys.clear()

    def purposes_of(self, ref: bytes) -> list[str]:
        """Purposes a handle still has key records for, read from the pages themselves, past every fence."""
        known = (self._store.meta("purposes") or "").split()
        pages = page_ids_of(self._store.pages_of([ref]))
        records = [
            tree.decode(record)
            for _, page in self.tree.open_pages(pages)
            for record in tree.records(page)
            if record[:16] == ref
        ]
        return [known[record.purpose_code - 1] for record in records]

    def hold_changes(self) -> int:
        """How often a hold was placed or released: what is derived from the lake depends on it."""
        return int(self._store.meta(_HOLDS) or 0)

    def fence(
        self, targets: Sequence[tuple[SubjectId, bytes]], request_id: str, purpose: str = ALL_PURPOSES
    ) -> list[Fence]:
        """Writes the fence of each (subject, ref): from here on late events are refused.

        Raises:
            RestoreGateClosed: a new fence would take the number of one that an older log has lost.
        """
        self.gate().trusted()
        entries = []
        for subject, ref in targets:
            generations = [
                record.generation
                for _, page in self.tree.open_pages(page_ids_of(self._store.pages_of([ref])))
                for record in map(tree.decode, tree.records(page))
                if record.ref == ref
            ]
            top = max(generations, default=1)
            entries.append((self.fences.subject_tag(subject), self.fences.ref_tag(ref), purpose, top))
        with self._effects("keys.fence"):
            return self.fences.append(entries, request_id)

    def destroy(self, refs: Sequence[bytes], fences: Sequence[Fence]) -> int:
        """Destroys the records of fenced refs. Repeating it is success. Returns how many were there.

        Raises:
            InvalidTransition: a ref without a fence.
        """
        tags = {fence.ref_tag for fence in fences}
        if any(self.fences.ref_tag(ref) not in tags for ref in refs):
            raise InvalidTransition("cannot destroy a key that is not fenced")
        gone = 0
        with self._effects("keys.destroy"), self._store.transaction() as writer:
            for purpose in {fence.purpose for fence in fences}:
                marked = {fence.ref_tag for fence in fences if fence.purpose == purpose}
                mine = [ref for ref in refs if self.fences.ref_tag(ref) in marked]
                code = None if purpose == ALL_PURPOSES else self._purpose_code(purpose, writer)
                gone += self.tree.remove(writer, mine, code)
            writer.mark_destroyed(fence.epoch for fence in fences)
        self._store.flush_deleted()
        self._lease.acknowledge_now()
        return gone

    def wait_until_unreadable(self, epoch: int) -> float:
        """Seconds until every live lease acknowledged `epoch` or expired."""
        self._lease.acknowledge_now()
        return self.leases.wait_until_acknowledged(epoch)

    def gate(self) -> GateStatus:
        """Compares fence log and page store."""
        destroyed = self._store.destroyed_epochs()  # first: whatever is in it was fenced before
        return compare({fence.epoch for fence in self.fences.all()}, destroyed)

    def converge(self) -> int:
        """Destroys every fenced subject again after a restore. Returns how many fences were replayed.

        Raises:
            RestoreGateClosed: the fence log is the older one; nothing can be proven with it.
        """
        epochs = set(self.gate().trusted().pending_epochs)
        pending = [fence for fence in self.fences.all() if fence.epoch in epochs]
        if pending:
            tags = {fence.ref_tag for fence in pending}
            refs = {ref for ref, _ in self._store.all_refs() if self.fences.ref_tag(ref) in tags}
            self.destroy(sorted(refs), pending)
        return len(pending)

    def close_epoch(self) -> EpochClose:
        """Rotates the root and retires what came before; see `KeyTree.close_epoch`."""
        closed = self.tree.close_epoch(self._effects)
        self.tree.forget_cached()
        return closed

    # -- sealing and opening -----------------------------------------------------------------------

    def session(self) -> SealSession:
        """A writer session with its own salt."""
        return SealSession(self, self._random, self._clock_seconds)

    def opener(self) -> Opener:
        """Opens blocks in bulk under this process's lease."""
        return Opener(self)

    def sign(self, payload: bytes) -> Signature:
        """Ed25519 by the custodian."""
        return self.custodian.sign(payload)

    def epoch(self) -> int:
        """The newest fence's number."""
        return self.fences.epoch()

    def deks(self, refs: Sequence[bytes], purpose: str) -> dict[bytes, Dek | Shredded]:
        """ref → `Dek` or `Shredded`. Internal to this package's sealing and opening.

        Raises:
            KeyRecordMissing: neither a key nor a fence.
        """
        self._lease.ensure()
        code = self._purpose_code(purpose)
        wanted = list(dict.fromkeys(refs))
        suffix = code.to_bytes(2, "big")
        with self._mutex:
            absent = [ref for ref in wanted if ref + suffix not in self._keys]
            if absent:
                self._load(absent)
            keys = self._keys
            return {ref: keys.get(ref + suffix) or self._absent(ref, purpose) for ref in wanted}

    def renew_lease(self) -> int:
        """Renews the lease where due, evicting first; returns the acknowledged epoch."""
        return self._lease.ensure()

    def lease_epoch(self) -> int:
        """The epoch this process acknowledged last."""
        return self._lease.epoch

    def check_lease(self) -> None:
        """See `Lease.check`."""
        self._lease.check()

    def stats(self) -> Mapping[str, int | str]:
        """Counts for `keys stats`: pages, records, fences, epoch, root version."""
        status = self.custodian.status()
        pages = self._store.page_ids()
        records = sum(row.count for row in self._store.pages(pages))
        return {
            "pages": len(pages),
            "records": records,
            "epoch": self.epoch(),
            "root_id": status.root_id,
            "root_version": status.latest_version,
            "oldest_root_version": status.minimum_version,
        }

    def close(self) -> None:
        """Drops every key and gives the lease up."""
        self._lease.release()
        self._store.close()
        self.fences.close()
        self.leases.close()

    # -- inner -------------------------------------------------------------------------------------

    def _absent(self, ref: bytes, purpose: str) -> Shredded:
        fence = self.fences.of_ref(ref, purpose, 1)
        if fence is None:
            raise KeyRecordMissing("a handle has neither a key nor a fence")
        return Shredded(fence.request_id, fence.epoch)

    def _active(self, refs: Sequence[bytes | None], purpose: str) -> list[Provisioned | None]:
        known = [ref for ref in refs if ref is not None]
        code = self._purpose_code(purpose)
        self._lease.ensure()
        suffix = code.to_bytes(2, "big")
        with self._mutex:
            absent = [ref for ref in known if ref + suffix not in self._keys]
            if absent:
                self._load(absent)
            hits = [None if ref is None else self._keys.get(ref + suffix) for ref in refs]
        return [
            None if ref is None or hit is None else Provisioned(ref, hit.generation, False)
            for ref, hit in zip(refs, hits, strict=True)
        ]

    def _load(self, refs: Sequence[bytes]) -> None:
        """Reads the records of these refs into the cache; refs without a page stay absent."""
        pages = self._store.page_ids() if len(refs) > _BULK_FROM else []
        if not pages or len(refs) * _BULK_SHARE <= len(pages) * tree.PAGE_RECORDS:
            pages = page_ids_of(self._store.pages_of(refs))
        if len(self._keys) > MAX_CACHED_KEYS:
            self._keys.clear()
        # A fence comes before the destruction: whoever loads in between must not keep the key.
        is_fenced = self.fences.filter()
        known = (self._store.meta("purposes") or "").split()
        purposes = dict(enumerate(known, start=1))
        for _, page in self.tree.open_pages(pages):
            for record in tree.records(page):
                if is_fenced is not None and is_fenced(
                    record[:16],
                    purposes.get(int.from_bytes(record[16:18], "big"), ALL_PURPOSES),
                    int.from_bytes(record[18:20], "big"),
                ):
                    continue
                self._keys[record[:18]] = Dek(
                    record[22:54], int.from_bytes(record[18:20], "big"), record[20] == tree.STATE_HELD
                )

    def _look_around(self) -> int:
        """The epoch; on the way, keys are dropped when a legal hold came or went elsewhere."""
        holds = self.hold_changes()
        if holds != self._seen_holds:
            self._seen_holds = holds
            with self._mutex:
                self._keys.clear()
        return self.fences.refresh()

    def _evict(self, epoch: int) -> None:
        with self._mutex:
            self._keys.clear()
        self.tree.forget_cached()

    def _purpose_code(self, purpose: str, writer: PageWriter | None = None) -> int:
        """The number of a purpose; with a writer it is made, without one an unknown purpose is 0."""
        # Never cached: a number that a failed transaction gave out may become another purpose's.
        known = (self._store.meta("purposes") or "").split()
        if purpose not in known:
            if writer is None:
                return 0
            known.append(purpose)
            writer.set_meta("purposes", " ".join(known))
        return known.index(purpose) + 1


def _outcome(planned: NewKey | SubjectErased) -> Provisioned | SubjectErased:
    if isinstance(planned, SubjectErased):
        return planned
    return Provisioned(planned.ref, planned.generation, True)
