"""Puts the figures of build/bench/*.json into README's performance table."""

from __future__ import annotations

import json
from pathlib import Path

START, END = "<!-- figures -->", "<!-- /figures -->"


def render(folder: Path) -> str:
    """The table of every suite that was run."""
    lines = ["| figure | value | goal | met | command |", "|---|---:|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        for one in json.loads(path.read_text()):
            value = _shown(one["value"])
            met = {True: "yes", False: "**no**", None: ""}[one["met"]]
            lines.append(
                f"| {one['name']} | {value} {one['unit']} | {one['goal']} | {met} | `make bench SUITE={path.stem}` |"
            )
    return "\n".join(lines)


def _shown(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def update(readme: Path, folder: Path) -> None:
    """Writes the table between its two marks."""
    head, _, rest = readme.read_text().partition(START)
    _, _, tail = rest.partition(END)
    readme.write_text(f"{head}{START}\n{render(folder)}\n{END}{tail}")
