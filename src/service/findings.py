"""What `doctor` says of files, of consumers and of dates: each finding with what to do."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

from keys import ShredlakeError
from lake import Verified
from service.consumers import ConsumerTrouble
from service.privatefiles import open_to_others

_MODES_SHOWN: Final = 3


@frozen
class Finding:
    """One check: `ok`, `note`, `warning` or `error`, what was seen, and what to do."""

    check: str
    level: Literal["ok", "note", "warning", "error"]
    text: str


def future_finding(checked: Verified) -> Finding:
    """Events of a source whose clock, or the field that it is read from, is wrong."""
    most = ", ".join(f"{count:,} of {name}" for name, count in checked.future_sources)
    text = (
        f"{checked.future:,} are dated further ahead than `future_days` of their type when they came"
        f" ({most}): they are stored and counted, and move no watermark. Mend the source's clock, or raise"
        " `future_days` in the schema where its dates are meant"
    )
    return Finding("dates of events", "warning", text)


def folder_finding(home: Path, shared: bool) -> Finding:
    """Users of the key agent may pass through the folder; nobody else needs to enter it."""
    mode = stat.S_IMODE(home.stat().st_mode)
    most = 0o711 if shared else 0o700
    if mode & ~most:
        return Finding("mode of the lake's folder", "error", f"{mode:04o}: run `chmod {most:04o}` on it")
    return Finding("mode of the lake's folder", "ok", f"{mode:04o}")


def modes_finding(home: Path) -> Finding:
    """The folder keeps others out; what is in it should as well, should somebody open the folder."""
    check, found = "modes in the lake's folder", list(open_to_others(home))
    if not found:
        return Finding(check, "ok", "everything in it is for this user alone")
    shown = ", ".join(str(one.relative_to(home)) for one in found[:_MODES_SHOWN])
    more = f" and {len(found) - _MODES_SHOWN:,} more" if len(found) > _MODES_SHOWN else ""
    text = f"others have rights on {shown}{more}: run `chmod -R go= {home}`"
    return Finding(check, "error" if home.stat().st_mode & 0o077 else "warning", text)


def consumer_findings(found: Sequence[ConsumerTrouble]) -> Iterator[Finding]:
    """Consumers of topics that bring nothing, by what they wrote down."""
    for one in found:
        yield Finding("consumers of topics", "warning" if one.kind == "waits" else "error", one.text())


def log_finding(verify: Callable[[], int], attested: Collection[str], logged: Collection[str]) -> Finding:
    """The transparency log, whose leaves auditors keep checkpoints of.

    Args:
        verify: counts its leaves. Raises ValueError where their hashes do not hold.
        attested: requests that the journal has a receipt of.
        logged: requests whose receipt is a leaf.
    """
    check = "transparency log"
    try:
        leaves = verify()
    except (ValueError, ShredlakeError) as error:
        return Finding(check, "error", str(error))
    if missing := len(set(attested) - set(logged)):
        text = (
            f"{missing:,} receipts of the request journal are no leaves: an older copy was brought back, and"
            " what is appended to it parts from the checkpoints that auditors hold. Restore the newest"
            " evidence/tlog.db before the next erasure or publication"
        )
        return Finding(check, "error", text)
    return Finding(check, "ok", f"{leaves} leaves, hashes hold")
