"""What every command shares: the lake's folder, output as text or JSON, errors with their next step."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import orjson
import polars as pl
import typer
from attrs import field, frozen
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from keys import InvalidName, SubjectId
from lake import checked_moment
from service.errors import BadInput
from service.runtime import Runtime, open_runtime
from service.settings import find_home

GROUP: Final[dict[str, Any]] = {"no_args_is_help": True, "rich_markup_mode": None}
INCOMPLETE: Final = 3
HELD: Final = 4
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
messages = Console(stderr=True, highlight=False)
data = Console(highlight=False, soft_wrap=True)


class Output(StrEnum):
    """How data is written."""

    TEXT = "text"
    JSON = "json"


LINE_SECONDS: Final = 10.0
"""Between two lines of progress where no bar can be drawn."""


@frozen
class Session:
    """Options given before the noun.

    Attributes:
        quiet: no bar: nobody wants one, or standard error is no terminal.
        in_lines: in place of bars, a line now and then: standard error is a log.
    """

    home: Path
    output: Output
    quiet: bool = field(default=False)
    in_lines: bool = field(default=False)

    @property
    def as_json(self) -> bool:
        """Whether data goes out as JSON."""
        return self.output is Output.JSON


def session(context: typer.Context) -> Session:
    """The session of a command."""
    found = context.find_object(Session)
    return found if found is not None else Session(find_home(None), Output.TEXT)


@contextmanager
def opened_past_gate(context: typer.Context) -> Iterator[tuple[Session, Runtime]]:
    """The session and its open lake, for what shows nothing of a person, or mends the restore gate itself.

    A test knows every command that opens a lake so; whatever else opens one asks the gate.
    """
    here = session(context)
    with open_runtime(here.home) as runtime:
        yield here, runtime


@contextmanager
def opened(context: typer.Context) -> Iterator[tuple[Session, Runtime]]:
    """The session and its open lake: not with a fence log that cannot be relied on.

    Raises:
        RestoreGateClosed: it is another's, or an older one; says what opens the gate.
    """
    with opened_past_gate(context) as (here, runtime):
        runtime.keyring.gate().trusted()
        yield here, runtime


def say(text: str) -> None:
    """A message for people."""
    messages.print(text, soft_wrap=True)


def emit(here: Session, value: Any, text: str | None = None) -> None:
    """One datum: JSON, or its text."""
    if here.as_json or text is None:
        sys.stdout.write(orjson.dumps(value, default=_plain, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        data.print(text, markup=False)


def emit_rows(here: Session, rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """A table, or a JSON array."""
    if here.as_json:
        emit(here, list(rows))
        return
    if not rows:
        say(f"{title or 'nothing'}: none")
        return
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    data.print(table)


def emit_frame(here: Session, frame: pl.DataFrame, limit: int, title: str = "") -> None:
    """Rows of a frame."""
    emit_rows(here, frame.head(limit).to_dicts(), title)
    if frame.height > limit:
        say(f"({frame.height - limit} more rows: --limit {frame.height})")


def ask_first(question: str, yes: bool) -> None:
    """Asks before something that cannot be taken back; every such command calls this before it does anything.

    How data is written, `--quiet`, and where output goes never decide: the question goes to the terminal that
    the answer comes from.

    Raises:
        BadInput: nobody can be asked, since standard input is no terminal.
        typer.Abort: the answer was not yes.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput(
            "nothing was done: this cannot be taken back, and there is nobody to ask",
            next_step="Repeat with --yes, or from a terminal.",
        )
    with _terminal() as terminal:
        terminal.write(f"{question} This cannot be taken back. [y/N]: ")
        terminal.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise typer.Abort


@contextmanager
def _terminal() -> Iterator[TextIO]:
    """The terminal of standard input, for writing; standard error where it cannot be opened."""
    try:
        terminal = open(os.ttyname(sys.stdin.fileno()), "w")  # noqa: PTH123, SIM115  (a device; closed below)
    except OSError:
        yield sys.stderr
        return
    with terminal:
        yield terminal


def read_subjects(texts: Sequence[str]) -> list[SubjectId]:
    """The people named on the command line, each once; `-` stands for all lines of standard input.

    Raises:
        BadInput: not a usable id; says which one by its place.
    """
    lines: list[str] = []
    for text in texts:
        lines += [line for line in map(str.strip, sys.stdin) if line] if text == "-" else [text]
    if not lines:
        raise BadInput("nobody was named", next_step="Write one id a line to standard input.")
    found: dict[str, SubjectId] = {}
    for number, line in enumerate(lines, start=1):
        try:
            found[line] = SubjectId(line)
        except InvalidName as error:
            where = "" if len(lines) == 1 else f"id {number} of {len(lines)}: "
            raise BadInput(f"{where}{error}") from None
    return list(found.values())


def read_subject(text: str) -> SubjectId:
    """The person named on the command line; `-` reads standard input, which leaves no trace in `ps`.

    Raises:
        BadInput: not a usable id.
    """
    value = sys.stdin.readline().strip() if text == "-" else text
    try:
        return SubjectId(value)
    except InvalidName as error:
        raise BadInput(str(error)) from None


def parse_moment(text: str | None) -> datetime | None:
    """A moment with its time zone; a bare one is local time.

    Raises:
        BadInput: not a moment.
        MomentRefused: it has not come yet.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise BadInput(
            "what was given is not a moment", next_step="Write it like 2026-01-31T10:00+01:00."
        ) from None
    return checked_moment(moment, datetime.now(UTC))


@contextmanager
def progress_bar(here: Session, text: str, total: int | None) -> Iterator[Any]:
    """A bar on stderr, or lines in a log; yields a function that takes what is done (and the total)."""
    told_at = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=here.quiet) as bar:
        task = bar.add_task(text, total=total)

        def update(done: int, of: int | None = None, what: str | None = None) -> None:
            nonlocal told_at
            bar.update(task, completed=done, total=of or total, description=what or text)
            if here.in_lines and time.monotonic() - told_at >= LINE_SECONDS:
                told_at = time.monotonic()
                say(f"{what or text}: {done:,}" + (f" of {whole:,}" if (whole := of or total) else ""))

        yield update


def human_bytes(count: float) -> str:
    """1,536 → 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__attrs_attrs__"):
        return {a.name: getattr(value, a.name) for a in value.__attrs_attrs__}
    raise TypeError(type(value).__name__)
