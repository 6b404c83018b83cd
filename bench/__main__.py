"""`make bench [SUITE=path]`: runs suites, prints a table each, writes build/bench/<suite>.json."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Figure
from bench.readme import update
from service.allocation import keep_freed_memory

SUITES = ("path", "keys", "lake")


def main() -> int:
    """Runs the named suites, or all."""
    keep_freed_memory()  # as the command does, yardsticks included
    if sys.argv[1:] == ["readme"]:
        update(Path("README.md"), Path("build/bench"))
        return 0
    for name in sys.argv[1:] or SUITES:
        if name not in SUITES:
            print(f"no suite `{name}`; there are {', '.join(SUITES)}", file=sys.stderr)
            return 2
        figures: list[Figure] = importlib.import_module(f"bench.{name}").run()
        to = Path("build/bench") / f"{name}.json"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps([figure.as_dict() for figure in figures], indent=1) + "\n")
        table = Table(title=f"suite {name}", title_justify="left")
        for column in ("figure", "value", "unit", "goal", "met", "yardstick"):
            table.add_column(column, justify="right" if column == "value" else "left")
        for one in figures:
            table.add_row(
                one.name,
                f"{one.value:,.4g}" if one.value < 1000 else f"{one.value:,.0f}",
                one.unit,
                one.goal,
                one.met_text,
                one.yardstick,
            )
        Console(width=170).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
