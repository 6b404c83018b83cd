"""Which sealed values are what a holder of their keys sealed, without showing any of them."""

from __future__ import annotations

from collections.abc import Sequence

from keys.envelope import FieldContext
from keys.errors import EnvelopeError, KeyRecordMissing
from keys.sealing import Opener


def authentic(
    opener: Opener,
    context: FieldContext,
    refs: Sequence[bytes],
    block_ids: Sequence[bytes],
    envelopes: Sequence[bytes],
) -> list[bool]:
    """Whether each would open; of a person who is erased or held nobody can tell, and nothing is read.

    Found in halves, so that many good ones are opened at once.

    Raises:
        CustodianUnavailable, LeaseExpired, PageMissing, PageDamaged: see `Opener.views`.
    """
    if not refs:
        return []
    try:
        opener.views(context, refs, block_ids, envelopes)
    except (EnvelopeError, KeyRecordMissing):
        if len(refs) == 1:
            return [False]
        middle = len(refs) // 2
        return [
            *authentic(opener, context, refs[:middle], block_ids[:middle], envelopes[:middle]),
            *authentic(opener, context, refs[middle:], block_ids[middle:], envelopes[middle:]),
        ]
    return [True] * len(refs)
