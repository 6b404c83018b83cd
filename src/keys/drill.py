"""The backup drill: what an erasure is worth when yesterday's backups are brought back.

In a sandbox of its own: people get keys and something sealed, everything is backed up, some are erased,
the epoch is closed, the backups are restored against today's root. None of the erased may open, all
sampled others have to, except from a backup that is older than the epoch close: it opens nobody. With the
root's own backup restored as well everybody opens again: that is the horizon which level E2 of a receipt
names. It is also the proof that the backups were whole, and so that the zeros mean something.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from attrs import frozen

from keys import tree
from keys.custodian import Custodian
from keys.envelope import FieldContext
from keys.errors import KeyRecordMissing, RootKeyRetired, WrongKey
from keys.keyring import Keyring
from keys.opening import KeyPlaces, open_forensic, open_keys
from keys.pagestore import PageStore, SqlitePageStore
from keys.sealing import Opener
from keys.storecopy import copy_store
from keys.subjects import SubjectId

SAMPLE: Final = 1000
BEFORE: Final = "pages and root as they were before the erasure"
TODAY: Final = "today's pages, fence log ignored"
OLD_PAGES: Final = "pages from before the erasure, today's root"
NEW_PAGES: Final = "pages from after the epoch close, today's root"
OLD_ROOT: Final = "pages and root from before the erasure"
CustodianBackup = Callable[[], Callable[[], Custodian]]
"""Takes a backup of the custodian; the answer restores it and gives the custodian of then."""
OnStep = Callable[[str, float], None]
"""Called after each step with what was done and its seconds."""
OnPeople = Callable[[int, int], None]
"""Called with (people written, people in all)."""


class DrillData(Protocol):
    """What is sealed for the people of a drill: events in a lake."""

    def write(self, keyring: Keyring, subjects: Sequence[SubjectId], progress: OnPeople) -> list[bytes]:
        """Provisions everybody and seals something of each; the handles in the same order."""
        ...

    def back_up(self) -> None:
        """Copies everything. From here on the copy is read."""
        ...

    def readable(self, keyring: Keyring, refs: Sequence[bytes]) -> set[bytes]:
        """Whose data in the copy these keys open, of these handles. Raises what is no refusal."""
        ...


@frozen
class DrillSite:
    """Where a drill takes place; nothing of it belongs to a lake.

    Attributes:
        root: opens a root for drills alone: an epoch close retires what else was wrapped with it.
        pages: opens the page store of a name; it is empty the first time.
        root_backup: None where nobody here may take one.
    """

    root: Callable[[], Custodian]
    pages: Callable[[str], PageStore]
    root_backup: CustodianBackup | None = None


@frozen
class Attempt:
    """Who could be read in the lake's backup with some pages and a root, past every fence.

    Attributes:
        what: which pages, which root.
        erased_opened, others_opened: of all erased people, and of the sampled others.
        as_promised: whether that is what an erasure promises of this attempt.
    """

    what: str
    erased_opened: int
    others_opened: int
    as_promised: bool


@frozen
class DrillReport:
    """What the drill measured.

    Attributes:
        sampled: how many of the people who stay were tried.
        old_wrap_refused: see `EpochClose`.
        seconds: of all.
    """

    people: int
    erased: int
    sampled: int
    old_wrap_refused: bool
    attempts: tuple[Attempt, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the promise holds, and was put to a test that could fail."""
        return self.old_wrap_refused and all(attempt.as_promised for attempt in self.attempts)

    def attempt(self, what: str) -> Attempt | None:
        """The attempt of that name; None where it was not made."""
        return next((one for one in self.attempts if one.what == what), None)


def run_drill(
    site: DrillSite,
    data: DrillData,
    sandbox: Path,
    *,
    people: int = 10_000,
    erase: int = 1000,
    on_step: OnStep = lambda what, seconds: None,
    on_people: OnPeople = lambda done, total: None,
) -> DrillReport:
    """Runs the drill.

    Args:
        site: a root and page stores for the drill alone; never those of a lake.
        data: what is sealed; empty.
        sandbox: an empty folder.

    Raises:
        KeysError: an outage, or damage; it would prove nothing.
    """
    began, clock = time.perf_counter(), _Steps(on_step)
    live = site.pages("live")
    keyring = open_keys(KeyPlaces(site.root, lambda: live), sandbox / "keys", owns_root=False)
    subjects = [SubjectId(f"drill-{n}") for n in range(people)]
    refs = data.write(keyring, subjects, on_people)
    clock.step(f"{people:,} people provisioned, an event of each ingested")
    doomed = sorted(random.Random(1).sample(range(people), erase))
    staying = sorted(set(range(people)).difference(doomed))
    sample = random.Random(2).sample(staying, min(SAMPLE, len(staying)))
    trial = _Trial(data, sandbox, [refs[n] for n in doomed], [refs[n] for n in sample])

    old_pages = _back_up(live, site, sandbox, "before")
    data.back_up()
    restore_root = site.root_backup() if site.root_backup is not None else None
    clock.step("backed up and restored in the sandbox: key pages, lake" + (", root" if restore_root else ""))
    trial.attempt(BEFORE, keyring.custodian, old_pages, erased=erase, others=len(sample))
    clock.step("the backups open everybody, as they have to before an erasure")
    _erase(keyring, [(subjects[n], refs[n]) for n in doomed])
    clock.step(f"{erase:,} people erased")
    closed = keyring.close_epoch()
    new_pages = _back_up(live, site, sandbox, "after")
    clock.step("epoch closed, key pages backed up again")
    trial.attempt(TODAY, keyring.custodian, live, erased=0, others=len(sample))
    trial.attempt(OLD_PAGES, keyring.custodian, old_pages, erased=0, others=0)
    trial.attempt(NEW_PAGES, keyring.custodian, new_pages, erased=0, others=len(sample))
    clock.step("today's pages and both backups of them tried under today's root")
    if restore_root is not None:
        trial.attempt(OLD_ROOT, restore_root(), old_pages, erased=erase, others=len(sample))
        clock.step("the root's backup restored as well and tried")
    for store in (old_pages, new_pages):
        store.close()
    keyring.close()
    seconds = time.perf_counter() - began
    return DrillReport(people, erase, len(sample), closed.old_wrap_refused, tuple(trial.attempts), seconds)


def opened_one_by_one(
    opener: Opener, context: FieldContext, rows: Iterable[tuple[bytes, bytes, bytes]]
) -> set[bytes]:
    """Whose value opens, of rows of (handle, block id, envelope). Only a refusal counts as one.

    Each is tried alone: what does not open must not hide what does.
    """
    found = set()
    for ref, block_id, envelope in rows:
        try:
            (body,) = opener.open(context, [ref], [block_id], [envelope])
        except (RootKeyRetired, KeyRecordMissing, WrongKey):
            continue
        if isinstance(body, bytes):
            found.add(ref)
    return found


def nodes_that_open(root: Custodian, pages: PageStore) -> int:
    """How many node keys of a page store a root unwraps; each is tried."""
    tree_id, count = pages.meta("tree") or "", 0
    for row in pages.nodes():
        try:
            root.unwrap([(tree.node_context(tree_id, row.node_id), row.wrapped)])
        except RootKeyRetired:
            continue
        count += 1
    return count


class _Trial:
    """Tries who can be read, by somebody who knows no fence."""

    def __init__(
        self, data: DrillData, sandbox: Path, erased: Sequence[bytes], others: Sequence[bytes]
    ) -> None:
        self._data = data
        self._sandbox = sandbox
        self._erased = erased
        self._others = others
        self.attempts: list[Attempt] = []

    def attempt(self, what: str, root: Custodian, pages: PageStore, *, erased: int, others: int) -> None:
        """Tries everybody; `erased` and `others` are how many must open."""
        scratch = self._sandbox / f"attempt-{len(self.attempts)}"
        scratch.mkdir()
        opened = self._opened(root, pages, scratch)
        gone, rest = len(opened.intersection(self._erased)), len(opened.intersection(self._others))
        self.attempts.append(Attempt(what, gone, rest, (gone, rest) == (erased, others)))

    def _opened(self, root: Custodian, pages: PageStore, scratch: Path) -> set[bytes]:
        everybody = [*self._erased, *self._others]
        try:
            thief = open_forensic(KeyPlaces(lambda: root, lambda: pages), scratch)
        except RootKeyRetired:  # nothing but this is a refusal: an outage would prove nothing
            # Of the index, that is; a thief would go to the nodes at once and read every page under them.
            return set(everybody) if nodes_that_open(root, pages) else set()
        try:
            return self._data.readable(thief, everybody)
        finally:
            thief.resident.release()
            thief.fences.close()
            thief.leases.close()


class _Steps:
    def __init__(self, tell: OnStep) -> None:
        self._tell = tell
        self._last = time.perf_counter()

    def step(self, what: str) -> None:
        now = time.perf_counter()
        self._tell(what, now - self._last)
        self._last = now


def _back_up(live: PageStore, site: DrillSite, sandbox: Path, name: str) -> PageStore:
    """Copies the pages into a file, and restores that in the place where such pages lie."""
    backup = SqlitePageStore(sandbox / f"{name}.backup")
    copy_store(live, backup)
    restored = site.pages(f"restored_{name}")
    copy_store(backup, restored)
    backup.close()
    return restored


def _erase(keyring: Keyring, targets: Sequence[tuple[SubjectId, bytes]]) -> None:
    fences = keyring.fence(targets, "drill")
    keyring.destroy([ref for _, ref in targets], fences)
    keyring.wait_until_unreadable(fences[-1].epoch)
