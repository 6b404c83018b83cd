"""How the id of an open request is sealed in the journal."""

from __future__ import annotations

from typing import Final

from keys import FieldContext

SUBJECT_CONTEXT: Final = FieldContext(b"shredlake-purge\0", 0, "journal", "service", "request", 1)
PLAN_PLACE: Final = b"erasure request"
