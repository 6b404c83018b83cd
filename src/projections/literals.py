"""Literals of a views file that look like the id of a person: its source is kept, and shown to auditors.

Looked at are constants, comments and docstrings. An id that code puts together out of pieces is not seen.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from keys import Keyring, SubjectId
from lake import EventType
from projections.definition import View
from projections.errors import DefinitionError
from projections.source import SourceFile, parsed, source_of

_MAIL: Final = re.compile(r"[\w.+%'-]+@[\w-]+(?:\.[\w-]+)+")
_UUID: Final = re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}(?![0-9a-f])")
_PATTERNS: Final = (("an e-mail address", _MAIL), ("a UUID", _UUID))
_SHORTEST: Final = 3
_FEWEST_DIGITS: Final = 6
_FSTRING_MIDDLE: Final = getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)
_WORDS: Final = (tokenize.COMMENT, tokenize.STRING, _FSTRING_MIDDLE)


def refuse_ids(view: View, keyring: Keyring, types: Mapping[str, EventType]) -> None:
    """Looks through the file of a view, unless its author says why ids stand in it: `holds_ids`.

    Args:
        keyring: knows the ids of people by blind index, and of those erased by their fences.
        types: name → event type that the view reads. It has to say their names and those of their fields:
            whoever calls themselves like one of them stops no view.

    Raises:
        DefinitionError: with file and line, and without the literal.
    """
    source = source_of(type(view))
    if source is None or view.holds_ids.strip():
        return
    names = {*types, *(field.name for one in types.values() for field in one.fields)}
    for line, what in sorted({*_looks(source), *_known(source, keyring, names)}):
        raise DefinitionError(
            f"view `{view.name}` {source.path.name}:{line}: a literal looks like {what}",
            next_step="The source is kept with what is published: take ids of people out of it. If it is"
            ' none, say so in the class: `holds_ids = "why"`, which is kept on record.',
        )


def _looks(source: SourceFile) -> Iterator[tuple[int, str]]:
    texts = [(line, str(value)) for line, value in _constants(source)]
    for token in tokenize.tokenize(io.BytesIO(source.body).readline):
        if token.type in _WORDS:
            texts.append((token.start[0], token.string))
    for line, text in texts:
        for what, pattern in _PATTERNS:
            found = pattern.search(text)
            if found:
                yield line + text.count("\n", 0, found.start()), what


def _known(source: SourceFile, keyring: Keyring, names: Collection[str]) -> Iterator[tuple[int, str]]:
    for line, value in _constants(source):
        text = str(value).strip()
        shortest = _SHORTEST if isinstance(value, str) else _FEWEST_DIGITS
        if len(text) >= shortest and text not in names and _is_somebody(keyring, SubjectId(text)):
            yield line, "the id of a person in this lake"


def _is_somebody(keyring: Keyring, subject: SubjectId) -> bool:
    return keyring.ref_of(subject) is not None or keyring.erased(subject) is not None


def _constants(source: SourceFile) -> Iterator[tuple[int, str | int]]:
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
            if isinstance(node.value, bytes):
                yield node.lineno, node.value.decode(errors="replace")
            elif isinstance(node.value, str | int):
                yield node.lineno, node.value
