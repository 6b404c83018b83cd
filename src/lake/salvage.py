"""One line can cost at most itself. Pure.

Whatever a line does to the code that reads it is tried again in halves, until it is known which line it is;
that line becomes a dead letter, and all others go in. A line that an operator has set aside is not read at
all (`lake.asides`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import polars as pl
import pyarrow as pa
from attrs import evolve

from keys import InvalidName, ShredlakeError
from lake.parsed import Parsed, Rejected, joined
from lake.validate import UNFORESEEN, Flaw

Aside = Mapping[int, Flaw]
"""Lines that are not read, and what their letters say."""
NOTHING: Final[Aside] = {}
SET_ASIDE: Final = Flaw("set_aside")
DROPPED: Final = Flaw("dropped")
"""Of a line that an operator drops: its letter says so and holds nothing of it."""
UNEXPECTED: Final = UNFORESEEN
T = TypeVar("T")
_log = logging.getLogger("shredlake.ingest")
_SYSTEMS_FAULT: Final = (ShredlakeError, OSError, MemoryError)
_OF_DATA: Final = (
    ValueError,
    TypeError,
    ArithmeticError,
    RecursionError,
    InvalidName,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    pa.ArrowException,
)


def is_of_the_line(error: BaseException) -> bool:
    """Whether an error of reading lines is a line's fault: neither the disk's nor a server's."""
    return isinstance(error, InvalidName) or not isinstance(error, _SYSTEMS_FAULT)


def is_of_data(error: BaseException) -> bool:
    """The same where keys and stores are at work too: errors of clients of servers do not count."""
    return isinstance(error, _OF_DATA) and not isinstance(error, OSError)


def unprocessable(error: BaseException) -> Flaw:
    """What the letter says of an error that nobody foresaw: its type alone, its text may quote a value."""
    return Flaw(f"unprocessable ({type(error).__name__})")


def salvaged(
    lines: Sequence[tuple[int, T]],
    start: int,
    end: int,
    parse: Callable[[Sequence[tuple[int, T]], int, int], Parsed],
    letter: Callable[[tuple[int, T], Flaw], Rejected],
    *,
    holes_are_blank: bool = False,
) -> Parsed:
    """Lines of [start, end) of a source, parsed; those that break the parser are letters.

    Args:
        lines: by their numbers, ascending.
        letter: of a line that breaks the parser.
        holes_are_blank: whether `parse` counts as blank what lies between the lines.
    """
    try:
        return parse(lines, start, end)
    except UNEXPECTED as error:
        if not lines or not is_of_the_line(error):
            raise
        flaw = unprocessable(error)
    if len(lines) == 1:
        _log.error("a line breaks its parser and is a dead letter: %s", flaw.reason)
        blank = end - start - 1 if holes_are_blank else 0
        return Parsed(start, end, (), (letter(lines[0], flaw),), blank)
    middle = len(lines) // 2
    cut = lines[middle][0]
    return joined(
        [
            salvaged(lines[:middle], start, cut, parse, letter, holes_are_blank=holes_are_blank),
            salvaged(lines[middle:], cut, end, parse, letter, holes_are_blank=holes_are_blank),
        ]
    )


def guilty(parsed: Parsed, trial: Callable[[Parsed], object]) -> dict[int, Flaw]:
    """The lines that cannot be sealed and written, found in halves; empty where each can be by itself.

    Args:
        trial: seals and writes some of the lines, and undoes it.
    """
    numbers = sorted(
        {one.line for one in parsed.rejected}
        | {number for _, frame in parsed.accepted for number in frame.get_column("position")}
        | (set() if parsed.sealed is None else set(parsed.sealed.get_column("source_from")))
    )
    return _guilty(parsed, numbers, trial)


def _guilty(parsed: Parsed, numbers: Sequence[int], trial: Callable[[Parsed], object]) -> dict[int, Flaw]:
    if not numbers:
        return {}
    try:
        trial(_only(parsed, numbers))
    except UNEXPECTED as error:
        if not is_of_data(error):
            raise
        if len(numbers) == 1:
            return {numbers[0]: unprocessable(error)}
    else:
        return {}
    middle = len(numbers) // 2
    return _guilty(parsed, numbers[:middle], trial) | _guilty(parsed, numbers[middle:], trial)


def _only(parsed: Parsed, numbers: Sequence[int]) -> Parsed:
    """Some lines of it, as if there were no others."""
    chosen = set(numbers)
    frames = ((kind, frame.filter(pl.col("position").is_in(numbers))) for kind, frame in parsed.accepted)
    sealed = None
    if parsed.sealed is not None:
        sealed = parsed.sealed.filter(pl.col("source_from").is_in(numbers))
    return Parsed(
        0,
        len(chosen),
        tuple((kind, frame) for kind, frame in frames if frame.height),
        tuple(one for one in parsed.rejected if one.line in chosen),
        0,
        sealed,
    )


def put_aside(
    lines: Sequence[tuple[int, T]], aside: Aside, letter: Callable[[tuple[int, T], Flaw], Rejected]
) -> tuple[Sequence[tuple[int, T]], list[Rejected]]:
    """(lines to parse, letters of the lines that are set aside)."""
    if not aside:
        return lines, []
    letters = []
    for line in lines:
        flaw = aside.get(line[0])
        if flaw is not None:
            made = letter(line, flaw)
            letters.append(evolve(made, raw=b"", subject=None) if flaw == DROPPED else made)
    return [line for line in lines if line[0] not in aside] if letters else lines, letters


def with_letters(parsed: Parsed, letters: Sequence[Rejected]) -> Parsed:
    """With letters of further lines of the same range."""
    if not letters:
        return parsed
    both = sorted((*parsed.rejected, *letters), key=lambda one: one.line)
    return evolve(parsed, rejected=tuple(both))


def plain_letter(line: tuple[int, bytes], flaw: Flaw) -> Rejected:
    """Of a line of which nobody can say whose it is."""
    return Rejected(line[0], flaw, line[1])
