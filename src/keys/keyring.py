"""The keyring: what the other packages call. Seals, opens, provisions, destroys; the key agent's object.

Three answers are never mixed: the value, `Shredded`, or an error. "Shredded" comes from the fence log
alone; a missing page, a silent custodian or a damaged envelope is an error.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from keys import lifecycle, tree
from keys.authenticity import authentic
from keys.caches import Provisioned
from keys.changes import StoreChanges
from keys.custodian import Custodian, Signature
from keys.effects import Effects
from keys.envelope import FieldContext
from keys.epochclose import EpochClose
from keys.errors import InvalidTransition, SubjectErased
from keys.fencelog import ALL_PURPOSES, Fence, FenceLog
from keys.gatekeeping import Gatekeeping
from keys.keytree import KeyTree
from keys.leases import LeaseBook
from keys.pagestore import PageStore, PageWriter
from keys.provisioning import Provisioning
from keys.purposes import PurposeNumbers
from keys.rekey import Progress as RekeyProgress
from keys.rekey import Rekey, Rekeyed
from keys.resident import ResidentKeys
from keys.restoregate import GateStatus, Witness
from keys.retry import repeatedly
from keys.scrubbing import scrubbed_class
from keys.sealing import Opener, SealRule, SealSession
from keys.subjects import DEFAULT_PURPOSE, Identity, Shredded, SubjectId, check_purpose
from keys.treecheck import Progress, TreeCheck, check_tree, fenced_records, tree_stats
from keys.treeinventory import Inventory, take_inventory


@scrubbed_class
class Keyring:
    """Keys of all data subjects of one lake.

    Args:
        custodian, store, fences, leases: the four collaborators; `open_embedded` makes them from a folder.
        random_bytes: source of salts and nonces.
        clock_seconds: monotonic; ages writer sessions.
        rule: how sessions seal.
        owns_root: see `KeyTree`.
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
        rule: SealRule = SealRule(),
        owns_root: bool = True,
        effects: Effects | None = None,
    ) -> None:
        self._rule = rule
        self._effects = effects or Effects()
        self.custodian = custodian
        self.fences = fences
        self.leases = leases
        self.tree = KeyTree(store, custodian, random_bytes, owns_root=owns_root)
        self._store = store
        self._random = random_bytes
        self._clock_seconds = clock_seconds
        self._purposes = PurposeNumbers(store)
        self.changes = StoreChanges(store)
        self.gatekeeping = Gatekeeping(store, fences, self.changes)
        self.resident = ResidentKeys(
            self.tree, store, fences, leases, self.gatekeeping, self.changes, random_bytes
        )
        self._provisioning = Provisioning(
            self.tree, self._transaction, fences, self.resident, self._purposes, self._effects
        )

    # -- provisioning ------------------------------------------------------------------------------

    def provision(
        self, subjects: Sequence[SubjectId], purpose: str = DEFAULT_PURPOSE
    ) -> list[Provisioned | SubjectErased]:
        """See `Provisioning.provision`."""
        return self._provisioning.provision(subjects, purpose)

    def add_identities(self, pairs: Sequence[tuple[bytes, Identity]]) -> None:
        """Names a provisioned subject's further identities in the blind index; none of a destroyed one."""
        index = self.tree.index
        refs = [ref for ref, _ in pairs]
        digests = [index.digests(one.kind, [one.normalised()])[0] for _, one in pairs]

        def add() -> None:
            with self._transaction() as writer:
                alive = {record.ref for record in self.tree.records_of(refs)}
                taken = index.find(digests)  # whose a name is already, it stays
                new = [n for n, ref in enumerate(refs) if ref in alive and taken[n] is None]
                named = [refs[n] for n in new]
                writer.add_blind(index.rows([digests[n] for n in new], named, index.handles.homes(named)))

        repeatedly(add)

    def ref_of(self, subject: SubjectId | Identity) -> bytes | None:
        """The handle of a subject or identity; None when unknown or destroyed."""
        if isinstance(subject, Identity):
            kind, value = subject.kind, subject.normalised()
        else:
            kind, value = "subject", subject.reveal()
        return self.tree.index.find(self.tree.index.digests(kind, [value]))[0]

    def erased(self, subject: SubjectId) -> Shredded | None:
        """The newest fence over the whole person, or None."""
        fences = self.fences.of_tag(self.fences.subject_tag(subject))
        mine = [fence for fence in fences if fence.purpose == ALL_PURPOSES]
        return Shredded(mine[-1].request_id, mine[-1].epoch) if mine else None

    def fenced_since(self, epoch: int, refs: Collection[bytes]) -> bool:
        """Whether any of these handles was fenced after `epoch`, for whatever purpose."""
        return self.fences.touched_since(epoch, refs)

    def authorize_return(self, subject: SubjectId, purpose: str = DEFAULT_PURPOSE) -> None:
        """Lets an erased person be provisioned anew.

        Raises:
            InvalidTransition: never erased, or fenced and not yet destroyed: a key made now would die too.
        """
        fences = self.fences.of_tag(self.fences.subject_tag(subject))
        epochs = [fence.epoch for fence in fences if fence.covers(purpose)]
        if not set(epochs).isdisjoint(self.gate().trusted().pending_epochs):
            raise InvalidTransition("the erasure of this data subject is not finished")
        # For these fences alone: one that comes meanwhile is of an erasure that is not finished.
        self.fences.authorize_return(subject, purpose, max(epochs, default=0))

    def mint(self, count: int, purpose: str = "system") -> list[Provisioned]:
        """Keys that belong to no person (view state, dead letters), each with a fresh ref."""
        check_purpose(purpose)
        tried: list[bytes] = []

        def make() -> None:
            with self._effects("keys.mint"), self._transaction() as writer:
                # Nobody could find them by a name: those of a try whose answer was lost would stay for ever.
                if tried and any(self.tree.records_of(tried)):
                    return
                code = self._purposes.number_or_new(purpose, writer)
                tried[:] = self.tree.create(writer, code, [1] * count)

        repeatedly(make)
        return [Provisioned(ref, 1, True) for ref in tried]

    def drop(self, refs: Sequence[bytes]) -> int:
        """Destroys minted keys; what they sealed is unreadable in every copy after the epoch closes.

        Another process that has such a key keeps it until the next fence, or `evict_everywhere`.
        """

        def remove() -> int:
            with self._effects("keys.drop"), self._transaction() as writer:
                return self.tree.remove(writer, refs, None)

        gone = repeatedly(remove)
        self._store.flush_deleted()
        self.resident.forget(refs)
        return gone

    # -- destroying --------------------------------------------------------------------------------

    def hold(self, ref: bytes, held: bool) -> None:
        """Seals a subject off for a legal hold, or releases it.

        Raises:
            InvalidTransition: fenced already; what is condemned cannot be kept.
        """

        def change() -> None:
            with self._transaction() as writer:
                if held:
                    self._check_step(self.tree.records_of([ref]), lifecycle.hold)
                self.changes.count_hold(writer)
                self.tree.set_state(writer, [ref], tree.STATE_HELD if held else tree.STATE_ACTIVE)

        repeatedly(change)
        self.resident.forget_all()

    def purposes_of(self, ref: bytes) -> list[str]:
        """Purposes a handle still has key records for, read from the pages themselves, past every fence."""
        known = self._purposes.names()
        return [known[record.purpose_code - 1] for record in self.tree.records_of([ref])]

    def hold_changes(self) -> int:
        """How often a hold was placed or released: what is derived from the lake depends on it."""
        return self.changes.holds()

    def fence(
        self, targets: Sequence[tuple[SubjectId, bytes]], request_id: str, purpose: str = ALL_PURPOSES
    ) -> list[Fence]:
        """Writes the fence of each (subject, ref): from here on late events are refused.

        Raises:
            RestoreGateClosed: a new fence would take the number of one that an older log has lost.
            InvalidTransition: one of them is under a legal hold; nobody is fenced.
        """
        return self.fence_together([(subject, ref, request_id, purpose) for subject, ref in targets])

    def fence_together(self, targets: Sequence[tuple[SubjectId, bytes, str, str]]) -> list[Fence]:
        """Writes the fence of each (subject, ref, request id, purpose) in one transaction; as `fence`."""
        self.gate().trusted()
        # Whoever was fenced by a try whose answer was lost stays as that try left them.
        return repeatedly(lambda: self._fence(targets))

    def _fence(self, targets: Sequence[tuple[SubjectId, bytes, str, str]]) -> list[Fence]:
        # Under the pages' lock: a hold is seen here, or is placed later and sees the fence.
        with self._effects("keys.fence"), self._transaction():
            records = list(self.tree.records_of([ref for _, ref, _, _ in targets]))
            codes = {(ref, self._purposes.number(purpose)) for _, ref, _, purpose in targets}
            self._check_step(
                (r for r in records if not codes.isdisjoint(((r.ref, 0), (r.ref, r.purpose_code)))),
                lifecycle.fence,
            )
            top: dict[bytes, int] = {}
            for record in records:
                top[record.ref] = max(top.get(record.ref, 1), record.generation)
            entries = []
            for subject, ref, _, purpose in targets:
                tag = self.fences.subject_tag(subject)
                # Never less than before: whoever comes back begins the generation after the newest fence's.
                before = max((fence.generation for fence in self.fences.of_tag(tag)), default=1)
                entries.append((tag, self.fences.ref_tag(ref), purpose, max(top.get(ref, 1), before)))
            return self.fences.append(entries, [request_id for _, _, request_id, _ in targets])

    def is_held(self, ref: bytes) -> bool:
        """Whether a handle is under legal hold."""
        return any(record.state == tree.STATE_HELD for record in self.tree.records_of([ref]))

    def _check_step(
        self, records: Iterable[tree.KeyRecord], step: Callable[[lifecycle.Life], lifecycle.Life]
    ) -> None:
        """Asks `lifecycle` whether every one of these lives may take a step. Raises `InvalidTransition`."""
        names = self._purposes.names()
        for record in records:
            fence = self.fences.of_ref(record.ref, names[record.purpose_code - 1], record.generation)
            is_held = record.state == tree.STATE_HELD
            state = lifecycle.State.HELD if is_held else lifecycle.State.PROVISIONED
            step(lifecycle.Life(state if fence is None else lifecycle.State.FENCED, record.generation))

    def destroy(self, refs: Sequence[bytes], fences: Sequence[Fence]) -> int:
        """Destroys the records of fenced refs. Repeating it is success.

        Returns how many were there; those of a try whose answer was lost are not counted.

        Raises:
            InvalidTransition: a ref without a fence.
        """
        tags = {fence.ref_tag for fence in fences}
        if any(self.fences.ref_tag(ref) not in tags for ref in refs):
            raise InvalidTransition("cannot destroy a key that is not fenced")
        gone = repeatedly(lambda: self._remove(refs, fences))
        self._store.flush_deleted()
        self.resident.acknowledge_now()
        return gone

    def _remove(self, refs: Sequence[bytes], fences: Sequence[Fence]) -> int:
        gone = 0
        with self._effects("keys.destroy"), self._transaction() as writer:
            self.gate().trusted()  # under the lock: nobody else's fence has this number
            for purpose in {fence.purpose for fence in fences}:
                marked: dict[bytes, int] = {}
                for fence in fences:
                    if fence.purpose == purpose:
                        marked[fence.ref_tag] = max(fence.generation, marked.get(fence.ref_tag, 0))
                tags = {ref: self.fences.ref_tag(ref) for ref in refs}
                # Whoever came back since, after this very destruction was done once, stays.
                highest = {ref: marked[tag] for ref, tag in tags.items() if tag in marked}
                code = None if purpose == ALL_PURPOSES else self._purposes.number_or_new(purpose, writer)
                gone += self.tree.remove(writer, list(highest), code, highest)
            writer.mark_destroyed((fence.epoch, fence.chain) for fence in fences)
            self.changes.name_destruction(writer, self._random)
        return gone

    def wait_until_unreadable(self, epoch: int) -> float:
        """Seconds until every live lease acknowledged `epoch` or expired."""
        self.resident.acknowledge_now()
        return self.leases.wait_until_acknowledged(epoch)

    def evict_everywhere(self) -> float:
        """Lets every process drop every key it keeps; seconds until all have, or may not use them.

        From then on nobody opens what was sealed under a key that is in the pages no more.
        """

        def ask() -> int:
            with self._effects("keys.evict"), self._transaction() as writer:
                return self.changes.count_eviction(writer)

        evictions = repeatedly(ask)
        self.resident.acknowledge_now()
        return self.leases.wait_until_acknowledged(self.epoch(), evictions)

    def gate(self, witnesses: Sequence[Witness] = ()) -> GateStatus:
        """Compares fence log, page store, and what the witnesses remember, these among them."""
        return self.gatekeeping.status(witnesses)

    def bind_fence_log(self, *, replace: bool = False) -> None:
        """Makes the fence log at hand the one of the page store; see `Gatekeeping.bind`."""
        self.gatekeeping.bind(self._transaction, replace=replace)

    def converge(self, *, every_page: bool = False) -> int:
        """Destroys every fenced subject again after a restore. Returns how many fences were replayed.

        Args:
            every_page: also what is back in the pages although they say that it was destroyed.

        Raises:
            RestoreGateClosed: the fence log is the older one; nothing can be proven with it.
        """
        epochs = set(self.gate().trusted().pending_epochs)
        if not epochs and not every_page:
            return 0
        back = list(fenced_records(self.tree, self.fences, self._purposes.names()))
        covering = {fence.epoch for _, fence in back}
        pending = self.fences.numbered(epochs | covering)
        if pending:
            self.destroy(sorted({record.ref for record, _ in back}), pending)
        return len(pending)

    def close_epoch(self) -> EpochClose:
        """Rotates the root and retires what came before; see `KeyTree.close_epoch`."""
        closed = self.tree.close_epoch(self._effects)
        self.tree.forget_cached()
        return closed

    def adopt_root(self) -> int:
        """Goes on with a root that somebody else rotated; returns its version."""
        return self.tree.adopt_root()

    def rekey(
        self,
        *,
        pause_seconds: float = 0.0,
        progress: RekeyProgress = lambda what, done, total: None,
    ) -> Rekeyed:
        """Fresh keys for every page, node and index row while everything goes on; see `keys.rekey`."""
        run = Rekey(
            self.tree,
            self._store,
            self._transaction,
            self._effects,
            pause_seconds=pause_seconds,
            progress=progress,
        )
        return run.run()

    # -- sealing and opening -----------------------------------------------------------------------

    def session(self) -> SealSession:
        """A writer session with its own salt."""
        return SealSession(self.resident, self._random, self._clock_seconds, self._rule)

    def opener(self) -> Opener:
        """Opens blocks in bulk under this process's lease."""
        return Opener(self.resident)

    def authentic(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        envelopes: Sequence[bytes],
    ) -> list[bool]:
        """See `keys.authenticity.authentic`."""
        return authentic(self.opener(), context, refs, block_ids, envelopes)

    def sign(self, payload: bytes) -> Signature:
        """Ed25519 by the custodian."""
        return self.custodian.sign(payload)

    def epoch(self) -> int:
        """The newest fence's number."""
        return self.fences.epoch()

    def catch_up(self) -> int:
        """Evicts at once whatever was erased meanwhile; returns the epoch that holds from here on."""
        return self.resident.catch_up()

    def purposes(self) -> list[str]:
        """Every purpose, in the order of their numbers."""
        return self._purposes.names()

    def stats(self) -> Mapping[str, int | float | str]:
        """For `keys stats`; see `treecheck.tree_stats`."""
        return tree_stats(self._store, self.custodian.status(), self.epoch())

    def check(self, progress: Progress = lambda done, total: None) -> TreeCheck:
        """Opens everything; see `treecheck.check_tree`."""
        return check_tree(self.tree, self._store, self.fences, self._purposes.names(), self.gate(), progress)

    def inventory(self) -> Inventory:
        """Opens everything and counts; see `keys.treeinventory`."""
        replaced = self.tree.index.being_replaced
        return take_inventory(
            self.check(), self._store, self.custodian, self.fences, index_being_replaced=replaced
        )

    def close(self) -> None:
        """Drops every key and gives the lease up."""
        self.resident.release()
        self._store.close()
        self.fences.close()
        self.leases.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[PageWriter]:
        """One transaction; when it fails, what the tree remembered of it is forgotten."""
        try:
            with self._store.transaction() as writer:
                yield writer
        except BaseException:
            self.tree.forget_cached()
            raise
