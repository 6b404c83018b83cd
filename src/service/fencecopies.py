"""Signed copies of the fence log elsewhere: written after every erasure, compared by `doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import frozen

from keys import Keyring, ShredlakeError, export_fences
from keys.errors import FenceCopyInvalid
from keys.fencecopy import read_copy
from lake import get_bytes, put_bytes


@frozen
class CopyState:
    """How one copy stands against the log here.

    Attributes:
        behind: fences that the log has and the copy lacks.
    """

    place: str
    level: Literal["ok", "warning", "error"]
    text: str
    behind: int = 0


class FenceCopies:
    """The copies that the settings name.

    Args:
        places: paths, `file://` or `s3://bucket/key`.
        properties: of the store, as the lake's tables use them.
    """

    def __init__(self, keyring: Keyring, places: Sequence[str], properties: Mapping[str, str]) -> None:
        self._keyring = keyring
        self._places = places
        self._properties = properties

    def write(self) -> dict[str, str]:
        """Writes each where it is not newer than the log here; place → what came of it. Never fails."""
        if not self._places:
            return {}
        try:
            copy = export_fences(self._keyring.fences, self._keyring.custodian)
        except (ShredlakeError, ValueError, OSError) as error:
            return {place: f"not written: {type(error).__name__}" for place in self._places}
        return {place: self._write(place, copy) for place in self._places}

    def look(self) -> list[CopyState]:
        """How each copy stands."""
        return [self._look(place) for place in self._places]

    def _write(self, place: str, copy: bytes) -> str:
        try:
            # An older log that was restored must not take the place of the copy that can mend it.
            state = self._compared(place, get_bytes(place, self._properties))
            if state.level == "error" and state.behind < 0:
                return f"not written: {state.text}"
            put_bytes(place, copy, self._properties)
        except (ShredlakeError, OSError) as error:
            return f"not written: {type(error).__name__}"
        return "written"

    def _look(self, place: str) -> CopyState:
        try:
            return self._compared(place, get_bytes(place, self._properties))
        except (ShredlakeError, OSError) as error:
            return CopyState(place, "error", f"cannot be read: {type(error).__name__}")

    def _compared(self, place: str, copy: bytes | None) -> CopyState:
        mine = [fence.chain for fence in self._keyring.fences.all()]
        if copy is None:
            text = f"is not there, {len(mine):,} fence(s) behind: run `shredlake keys export-fences`"
            return CopyState(place, "warning", text, len(mine))
        try:
            _, fences, returns = read_copy(copy, self._keyring.custodian.public_keys())
        except FenceCopyInvalid as error:
            return CopyState(place, "error", f"{error.message}; write it anew and find out who did it")
        theirs = [fence.chain for fence in fences]
        behind = len(mine) - len(theirs)
        if mine[: len(theirs)] != theirs[: len(mine)]:
            return CopyState(place, "error", "is of another history than the log here", -1)
        if behind < 0:
            text = f"has {-behind:,} fence(s) more than the log here: run `shredlake keys import-fences`"
            return CopyState(place, "error", text, behind)
        if behind or len(returns) < len(self._keyring.fences.returns()):
            text = f"ends at fence {len(theirs):,}, {behind:,} behind: run `shredlake keys export-fences`"
            return CopyState(place, "warning", text, behind)
        return CopyState(place, "ok", f"holds all {len(theirs):,} fence(s)")
