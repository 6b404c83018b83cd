"""Every spelling of a person's id that formats produce, and where in a text one stands. Pure.

The byte scanner looks with it, and so does the redaction of letters: what one finds the other takes out.
An id is found as a whole word: `user-42` is not in `user-421`. Ids of under six bytes are compared with
whole decoded values and words alone, since chance puts so few bytes into any ciphertext.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import AnyStr, Final
from urllib.parse import unquote_to_bytes

from attrs import frozen

from keys import SubjectId

LEAST_BYTES: Final = 6
"""Shorter needles are not looked for in bytes that are not decoded."""
_LEAST_WORD_BYTES: Final = 3
_BETWEEN: Final = "\0\"'"
_JOINS: Final = frozenset("-_.@+")
_SPACED: Final = 0x0590  # scripts from here on write no spaces between words, or need no boundary
_ROUNDS: Final = 3  # what was escaped twice, text in a text, is found as well
_JSON_ESCAPE: Final = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_HIGH: Final = re.compile("[\ud800-\udbff]")
_JSON_MARKS: Final = dict(zip("bfnrt", "\b\f\n\r\t", strict=True))
# Each begins with its mark and nothing else: so the search goes from mark to mark, and not by character.
_PERCENT: Final = re.compile(r"%[0-9a-fA-F]{2}(?:%[0-9a-fA-F]{2})*")
_PRINTABLE: Final = re.compile(r"=(?:\r?\n|([0-9A-Fa-f]{2}(?:=[0-9A-Fa-f]{2})*))")
_BASE64_BYTES: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_HEX_BYTES: Final = frozenset(b"0123456789abcdefABCDEF")
_URL_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")
_FOLDS: Final = b"\r\n"

NOT_SEARCHED: Final = (
    "other letter case, transliterations, parts of the id",
    "UTF-7, UTF-32, base32, base85 and Punycode",
    "keyed or salted hashes, and hashes other than MD5, SHA-1 and SHA-256",
    "what somebody else has compressed or encrypted inside a field",
)
"""Forms that nobody looks for, whatever the id."""
_NOT_IF_SHORT: Final = (
    f"ids under {LEAST_BYTES} bytes: parts of longer words, and bytes that no format tells apart (free"
    " pages of databases, binary fields)",
)
_ONLY_VALUES: Final = (
    f"numbers under {LEAST_BYTES} digits and ids under {_LEAST_WORD_BYTES} bytes: words inside a longer text,"
    " and numeric columns",
)


@frozen
class Hit:
    """A form in which an id was found.

    Attributes:
        form: how it was spelled.
        is_whole: a word of its own; otherwise joined to others by a hyphen, a dot or the like.
    """

    form: str
    is_whole: bool = True


class Needles:
    """The spellings of one id.

    Attributes:
        is_short: compared with decoded values and words alone.
    """

    def __init__(self, subject: SubjectId) -> None:
        said = subject.reveal()
        self._names = {"utf-8": said}
        for form in ("NFC", "NFD"):
            if (other := unicodedata.normalize(form, said)) not in self._names.values():
                self._names[f"utf-8 {form}"] = other
        raw = said.encode("utf-8", "surrogatepass")
        self.is_short = len(raw) < LEAST_BYTES
        self._is_value_only = self.is_short and (said.isdigit() or len(raw) < _LEAST_WORD_BYTES)
        self._raw = raw
        self._words = _whole_words(raw)
        self._packed = {} if self.is_short else _packed(raw)
        self._bytes = {} if self.is_short else _encoded(said)
        self._digests = _digests(raw)

    def not_searched(self) -> tuple[str, ...]:
        """The forms that these needles do not find, in words."""
        short = _NOT_IF_SHORT if self.is_short else ()
        return (*NOT_SEARCHED, *short, *(_ONLY_VALUES if self._is_value_only else ()))

    def in_texts(self, text: str) -> set[Hit]:
        """Where the id stands in decoded values, which zero characters part from each other."""
        hits: set[Hit] = set()
        for spelling, written in _spellings(text):
            for form, name in self._names.items():
                label = form if spelling == "" else f"{form} in {spelling}"
                hits |= {Hit(label, whole) for whole in self._standings(written, name)}
        return hits | self._in_encodings(_bytes_of(text)) | self._as_word(text)

    def in_bytes(self, raw: bytes) -> set[Hit]:
        """Where it stands in bytes that nobody has decoded: no boundary is asked for, so short ids never."""
        hits = {Hit(form) for form, needle in self._bytes.items() if needle in raw}
        if not self.is_short:
            hits |= {Hit(f) for f, n in self._names.items() if n.encode("utf-8", "surrogatepass") in raw}
        return hits | self._in_encodings(raw)

    def count_in(self, raw: bytes) -> int:
        """How often the id's own bytes stand in undecoded ones; 0 for short ids."""
        return 0 if self.is_short else raw.count(self._raw)

    def names(self, raw: bytes) -> bool:
        """Whether a text of nobody's names the person: at a join too, since it is taken out whole."""
        text = raw.decode("utf-8", "surrogateescape")
        for _, written in _spellings(text):
            if any(_stands(written, name) for name in self._names.values()):
                return True
        return bool(self._in_encodings(raw) or self._as_word(text))

    def _standings(self, text: str, name: str) -> set[bool]:
        found: set[bool] = set()
        at = text.find(name)
        while at >= 0 and True not in found:
            before, after = text[max(0, at - 2) : at], text[at + len(name) : at + len(name) + 2]
            if self._is_value_only:
                if before[-1:] in _ENDS and after[:1] in _ENDS:
                    found.add(True)
            elif not _extends(name[0], before[-1:]) and not _extends(name[-1], after[:1]):
                is_part = _is_joined(name[0], before[::-1]) or _is_joined(name[-1], after)
                if not (is_part and self.is_short):
                    found.add(not is_part)
            at = text.find(name, at + 1)
        return found

    def _as_word(self, text: str) -> set[Hit]:
        """A value that is nothing but the id in another alphabet."""
        return {
            Hit(form)
            for form, word in self._words.items()
            for at in _places(text, word)
            if text[at - 1 : at] in _ENDS and text[at + len(word) : at + len(word) + 1] in _ENDS
        }

    def _in_encodings(self, raw: bytes) -> set[Hit]:
        """Hexadecimal, base64, digests. What stands around a hit is decoded, so that a prefix is none."""
        hits = {Hit(form) for form, needle in self._digests.items() if needle in raw}
        hits |= {Hit(form) for form, needle in self._bytes.items() if self._is_in(raw, needle, form)}
        if not self._packed:
            return hits
        plain = raw.translate(_URL_ALPHABET) if b"-" in raw or b"_" in raw else raw
        folded = plain.translate(None, _FOLDS) if b"\n" in plain else plain
        for form, needle in self._packed.items():
            where = folded if form.startswith("base64") else raw
            for at in _places(where, needle):
                if self._is_named_in(_run(where, at, len(needle), form)):
                    hits.add(Hit(form))
                    break
        return hits

    def _is_in(self, raw: bytes, needle: bytes, charset: str) -> bool:
        """Whether it stands there in another character set, and not as a part of a longer word."""
        width = 2 if charset.startswith("utf-16") else 1
        for at in _places(raw, needle):
            if charset == "utf-16-be" and raw.startswith(self._bytes["utf-16-le"], at + 1):
                continue  # the same bytes in the other order, one place on
            before = raw[at - width : at] if at >= width else b""
            around = before + raw[at : at + len(needle) + width]
            if _stands(around.decode(charset, "replace"), self._names["utf-8"]):
                return True
        return False

    def _is_named_in(self, decoded: list[bytes]) -> bool:
        holding = [one for one in decoded if self._raw in one]
        if not holding:
            return True  # cut or padded in another way: better said than not
        texts = (one.decode("utf-8", "surrogateescape") for one in holding)
        return any(_stands(text, self._names["utf-8"]) for text in texts)


_ENDS: Final = frozenset({"", *_BETWEEN})


def _stands(text: str, name: str) -> bool:
    """Whether a name stands in a text and no letter or digit makes another one of it."""
    return any(
        not _extends(name[0], text[at - 1 : at] if at else "")
        and not _extends(name[-1], text[at + len(name) : at + len(name) + 1])
        for at in _places(text, name)
    )


def _places(text: AnyStr, part: AnyStr) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _extends(edge: str, neighbour: str) -> bool:
    """Whether the neighbour makes another word of what ends with `edge`."""
    return (
        neighbour != ""
        and neighbour.isalnum()
        and edge.isalnum()
        and ord(neighbour) < _SPACED
        and ord(edge) < _SPACED
    )


def _is_joined(edge: str, outwards: str) -> bool:
    """Whether a join and a further word follow, read away from the name."""
    return len(outwards) == 2 and outwards[0] in _JOINS and _extends(edge, outwards[1])


def _bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return text.encode("utf-8", "surrogatepass")


def _spellings(text: str) -> Iterator[tuple[str, str]]:
    """The text as it is, and with each kind of escape undone, again and again."""
    yield "", text
    for name, mark, undo in _UNDO:
        once = text
        for _ in range(_ROUNDS):
            if mark not in once or (undone := undo(once)) == once:
                break
            once = undone
            yield name, once


def _no_json(text: str) -> str:
    def undo(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else _JSON_MARKS.get(found[2], found[2])

    undone, count = _JSON_ESCAPE.subn(undo, text)
    if not count or not _HIGH.search(undone):
        return undone
    # Pairs of surrogates become one character.
    return undone.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _no_percent(text: str) -> str:
    return _PERCENT.sub(lambda found: unquote_to_bytes(found[0]).decode("utf-8", "surrogateescape"), text)


def _no_printable(text: str) -> str:
    def undo(found: re.Match[str]) -> str:
        return binascii.unhexlify(found[1].replace("=", "")).decode("utf-8", "replace") if found[1] else ""

    return _PRINTABLE.sub(undo, text)


_UNDO: Final[tuple[tuple[str, str, Callable[[str], str]], ...]] = (
    ("JSON escapes", "\\", _no_json),
    ("percent encoding", "%", _no_percent),
    ("HTML entities", "&", html.unescape),
    ("quoted-printable", "=", _no_printable),
)


def _encoded(said: str) -> dict[str, bytes]:
    """In other character sets."""
    found = {f"utf-16-{order}": said.encode(f"utf-16-{order}", "surrogatepass") for order in ("le", "be")}
    if not said.isascii():
        for name in ("latin-1", "cp1252", "cp1251", "shift-jis", "gb18030"):
            try:
                found[name] = said.encode(name)
            except UnicodeEncodeError:
                continue
    return {name: value for name, value in found.items() if len(value) >= LEAST_BYTES}


def _packed(raw: bytes) -> dict[str, bytes]:
    """In alphabets of fewer bits a character; base64 at each of its three alignments."""
    found = {"hex": raw.hex().encode(), "HEX": raw.hex().upper().encode()}
    for shift in range(3):
        # What any base64 text that contains the id must contain, whatever stands before and after it:
        # the characters whose six bits are all the id's.
        text = base64.b64encode(b"\0" * shift + raw)
        found[f"base64+{shift}"] = text[(0, 2, 3)[shift] : 8 * (shift + len(raw)) // 6]
    return found


def _digests(raw: bytes) -> dict[str, bytes]:
    found = {}
    for name in ("md5", "sha1", "sha256"):
        digest = hashlib.new(name, raw, usedforsecurity=False).digest()
        found[name] = digest
        found[f"{name}-hex"] = digest.hex().encode()
        found[f"{name}-HEX"] = digest.hex().upper().encode()
        found[f"{name}-16"] = digest[:16]
        found[f"{name}-base64"] = base64.b64encode(digest).rstrip(b"=")
    return found


def _whole_words(raw: bytes) -> dict[str, str]:
    text = base64.b64encode(raw).decode()
    url = base64.urlsafe_b64encode(raw).decode()
    words = {"base64": text, "base64 unpadded": text.rstrip("="), "base64url": url, "hex": raw.hex()}
    words |= {"base64url unpadded": url.rstrip("="), "HEX": raw.hex().upper()}
    return {form: word for form, word in words.items() if len(word) >= 4}


def _run(raw: bytes, at: int, length: int, form: str) -> list[bytes]:
    """What the run of the alphabet around a hit says, at every alignment that it can have."""
    alphabet = _BASE64_BYTES if form.startswith("base64") else _HEX_BYTES
    start, end = at, at + length
    while start > 0 and at - start < 8 and raw[start - 1] in alphabet:
        start -= 1
    while end < len(raw) and end - at - length < 8 and raw[end] in alphabet:
        end += 1
    run = raw[start:end]
    if form.startswith("base64"):
        whole = [run[shift:] for shift in range(4)]
        return [base64.b64decode(one + b"=" * (-len(one) % 4)) for one in whole if len(one) % 4 != 1] + [
            base64.b64decode(one[:-1]) for one in whole if len(one) % 4 == 1
        ]
    return [binascii.unhexlify(one[: len(one) // 2 * 2]) for one in (run, run[1:])]
