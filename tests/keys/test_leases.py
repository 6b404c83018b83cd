"""Leases: who may still hold an erased key, told by a clock that the tests move."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import define, field

from keys import (
    KeyPlaces,
    Lease,
    LeaseBook,
    LeaseExpired,
    LeasesElsewhere,
    SqlitePageStore,
    adopt_host,
    embedded_places,
    open_keys,
)
from keys.leases import LEASE_SECONDS, MAX_LEASE_SECONDS, RENEW_AFTER_SECONDS, Seen


@define
class Host:
    """A host with one clock, one fence log's epoch, and what happens while somebody looks at it."""

    book: LeaseBook
    now: list[float]
    epoch: int = 5
    evictions: int = 0
    evicted: list[int] = field(factory=list)
    meanwhile: Callable[[], None] | None = None

    def look(self) -> Seen:
        """Reads what is to be acknowledged; then, once, something else happens."""
        seen, (then, self.meanwhile) = Seen(self.epoch, self.evictions), (self.meanwhile, None)
        if then is not None:
            then()
        return seen

    def lease(self) -> Lease:
        """A holder."""
        return Lease(self.book, self.look, self.evicted.append)

    def pass_time(self, seconds: float) -> None:
        """Time goes on for everybody."""
        self.now[0] += seconds


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """At 1,000 seconds since boot."""
    now = [1000.0]
    return Host(LeaseBook(tmp_path / "leases.db", lambda: now[0]), now)


def test_a_lease_is_renewed_when_a_second_has_passed_and_not_before(host: Host) -> None:
    """A renewal is a write, and there are thousands of reads a second."""
    lease = host.lease()
    lease.ensure()
    host.epoch = 6
    host.pass_time(RENEW_AFTER_SECONDS - 0.01)
    assert lease.ensure() == 5
    host.pass_time(0.01)
    assert lease.ensure() == 6
    assert host.evicted == [5, 6]


def test_keys_are_dropped_before_the_epoch_is_acknowledged(host: Host) -> None:
    """While they are being dropped, an erasure still waits."""
    waiting: list[int] = []
    lease = Lease(host.book, host.look, lambda epoch: waiting.append(host.book.behind(epoch)))
    lease.ensure()
    host.epoch = 6
    host.pass_time(RENEW_AFTER_SECONDS)
    lease.ensure()
    assert waiting == [1, 1]
    assert host.book.behind(6) == 0


def test_a_holder_asked_to_evict_is_waited_for_like_one_of_an_older_epoch(host: Host) -> None:
    """The epoch stands still, and keys are dropped all the same."""
    lease = host.lease()
    lease.ensure()
    host.evictions = 1
    assert (host.book.behind(5), host.book.behind(5, 1)) == (0, 1)
    host.pass_time(RENEW_AFTER_SECONDS)
    assert lease.ensure() == 5
    assert host.evicted == [5, 5]
    assert host.book.behind(5, 1) == 0


def test_a_lease_book_of_before_evictions_is_read_on(tmp_path: Path) -> None:
    """Its leases have acknowledged none."""
    with sqlite3.connect(tmp_path / "leases.db") as db:
        db.execute("CREATE TABLE leases (lease_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL,"
                   " expires_at REAL NOT NULL) WITHOUT ROWID")  # fmt: skip
        db.execute("INSERT INTO leases VALUES ('old', 5, 1003.0)")
    book = LeaseBook(tmp_path / "leases.db", lambda: 1000.0)
    assert (book.behind(5), book.behind(5, 1)) == (0, 1)


def test_an_expired_holder_is_not_waited_for_and_may_not_hand_anything_out(host: Host) -> None:
    """Exactly at its end a lease counts for both; past it for neither."""
    lease = host.lease()
    lease.ensure()
    host.pass_time(LEASE_SECONDS)
    lease.check()
    assert host.book.behind(6) == 1
    host.pass_time(0.001)
    with pytest.raises(LeaseExpired):
        lease.check()
    assert host.book.behind(6) == 0


def test_a_holder_paused_between_looking_and_renewing_is_refused(host: Host) -> None:
    """The erasure went on without it, so its renewal must not begin at its waking."""
    lease = host.lease()
    lease.ensure()
    host.pass_time(RENEW_AFTER_SECONDS)
    gone_on: list[bool] = []

    def pause_through_an_erasure() -> None:
        host.pass_time(10)
        host.epoch = 6
        gone_on.append(host.book.behind(6) == 0)

    host.meanwhile = pause_through_an_erasure
    lease.ensure()
    assert gone_on == [True]
    with pytest.raises(LeaseExpired):
        lease.check()
    assert lease.ensure() == 6


def test_an_erasure_between_a_look_and_a_renewal_waits_for_the_holder(host: Host) -> None:
    """Its lease had run out, its keys are still there, and it has just seen the epoch of before."""
    lease = host.lease()
    lease.ensure()
    host.pass_time(10)
    went_on: list[bool] = []

    def erase() -> None:
        host.epoch = 6
        went_on.append(host.book.behind(6) == 0)

    host.meanwhile = erase
    assert lease.ensure() == 5
    lease.check()
    assert went_on == [False], "whoever may still read has to be waited for"


def test_the_erasing_process_acknowledges_at_once(host: Host) -> None:
    """And one that never had keys takes no lease for it."""
    lease, idle = host.lease(), host.lease()
    lease.ensure()
    host.epoch = 6
    assert host.book.behind(6) == 1
    lease.acknowledge_now()
    idle.acknowledge_now()
    assert host.book.behind(6) == 0
    assert (lease.epoch, idle.epoch) == (6, -1)
    assert host.book.behind(7) == 1, "one lease, not two"


def test_a_released_lease_holds_nobody_up_and_its_keys_are_gone(host: Host) -> None:
    """Then it begins anew."""
    lease = host.lease()
    lease.ensure()
    lease.release()
    assert host.evicted == [5, 5]
    assert host.book.behind(6) == 0
    with pytest.raises(LeaseExpired):
        lease.check()
    assert lease.ensure() == 5


def test_a_second_host_is_refused_until_it_is_the_only_one(tmp_path: Path) -> None:
    """An erasure waits for the leases of one book: who has another one would be forgotten."""
    pages, home, other = tmp_path / "pages.db", tmp_path / "one", tmp_path / "two"
    places = KeyPlaces(embedded_places(home).custodian, lambda: SqlitePageStore(pages))
    fences = tmp_path / "fences.db"
    open_keys(places, home, fence_path=fences).close()
    for _ in range(2):
        with pytest.raises(LeasesElsewhere):
            open_keys(places, other, fence_path=fences)
    adopt_host(places, other)
    open_keys(places, other, fence_path=fences).close()
    with pytest.raises(LeasesElsewhere):
        open_keys(places, home, fence_path=fences)


def test_every_holder_counts_for_itself(host: Host) -> None:
    """Two behind, then one, then none."""
    first, second = host.lease(), host.lease()
    first.ensure()
    second.ensure()
    host.epoch = 6
    counts = [host.book.behind(6)]
    for lease in (first, second):
        lease.acknowledge_now()
        counts.append(host.book.behind(6))
    assert counts == [2, 1, 0]


def test_a_lease_of_an_earlier_boot_is_dead(host: Host) -> None:
    """After a power cut the clock begins at nought; nobody waits until it has caught up."""
    host.lease().ensure()
    host.now[0] = 100.0
    assert host.book.behind(6) == 0


def test_no_lease_is_so_long_that_it_looks_like_one_of_an_earlier_boot(host: Host) -> None:
    """The longest is waited for; a longer one is not given."""
    host.book.renew("long", Seen(5), MAX_LEASE_SECONDS)
    assert host.book.behind(6) == 1
    with pytest.raises(AssertionError):
        host.book.renew("longer", Seen(5), MAX_LEASE_SECONDS + 1)


def test_a_holder_that_renews_and_never_acknowledges_is_an_error(tmp_path: Path) -> None:
    """Not an erasure that is said to be done."""
    ticks = iter(range(1000, 100_000))
    book = LeaseBook(tmp_path / "leases.db", lambda: float(next(ticks)))
    book.renew("stubborn", Seen(5), MAX_LEASE_SECONDS)
    with pytest.raises(LeaseExpired, match="without evicting"):
        book.wait_until_acknowledged(6, timeout_seconds=5)
