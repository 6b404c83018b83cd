"""Whatever happens in whatever order, a reader gets the value or the right erasure, never another answer."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keys import (
    ALL_PURPOSES,
    InvalidTransition,
    Provisioned,
    Shredded,
    SubjectErased,
    SubjectId,
    open_embedded,
)
from tests.keys.people import seal, shred, unseal

PEOPLE = st.sampled_from(["ann", "bob"])
PURPOSES = st.sampled_from(["service", "marketing"])
Part = tuple[str, str]


class History(RuleBasedStateMachine):
    """A lake's keys beside the simplest thing that could be true of them."""

    @initialize()
    def begin(self) -> None:
        """An empty folder."""
        self.folder = Path(tempfile.mkdtemp())
        self.keyring = open_embedded(self.folder / "keys")
        self.keys: dict[Part, Provisioned] = {}
        self.erased: set[Part] = set()  # may not be provisioned
        self.ever: set[Part] = set()
        self.sealed: list[tuple[Part, bytes, bytes, Shredded | None]] = []

    def teardown(self) -> None:
        """Leaves nothing behind."""
        self.keyring.close()
        shutil.rmtree(self.folder)

    @rule(person=PEOPLE, purpose=PURPOSES)
    def provision(self, person: str, purpose: str) -> None:
        """Found, made, or refused."""
        (got,) = self.keyring.provision([SubjectId(person)], purpose)
        part = person, purpose
        if part in self.keys:
            assert got == Provisioned(self.keys[part].ref, self.keys[part].generation, False)
        elif part in self.erased:
            assert isinstance(got, SubjectErased)
        else:
            assert isinstance(got, Provisioned)
            assert got.created
            handles = {made.ref for (who, _), made in self.keys.items() if who == person}
            assert handles <= {got.ref}, "a person has one handle"
            old = {ref for _, ref, _, answer in self.sealed if answer is not None}
            assert handles or got.ref not in old, "who was erased as a whole gets a new one"
            self.keys[part] = got

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), body=st.binary(max_size=40))
    def seal(self, data: st.DataObject, body: bytes) -> None:
        """Something of somebody who has a key."""
        part = data.draw(st.sampled_from(sorted(self.keys)))
        ref = self.keys[part].ref
        self.sealed.append((part, ref, seal(self.keyring, ref, part[1], b"body " + body), None))
        assert unseal(self.keyring, ref, self.sealed[-1][2], part[1]) == b"body " + body

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), whole=st.booleans())
    def erase(self, data: st.DataObject, whole: bool) -> None:
        """A person, or one purpose."""
        person, purpose = data.draw(st.sampled_from(sorted(self.keys)))
        ref = self.keys[person, purpose].ref
        epoch = shred(self.keyring, SubjectId(person), ref, ALL_PURPOSES if whole else purpose)
        answer = Shredded(f"r{epoch}", epoch)
        parts = {(person, p) for p in ("service", "marketing") if whole or p == purpose}
        self.erased |= parts
        self.ever |= parts
        self.sealed = [
            (part, at, one, answer if old is None and part in parts else old)
            for part, at, one, old in self.sealed
        ]
        self.keys = {part: key for part, key in self.keys.items() if part not in parts}

    @rule(person=PEOPLE, purpose=PURPOSES)
    def come_back(self, person: str, purpose: str) -> None:
        """Only of who was erased."""
        if (person, purpose) in self.ever:
            self.keyring.authorize_return(SubjectId(person), purpose)
            self.erased.discard((person, purpose))
        else:
            with pytest.raises(InvalidTransition):
                self.keyring.authorize_return(SubjectId(person), purpose)

    @rule()
    def close_epoch(self) -> None:
        """Older wraps die."""
        assert self.keyring.close_epoch().old_wrap_refused

    @rule()
    def begin_a_new_process(self) -> None:
        """Nothing cached."""
        self.keyring.close()
        self.keyring = open_embedded(self.folder / "keys")

    @invariant()
    def every_sealed_value_has_the_right_answer(self) -> None:
        """Opens while it may; afterwards names the erasure that took it."""
        for (_, purpose), ref, one, erased in self.sealed:
            answer = unseal(self.keyring, ref, one, purpose)
            if erased is None:
                assert isinstance(answer, bytes)
                assert answer.startswith(b"body ")
            else:
                assert answer == erased

    @invariant()
    def there_is_a_record_for_each_key_and_no_other(self) -> None:
        """Nothing erased lingers, nothing living is lost; log and pages agree."""
        assert self.keyring.stats()["records"] == len(self.keys)
        assert self.keyring.gate().is_open
        assert self.keyring.fences.verify() == self.keyring.epoch()

    @invariant()
    def names_lead_to_whom_they_should(self) -> None:
        """Nobody without a key is found."""
        for person in ("ann", "bob"):
            mine = {key.ref for (who, _), key in self.keys.items() if who == person}
            assert self.keyring.ref_of(SubjectId(person)) == next(iter(mine), None)


TestAnyHistory = History.TestCase
TestAnyHistory.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
