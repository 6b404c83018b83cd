"""Blocks: whose events come together, in which order, and what their tags are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import EventRead
from lake.blocks import event_tags, pack_tags, unpack_tags
from lake.cloudevents import parse_cloud_events
from lake.errors import CorruptBlock
from lake.parsed import joined
from service.runtime import Runtime
from tests.lake.siphash import siphash
from tests.world import paid, shred_before_tagging

_POSITIONS = EventRead("Paid", ("cents", "position"))
_FILE = f"file:{0:064x}"
_KEYS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4)


@given(keys=_KEYS, data=st.data())
def test_a_tag_is_siphash_of_source_and_id_however_many_events_a_person_has(
    keys: Sequence[bytes], data: Any
) -> None:
    """Stored tags of other commits are compared with it."""
    counts = [data.draw(st.integers(1, 4)) for _ in keys]
    ids = [data.draw(st.text(max_size=20)) for _ in range(sum(counts))]
    frame = pl.DataFrame({"source": ["app"] * len(ids), "event_id": ids})
    owners = [key for key, count in zip(keys, counts, strict=True) for _ in range(count)]
    expected = [siphash(f"app\0{one}".encode(), key[:16]) for key, one in zip(owners, ids, strict=True)]
    cuts = np.cumsum([0, *counts])
    packed = pack_tags(event_tags(frame, keys, counts), cuts)
    assert packed.to_list() == [b"".join(expected[a:b]) for a, b in pairwise(cuts)]
    assert unpack_tags(packed, np.diff(cuts)).to_list() == [int.from_bytes(one, "little") for one in expected]


@pytest.mark.parametrize("packed", [b"", bytes(8), bytes(15), bytes(24), None])
def test_a_block_with_more_or_fewer_tags_than_events_is_refused(packed: bytes | None) -> None:
    with pytest.raises(CorruptBlock):
        unpack_tags(pl.Series([bytes(8), packed], dtype=pl.Binary), np.array([1, 2]))


def test_lines_that_were_parsed_later_stand_in_their_place(world: Runtime) -> None:
    """What takes a careful parser comes behind the others; in a person's block the order is that of lines."""
    lines = [(n, json.dumps(paid(f"p{n % 2}", n, event_id=str(n))).encode()) for n in range(8)]
    late, soon = lines[:4], lines[4:]
    parsed = joined([parse_cloud_events(some, world.lake.types, 0, 8) for some in (soon, late)])
    done = world.lake.ingestor().land([(_FILE, parsed)])
    assert done is not None
    rows = world.lake.events.scan(done[0].files).sort("source_from").collect()
    assert rows["generation"].to_list() == [1, 1]
    assert rows["source_from"].to_list() == [0, 1]
    assert rows["source_to"].to_list() == [7, 8]
    for ref in rows["subject_ref"]:
        found = world.lake.replay().events(done[0].files, _POSITIONS, refs=[ref]).frame
        assert found["position"].is_sorted()
        assert found["position"].n_unique() == 4


def test_nothing_is_stored_of_a_batch_whose_people_are_all_erased_meanwhile(world: Runtime) -> None:
    """Between naming and sealing, every one of them."""
    ingestor = world.lake.ingestor()
    shred_before_tagging(world, ingestor, "ann")
    line = (0, json.dumps(paid("ann", 1, event_id="1")).encode())
    done = ingestor.land([(_FILE, parse_cloud_events([line], world.lake.types, 0, 1))])
    assert done is not None
    assert (done[0].events, done[0].ranges[0].suppressed, done[0].files) == (0, 1, ())
