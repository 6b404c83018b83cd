"""Signed copies of the fence log in other places: written by every erasure, and asked by the restore gate."""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

from keys import Fence, FenceCopyInvalid, Keyring, Remembered, ShredlakeError, Witness, export_fences
from keys.fencecopy import newest_of, read_copy
from keys.fencelog import Return
from lake import StorageFailed, get_bytes, put_bytes, stamp_of

_FAR: Final = "s3://"
_FAR_SECONDS: Final = 60.0
_FAR_AGAIN_SECONDS: Final = 10.0
_WRITTEN: Final = "written"


@frozen
class CopyState:
    """How one copy stands against the log here.

    Attributes:
        behind: fences that the log has and the copy lacks.
        knows_more: it may hold what the log here lacks, so it must not be replaced.
    """

    place: str
    level: Literal["ok", "warning", "error"]
    text: str
    behind: int = 0
    knows_more: bool = False


@frozen
class _Look:
    """What a place said when it was looked at last.

    Attributes:
        stamp: of the bytes that were read; None where there was no copy.
        error: why it says nothing.
        good_until: by the monotonic clock, in seconds; before that a place far away is not asked again.
    """

    stamp: str | None
    newest: Remembered | None
    error: ShredlakeError | None
    good_until: float


class FenceCopies:
    """The copies that the settings name.

    Args:
        places: paths, `file://` or `s3://bucket/key`.
        properties: of the store, as the lake's tables use them.
        lock: a file that whoever writes copies holds, so that an older one never replaces a newer one.
        clock_seconds: monotonic.

    Attributes:
        places: as given.
    """

    def __init__(
        self,
        keyring: Keyring,
        places: Sequence[str],
        properties: Mapping[str, str],
        lock: Path,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.places = tuple(places)
        self._keyring = keyring
        self._properties = properties
        self._lock = lock
        self._clock_seconds = clock_seconds
        self._looks: dict[str, _Look] = {}

    def witnesses(self) -> list[Witness]:
        """What the restore gate asks, one for each place."""
        return [self.witness(place) for place in self.places]

    def witness(self, place: str) -> Witness:
        """What the gate asks one place; see `_newest` for what it raises."""
        return functools.partial(self._newest, place)

    def write(self, to: str | None = None) -> dict[str, str]:
        """Writes each that knows nothing which the log here lacks; place → what came of it. Never fails.

        Args:
            to: this place alone.
        """
        places = self.places if to is None else (to,)
        if not places:
            return {}
        try:
            with _held(self._lock):
                copy = export_fences(self._keyring.fences, self._keyring.custodian)
                return {place: self._write(place, copy) for place in places}
        except (ShredlakeError, ValueError, OSError) as error:
            return {place: f"not written: {type(error).__name__}" for place in places}

    def look(self) -> list[CopyState]:
        """How each copy stands."""
        return [self._state(place) for place in self.places]

    # -- as witnesses ------------------------------------------------------------------------------

    def _newest(self, place: str) -> Remembered | None:
        """The newest fence that a copy knows; None where there is no copy yet.

        A place that cannot be reached goes on saying what it said to this process: a copy only grows. One
        that never said anything is left out where another place has a copy.

        Raises:
            FenceCopyInvalid: it was cut or edited, or no copy can be read at all.
        """
        found = self._looked(place)
        if found.error is None or found.newest is not None:
            return found.newest
        if isinstance(found.error, FenceCopyInvalid):
            raise _unusable(place, found.error.message)
        if any(self._answers(other) for other in self.places if other != place):
            return None
        raise _unusable(place, "the copy of the fence log cannot be read")

    def _answers(self, place: str) -> bool:
        """Whether a copy is there and can be read; one that was edited shuts the gate in its own name."""
        found = self._looked(place)
        return isinstance(found.error, FenceCopyInvalid) or (found.error is None and found.stamp is not None)

    def _looked(self, place: str) -> _Look:
        before, now = self._looks.get(place), self._clock_seconds()
        if before is None or now >= before.good_until:
            self._looks[place] = self._look_again(place, before, now)
        return self._looks[place]

    def _look_again(self, place: str, before: _Look | None, now: float) -> _Look:
        far = place.startswith(_FAR)
        good_until = now + (_FAR_SECONDS if far else 0.0)
        stamp = None
        try:
            stamp = stamp_of(place, self._properties)
            if before is not None and before.stamp == stamp:
                error = before.error if isinstance(before.error, FenceCopyInvalid) else None
                return _Look(stamp, before.newest, error, good_until)
            body = None if stamp is None else get_bytes(place, self._properties)
            keys = self._keyring.custodian.public_keys() if body is not None else {}
            newest = None if body is None else newest_of(body, keys, f"the signed copy {_name(place)}")
            return _Look(stamp, newest, None, good_until)
        except FenceCopyInvalid as invalid:
            return _Look(stamp, None, invalid, good_until)
        except StorageFailed as failed:
            again = now + (_FAR_AGAIN_SECONDS if far else 0.0)
            kept = before if before is not None and before.newest is not None else None
            return _Look(kept.stamp if kept else None, kept.newest if kept else None, failed, again)

    # -- writing and comparing ---------------------------------------------------------------------

    def _write(self, place: str, copy: bytes) -> str:
        try:
            state = self._compared(place, get_bytes(place, self._properties))
            if state.knows_more:
                return f"not written: it {state.text}"
            put_bytes(place, copy, self._properties)
        except (ShredlakeError, OSError) as error:
            return f"not written: {type(error).__name__}"
        return _WRITTEN

    def _state(self, place: str) -> CopyState:
        try:
            return self._compared(place, get_bytes(place, self._properties))
        except (ShredlakeError, OSError) as error:
            level: Literal["warning", "error"] = "error"
            if any(self._answers(other) for other in self.places if other != place):
                level = "warning"
            return CopyState(place, level, f"cannot be read: {type(error).__name__}")

    def _compared(self, place: str, copy: bytes | None) -> CopyState:
        log = self._keyring.fences
        mine, returned = log.all(), log.returns()
        if copy is None:
            text = f"is not there, {len(mine):,} fence(s) behind: run `shredlake keys export-fences`"
            return CopyState(place, "warning", text, len(mine))
        try:
            _, fences, returns = read_copy(copy, self._keyring.custodian.public_keys())
        except FenceCopyInvalid as error:
            text = f"is no good ({error.message}): put an intact one in its place or move it away"
            return CopyState(place, "error", text, knows_more=True)
        behind = len(mine) - len(fences)
        if not _is_beginning(fences, mine):
            return self._parted(place, mine, fences, behind)
        unknown = len(_places_of(returns) - _places_of(returned))
        if unknown:
            text = f"has {unknown:,} authorised return(s) more than the log here: import-fences brings them"
            return CopyState(place, "warning", text, behind, knows_more=True)
        if behind or len(returns) < len(returned):
            text = f"ends at fence {len(fences):,}, {behind:,} behind: run `shredlake keys export-fences`"
            return CopyState(place, "warning", text, behind)
        return CopyState(place, "ok", f"holds all {len(fences):,} fence(s)")

    def _parted(self, place: str, mine: Sequence[Fence], fences: Sequence[Fence], behind: int) -> CopyState:
        newest = Remembered("a copy", fences[-1].epoch, fences[-1].chain)
        if not self._keyring.gatekeeping.lacks(newest):
            text = "is of fences that were given up: run `shredlake keys export-fences`"
            return CopyState(place, "warning", text, len(mine))
        if _is_beginning(mine, fences):
            text = f"has {-behind:,} fence(s) more than the log here: run `shredlake keys import-fences`"
            return CopyState(place, "error", text, behind, knows_more=True)
        return CopyState(place, "error", "is of another history than the log here", knows_more=True)


def not_written(told: Mapping[str, str]) -> list[str]:
    """The places that `FenceCopies.write` could not or would not write, each with why."""
    return [f"{place} {what}" for place, what in told.items() if what != _WRITTEN]


def _is_beginning(first: Sequence[Fence], whole: Sequence[Fence]) -> bool:
    """Whether `whole` begins with `first`. The links are a chain, so the last one stands for all."""
    return not first or (len(first) <= len(whole) and whole[len(first) - 1].chain == first[-1].chain)


def _places_of(returns: Sequence[Return]) -> set[tuple[bytes, str, int]]:
    return {(one.subject_tag, one.purpose, one.epoch) for one in returns}


def _name(place: str) -> str:
    return place.rpartition("/")[2]


def _unusable(place: str, message: str) -> FenceCopyInvalid:
    return FenceCopyInvalid(
        f"{message} ({_name(place)})",
        next_step="Put an intact copy in its place, or reach it again; where the fence log is known to be"
        " whole, move this one away and write a new one with `shredlake keys export-fences`.",
    )


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
