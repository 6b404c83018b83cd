"""A root belongs to one lake: nobody's epoch close retires what another lake is wrapped with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.vault import Vault
from infra.vault.setup import make_keys
from keys import (
    Custodian,
    CustodianUnavailable,
    EmbeddedCustodian,
    KeyPlaces,
    Keyring,
    SqlitePageStore,
    open_keys,
)
from keys.errors import RootShared
from keys.rootowner import may_rotate
from keys.transit import TransitCustodian
from tests.keys.people import ANN, WORD, provision, seal, unseal
from tests.keys.servers import admin_session, schema_of

Roots = Callable[[], Custodian]


@pytest.fixture(params=["embedded", "transit"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Roots:
    """Opens one and the same unused root."""
    if request.param == "embedded":
        return lambda: EmbeddedCustodian.create(tmp_path / "root.key")
    vault: Vault = request.getfixturevalue("vault")
    prefix = schema_of(tmp_path)
    make_keys(vault.client(), prefix)
    return lambda: TransitCustodian(admin_session(vault), prefix=prefix)


def lake(root: Roots, home: Path) -> Keyring:
    """A lake's keys below a root."""
    return open_keys(KeyPlaces(root, lambda: SqlitePageStore(home / "pages.db")), home)


def test_a_second_lake_does_not_join_a_root(root: Roots, tmp_path: Path) -> None:
    """And the first one goes on, however often the second one tries."""
    first = lake(root, tmp_path / "first")
    ref = provision(first, ANN).ref
    sealed = seal(first, ref)
    for _ in range(2):
        with pytest.raises(RootShared):
            lake(root, tmp_path / "second")
    assert first.close_epoch().old_wrap_refused
    assert unseal(first, ref, sealed) == WORD


def test_a_root_that_somebody_else_rotated_is_not_closed(root: Roots, tmp_path: Path) -> None:
    """What another lake may have wrapped stays until an operator says that there is none."""
    keyring = lake(root, tmp_path / "lake")
    other = root()
    (theirs,) = other.wrap([(b"theirs", bytes(32))])
    other.rotate()
    for _ in range(2):
        with pytest.raises(RootShared):
            keyring.close_epoch()
    assert other.unwrap([(b"theirs", theirs)]) == [bytes(32)]
    assert keyring.adopt_root() == other.status().latest_version
    assert keyring.close_epoch().old_wrap_refused


class LosesAnswers:
    """A custodian whose next rotation is done and not answered, or neither."""

    def __init__(self, custodian: Custodian, *, done: bool) -> None:
        self._custodian = custodian
        self._done = done

    def rotate(self) -> int:
        """Fails."""
        if self._done:
            self._custodian.rotate()
        raise CustodianUnavailable("the answer was lost")

    def __getattr__(self, name: str) -> object:
        return getattr(self._custodian, name)


@pytest.mark.parametrize("done", [True, False])
def test_a_rotation_whose_answer_was_lost_is_the_lakes_own(root: Roots, tmp_path: Path, done: bool) -> None:
    """Again and again, when it is made and when the epoch is closed."""
    home = tmp_path / "lake"

    def unlucky() -> Custodian:
        return LosesAnswers(root(), done=done)  # type: ignore[return-value]

    for _ in range(2):
        with pytest.raises(CustodianUnavailable):
            lake(unlucky, home)
    keyring = lake(root, home)
    ref = provision(keyring, ANN).ref
    sealed = seal(keyring, ref)
    keyring.close()
    for _ in range(2):
        keyring = lake(unlucky, home)
        with pytest.raises(CustodianUnavailable):
            keyring.close_epoch()
        keyring.close()
    keyring = lake(root, home)
    assert keyring.close_epoch().old_wrap_refused
    assert unseal(keyring, ref, sealed) == WORD


def test_two_processes_that_close_at_once_do_not_take_each_other_for_strangers(
    root: Roots, tmp_path: Path
) -> None:
    """The one that comes second begins its intent anew."""
    one, two = lake(root, tmp_path / "lake"), lake(root, tmp_path / "lake")
    for keyring in (one, two, two, one):
        assert keyring.close_epoch().old_wrap_refused


@given(st.lists(st.sampled_from(["intend", "rotate", "lost", "stranger"]), max_size=12))
def test_a_strangers_rotation_is_noticed_and_an_own_one_never_taken_for_it(steps: list[str]) -> None:
    """Whatever the order of steps; one alone may look like ours, while we do not know whether we rotated."""
    latest, known, intended, strange = 2, 2, 1, 0
    for step in steps:
        if step == "stranger":
            latest, strange = latest + 1, strange + 1
        elif not may_rotate(latest, known, intended):
            assert strange
            return
        else:
            assert strange == 0 or (strange == 1 and intended == known)
            known, intended, strange = latest, latest, 0
            if step != "intend":
                latest += 1
            if step == "rotate":
                known = latest
