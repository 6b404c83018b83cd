"""Keys for whoever has none yet: found or made, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from operator import itemgetter
from typing import Any, Final

from keys import lifecycle
from keys.caches import Provisioned
from keys.effects import Effects
from keys.errors import SubjectErased
from keys.fencelog import FenceLog
from keys.keytree import KeyTree
from keys.lifecycle import Life
from keys.pagestore import PageWriter
from keys.purposes import PurposeNumbers
from keys.quiet import no_collections
from keys.resident import ResidentKeys
from keys.retry import repeatedly
from keys.subjects import DEFAULT_PURPOSE, SubjectId, check_purpose

_GUESS_FROM: Final = 256
_SAMPLE: Final = 8
_new_tuple: Final[Any] = tuple.__new__
_ref_and_generation: Final[Callable[[Any], tuple[bytes, int]]] = itemgetter(slice(2))
_FIRST_GENERATION: Final = lifecycle.provision(Life()).generation


class Provisioning:
    """Names subjects and makes their keys.

    Args:
        transaction: opens one on the page store and forgets what the tree cached where it fails.
        effects: the gate of durable effects.
    """

    def __init__(
        self,
        tree: KeyTree,
        transaction: Callable[[], AbstractContextManager[PageWriter]],
        fences: FenceLog,
        resident: ResidentKeys,
        purposes: PurposeNumbers,
        effects: Effects,
    ) -> None:
        self._tree = tree
        self._transaction = transaction
        self._fences = fences
        self._resident = resident
        self._purposes = purposes
        self._effects = effects
        self._strangers = False  # whether everybody in the last batch was new

    def provision(
        self, subjects: Sequence[SubjectId], purpose: str = DEFAULT_PURPOSE
    ) -> list[Provisioned | SubjectErased]:
        """A key for each (subject, purpose): found or made, all new ones in one transaction.

        An erased subject's place holds the error instead of raising, so that one late event of an
        erased person does not stop a batch.
        """
        check_purpose(purpose)
        known = self._resident.names(purpose, len(subjects))
        with no_collections():
            values = [subject.reveal() for subject in subjects]
            cached = [known.get(value) for value in values]
            fresh = {v: s for v, s, pair in zip(values, subjects, cached, strict=True) if pair is None}
            found = self._find_or_make(fresh, purpose, known) if fresh else {}
            if len(found) == len(values):  # nobody was cached, nobody is named twice: the order is the same
                return list(found.values())
            return [
                found[value] if pair is None else _new_tuple(Provisioned, (*pair, False))
                for value, pair in zip(values, cached, strict=True)
            ]

    def _find_or_make(
        self, subjects: Mapping[str, SubjectId], purpose: str, known: dict[str, tuple[bytes, int]]
    ) -> dict[str, Provisioned | SubjectErased]:
        """What is not in the cache, and puts it there: whoever was new comes again, in the next batch."""
        index = self._tree.index
        blinds = index.digests("subject", list(subjects))
        refs = [None] * len(blinds) if self._are_strangers(blinds) else index.find(blinds)
        index.refresh()
        looked_at = index.version
        found = self._resident.active(refs, purpose)
        columns = zip(blinds, subjects.values(), found, strict=True)
        missing = {blind: subject for blind, subject, item in columns if item is None}
        new = {blind for blind, ref in zip(blinds, refs, strict=True) if ref is None}
        trusted = iter((looked_at,))  # the first try relies on the look above; a later one looks again
        made = (
            repeatedly(lambda: self._provision_missing(missing, purpose, new, next(trusted, "")))
            if missing
            else {}
        )
        self._strangers = len(made) == len(blinds) and all(map(_was_created, made.values()))
        answers = [made[b] if item is None else item for b, item in zip(blinds, found, strict=True)]
        outcomes = dict(zip(subjects, answers, strict=True))
        keys = outcomes
        if not self._strangers:
            keys = {value: one for value, one in outcomes.items() if isinstance(one, Provisioned)}
        known.update(zip(keys, map(_ref_and_generation, keys.values()), strict=True))
        return outcomes

    def _are_strangers(self, blinds: Sequence[bytes]) -> bool:
        """Whether nobody here is likely to be known: after a batch of strangers a sample is asked for.

        A guess alone: who is known after all shows when they are added, and then everybody is looked for.
        """
        if not self._strangers or len(blinds) < _GUESS_FROM:
            return False
        sample = blinds[:: len(blinds) // _SAMPLE]
        return not any(self._tree.index.find(sample))

    def _provision_missing(
        self, missing: Mapping[bytes, SubjectId], purpose: str, new_names: Set[bytes], looked_at: str
    ) -> dict[bytes, Provisioned | SubjectErased]:
        """The same by blind name, under the store's write lock: another process may have been first.

        Args:
            new_names: those that the index did not know when it was of version `looked_at`.

        Raises:
            StaleWrite: one of them has come to be meanwhile; look again.
        """
        with self._transaction() as writer:
            code = self._purposes.number_or_new(purpose, writer)
            # With one cipher a name has one row at most: that nobody else made it shows when it is added.
            unknown = new_names if self._tree.index.is_still(looked_at) else frozenset[bytes]()
            known = [blind for blind in missing if blind not in unknown]
            refs = dict(zip(known, self._tree.index.find(known), strict=True))
            found = dict(zip(known, self._resident.active(list(refs.values()), purpose), strict=True))
            there = {blind: item for blind, item in found.items() if item is not None}
            nobody = {b: s for b, s in missing.items() if b not in there} if there else missing
            new, refused = self._new_lives(nobody, purpose)
            created = self._create(writer, code, new, refs) if new else {}
        return {**there, **refused, **created}

    def _create(
        self, writer: PageWriter, code: int, new: Mapping[bytes, int], refs: Mapping[bytes, bytes | None]
    ) -> dict[bytes, Provisioned]:
        """Keys by blind name.

        Args:
            new: the generation that each begins.
            refs: the handles of those that have one already.
        """
        known = {blind: ref for blind in refs.keys() & new if (ref := refs[blind]) is not None}
        nameless = {b: g for b, g in new.items() if b not in known} if known else new
        with self._effects("keys.provision"):
            made = self._tree.create(writer, code, list(nameless.values()), list(nameless))
            if known:
                self._tree.create_for(writer, code, [new[blind] for blind in known], list(known.values()))
        handles = {**dict(zip(nameless, made, strict=True)), **known}
        return {blind: Provisioned(handles[blind], generation, True) for blind, generation in new.items()}

    def _new_lives(
        self, subjects: Mapping[bytes, SubjectId], purpose: str
    ) -> tuple[dict[bytes, int], dict[bytes, SubjectErased]]:
        """By blind name the generation that a new key begins, and who may not have one."""
        new: dict[bytes, int] = {}
        refused: dict[bytes, SubjectErased] = {}
        lives = self._fences.lives(list(subjects.values()), purpose)
        for blind, life in zip(subjects, lives, strict=True):
            try:
                new[blind] = lifecycle.provision(life).generation if life.generation else _FIRST_GENERATION
            except SubjectErased as error:
                refused[blind] = error
        return new, refused


def _was_created(one: Provisioned | SubjectErased) -> bool:
    return isinstance(one, Provisioned) and one.created
