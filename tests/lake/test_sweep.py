"""The sweep of what nothing refers to: of the events and of every view, in a folder and in a bucket."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from lake import Housekeeping, IcebergTable, Maintenance, UpkeepPolicy
from lake.objects import StoredObject, local_path
from lake.orphans import orphans_of
from service.runtime import Runtime
from tests.world import paid, publish, send

VIEW = "cents_per_day"


class Stop(BaseException):
    """The power goes."""


def view_tables(runtime: Runtime) -> list[IcebergTable]:
    """The tables of all views."""
    return runtime.lake.warehouse.tables("views")


def below(runtime: Runtime, table: IcebergTable) -> list[StoredObject]:
    """Everything in a table's folder, versions included."""
    return list(runtime.lake.warehouse.objects.objects(table.load().location()))


def publish_and_die(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication that ends where a view's first commit would be sent."""
    sending = IcebergTable._send

    def dying(self: IcebergTable, *given: Any) -> None:
        if self.identifier.startswith("views."):
            raise Stop
        sending(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(IcebergTable, "_send", dying)
        with pytest.raises(Stop):
            publish(runtime, VIEW)


def test_what_a_killed_publication_left_goes_and_what_was_reported_stays(
    anywhere: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data file, its manifest and its list; older publications of the view can still be read."""
    send(anywhere, [paid("ann", 5, event_id="1")])
    publish(anywhere)
    before_second = datetime.now(UTC)
    send(anywhere, [paid("bob", 7, event_id="2")])
    publish(anywhere)
    send(anywhere, [paid("cid", 9, event_id="3")])
    publish_and_die(anywhere, monkeypatch)
    objects = anywhere.lake.warehouse.objects
    left = [one for table in view_tables(anywhere) for one in orphans_of(table, objects)]
    ends = sorted(local_path(one.location).rpartition(".")[2] for one in left)
    assert (set(ends), ends.count("parquet")) == ({"avro", "parquet"}, 1)
    policy = UpkeepPolicy(grace_seconds=3600)
    kept = Maintenance(anywhere.lake, policy).run(datetime.now(UTC))
    assert "sweep" not in {one.what for one in kept}, "somebody might be about to commit them"
    eager = Maintenance(anywhere.lake, UpkeepPolicy(grace_seconds=0))
    (told,) = eager.plan(datetime.now(UTC))
    swept = Housekeeping(anywhere.lake).sweep(grace_seconds=0)
    assert (told.what, told.before) == ("sweep", len(swept))
    assert {one.location for one in left} <= {one.location for one in swept}
    assert [one for table in view_tables(anywhere) for one in orphans_of(table, objects)] == []
    assert anywhere.views.as_reported(VIEW).rows["cents"].sum() == 12
    assert anywhere.views.as_reported(VIEW, before_second).rows["cents"].sum() == 5
    publish(anywhere, VIEW)
    assert anywhere.views.as_reported(VIEW).rows["cents"].sum() == 21


def test_of_a_view_s_old_metadata_no_version_stays(anywhere: Runtime) -> None:
    """As for the events: what neither the head nor its log names goes, what they name stays, once."""
    send(anywhere, [paid("ann", 5, event_id="1")])
    publish(anywhere, VIEW)
    (table,) = view_tables(anywhere)
    (head, build) = table.history()
    assert head == table.snapshot()
    for number in range(25):
        table.set_tags({f"tag-{number}": build.snapshot_id})
    Housekeeping(anywhere.lake).sweep(grace_seconds=0)
    loaded = table.load()
    named = [loaded.metadata_location, *(entry.metadata_file for entry in loaded.metadata.metadata_log)]
    found = [one for one in below(anywhere, table) if one.location.endswith(".metadata.json")]
    assert sorted(local_path(one.location) for one in found) == sorted(map(local_path, named))
    assert not any(one.is_marker for one in below(anywhere, table))
    assert anywhere.views.as_reported(VIEW).rows["cents"].sum() == 5


def test_a_table_of_others_in_the_same_catalog_is_left_alone(anywhere: Runtime) -> None:
    """Where a catalog is shared, `views` may hold tables that lie elsewhere; they are none of ours."""
    send(anywhere, [paid("ann", 5, event_id="1")])
    publish(anywhere, VIEW)
    (ours,) = view_tables(anywhere)
    loaded = ours.load()
    place = f"{anywhere.lake.warehouse.objects.root}/others/table"
    anywhere.lake.warehouse.catalog.create_table("views.others", loaded.schema(), place)
    litter = f"{place}/data/{'0' * 32}.parquet"
    with loaded.io.new_output(litter).create() as sink:
        sink.write(b"theirs")
    assert [one.identifier for one in view_tables(anywhere)] == [ours.identifier]
    Housekeeping(anywhere.lake).sweep(grace_seconds=0)
    assert loaded.io.new_input(litter).exists()
