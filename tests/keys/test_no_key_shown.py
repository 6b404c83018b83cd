"""No key is shown: not by an object, a pickle or an error, nor by a traceback that prints local variables.

An error is made to happen at the end of every function of the package, one after the other, while
somebody seals, opens, provisions, destroys or closes an epoch; at its end a function holds the most.
"""

from __future__ import annotations

import base64
import copy
import itertools
import linecache
import logging
import os
import pickle
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from attrs import astuple

import keys
from keys import (
    EmbeddedCustodian,
    FenceLog,
    Keyring,
    LeaseBook,
    Provisioned,
    SqlitePageStore,
    SubjectId,
    aead,
    envelope,
    tree,
)
from keys.agentclient import IngestKeys
from keys.agentserver import Connection
from keys.caches import Dek, MaskedKey
from keys.mac import HmacSha256
from keys.tree import KeyRecord
from tests.keys.blake2b import blake2b
from tests.keys.people import BLOCK, context, now
from tests.keys.test_agent import Host

PACKAGE = str(Path(keys.__file__).parent)
NO_KEYS_HERE = ("sqlite.py", "quiet.py")
"""They see no key, and an error within one line of theirs would leave a lock behind."""
KEY = bytes(range(200, 232))
PIECE = 12
"""So many bytes of a key in a row are the key."""
SESSION_SALT = 16
NEWEST = 60


class Fault(Exception):
    """What is made to happen."""


class Witness:
    """Gives random bytes, and knows afterwards every key that was made of them."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def __call__(self, count: int) -> bytes:
        self.given.append(os.urandom(count))
        return self.given[-1]

    def keys(self) -> set[bytes]:
        """Roots, node, page, index and signing keys, DEKs; and the subkeys and tag keys derived from each."""
        whole = [
            one[at : at + 32] for one in self.given if len(one) % 32 == 0 for at in range(0, len(one), 32)
        ]
        salts = [one for one in self.given if len(one) == SESSION_SALT]
        info = context().derivation_info(aead.SUITE_AES_GCM)
        derived = [envelope.derive(key, info, salt).key for key in whole for salt in salts]
        return {*whole, *derived, *(blake2b(b"", key=key, person=b"CSE1 event tag")[:32] for key in whole)}


def forms(key: bytes) -> Iterator[str]:
    """How the beginning of a key looks in a text: as it is, in hex, base64, and escaped by Python."""
    piece = key[:PIECE]
    yield piece.decode("latin-1")
    yield piece.hex()
    yield piece.hex().upper()
    yield base64.b64encode(piece).decode()
    yield base64.urlsafe_b64encode(piece).decode()
    escaped = repr(b'"' + piece)[3:-1]  # with both kinds of quotation marks around
    yield escaped
    yield escaped.replace("\\'", "'")


def shown(text: str, secrets: set[bytes]) -> list[str]:
    """Which keys a text shows."""
    return [form for key in secrets for form in forms(key) if form in text]


def rendered(error: BaseException) -> str:
    """All that an error reporter would keep of it."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(whole.format()) + repr(error) + str(error)


class Injector:
    """Raises at the last line that a function of the package runs.

    Lines of `with` are left out: Python comes back to them to let a lock go, which it then would not.
    """

    def __init__(self, target: CodeType | None = None, at: int = 0) -> None:
        self.lines: Counter[CodeType] = Counter()
        self._target = target
        self._at = at

    def __enter__(self) -> Injector:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        path = frame.f_code.co_filename
        return self._line if path.startswith(PACKAGE) and not path.endswith(NO_KEYS_HERE) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        code = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not code.lstrip().startswith("with "):
            self.lines[frame.f_code] += 1
            if frame.f_code is self._target and self.lines[frame.f_code] == self._at:
                raise Fault
        return self._line


class Place:
    """A keyring whose keys are known, and what is done with it again and again."""

    def __init__(self, folder: Path) -> None:
        self.witness = Witness()
        custodian = EmbeddedCustodian.create(folder / "root.key", self.witness)
        self.keyring = Keyring(
            custodian,
            SqlitePageStore(folder / "pages.db"),
            FenceLog(folder / "fences.db", custodian.secret("fence"), now),
            LeaseBook(folder / "leases.db"),
            random_bytes=self.witness,
        )
        self._numbers = itertools.count()
        self.refs = self.provision()
        self.sealed = self.seal()
        self._first = len(self.witness.given)

    def forget(self) -> None:
        """Everything is read anew; of what was made since the beginning the newest keys are watched for."""
        self.keyring.resident.forget_all()
        self.keyring.tree.forget_cached()
        del self.witness.given[self._first : -NEWEST]

    def provision(self) -> list[bytes]:
        """Three people who are new."""
        people = [SubjectId(f"person {next(self._numbers)}") for _ in range(3)]
        return [one.ref for one in self.keyring.provision(people) if isinstance(one, Provisioned)]

    def seal(self) -> list[bytes]:
        """A word for each, and the keys of their event tags."""
        session = self.keyring.session()
        assert len(session.tag_keys(self.refs)) == 3
        sealed = session.seal(context(), self.refs, [BLOCK] * 3, [b"word"] * 3)
        return [one for one in sealed if isinstance(one, bytes)]

    def open(self) -> None:
        """The three words."""
        assert self.keyring.opener().open(context(), self.refs, [BLOCK] * 3, self.sealed) == [b"word"] * 3

    def destroy(self) -> None:
        """One more person, fenced and destroyed."""
        person = SubjectId(f"person {next(self._numbers)}")
        (made,) = self.keyring.provision([person])
        assert isinstance(made, Provisioned)
        self.keyring.destroy([made.ref], self.keyring.fence([(person, made.ref)], "r"))

    def close_epoch(self) -> None:
        """A new root version, and no older one."""
        self.keyring.close_epoch()

    def sign(self) -> None:
        """With the root's own key."""
        self.keyring.sign(b"payload")

    def mint_hold_and_rekey(self) -> None:
        """What else touches keys."""
        (minted,) = self.keyring.mint(1)
        self.keyring.hold(self.refs[0], True)
        self.keyring.hold(self.refs[0], False)
        self.keyring.drop([minted.ref])
        self.keyring.rekey()


WORK = ("seal", "open", "provision", "destroy", "close_epoch", "sign", "mint_hold_and_rekey")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A keyring of known keys."""
    found = Place(tmp_path)
    yield found
    found.keyring.close()


def failures(work: Callable[[], object], forget: Callable[[], None]) -> Iterator[tuple[str, str]]:
    """(name of the function that fails, what its error shows) for every function that `work` runs."""
    forget()
    with Injector() as measured:
        work()
    for code, count in measured.lines.items():
        forget()
        try:
            with Injector(code, count):
                work()
        except Fault as fault:
            yield code.co_qualname, rendered(fault)


@pytest.mark.parametrize("name", WORK)
def test_an_error_anywhere_shows_no_key(place: Place, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """In its words, its traceback with local variables, or the log."""
    caplog.set_level(logging.DEBUG)

    seen = []
    for function, text in failures(getattr(place, name), place.forget):
        seen.append(function)
        assert not shown(text, place.witness.keys()), (function, text)
    assert len(seen) > (3 if name == "sign" else 20)
    assert not shown("".join(record.getMessage() for record in caplog.records), place.witness.keys())


def test_a_search_like_this_one_finds_a_key_where_there_is_one(place: Place) -> None:
    """Functions between two ways in do hold keys when they fail: without the scrubbing they would be shown."""
    (record,) = place.keyring.tree.records_of(place.refs[:1])
    info = context().derivation_info(aead.SUITE_AES_GCM)
    found = dict(
        failures(
            lambda: (
                envelope.derive(record.dek, info, bytes(SESSION_SALT)),
                place.keyring.tree.pages_of(place.refs),
                tree.page_key(place.keyring.tree._node(0), 0),
            ),
            lambda: None,
        )
    )
    for name in ("derive", "hmac_sha512s", "page_key"):
        assert shown(found[name], place.witness.keys()), name


def test_an_error_in_a_worker_of_the_key_agent_shows_no_key(tmp_path: Path) -> None:
    """Neither on its side nor on the agent's."""
    host = Host(tmp_path)
    witness, people = Witness(), itertools.count()
    host.keyring.resident._random = witness
    host.keyring.tree._random = witness
    connection = Connection("ingest")
    place = astuple(context())

    def at_the_worker() -> None:
        ingest: IngestKeys = host.ingest()
        (made,) = ingest.provision([SubjectId(f"person {next(people)}")])
        assert isinstance(made, Provisioned)
        session = ingest.session()
        sealed = [
            one for one in session.seal(context(), [made.ref], [BLOCK], [b"word"]) if isinstance(one, bytes)
        ]
        assert session.tag_keys([made.ref])
        assert host.build().opener().open(context(), [made.ref], [BLOCK], sealed) == [b"word"]

    def at_the_agent() -> None:
        def ask(**request: Any) -> dict[str, Any]:
            return host.agent.answer(connection, request)

        refs = ask(op="provision", names=[f"person {next(people)}"], purpose="service")["refs"]
        salt = ask(op="begin_session")["salt"]
        ask(op="sealing", salt=salt, refs=refs, context=place, suite=1)
        ask(op="tag_keys", refs=refs)

    at_the_worker()
    first = len(witness.given)

    def forget() -> None:
        host.keyring.resident.forget_all()
        del witness.given[first:-NEWEST]

    for work in (at_the_worker, at_the_agent):
        seen = []
        for function, text in failures(work, forget):
            seen.append(function)
            assert not shown(text, witness.keys()), (function, text)
        assert len(seen) > 20
    host.close()
    host.keyring.close()


HOLDERS = {
    "a DEK in the cache": lambda place: Dek(KEY, 1, False),
    "a subkey": lambda place: envelope.Subkey(KEY, KEY, 1),
    "a key record": lambda place: KeyRecord(bytes(16), 1, 1, 0, KEY),
    "a tag key": lambda place: MaskedKey(KEY),
    "tag keys as other packages get them": lambda place: place.keyring.session().tag_keys(place.refs),
    "a keyed hash": lambda place: HmacSha256(KEY),
    "keys in memory": lambda place: place.keyring.resident.deks(place.refs, "service"),
    "all caches": lambda place: place.keyring.resident._caches,
    "resident keys": lambda place: place.keyring.resident,
    "the tree": lambda place: place.keyring.tree,
    "the blind index": lambda place: place.keyring.tree.index,
    "handles": lambda place: place.keyring.tree.index.handles,
    "the custodian": lambda place: place.keyring.custodian,
    "the fence log": lambda place: place.keyring.fences,
    "a session": lambda place: place.keyring.session(),
    "an opener": lambda place: place.keyring.opener(),
    "the keyring": lambda place: place.keyring,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_holds_a_key_neither_shows_it_nor_is_pickled(place: Place, name: str) -> None:
    """Nor copied."""
    place.open()
    holder = HOLDERS[name](place)
    secrets = place.witness.keys() | {KEY}
    assert not shown(f"{holder} {holder!r} {holder!s} {[holder]}", secrets)
    for act in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            act(holder)
