"""Keys in memory: read from the page store, kept under a lease, gone with the next erasure's epoch."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Sequence
from typing import Final

from keys import envelope as cse1
from keys import tree
from keys.aead import SUITE_AES_GCM
from keys.caches import Caches, Dek, MaskedKey, Provisioned, may_keep_page
from keys.changes import StoreChanges
from keys.envelope import FieldContext, Subkey
from keys.errors import EnvelopeFault, KeyRecordMissing, TamperedEnvelope, WrongKey
from keys.fencelog import ALL_PURPOSES, FenceLog
from keys.gatekeeping import Gatekeeping
from keys.keytree import KeyTree
from keys.leases import Lease, LeaseBook, Seen
from keys.mac import hmac_sha512s
from keys.pagestore import PageStore
from keys.purposes import PurposeNumbers
from keys.restoregate import foreign_fence_log
from keys.scrubbing import scrubbed_class
from keys.subjects import DEFAULT_PURPOSE, Held, Shredded

_BULK_FROM: Final = 256
_BULK_SHARE: Final = 4  # more refs than records / 4: open every page instead of asking for each


@scrubbed_class
class ResidentKeys:
    """The keys this process may use right now. Safe for threads, which share one lease.

    Args:
        key_tree, store, fences: where keys and fences are read.
        leases: where this process is known as a holder.
        gatekeeping: knows whether the fences are those of the pages.
        changes: of holds and evictions; either throws everything cached away.
        random_bytes: source of sessions' salts.

    Attributes:
        past_holds: opens what is under a legal hold too: a thief asks for none.
    """

    def __init__(
        self,
        key_tree: KeyTree,
        store: PageStore,
        fences: FenceLog,
        leases: LeaseBook,
        gatekeeping: Gatekeeping,
        changes: StoreChanges,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.fences = fences
        self.past_holds = False
        self._tree = key_tree
        self._store = store
        self._purposes = PurposeNumbers(store)
        self._gatekeeping = gatekeeping
        self._changes = changes
        self._random = random_bytes
        self._seen_holds = 0
        self._seen_replacements = 0
        self._mutex = threading.RLock()
        self._caches = Caches()
        self._lease = Lease(leases, self._look_around, self._evict)

    # -- keys --------------------------------------------------------------------------------------

    def deks(self, refs: Sequence[bytes], purpose: str) -> dict[bytes, Dek | Shredded]:
        """ref → `Dek` or `Shredded`.

        Raises:
            KeyRecordMissing: neither a key nor a fence.
        """
        wanted = list(dict.fromkeys(refs))
        found = self._found(wanted, purpose)
        if all(found):
            return dict(zip(wanted, found, strict=True))  # type: ignore[arg-type]
        return {ref: one or self._absent(ref, purpose) for ref, one in zip(wanted, found, strict=True)}

    def active(self, refs: Sequence[bytes | None], purpose: str) -> list[Provisioned | None]:
        """What can seal already; None where there is no key."""
        known = [ref for ref in refs if ref is not None]
        found = dict(zip(known, self._found(known, purpose), strict=True))
        return [
            Provisioned(ref, hit.generation, False) if ref is not None and (hit := found[ref]) else None
            for ref in refs
        ]

    def names(self, purpose: str, coming: int) -> dict[str, tuple[bytes, int]]:
        """The cache of subject ids that were found, see `Caches.names`; only while the epoch lasts.

        Args:
            coming: how many the caller may add.
        """
        self._lease.ensure()
        with self._mutex:
            return self._caches.names(purpose, coming)

    def begin_session(self) -> bytes:
        """A fresh salt for a writer session."""
        return self._random(cse1.SALT_BYTES)

    def sealing(
        self, salt: bytes, context: FieldContext, refs: Sequence[bytes], suite: int = SUITE_AES_GCM
    ) -> dict[bytes, Subkey | Shredded]:
        """See `keys.sealing.SealKeys`."""
        info = context.derivation_info(suite)
        self._lease.ensure()
        with self._mutex:  # before the keys: what is derived from older ones goes where nobody looks
            known = self._caches.sealing(info + salt, len(refs))
        # Who is known has not been evicted; what another process does meanwhile is the commit's to notice.
        missing = [ref for ref in refs if ref not in known]
        found = self.deks(missing, context.purpose) if missing else {}
        shredded = {ref: dek for ref, dek in found.items() if isinstance(dek, Shredded)}
        living = {ref: dek for ref, dek in found.items() if isinstance(dek, Dek)}
        keys, generations = [dek.key for dek in living.values()], [dek.generation for dek in living.values()]
        known.update(zip(living, cse1.derive_many(keys, info, salt, suite, generations), strict=True))
        if not shredded:
            return {ref: known[ref] for ref in refs}
        return {ref: shredded.get(ref) or known[ref] for ref in refs}

    def packed_subkeys(
        self, salt: bytes, context: FieldContext, refs: Sequence[bytes], suite: int
    ) -> tuple[bytes, list[int], dict[int, Shredded]]:
        """The same for the wire: (keys and commitments, generations, who is shredded by place).

        Nothing is kept here: whoever asked keeps it. A shredded one has 64 zero bytes and generation 0.
        """
        found = self.deks(refs, context.purpose)
        message, blank = context.derivation_info(suite) + salt, bytes(2 * tree.KEY_BYTES)
        ordered = [found[ref] for ref in refs]
        living = iter(hmac_sha512s([dek.key for dek in ordered if isinstance(dek, Dek)], message))
        keys = [blank if isinstance(dek, Shredded) else next(living) for dek in ordered]
        generations = [0 if isinstance(dek, Shredded) else dek.generation for dek in ordered]
        shredded = {at: dek for at, dek in enumerate(ordered) if isinstance(dek, Shredded)}
        return b"".join(keys), generations, shredded

    def tag_keys(self, refs: Sequence[bytes]) -> dict[bytes, bytes]:
        """BLAKE2b (RFC 7693), keyed by the DEK; see `keys.sealing.SealKeys`."""
        self._lease.ensure()
        with self._mutex:
            known = self._caches.tag_keys(len(refs))
        missing = [ref for ref in refs if ref not in known]
        for ref, dek in self.deks(missing, DEFAULT_PURPOSE).items() if missing else ():
            if isinstance(dek, Dek):
                digest = hashlib.blake2b(key=dek.key, person=b"CSE1 event tag").digest()
                known[ref] = MaskedKey(digest[: tree.KEY_BYTES])
        return {ref: known[ref] for ref in refs if ref in known}

    def opening(
        self, context: FieldContext, refs: Sequence[bytes], headers: Sequence[cse1.Header]
    ) -> list[Subkey | Shredded | Held]:
        """See `keys.sealing.OpenKeys`.

        Raises:
            TamperedEnvelope: the generation in a header was changed.
            WrongKey: a header names a generation that the person never had.
            KeyRecordMissing: neither a key nor a fence.
        """
        deks = self._found(refs, context.purpose)
        if (usual := _usual(refs, deks, headers)) is not None:
            suite, salt = usual
            generations = [dek.generation for dek in deks]  # type: ignore[union-attr]
            keys = [dek.key for dek in deks]  # type: ignore[union-attr]
            return [*cse1.derive_many(keys, context.derivation_info(suite), salt, suite, generations)]
        infos = {suite: context.derivation_info(suite) for suite in cse1.CIPHERS.values()}
        found: list[Subkey | Shredded | Held] = []
        last: tuple[bytes, int, bytes] | None = None
        for ref, dek, header in zip(refs, deks, headers, strict=True):
            suite, _, generation, salt, _, _ = header
            if dek is None or dek.held or dek.generation != generation:
                found.append(self._unusual(dek, ref, context, header))
                continue
            place = ref, suite, salt
            if place != last:
                subkey, last = cse1.derive(dek.key, infos[suite], salt, suite, generation), place
            found.append(subkey)
        return found

    def forget(self, refs: Sequence[bytes]) -> None:
        """Drops the keys of some handles, whatever their purpose, and every derived one."""
        numbers = range(1, len(self._purposes.names()) + 1)
        with self._mutex:
            self._caches.forget(refs, numbers)

    def forget_all(self) -> None:
        """Drops everything; it is read again when needed."""
        with self._mutex:
            self._caches = Caches()

    # -- the lease ---------------------------------------------------------------------------------

    def catch_up(self) -> int:
        """Evicts at once whatever was erased meanwhile; returns the epoch that holds from here on."""
        if self.fences.epoch() != self._lease.epoch:
            self._lease.acknowledge_now()
        return self._lease.ensure()

    def renew_lease(self) -> int:
        """Renews the lease where due, evicting first; returns the acknowledged epoch."""
        return self._lease.ensure()

    def acknowledge_now(self) -> None:
        """See `Lease.acknowledge_now`."""
        self._lease.acknowledge_now()

    def lease_epoch(self) -> int:
        """The epoch this process acknowledged last."""
        return self._lease.epoch

    def check_lease(self) -> None:
        """See `Lease.check`."""
        self._lease.check()

    def release(self) -> None:
        """Drops every key and gives the lease up."""
        self._lease.release()

    # -- inner -------------------------------------------------------------------------------------

    def _absent(self, ref: bytes, purpose: str) -> Shredded:
        fence = self.fences.of_ref(ref, purpose, 1)
        if fence is None:
            raise KeyRecordMissing("a handle has neither a key nor a fence")
        return Shredded(fence.request_id, fence.epoch)

    def _unusual(
        self, dek: Dek | None, ref: bytes, context: FieldContext, header: cse1.Header
    ) -> Shredded | Held:
        """Where there is no key, or not the one that a header names. Raises as `opening` does."""
        purpose = context.purpose
        if dek is None:
            return self._shredded(self._absent(ref, purpose), ref, purpose, header.generation)
        if dek.held:
            return Held()
        subkey = cse1.derive(dek.key, context.derivation_info(header.suite), header.salt, header.suite)
        if hmac.compare_digest(header.commitment, subkey.commitment):
            raise TamperedEnvelope(
                "the generation in the envelope was changed", fault=EnvelopeFault.GENERATION_CHANGED
            )
        return self._other_generation(ref, purpose, header.generation)

    def _shredded(self, answer: Shredded, ref: bytes, purpose: str, generation: int) -> Shredded:
        """`answer` is of generation 1: a later one, of a purpose that came back, needs its own fence."""
        if generation <= 1:
            return answer
        fence = self.fences.of_ref(ref, purpose, generation)
        if fence is None:
            raise KeyRecordMissing("a handle has no key of this generation, and no fence")
        return Shredded(fence.request_id, fence.epoch)

    def _other_generation(self, ref: bytes, purpose: str, generation: int) -> Shredded:
        fence = self.fences.of_ref(ref, purpose, generation)
        if fence is None:
            raise WrongKey(
                f"the envelope names generation {generation}, which this subject has not",
                fault=EnvelopeFault.GENERATION_UNKNOWN,
            )
        return Shredded(fence.request_id, fence.epoch)

    def _found(self, refs: Sequence[bytes], purpose: str) -> list[Dek | None]:
        """The key of each, read where it is not in memory."""
        self._lease.ensure()
        suffix = self._purposes.number(purpose).to_bytes(2, "big")
        with self._mutex:
            caches = self._caches
            found = [caches.deks.get(ref + suffix) for ref in refs]
            if all(found):
                return found
            absent = [ref for ref, one in zip(refs, found, strict=True) if one is None]
            if not caches.has_room(len(absent)):
                caches = self._caches = Caches()
                absent = list(refs)
            into = caches.deks if caches.has_room(len(absent)) else {}
            self._load(absent, suffix, into)
            return [into.get(ref + suffix) for ref in refs]

    def _load(self, refs: Sequence[bytes], suffix: bytes, into: dict[bytes, Dek]) -> None:
        """Reads the pages of these refs; refs without a page stay absent.

        A page's other keys are kept as well while there is room: neighbours were provisioned together. They
        lie in memory in the order of the handles, as whoever reads sorted files asks for them.
        """
        pages = self._store.page_ids() if len(refs) > _BULK_FROM else []
        if not pages or len(refs) * _BULK_SHARE <= len(pages) * tree.PAGE_RECORDS:
            pages = self._tree.pages_of(refs)
        # A fence comes before the destruction: whoever loads in between must not keep the key.
        fence_of = self.fences.covering()
        purposes = dict(enumerate(self._purposes.names(), start=1))
        wanted = {ref + suffix for ref in refs}
        held, kept = len(into), list[bytes]()
        for _, page in self._tree.open_pages(pages):
            if not may_keep_page(held, len(wanted)):
                page = b"".join(one for one in tree.records(page) if one[: tree.LOCATOR_BYTES] in wanted)
            kept.append(page)
            held += len(page) // tree.RECORD_BYTES
        ordered = tree.in_order(b"".join(kept))
        kept.clear()
        for record in tree.records(ordered):
            if fence_of is not None and fence_of(
                record[:16],
                purposes.get(int.from_bytes(record[16:18], "big"), ALL_PURPOSES),
                int.from_bytes(record[18:20], "big"),
            ):
                continue
            into[record[:18]] = Dek(
                record[22:54],
                int.from_bytes(record[18:20], "big"),
                record[20] == tree.STATE_HELD and not self.past_holds,
            )

    def _look_around(self) -> Seen:
        """What a lease acknowledges; on the way, keys are dropped when a hold came or went elsewhere,
        or the fence log was replaced by another one that may have as many fences.

        Raises:
            RestoreGateClosed: the fences are another lake's, or another host's copy.
        """
        if not self._gatekeeping.knows_its_fence_log():
            raise foreign_fence_log()
        holds, evictions = self._changes.holds(), self._changes.evictions()
        epoch = self.fences.refresh()
        replacements = self.fences.replacements
        if (holds, replacements) != (self._seen_holds, self._seen_replacements):
            self._seen_holds, self._seen_replacements = holds, replacements
            self.forget_all()
        return Seen(epoch, evictions)

    def _evict(self, epoch: int) -> None:
        self.forget_all()
        self._tree.forget_cached()


def _usual(
    refs: Sequence[bytes], deks: Sequence[Dek | None], headers: Sequence[cse1.Header]
) -> tuple[int, bytes] | None:
    """(suite, salt) where these are different people's, all alive and sealed by one session."""
    kinds = {(header[0], header[3]) for header in headers}
    if len(kinds) != 1 or len(set(refs)) != len(refs):
        return None
    for dek, header in zip(deks, headers, strict=True):
        if dek is None or dek[2] or dek[1] != header[2]:
            return None
    return kinds.pop()
