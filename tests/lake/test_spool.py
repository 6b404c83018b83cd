"""The spool's state machine against a model, and what a restored copy does."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lake import EventRead, IntakeFull, IntakeUnreadable, KeyReused, Outcome, verify
from lake.batches import Arrival
from lake.spool import Spool, SpoolKeyClosed
from service.runtime import Runtime, open_runtime
from tests.world import paid

MAX_EVENTS = 12


class SpoolMachine(RuleBasedStateMachine):
    """Batches come, keys are rotated, commits are begun, land or do not, and the process dies in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="shredlake-spool-"))
        self.epoch = 0
        self.now = 1000.0
        self.table = 0  # the offset that the table has
        self.landed: list[str] = []
        self.waiting: list[tuple[str, int, bytes]] = []
        self.named: dict[bytes, tuple[bytes, str]] = {}
        self.keys: dict[bytes, bool] = {}
        self.count = 0
        self.begun: int | None = None
        self.spool = self.opened()

    def opened(self) -> Spool:
        """A process opens it."""
        return Spool(
            self.folder / "intake.db",
            lambda: self.epoch,
            lambda: self.now,
            max_events=MAX_EVENTS,
            max_bytes=10**9,
        )

    def teardown(self) -> None:
        """Removes the file."""
        self.spool.close()
        shutil.rmtree(self.folder)

    @rule()
    def die(self) -> None:
        """Everything in memory is gone."""
        self.spool.close()
        self.spool = self.opened()

    @rule()
    def new_key(self) -> None:
        """A key of nobody."""
        ref = f"key{len(self.keys)}".encode()
        self.spool.add_key(ref)
        self.keys[ref] = True

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), events=st.integers(1, 5), name=st.integers(0, 3), body=st.integers(0, 1))
    def put(self, data: st.DataObject, events: int, name: int, body: int) -> None:
        """A request, perhaps the same again, perhaps the same key with another body."""
        ref = data.draw(st.sampled_from(sorted(self.keys)))
        named = None if name == 0 else f"{name}".encode()
        self.count += 1
        batch = f"{self.count:032x}"
        said = None if named is None else f"{body}".encode()
        one = Arrival(batch, events, 10 * events, ref, b"sealed", named, said)
        known = self.named.get(named) if named is not None else None
        if known is not None:
            if known[0] != said:
                with pytest.raises(KeyReused):
                    self.spool.put(one)
            else:
                found, is_new = self.spool.put(one)
                assert (found.batch_id, is_new) == (known[1], False)
            return
        if sum(n for _, n, _ in self.waiting) >= MAX_EVENTS:
            with pytest.raises(IntakeFull):
                self.spool.put(one)
            return
        if not self.keys[ref]:
            with pytest.raises(SpoolKeyClosed):
                self.spool.put(one)
            return
        found, is_new = self.spool.put(one)
        assert (found.batch_id, is_new) == (batch, True)
        self.waiting.append((batch, events, ref))
        if named is not None and said is not None:
            self.named[named] = (said, batch)

    @rule(limit=st.integers(1, 6))
    def begin(self, limit: int) -> None:
        """A committer takes what is next; a commit that was begun is repeated as it was."""
        taken = self.spool.take(limit, 10**9)
        assert [one.batch_id for one in taken] == [b for b, _, _ in self.waiting[: len(taken)]]
        if not taken:
            assert not self.waiting
            return
        if self.begun is not None and self.begun > self.table:
            assert taken[-1].end == self.begun
        self.spool.intend(taken[-1].end, [(one.batch_id, Outcome(one.events, 0, 0)) for one in taken])
        self.begun = taken[-1].end

    @precondition(lambda self: self.begun is not None)
    @rule(settles=st.booleans())
    def land(self, settles: bool) -> None:
        """The table takes it; the process may die before it says so."""
        assert self.begun is not None
        self.table = self.begun
        if settles:
            self.settle()

    @precondition(lambda self: self.begun is not None)
    @rule()
    def settle(self) -> None:
        """Whoever comes next sees where the table stands."""
        queue = self.spool.queue()
        assert self.table in (queue.settled, queue.intended)
        if self.table == queue.settled:
            return
        self.spool.settle(self.table)
        at = queue.settled
        while at < self.table:
            batch, events, _ = self.waiting.pop(0)
            self.landed.append(batch)
            at += events
        assert at == self.table
        self.begun = None

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def close_key(self, data: st.DataObject) -> None:
        """It takes no more."""
        ref = data.draw(st.sampled_from(sorted(self.keys)))
        self.spool.close_keys(lambda key, epoch, made_at: key == ref)
        self.keys[ref] = False

    @invariant()
    def is_like_the_model(self) -> None:
        """What waits, what is committed, and which keys may be destroyed."""
        if not hasattr(self, "spool"):
            return
        queue = self.spool.queue()
        events = sum(n for _, n, _ in self.waiting)
        assert (queue.batches, queue.events, queue.size_bytes) == (len(self.waiting), events, 10 * events)
        assert queue.next - queue.settled == events
        assert all(self.spool.get(one).state == "committed" for one in self.landed)
        assert not any(self.spool.get(one).state != "waiting" for one, _, _ in self.waiting)
        needed = {ref for _, _, ref in self.waiting}
        done = {ref for ref, is_open in self.keys.items() if not is_open} - needed
        assert set(self.spool.finished_keys()) == done


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def put(runtime: Runtime, *ids: str) -> None:
    """One batch."""
    body = json.dumps([paid("ann", event_id=one) for one in ids]).encode()
    runtime.lake.intake.put(body, len(ids), "-".join(ids))


def stored(runtime: Runtime) -> list[str]:
    """Ids of all events of the head."""
    replay = runtime.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    frame = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("event_id",))).frame
    return sorted(frame["event_id"].to_list())


@pytest.mark.parametrize("later", [0, 1, 3])
def test_a_spool_restored_from_an_older_copy_goes_on_under_a_new_name(world: Runtime, later: int) -> None:
    """What waited in the copy is in the table already: its key is gone, so it does not come twice."""
    copy = world.home.parent / "copy"
    put(world, "1", "2")
    world.lake.intake.commit()
    put(world, "3")
    shutil.copytree(world.home / "lake", copy, ignore=shutil.ignore_patterns("warehouse", "types"))
    put(world, "4")
    world.lake.intake.drain()
    world.close()
    for path in copy.glob("intake.db*"):
        shutil.copy(path, world.home / "lake" / path.name)
    with open_runtime(world.home) as again:
        for n in range(later):
            put(again, f"new {n}")
        again.lake.intake.drain()
        assert stored(again) == ["1", "2", "3", "4", *(f"new {n}" for n in range(later))]
        assert again.lake.intake.queue().batches == 0
        put(again, "last")
        again.lake.intake.drain()
        assert stored(again)[4] == "last"
        assert verify(again.lake, deep=True).problems == ()


def test_a_table_that_knows_nothing_of_the_spool_takes_what_waits(world: Runtime) -> None:
    """The table was restored from before: what was committed since is lost, what waits is not."""
    put(world, "1")
    world.lake.intake.commit()
    put(world, "2")
    world.close()
    with open_runtime(world.home) as again:
        ingestor = again.lake.ingestor()
        ingestor.offsets = dict  # type: ignore[method-assign,assignment] # as a table of before would say
        again.lake.intake._ingestor = ingestor
        name = again.lake.intake.queue().source
        again.lake.intake.commit()
        assert again.lake.intake.queue().source != name
        assert stored(again) == ["1", "2"]


def test_what_no_key_opens_stops_the_intake_until_it_is_given_up(world: Runtime) -> None:
    """Key pages of before came back: nothing is dropped silently, and the way out is said."""
    put(world, "1")
    world.lake.intake.commit()
    lost = world.lake.intake._spool.open_key(0, 10)
    assert lost is not None
    body = json.dumps(paid("ann", event_id="2")).encode()
    batch, _ = world.lake.intake.put(body, 1)
    world.keyring.drop([lost])  # what such a restore does to it
    put(world, "3")
    with pytest.raises(IntakeUnreadable) as stopped:
        world.lake.intake.drain()
    assert "--give-up" in stopped.value.next_step
    assert world.lake.intake.give_up() == 1
    world.lake.intake.drain()
    assert stored(world) == ["1", "3"]
    assert world.lake.intake.get(batch.batch_id).state == "unknown"
    assert world.lake.intake.queue().events == 0
