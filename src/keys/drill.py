"""The backup drill: what an erasure is worth when yesterday's backups are brought back.

In a sandbox of its own: people get keys and something sealed, everything is backed up, some are erased,
the epoch is closed, the page store's backup is restored against today's root. None of the erased may
open, all sampled others have to. With the custodian's own backup restored as well they open again:
that is the horizon which level E2 of a receipt names.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from keys.caches import Provisioned
from keys.custodian import Custodian
from keys.envelope import FieldContext
from keys.errors import KeyRecordMissing, RootKeyRetired, WrongKey
from keys.keyring import Keyring
from keys.opening import KeyPlaces, open_forensic, open_keys
from keys.pagestore import SqlitePageStore
from keys.storecopy import copy_store
from keys.subjects import SubjectId

SAMPLE: Final = 1000
_CONTEXT: Final = FieldContext(b"shredlake-drill\0", 0, "personal", "service", "drill", 1)
_BATCH: Final = 1000
_Sealed = tuple[bytes, bytes, bytes]  # ref, block id, envelope
CustodianBackup = Callable[[], Callable[[], Custodian]]
"""Takes a backup of the custodian; the answer restores it and gives the custodian of then."""
OnStep = Callable[[str, float], None]
"""Called after each step with what was done and its seconds."""


@frozen
class DrillReport:
    """What the drill measured.

    Attributes:
        erased_opened: erased people that open from the page store's backup under today's root: must be 0.
        others_opened, others_sampled: of the people who stay, under today's page store.
        with_custodian_backup: erased people that open when the custodian's backup is restored too; None
            where it was not tried.
        backup_refused: the backup as a whole is refused, because its root version is retired.
    """

    people: int
    erased: int
    erased_opened: int
    others_opened: int
    others_sampled: int
    backup_refused: bool
    with_custodian_backup: int | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the promise holds."""
        return self.erased_opened == 0 and self.others_opened == self.others_sampled > 0


def run_drill(
    places: KeyPlaces,
    sandbox: Path,
    *,
    people: int = 10_000,
    erase: int = 1000,
    custodian_backup: CustodianBackup | None = None,
    on_step: OnStep = lambda what, seconds: None,
) -> DrillReport:
    """Runs the drill.

    Args:
        places: a root and an empty page store for the drill alone; never those of a lake, since an epoch
            close retires what other trees under the same root were wrapped with.
        sandbox: an empty folder.
    """
    began = time.perf_counter()
    clock = _Steps(on_step)
    keyring = open_keys(places, sandbox / "keys", owns_root=False)  # every drill of a lake uses the same
    subjects = [SubjectId(f"drill-{n}") for n in range(people)]
    sealed = _seal_all(keyring, subjects)
    clock.step(f"{people:,} people provisioned, something of each sealed")
    backup = SqlitePageStore(sandbox / "backup.db")
    store = places.pages()
    copy_store(store, backup)
    restore_custodian = custodian_backup() if custodian_backup is not None else None
    clock.step("page store and custodian backed up" if restore_custodian else "page store backed up")
    doomed = set(random.Random(1).sample(range(people), erase))
    _erase(keyring, [(subjects[n], sealed[n][0]) for n in sorted(doomed)])
    clock.step(f"{erase:,} people erased")
    keyring.close_epoch()
    clock.step("epoch closed")
    others = random.Random(2).sample(sorted(set(range(people)) - doomed), min(SAMPLE, people - erase))
    gone = [sealed[n] for n in sorted(doomed)]
    today = KeyPlaces(lambda: keyring.custodian, lambda: store)
    others_opened, _ = _opened(today, sandbox / "today", [sealed[n] for n in others])
    restored = KeyPlaces(lambda: keyring.custodian, lambda: backup)
    erased_opened, refused = _opened(restored, sandbox / "restored", gone)
    clock.step("the page store's backup restored and tried under today's root")
    again = None
    if restore_custodian is not None:
        custodian = restore_custodian()
        both = KeyPlaces(lambda: custodian, lambda: backup)
        again, _ = _opened(both, sandbox / "both", gone)
        clock.step("the custodian's backup restored as well and tried")
    keyring.resident.release()
    return DrillReport(
        people,
        erase,
        erased_opened,
        others_opened,
        len(others),
        refused,
        again,
        time.perf_counter() - began,
    )


class _Steps:
    def __init__(self, tell: OnStep) -> None:
        self._tell = tell
        self._last = time.perf_counter()

    def step(self, what: str) -> None:
        now = time.perf_counter()
        self._tell(what, now - self._last)
        self._last = now


def _seal_all(keyring: Keyring, subjects: Sequence[SubjectId]) -> list[_Sealed]:
    found: list[_Sealed] = []
    session = keyring.session()
    for at in range(0, len(subjects), _BATCH):
        made = [m for m in keyring.provision(subjects[at : at + _BATCH]) if isinstance(m, Provisioned)]
        refs = [m.ref for m in made]
        blocks = [(at + n).to_bytes(16, "big") for n in range(len(refs))]
        bodies = [b"what this person did"] * len(refs)
        envelopes = [e for e in session.seal(_CONTEXT, refs, blocks, bodies) if isinstance(e, bytes)]
        found.extend(zip(refs, blocks, envelopes, strict=True))
    return found


def _erase(keyring: Keyring, targets: Sequence[tuple[SubjectId, bytes]]) -> None:
    fences = keyring.fence(targets, "drill")
    keyring.destroy([ref for _, ref in targets], fences)
    keyring.wait_until_unreadable(fences[-1].epoch)


def _opened(places: KeyPlaces, scratch: Path, sealed: Sequence[_Sealed]) -> tuple[int, bool]:
    """(how many of these open with these places by somebody who knows no fence, all was refused)."""
    scratch.mkdir()
    try:
        thief = open_forensic(places, scratch)
    except RootKeyRetired:
        return 0, True  # nothing but this is a refusal: an outage would prove nothing
    opener, count = thief.opener(), 0
    for ref, block, envelope in sealed:
        try:
            (body,) = opener.open(_CONTEXT, [ref], [block], [envelope])
        except (RootKeyRetired, KeyRecordMissing, WrongKey):
            continue
        count += isinstance(body, bytes)
    thief.resident.release()
    return count, False
