"""Backups brought back: drills, restored stores and logs, copies of the fence log, damage."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.postgres import Postgres, find_programs
from keys import (
    EmbeddedCustodian,
    FenceCopyInvalid,
    FenceLog,
    Identity,
    KeyPlaces,
    Keyring,
    PageDamaged,
    PageStoreError,
    Provisioned,
    RestoreGateClosed,
    RootMismatch,
    Shredded,
    SqlitePageStore,
    SubjectErased,
    SubjectId,
    adopt_host,
    copy_store,
    embedded_places,
    export_fences,
    import_fences,
    open_embedded,
    open_keys,
)
from keys.fencecopy import newest_of
from keys.postgresstore import PostgresPageStore, drop_schema
from tests.keys.people import (
    ANN,
    BLOCK,
    BOB,
    CID,
    WORD,
    backup,
    context,
    provision,
    restore,
    seal,
    shred,
    unseal,
)
from tests.keys.servers import schema_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of keys."""
    return tmp_path / "keys"


@pytest.fixture
def keyring(home: Path) -> Keyring:
    """An embedded keyring."""
    return open_embedded(home)


# -- restores ---------------------------------------------------------------------------------------


class Pages:
    """The key pages of a lake, with the backup that the place's own tool makes.

    Args:
        home: the folder of keys.
        postgres: holds the pages; None where SQLite does.
    """

    def __init__(self, home: Path, postgres: Postgres | None) -> None:
        self._home, self._copy = home, home.with_name("pages.backup")
        self._dsn = postgres.address()["POSTGRES_DSN"] if postgres is not None else None
        self._schema = schema_of(home)

    def open(self) -> Keyring:
        """A keyring over them."""
        dsn = self._dsn
        if dsn is None:
            return open_embedded(self._home)
        places = KeyPlaces(
            embedded_places(self._home).custodian, lambda: PostgresPageStore(dsn, self._schema)
        )
        return open_keys(places, self._home)

    def back_up(self) -> None:
        """By SQLite's backup, or by pg_dump."""
        if self._dsn is None:
            backup(self._home / "pages.db", self._copy)
        else:
            _tool("pg_dump", self._dsn, "-n", self._schema, "-f", self._copy)

    def restore(self) -> None:
        """The backup in the place of what is there now, which nobody has open."""
        if self._dsn is None:
            restore(self._copy, self._home / "pages.db")
        else:
            drop_schema(self._dsn, self._schema)
            _tool("psql", self._dsn, "-q", "-v", "ON_ERROR_STOP=1", "-f", self._copy)


def _tool(name: str, *arguments: str | Path) -> None:
    subprocess.run([find_programs() / name, *arguments], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(params=["sqlite", "postgres"])
def pages(request: pytest.FixtureRequest, home: Path) -> Pages:
    """On either store."""
    return Pages(home, request.getfixturevalue("postgres") if request.param == "postgres" else None)


@pytest.mark.parametrize("witnessed", [True, False], ids=["with a copy", "without a copy"])
@pytest.mark.parametrize("older", ["pages", "log", "both"])
def test_after_a_restore_nothing_is_served_until_the_newest_fences_are_replayed(
    pages: Pages, home: Path, tmp_path: Path, older: str, witnessed: bool
) -> None:
    """The gate says which is behind; what both have lost only a witness in a third place knows."""
    keyring = pages.open()
    refs = {who: provision(keyring, who).ref for who in (ANN, BOB, CID)}
    sealed = {who: seal(keyring, ref) for who, ref in refs.items()}
    shred(keyring, ANN, refs[ANN])
    pages.back_up()
    backup(home / "fences.db", tmp_path / "fences.backup")
    shred(keyring, BOB, refs[BOB])
    copy = export_fences(keyring.fences, keyring.custodian)
    keyring.close()
    if older != "log":
        pages.restore()
    if older != "pages":
        restore(tmp_path / "fences.backup", home / "fences.db")
    restored = pages.open()
    if witnessed:
        known = newest_of(copy, restored.custodian.public_keys(), "a signed copy")
        restored.gatekeeping.witnesses.append(lambda: known)
    gate = restored.gate()
    assert gate.is_open == (older == "both" and not witnessed)
    assert bool(gate.lost) == (older != "pages" and witnessed)
    if not gate.is_trusted:
        assert gate.fence_log_behind == (older == "log")
        with pytest.raises(RestoreGateClosed) as raised:
            restored.converge()
        assert "keys import-fences" in raised.value.next_step
    merged = import_fences(copy, restored.fences, restored.custodian.public_keys())
    assert (merged.fences, merged.added) == (2, 0 if older == "pages" else 1)
    restored.converge()
    assert restored.gate().is_open
    answers = {who: unseal(restored, refs[who], sealed[who]) for who in refs}
    assert answers == {ANN: Shredded("r1", 1), BOB: Shredded("r2", 2), CID: WORD}
    assert restored.check().problems == ()
    restored.close()


@pytest.mark.parametrize("name", ["pages", "fences"])
def test_a_running_process_notices_a_restore_although_it_compared_before(
    keyring: Keyring, home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate reads all fences again when one of both names another state, and only then."""
    refs = {who: provision(keyring, who).ref for who in (ANN, BOB, CID)}
    shred(keyring, ANN, refs[ANN])
    backup(home / f"{name}.db", tmp_path / "copy")
    shred(keyring, BOB, refs[BOB])
    assert keyring.gate().is_open
    read = keyring._store.destroyed
    looks: list[int] = []
    monkeypatch.setattr(keyring._store, "destroyed", lambda: looks.append(1) or read())
    assert keyring.gate().is_open
    assert looks == [], "nothing has changed since the last comparison"
    backup(tmp_path / "copy", home / f"{name}.db")  # in place, under the open connections
    gate = keyring.gate()
    assert (gate.pending_epochs, gate.fence_log_behind) == (((2,), False) if name == "pages" else ((), True))
    assert len(looks) == 1
    assert not open_embedded(home).gate().is_open, "nor does a process that starts"
    if name == "pages":
        assert keyring.converge() == 1
        assert keyring.gate().is_open
        shred(keyring, CID, refs[CID])
        assert keyring.gate().is_open


def test_a_log_of_the_same_length_in_its_place_is_noticed(
    keyring: Keyring, home: Path, tmp_path: Path
) -> None:
    """A fence was lost and another one has its number: the pages know the link of the lost one.

    Whoever is fenced now is read by nobody, although the number of fences is the same.
    """
    refs = {who: provision(keyring, who).ref for who in (ANN, BOB)}
    sealed = seal(keyring, refs[BOB])
    backup(home / "fences.db", tmp_path / "copy")
    shred(keyring, ANN, refs[ANN])
    assert keyring.gate().is_open
    assert unseal(keyring, refs[BOB], sealed) == WORD
    older = FenceLog(tmp_path / "copy", keyring.custodian.secret("fence"), lambda: datetime.now(UTC))
    older.append([(older.subject_tag(BOB), older.ref_tag(refs[BOB]), "*", 1)], "r1")
    older.close()
    backup(tmp_path / "copy", home / "fences.db")
    assert keyring.epoch() == 1
    assert keyring.gate().fence_log_foreign
    keyring.resident.acknowledge_now()  # what every second brings
    assert unseal(keyring, refs[BOB], sealed) == Shredded("r1", 1)


def test_a_partial_restore_brings_nobody_back_unnoticed(keyring: Keyring, home: Path, tmp_path: Path) -> None:
    """Pages and nodes of before, `destroyed` of now: the check counts, converging looks at every page."""
    refs = {who: provision(keyring, who).ref for who in (ANN, BOB)}
    provision(keyring, ANN, "marketing")
    sealed = seal(keyring, refs[BOB])
    backup(home / "pages.db", tmp_path / "pages")
    shred(keyring, ANN, refs[ANN])
    keyring.close()
    with sqlite3.connect(home / "pages.db") as db:
        db.execute("ATTACH ? AS older", (str(tmp_path / "pages"),))
        for table in ("pages", "nodes", "blind", "elsewhere"):
            db.execute(f"DELETE FROM main.{table}")
            db.execute(f"INSERT INTO main.{table} SELECT * FROM older.{table}")
    restored = open_embedded(home)
    assert restored.gate().is_open
    assert any("2 fenced key records" in problem for problem in restored.check().problems)
    assert restored.converge() == 0
    assert restored.converge(every_page=True) == 1
    assert restored.check().problems == ()
    assert [record.ref for record in restored.tree.records_of(list(refs.values()))] == [refs[BOB]]
    assert unseal(restored, refs[BOB], sealed) == WORD


# -- the fence log in a second place ----------------------------------------------------------------


def test_a_copy_gives_an_empty_log_everything_back(keyring: Keyring, tmp_path: Path) -> None:
    """Fences and returns; again it changes nothing."""
    shred(keyring, ANN, provision(keyring, ANN).ref)
    keyring.authorize_return(ANN)
    shred(keyring, BOB, provision(keyring, BOB).ref)
    copy = export_fences(keyring.fences, keyring.custodian)
    log = FenceLog(tmp_path / "new.db", keyring.custodian.secret("fence"), lambda: pytest.fail("no clock"))
    keys = keyring.custodian.public_keys()
    merged = import_fences(copy, log, keys)
    assert (merged.fences, merged.added, merged.returns_added) == (2, 2, 1)
    assert log.all() == keyring.fences.all()
    assert log.returns() == keyring.fences.returns()
    assert log.life(ANN, "service") == keyring.fences.life(ANN, "service")
    assert import_fences(copy, log, keys).added == 0


def test_a_copy_that_was_cut_edited_or_forged_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    """Every line counts; the log stays as it was."""
    for n in range(4):
        who = SubjectId(f"p{n}")
        shred(keyring, who, provision(keyring, who).ref)
    keyring.authorize_return(SubjectId("p0"))
    copy = export_fences(keyring.fences, keyring.custodian)
    keys = keyring.custodian.public_keys()
    lines = copy.splitlines(keepends=True)
    stranger = EmbeddedCustodian.create(tmp_path / "stranger.key")
    bad = {
        "cut behind": b"".join(lines[:-2]),
        "without its signature": b"".join(lines[:-1]),
        "a fence taken out": b"".join(lines[:2] + lines[3:]),
        "two fences exchanged": b"".join([lines[0], lines[2], lines[1], *lines[3:]]),
        "edited": copy.replace(b'"generation": 1', b'"generation": 0', 1),
        "a return for somebody else": copy.replace(
            lines[5], lines[5].replace(b'"epoch": 1', b'"epoch": 4'), 1
        ),
        "a return taken out": b"".join(lines[:5] + lines[6:]),
        "empty": b"",
        "signed by another": export_fences(keyring.fences, stranger),
    }
    log = FenceLog(tmp_path / "new.db", keyring.custodian.secret("fence"), lambda: pytest.fail("no clock"))
    for what, one in bad.items():
        with pytest.raises(FenceCopyInvalid):
            import_fences(one, log, keys)
        assert log.epoch() == 0, what


@pytest.mark.parametrize("edit", ["purpose = 'marketing'", "epoch = 2", "subject_tag = x'00'", "mac = x''"])
def test_a_return_that_was_edited_in_the_log_brings_nobody_back(
    keyring: Keyring, home: Path, edit: str
) -> None:
    """Neither the one who came nor another, also where only the row was written; `verify` says so."""
    for who in (ANN, BOB):
        shred(keyring, who, provision(keyring, who).ref)
    keyring.authorize_return(ANN)
    assert keyring.fences.verify() == 2
    with sqlite3.connect(home / "fences.db") as db:
        db.execute(f"UPDATE authorized_returns SET {edit}")
        if edit.startswith("subject_tag"):
            db.execute("UPDATE authorized_returns SET subject_tag = ?", (keyring.fences.subject_tag(BOB),))
    with pytest.raises(ValueError, match="a return was changed"):
        keyring.fences.verify()
    with pytest.raises(ValueError, match="a return was changed"):
        export_fences(keyring.fences, keyring.custodian)
    for purpose in ("service", "marketing"):
        for who in (ANN, BOB):
            assert isinstance(keyring.provision([who], purpose)[0], SubjectErased)
    keyring.authorize_return(BOB)
    assert isinstance(keyring.provision([BOB])[0], Provisioned)


def test_two_histories_are_not_mixed(keyring: Keyring, home: Path, tmp_path: Path) -> None:
    """A log that went on after a restore, and the copy of what it had lost."""
    refs = [provision(keyring, who).ref for who in (ANN, BOB, CID)]
    shred(keyring, ANN, refs[0])
    backup(home / "fences.db", tmp_path / "log")
    shred(keyring, BOB, refs[1])
    copy = export_fences(keyring.fences, keyring.custodian)
    restore(tmp_path / "log", tmp_path / "other.db")
    other = FenceLog(tmp_path / "other.db", keyring.custodian.secret("fence"), keyring.fences._clock)
    other.append([(other.subject_tag(CID), other.ref_tag(refs[2]), "*", 1)], "r9")
    with pytest.raises(FenceCopyInvalid, match="parted"):
        import_fences(copy, other, keyring.custodian.public_keys())


# -- moving and checking ----------------------------------------------------------------------------


def test_a_store_moves_to_a_server_and_back(
    keyring: Keyring, home: Path, postgres: Postgres, tmp_path: Path
) -> None:
    """Whoever could be opened can be, with the same root; a target in use is refused."""
    ref, gone = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    keyring.mint(1500)
    sealed = seal(keyring, ref)
    shred(keyring, BOB, gone)
    server = PostgresPageStore(postgres.address()["POSTGRES_DSN"], schema_of(tmp_path))
    assert copy_store(keyring._store, server) == 2
    with pytest.raises(PageStoreError, match="already"):
        copy_store(keyring._store, server)
    custodian = embedded_places(home).custodian
    moved = open_keys(KeyPlaces(custodian, lambda: server), home)
    assert unseal(moved, ref, sealed) == WORD
    assert moved.gate().is_open
    assert moved.check().problems == ()
    back = SqlitePageStore(tmp_path / "back.db")
    copy_store(server, back)
    assert unseal(open_keys(KeyPlaces(custodian, lambda: back), home), ref, sealed) == WORD


def test_a_check_counts_what_is_there(keyring: Keyring) -> None:
    """Per purpose, with holds and generations."""
    ref = provision(keyring, ANN).ref
    provision(keyring, ANN, "marketing")
    provision(keyring, BOB)
    shred(keyring, ANN, ref, "marketing")
    keyring.authorize_return(ANN, "marketing")
    provision(keyring, ANN, "marketing")
    keyring.hold(ref, True)
    found = keyring.check()
    assert found.problems == ()
    assert (found.pages, found.records, found.subjects, found.names, found.fences) == (1, 3, 2, 2, 1)
    counts = {one.purpose: (one.records, one.held, one.highest_generation) for one in found.purposes}
    assert counts == {"service": (2, 1, 1), "marketing": (1, 1, 2)}
    stats = keyring.stats()
    assert (stats["records"], stats["names"], stats["pages"], stats["nodes"]) == (3, 2, 1, 2)


def test_an_inventory_says_what_is_there_and_what_wraps_it(keyring: Keyring) -> None:
    """People apart from keys of nobody and from further names; the root version of every node."""
    refs = [provision(keyring, who).ref for who in (ANN, BOB, CID)]
    keyring.add_identities([(refs[0], Identity("email", f"{n}@example.org")) for n in range(4)])
    keyring.mint(5)
    empty = keyring.inventory()
    assert (empty.fences, empty.fence_head) == (0, "")
    shred(keyring, CID, refs[2])
    found = keyring.inventory()
    assert (found.people, found.identities, found.handles, found.records) == (2, 4, 7, 7)
    assert (found.pages, found.fill) == (1, round(7 / 1024, 3))
    assert (found.fences, bytes.fromhex(found.fence_head)) == (1, keyring.fences.all()[0].chain)
    version = keyring.custodian.status().latest_version
    assert [(node.node_id, node.pages, node.root_version) for node in found.nodes] == [
        (-1, 0, version),
        (0, 1, version),
    ]
    keyring.close_epoch()
    assert {node.root_version for node in keyring.inventory().nodes} == {version + 1}
    assert (found.index_version, found.index_being_replaced) == (1, False)
    keyring.rekey()
    assert keyring.inventory().index_version == 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE pages SET body = zeroblob(500) WHERE page_id = 0", "does not authenticate"),
        ("UPDATE pages SET count = 7 WHERE page_id = 0", "page 0 says 7 records and holds 1024"),
        ("DELETE FROM pages WHERE page_id = 1", "1 page(s) are not in the page store"),
        ("DELETE FROM elsewhere", "1 key record(s) have no index row"),
        ("INSERT INTO elsewhere VALUES (zeroblob(16), 0)", "1 index row(s) point at no key record"),
        ("UPDATE blind SET name = zeroblob(16)", "lead to a handle without a key"),
    ],
)
def test_a_check_finds_damage_and_names_the_place(
    keyring: Keyring, home: Path, damage: str, says: str
) -> None:
    """And nobody."""
    provision(keyring)
    keyring.mint(1500)
    provision(keyring, ANN, "marketing")  # on another page than the first
    with sqlite3.connect(home / "pages.db") as db:
        db.execute(damage)
    problems = open_embedded(home).check().problems
    assert any(says in problem for problem in problems)
    assert "ann" not in str(problems)


def test_a_flipped_bit_in_a_page_affects_no_other(keyring: Keyring, home: Path) -> None:
    """The error names the page; it is no erasure."""
    ann = provision(keyring, ANN).ref
    keyring.mint(1100)
    bob = provision(keyring, BOB).ref
    sealed = {ref: seal(keyring, ref) for ref in (ann, bob)}
    with sqlite3.connect(home / "pages.db") as db:
        (body,) = db.execute("SELECT body FROM pages WHERE page_id = 0").fetchone()
        flipped = bytearray(body)
        flipped[len(flipped) // 2] ^= 1
        db.execute("UPDATE pages SET body = ? WHERE page_id = 0", (bytes(flipped),))
    fresh = open_embedded(home)
    assert unseal(fresh, bob, sealed[bob]) == WORD
    with pytest.raises(PageDamaged, match=r"page\|.*\|0 "):
        unseal(fresh, ann, sealed[ann])


def test_two_processes_with_different_roots_do_not_mix(keyring: Keyring, home: Path, tmp_path: Path) -> None:
    """The second is refused before it writes anything."""
    provision(keyring)
    before = (home / "pages.db").read_bytes()
    stranger = KeyPlaces(
        lambda: EmbeddedCustodian.create(tmp_path / "other.key"), lambda: SqlitePageStore(home / "pages.db")
    )
    with pytest.raises(RootMismatch) as raised:
        open_keys(stranger, tmp_path / "elsewhere")
    assert "root" in raised.value.next_step
    assert (home / "pages.db").read_bytes() == before


def test_a_full_database_is_an_error_and_nothing_is_half_done(keyring: Keyring) -> None:
    """With room again the same call succeeds."""
    ref = provision(keyring).ref
    sealed = seal(keyring, ref)
    db = keyring._store._db.connection()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages + 2}")
    people = [SubjectId(f"p{n}") for n in range(3000)]
    with pytest.raises(PageStoreError) as raised:
        keyring.provision(people)
    assert "room" in raised.value.next_step
    assert keyring.check().problems == ()
    assert unseal(keyring, ref, sealed) == WORD
    db.execute("PRAGMA max_page_count = 1000000")
    keyring.provision(people)
    assert keyring.stats()["records"] == 3001


def test_a_clock_that_goes_backwards_changes_no_order(home: Path) -> None:
    """Fences are ordered by their numbers, leases by a clock that no one sets."""
    from datetime import UTC, datetime

    times = iter([datetime(2030, 1, 1, tzinfo=UTC), datetime(2001, 1, 1, tzinfo=UTC)])
    keyring = open_embedded(home, clock=lambda: next(times))
    refs = [provision(keyring, who).ref for who in (ANN, BOB)]
    sealed = [seal(keyring, ref) for ref in refs]
    assert [shred(keyring, who, ref) for who, ref in zip((ANN, BOB), refs, strict=True)] == [1, 2]
    assert keyring.fences.verify() == 2
    assert [unseal(keyring, r, s) for r, s in zip(refs, sealed, strict=True)] == [
        Shredded("r1", 1),
        Shredded("r2", 2),
    ]
    assert [f.fenced_at[:4] for f in keyring.fences.all()] == ["2030", "2001"]
    assert json.loads(export_fences(keyring.fences, keyring.custodian).splitlines()[0])["fences"] == 2


# -- one lake, one fence log ------------------------------------------------------------------------


def two_hosts(tmp_path: Path) -> tuple[Keyring, Keyring]:
    """Two keyrings on one page store and one root, with a fence log each: a mistake."""
    shared, elsewhere = tmp_path / "keys", tmp_path / "other"
    first = open_embedded(shared)
    adopt_host(embedded_places(shared), elsewhere)  # the other mistake has a test of its own
    second = open_keys(embedded_places(shared), elsewhere)
    return first, second


def test_another_fence_log_is_refused_before_anybody_was_erased(tmp_path: Path) -> None:
    """The second host could neither see the first one's fences nor be waited for."""
    first, second = two_hosts(tmp_path)
    ref = provision(first).ref
    sealed = seal(first, ref)
    for forbidden in (
        lambda: second.provision([BOB]),
        lambda: unseal(second, ref, sealed),
        lambda: second.session().seal(context(), [ref], [BLOCK], [WORD]),
        lambda: second.fence([(ANN, ref)], "r"),
        lambda: second.converge(),
    ):
        with pytest.raises(RestoreGateClosed, match="not the one of these key pages"):
            forbidden()
    assert second.gate().fence_log_foreign
    assert not second.gate().is_open
    assert unseal(first, ref, sealed) == WORD


def test_a_signed_copy_makes_a_fresh_log_the_lakes_own(tmp_path: Path) -> None:
    """Also one without a single fence."""
    first, second = two_hosts(tmp_path)
    ref = provision(first).ref
    sealed = seal(first, ref)
    copy = export_fences(first.fences, first.custodian)
    import_fences(copy, second.fences, second.custodian.public_keys())
    assert second.gate().is_open
    assert unseal(second, ref, sealed) == WORD


def test_a_log_that_is_lost_for_good_is_replaced_only_where_nobody_was_erased(tmp_path: Path) -> None:
    """Otherwise the page store knows better."""
    first, second = two_hosts(tmp_path)
    second.bind_fence_log(replace=True)
    ref = provision(second).ref
    with pytest.raises(RestoreGateClosed, match="not the one"):
        provision(first, BOB)
    shred(second, ANN, ref)
    with pytest.raises(RestoreGateClosed, match="older than the page store"):
        first.bind_fence_log(replace=True)
    assert second.gate().is_open


def test_histories_that_parted_are_noticed(tmp_path: Path) -> None:
    """A copied log file goes on elsewhere: its next fence has a number that is taken."""
    home = tmp_path / "keys"
    first = open_embedded(home)
    ann, bob = provision(first).ref, provision(first, BOB).ref
    backup(home / "fences.db", tmp_path / "copy.db")
    (tmp_path / "other").mkdir()
    restore(tmp_path / "copy.db", tmp_path / "other" / "fences.db")
    adopt_host(embedded_places(home), tmp_path / "other")
    second = open_keys(embedded_places(home), tmp_path / "other")
    fences = second.fence([(BOB, bob)], "second")
    shred(first, ANN, ann)
    with pytest.raises(RestoreGateClosed, match="not the one"):
        second.destroy([bob], fences)
    assert second.gate().fence_log_foreign
    assert first.gate().is_open
