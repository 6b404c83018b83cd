"""Where a TOML document cannot be read: the parser's own words may quote what stands there. Pure."""

from __future__ import annotations

import re
from typing import Final

_PLACE: Final = re.compile(r"\(at ((?:line \d+, column \d+)|end of document)\)")


def toml_place(error: ValueError) -> str:
    """To be read behind "is not valid TOML": the place, and nothing of the document."""
    if isinstance(error, UnicodeDecodeError):
        return f": it is not UTF-8 at byte {error.start}"
    found = _PLACE.search(str(error))
    return f" at {found[1].replace('end of', 'the end of the')}" if found else ""
