"""What the scanner still finds of people whose keys were just destroyed: looked for once for a whole batch.

It is told in receipts by store, in counts. It fails no erasure: what is found is not the person's own, which
has no key any more, but what others say of them, or stands in clear where nobody may write an id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from keys import SubjectId
from purge.inventory import store_of
from purge.scanner import PATHS, Finding, Scanned

SCAN: Final = "scan"
"""In what `views_rederived` found: see `scanned`."""
Look = Callable[[Sequence[SubjectId]], Sequence[Scanned]]
"""Looks for people in every byte of a lake."""
_REQUESTS: Final = "purge/journal.db"


def scanned(look: Look, subjects: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """Request → what is left of its person, for its receipt.

    Args:
        subjects: request → whom it erases, or why that is not known any more.
    """
    people = {one: subject for one, subject in subjects.items() if isinstance(subject, SubjectId)}
    if not people:
        return {}
    return {one: {SCAN: _told(found)} for one, found in zip(people, look(list(people.values())), strict=True)}


def _told(found: Scanned) -> dict[str, Any]:
    left = [one for one in found.findings if not _is_the_request(one)]
    return {
        "files": found.files,
        "opened_values": found.opened_values,
        "left": _by_store(left),
        "apart": _by_store(found.apart),
        "not_opened": len(found.failures),
        "not_searched": list(found.not_searched),
        "out_of_reach": list(found.out_of_reach),
    }


def _is_the_request(one: Finding) -> bool:
    """It names the person until the keys of its batch are dropped, right after this."""
    return one.path == _REQUESTS and one.how == "opened" and one.whose == "own"


def _by_store(found: Iterable[Finding]) -> dict[str, int]:
    """Store → files of it, in whatever forms the id stands there."""
    names = Counter(_store(path) for path in {one.path for one in found})
    return dict(sorted(names.items()))


def _store(path: str) -> str:
    store = store_of(path)
    if store is not None:
        return store.name
    return "names of files" if path == PATHS else "files beside the lake's folder"


def in_words(told: Mapping[str, Any]) -> list[str]:
    """What a receipt says was not addressed."""
    found = [
        f"{count} file(s) of the store `{store}` in which the id was found after the keys were destroyed"
        for store, count in told.get("left", {}).items()
    ]
    if told.get("not_opened"):
        found.append(f"{told['not_opened']} file(s) that the scan could not open")
    return [*found, *(f"{place}; the scan did not look there" for place in told.get("out_of_reach", ()))]
