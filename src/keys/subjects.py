"""Words for people: `SubjectId` (never printed), `SubjectRef` (random handle), `Identity`, purposes."""

from __future__ import annotations

import re
from typing import Final, NewType

from attrs import field, frozen

from keys.errors import InvalidName

SubjectRef = NewType("SubjectRef", bytes)
"""A random 16-byte handle of a data subject. Rows carry it; it dies with the key."""

REF_BYTES: Final = 16
MAX_ID_BYTES: Final = 64 * 1024
MAX_IDENTITY_BYTES: Final = 512
_HALVES: Final = re.compile("[\ud800-\udfff]")
DEFAULT_PURPOSE: Final = "service"
_PURPOSE = re.compile(r"[a-z][a-z0-9_]{0,31}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")


def _check_subject(value: str) -> str:
    if not value:
        raise InvalidName("the id of a data subject is empty")
    # a character has at most four bytes: short ids, nearly all, are not encoded to be measured
    if len(value) * 4 > MAX_ID_BYTES and len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise InvalidName(f"the id of a data subject is longer than {MAX_ID_BYTES} bytes")
    if not value.isascii() and _HALVES.search(value):
        raise InvalidName("the id of a data subject holds half a character, which UTF-8 cannot write")
    return value


def _check_value(value: str) -> str:
    if not value.strip():
        raise InvalidName("an identity is empty")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_IDENTITY_BYTES:
        raise InvalidName(f"an identity is longer than {MAX_IDENTITY_BYTES} bytes")
    if not value.isprintable():
        raise InvalidName("an identity holds control characters")
    return value


def is_subject_id(value: str) -> bool:
    """Whether a text can name a data subject."""
    try:
        _check_subject(value)
    except InvalidName:
        return False
    return True


@frozen(repr=False, eq=True, hash=True)
class SubjectId:
    """The caller's opaque id of a data subject.

    `repr` and `str` are masked, so that it cannot slip into a log; `reveal()` is explicit.

    It is the characters that were sent: nothing is trimmed, folded or normalised, and every text may be one,
    blanks, control characters and those that nobody sees included.

    Raises:
        InvalidName: empty, over 64 KiB, or with half a surrogate pair, which no UTF-8 holds.
    """

    _value: str = field(converter=_check_subject)

    def reveal(self) -> str:
        """The id itself. Only for hashing, comparing and answering the caller who named it."""
        return self._value

    def __repr__(self) -> str:
        return "SubjectId(…)"

    __str__ = __repr__

    def __reduce__(self) -> tuple[type[SubjectId], tuple[str]]:
        raise TypeError("a SubjectId is not pickled: pass its SubjectRef between processes")


@frozen(repr=False, eq=True, hash=True)
class Identity:
    """A further name of a data subject (`email`, `phone`, …), normalised before it is looked up."""

    kind: str
    _value: str = field(converter=_check_value)

    def __attrs_post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind) or self.kind == "subject":
            raise InvalidName("an identity kind is a lower-case word such as `email`")

    def normalised(self) -> str:
        """E-mail and the like: trimmed and case-folded. Phone: digits and a leading plus."""
        value = self._value.strip().casefold()
        return re.sub(r"[^\d+]", "", value) if self.kind == "phone" else value

    def __repr__(self) -> str:
        return f"Identity({self.kind}, …)"

    __str__ = __repr__


def check_purpose(purpose: str) -> str:
    """Returns the purpose itself.

    Raises:
        InvalidName: not a lower-case word of at most 32 characters.
    """
    if not _PURPOSE.fullmatch(purpose):
        raise InvalidName("a purpose is a lower-case word of at most 32 characters such as `service`")
    return purpose


@frozen
class Shredded:
    """The answer in place of a value whose key was destroyed on request.

    Attributes:
        receipt_id: the erasure request and its receipt.
        epoch: number of the fence.
    """

    receipt_id: str
    epoch: int


@frozen
class Held:
    """The answer in place of a value whose subject is under legal hold: kept, readable by nobody."""
