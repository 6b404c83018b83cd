"""Which guarantees there are: read from README.md and docs/threat-model.md, where people read them."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

README: Final = "README.md"
THREAT_MODEL: Final = "docs/threat-model.md"
_NOT_ISSUED: Final = "not issued"
_BULLET: Final = re.compile(r"^- (.+?)(?=^- |^$|\Z)", re.MULTILINE | re.DOTALL)


@frozen
class Guarantee:
    """Something that is promised.

    Attributes:
        page: the file that promises it.
        text: the bullet's or the cell's words on one line, without emphasis.
        cannot: of a row of the threat model, what the attacker cannot do; else empty.
    """

    page: str
    text: str
    cannot: str = ""


def guarantees(readme: str, threat_model: str) -> list[Guarantee]:
    """Every bullet of "Guarantees", every row of "Stopped", and every evidence level that is issued."""
    bullets = [_plain(found) for found in _BULLET.findall(_section(readme, "Guarantees"))]
    stopped = _rows(_section(threat_model, "Stopped"))
    levels = [row for row in _rows(_section(threat_model, "Evidence levels")) if not _is_withheld(row)]
    return [
        *(Guarantee(README, text) for text in bullets),
        *(Guarantee(THREAT_MODEL, row[0], row[1]) for row in stopped),
        *(Guarantee(THREAT_MODEL, f"{row[0]}: {row[1]}") for row in levels),
    ]


def _is_withheld(row: list[str]) -> bool:
    return row[-1].startswith(_NOT_ISSUED)


def _section(page: str, title: str) -> str:
    """What stands under a heading of the second level; raises ValueError where there is none."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"no heading '{title}'")
    return found[1]


def _rows(section: str) -> list[list[str]]:
    """The cells of each row of the section's table, its head left out."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[_plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip("| "))] for line in lines[2:]]


def _plain(text: str) -> str:
    return " ".join(text.replace("**", "").split())
