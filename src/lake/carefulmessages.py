"""A message format around another: whatever a message is, it costs at most itself. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import evolve

from lake.cloudevents import subject_in
from lake.messages import Message, MessageFormat, Messages, structured
from lake.parsed import Parsed, Rejected
from lake.salvage import (
    NOTHING,
    UNEXPECTED,
    Aside,
    is_of_the_line,
    put_aside,
    salvaged,
    with_letters,
)
from lake.validate import Flaw


class CarefulMessages:
    """Messages that break their format are letters; so are those that are set aside, without a look.

    Args:
        inner: reads all others.
        asides: of a source the offsets that an operator has set aside.
    """

    def __init__(self, inner: MessageFormat, asides: Callable[[str], Aside] = lambda source: NOTHING) -> None:
        self._inner = inner
        self._asides = asides
        self._found: dict[str, dict[int, Flaw]] = {}

    def set_aside(self, source: str, lines: Aside) -> None:
        """Offsets that turned out not to be sealable; they are letters when they are read again."""
        self._found.setdefault(source, {}).update(lines)

    def parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
        """See `MessageFormat.parse`.

        Raises:
            LakeError: the format could not, whatever the messages are.
        """
        letters: list[Rejected] = []
        aside = {**self._asides(source), **self._found.get(source, {})}
        if aside:
            left, letters = put_aside([(one.offset, one) for one in messages], aside, _letter)
            messages = Messages.of(one for _, one in left) if letters else messages
        parsed = self._parse(source, start, end, messages)
        return with_letters(evolve(parsed, blank=parsed.blank - len(letters)), letters)

    def _parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
        def some(found: Sequence[tuple[int, Message]], start: int, end: int) -> Parsed:
            return self._inner.parse(source, start, end, Messages.of(one for _, one in found))

        try:
            return self._inner.parse(source, start, end, messages)
        except UNEXPECTED as error:
            if not is_of_the_line(error):
                raise
        numbered = [(one.offset, one) for one in messages]
        return salvaged(numbered, start, end, some, _letter, holes_are_blank=True)


def _letter(line: tuple[int, Message], flaw: Flaw) -> Rejected:
    try:
        raw = structured(line[1])
    except UNEXPECTED:
        raw = line[1].value or b""
    return Rejected(line[0], flaw, raw, subject_in(raw))
