"""One behaviour on every catalog and store: SQLite, PostgreSQL and REST; a folder, and a bucket with versions."""

from __future__ import annotations

import json
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table.metadata import TableMetadata

from infra.kafka import Kafka
from infra.s3 import BUCKET
from keys import SubjectId
from lake import (
    CatalogRefused,
    CatalogUnavailable,
    CommitConflict,
    Housekeeping,
    JsonLinesFile,
    Maintenance,
    StorageFailed,
    StorageUnsuitable,
    TagLost,
    UpkeepPolicy,
    privacy_lint,
    restcatalog,
    verify,
)
from lake.objects import S3Objects, local_path, open_objects
from lake.references import tag_update
from purge import payload_of, scan
from service.doctor import examine
from service.runtime import Runtime, open_runtime
from tests.lake.far import forget_tables, make, s3_properties, settings
from tests.lake.faulty import CommitsToPostgres, Faults, before_postgres, faulty
from tests.lake.test_tables import head_frame
from tests.lake.topics import Topic, exactly, held
from tests.servers import Stores
from tests.world import compact_all, erase, paid, publish, send


@pytest.fixture
def behind_faults(stores: Stores, versions: Any, tmp_path: Path) -> Iterator[tuple[Runtime, Faults]]:
    """A lake on REST and S3 whose catalog misbehaves when told to."""
    lake = settings(stores, "rest", "bucket", tmp_path)
    with faulty(lake["uri"]) as (uri, faults):
        runtime = make(tmp_path / "lake", lake | {"uri": uri})
        yield runtime, faults
        runtime.close()
    forget_tables(stores)


def people(count: int, start: int = 0) -> list[dict[str, Any]]:
    """An event each, of ten people."""
    return [
        paid(f"person-{number % 10}", number, event_id=str(number), note=f"note of person-{number % 10}")
        for number in range(start, start + count)
    ]


def test_events_go_in_and_come_out_and_nothing_is_left_over(far: Runtime) -> None:
    """Ingest, compaction, expiry and sweep, and every event is there once."""
    send(far, people(40))
    send(far, people(40, 40))
    compact_all(far)
    assert sorted(map(int, head_frame(far)["event_id"])) == list(range(80))
    upkeep = Housekeeping(far.lake)
    upkeep.expire(keep=1)
    would = upkeep.sweep(grace_seconds=0, dry_run=True)
    assert would
    assert upkeep.sweep(grace_seconds=0) == would
    assert upkeep.sweep(grace_seconds=0) == []
    assert sorted(map(int, head_frame(far)["event_id"])) == list(range(80))
    assert verify(far.lake, deep=True).problems == ()
    assert privacy_lint(far.lake) == []


def test_a_tag_that_moves_while_snapshots_are_chosen_keeps_where_it_points(far: Runtime) -> None:
    """Whatever the catalog: it is noticed inside the commit, and the choice is made anew."""
    for number in range(4):
        send(far, people(1, number))
    *_, second, first = (one.snapshot_id for one in far.lake.events.history())
    far.lake.events.set_tags({"pinned": first})

    def choose(metadata: TableMetadata) -> list[int]:
        named = {ref.snapshot_id for ref in metadata.refs.values()}
        if second not in named:
            far.lake.events.set_tags({"pinned": second})
        return [one.snapshot_id for one in metadata.snapshots if one.snapshot_id not in named]

    gone = far.lake.events.expire(choose)
    assert second not in gone
    assert len(gone) == 2
    assert far.lake.events.metadata().refs["pinned"].snapshot_id == second
    assert far.lake.events.files(second)


def at_the_next_commit(runtime: Runtime, act: Callable[[], object]) -> None:
    """Something that happens between what an attempt has looked at and its commit, once."""
    sending, left = runtime.lake.events._send, [act]

    def overtaken(*given: Any) -> None:
        if left:
            left.pop()()
        sending(*given)

    runtime.lake.events._send = overtaken  # type: ignore[method-assign]


@pytest.mark.parametrize("tagged_before", [False, True])
def test_a_tag_that_nobody_knew_of_keeps_its_snapshot(far: Runtime, tagged_before: bool) -> None:
    """Set by another process behind the last look of an expiry: whatever the catalog, both come out right."""
    for number in range(5):
        send(far, people(1, number))
    newest, *_, second, first = (one.snapshot_id for one in far.lake.events.history())
    if tagged_before:
        far.lake.events.set_tags({"known": first})
    with open_runtime(far.home) as other:
        at_the_next_commit(far, lambda: other.lake.events.set_tags({"fresh": second}))
        gone = Housekeeping(far.lake).expire(keep=1)
    assert second not in gone
    assert len(gone) == (2 if tagged_before else 3)
    refs = far.lake.events.metadata().refs
    assert refs["fresh"].snapshot_id == second
    assert far.lake.events.files(second)
    assert {one.snapshot_id for one in far.lake.events.history()} >= {newest, second}
    assert privacy_lint(far.lake) == []


def test_a_tag_that_others_set_in_the_moment_of_an_expiry_is_not_lost_in_silence(far: Runtime) -> None:
    """Without a word to us: a SQL catalog keeps it; at a REST catalog it is an error that says what to do."""
    for number in range(4):
        send(far, people(1, number))
    first = far.lake.events.history()[-1].snapshot_id
    catalog, table = far.lake.warehouse.catalog, far.lake.events.load()
    at_the_next_commit(far, lambda: catalog.commit_table(table, (), (tag_update("theirs", first),)))
    if isinstance(catalog, SqlCatalog):
        assert first not in Housekeeping(far.lake).expire(keep=1)
        assert far.lake.events.metadata().refs["theirs"].snapshot_id == first
    else:
        with pytest.raises(TagLost, match="1 tag") as told:
            Housekeeping(far.lake).expire(keep=1)
        assert "tagged" in told.value.next_step
        assert Housekeeping(far.lake).expire(keep=1) == [], "and it does not stand in the way of the next"


def test_of_old_metadata_no_version_stays(far: Runtime) -> None:
    """What neither the head nor its log names goes, what they name stays, once."""
    send(far, people(1))
    (one,) = far.lake.events.history()
    for number in range(25):
        far.lake.events.set_tags({f"tag-{number}": one.snapshot_id})
    Housekeeping(far.lake).sweep(grace_seconds=0)
    table = far.lake.events.load()
    named = [table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)]
    found = [
        one
        for one in far.lake.warehouse.objects.objects(table.location())
        if one.location.endswith(".metadata.json")
    ]
    assert sorted(local_path(one.location) for one in found) == sorted(map(local_path, named))
    assert not any(one.is_marker for one in found)
    assert head_frame(far).height == 1


def test_an_erasure_reaches_every_byte_and_every_version(far: Runtime) -> None:
    """With the keys in hand nobody finds the person in what the store still has, and others are there."""
    send(far, people(40))
    compact_all(far)
    publish(far)
    erase_id = erase(far, "person-3")
    receipt = far.purge.journal.get(erase_id).receipt
    assert receipt is not None
    assert payload_of(receipt)["predicate"]["level"]
    objects = far.lake.warehouse.objects
    found = scan(far.home, SubjectId("person-3"), objects=objects)
    assert (found.findings, found.opened_values > 0) == ((), True)
    assert scan(far.home, SubjectId("person-4"), objects=objects).findings
    assert head_frame(far).filter(head_frame(far)["note"].str.contains("person-3")).height == 0


def test_nothing_unregistered_passes_in_a_warehouse_elsewhere(far: Runtime) -> None:
    """An object that no store owns is seen by the doctor."""
    objects = far.lake.warehouse.objects
    stray = f"{objects.root}/copy-of-something.csv"
    table = far.lake.events.load()
    with table.io.new_output(stray).create() as file:
        file.write(b"who knows")
    (finding,) = [one for one in examine(far) if one.check == "stores"]
    assert finding.level == "error"
    objects.delete([one for one in objects.objects(objects.root) if one.location == stray])
    (finding,) = [one for one in examine(far) if one.check == "stores"]
    assert finding.level == "ok"


def test_two_writers_of_one_source_land_every_line_once(far: Runtime, tmp_path: Path) -> None:
    """Each with a connection of its own; whoever loses a race goes on behind the winner."""
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in people(300)))

    def write() -> None:
        with open_runtime(far.home) as other:
            other.lake.ingestor().run(JsonLinesFile(path, other.lake.types), batch_events=30)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert sorted(map(int, head_frame(far)["event_id"])) == list(range(300))
    assert verify(far.lake, deep=True).problems == ()


def test_no_secret_is_written_to_the_warehouse(far: Runtime, stores: Stores, tmp_path: Path) -> None:
    """Neither the store's log-in nor the catalog's, in any object, whatever its format."""
    send(far, people(5))
    secrets = [stores.s3.address()["AWS_SECRET_ACCESS_KEY"], stores.s3.address()["AWS_ACCESS_KEY_ID"]]
    secrets.append(stores.postgres.address()["POSTGRES_DSN"].split(":")[2].split("@")[0])
    objects = far.lake.warehouse.objects
    copies = 0
    for number, one in enumerate(objects.objects(objects.root)):
        if not one.is_marker:
            copy = tmp_path / f"copy-{number}"
            objects.copy(one, copy)
            copies += 1
            assert not [secret for secret in secrets if secret.encode() in copy.read_bytes()]
    assert copies > 3


def test_a_catalog_that_knows_another_lake_s_table_is_refused(far: Runtime, tmp_path: Path) -> None:
    """Two lakes that share a catalog by mistake would close epochs over each other's events."""
    lake = {
        key: value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for key, value in far.settings.lake
        if value is not None and key != "properties"
    }
    lake["properties"] = {k: v.get_secret_value() for k, v in far.settings.lake.properties.items()}
    if "uri" not in lake:
        lake["uri"] = f"sqlite:///{far.home / 'lake' / 'catalog.db'}"
    (tmp_path / "another").mkdir()
    with pytest.raises(StorageUnsuitable, match=r"another (place|path)"):
        make(tmp_path / "second", lake | {"warehouse": (tmp_path / "another").as_uri()})


@pytest.mark.parametrize("fault", ["409", "409 after landing", "500", "lost", "500 before", "503"])
def test_a_catalog_that_answers_wrongly_loses_and_doubles_nothing(
    behind_faults: tuple[Runtime, Faults], fault: str
) -> None:
    """Whether the commit landed is looked up; where it did not, the same batch goes in afterwards."""
    world, faults = behind_faults
    send(world, people(10))
    faults.planned = [fault]
    try:
        send(world, people(10, 10))
    except CatalogUnavailable:
        assert fault in ("500 before", "503")
        send(world, people(10, 10))
    assert faults.met == [fault]
    assert sorted(map(int, head_frame(world)["event_id"])) == list(range(20))
    assert verify(world.lake, deep=True).problems == ()


def test_an_answer_that_never_comes_is_given_up_and_the_commit_is_looked_up(
    behind_faults: tuple[Runtime, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own limit ends it; what it waited for had landed, and goes in once."""
    world, faults = behind_faults
    send(world, people(10))
    monkeypatch.setattr(restcatalog, "_ANSWER_SECONDS", (5.0, 2.0))
    faults.planned = ["stalled"]
    send(world, people(10, 10))
    assert faults.met == ["stalled"]
    assert sorted(map(int, head_frame(world)["event_id"])) == list(range(20))
    assert verify(world.lake, deep=True).problems == ()


@pytest.fixture
def behind_postgres(stores: Stores, tmp_path: Path) -> Iterator[tuple[Runtime, CommitsToPostgres]]:
    """A lake on PostgreSQL whose commits something happens to when told to."""
    lake = settings(stores, "postgres", "folder", tmp_path)
    head, _, end = lake["uri"].rpartition(":")
    port, _, database = end.partition("/")
    with before_postgres(int(port)) as (mine, faults):
        runtime = make(tmp_path / "lake", lake | {"uri": f"{head}:{mine}/{database}"})
        yield runtime, faults
        runtime.close()


def once_each(world: Runtime, count: int) -> None:
    """Every event is there once, and the ranges prove it."""
    assert sorted(map(int, head_frame(world)["event_id"])) == list(range(count))
    found = verify(world.lake, deep=True)
    assert (found.problems, found.events, found.stored) == ((), count, count)


@pytest.mark.parametrize("when", ["before", "after"])
def test_postgres_killed_in_mid_commit_loses_and_doubles_nothing(
    behind_postgres: tuple[Runtime, CommitsToPostgres], stores: Stores, when: str
) -> None:
    """Without a shutdown, when it has the UPDATE alone or the COMMIT too; after its recovery the batch goes in."""
    world, faults = behind_postgres
    send(world, people(10))
    ended = threading.Event()

    def kill() -> None:
        stores.postgres.process.stop(signal.SIGQUIT)
        ended.set()

    setattr(faults, when, kill)
    with pytest.raises(CatalogUnavailable) as caught:
        send(world, people(10, 10))
    assert caught.value.retry_helps
    assert ended.wait(60)
    stores.postgres.start()
    assert len(head_frame(world)) == (10 if when == "before" else 20)
    send(world, people(10, 10))
    assert faults.met == 1
    once_each(world, 20)


def test_a_session_terminated_in_mid_commit_is_tried_again(
    behind_postgres: tuple[Runtime, CommitsToPostgres], stores: Stores
) -> None:
    """An administrator ends it between the UPDATE and the COMMIT: nothing landed, and nothing is lost."""
    world, faults = behind_postgres
    send(world, people(10))

    def terminate() -> None:
        query = (
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND state = 'idle in transaction' AND query LIKE 'UPDATE iceberg%'"
        )
        with psycopg.connect(stores.postgres.address()["POSTGRES_DSN"]) as db:
            assert db.execute(query).fetchall() == [(True,)]

    faults.before = terminate
    with pytest.raises(CatalogUnavailable) as caught:
        send(world, people(10, 10))
    assert caught.value.retry_helps
    once_each(world, 10)
    send(world, people(10, 10))
    assert faults.met == 1
    once_each(world, 20)


def test_a_commit_whose_answer_is_lost_is_looked_up_in_postgres(
    behind_postgres: tuple[Runtime, CommitsToPostgres],
) -> None:
    """By a new connection, inside the same call."""
    world, faults = behind_postgres
    send(world, people(10))
    faults.after = lambda: None
    send(world, people(10, 10))
    assert faults.met == 1
    once_each(world, 20)


def test_a_table_s_row_that_somebody_holds_is_waited_for_with_an_end(stores: Stores, tmp_path: Path) -> None:
    """A client that stopped in mid-commit keeps the row; the address may name a limit of its own."""
    lake = settings(stores, "postgres", "folder", tmp_path)
    world = make(tmp_path / "lake", lake | {"uri": f"{lake['uri']}?options=-c%20lock_timeout%3D500ms"})
    send(world, people(10))
    with psycopg.connect(lake["uri"]) as db:
        held = "SELECT 1 FROM iceberg_tables WHERE catalog_name = %s FOR UPDATE"
        db.execute(held, (lake["catalog_name"],))
        with pytest.raises(CatalogUnavailable):
            send(world, people(10, 10))
    send(world, people(10, 10))
    once_each(world, 20)
    world.close()


def test_a_catalog_in_postgres_waits_for_nothing_without_an_end(stores: Stores, tmp_path: Path) -> None:
    """Neither for a row nor for a client that stopped in a transaction; asked of the server itself."""
    lake = settings(stores, "postgres", "folder", tmp_path)
    world = make(tmp_path / "lake", lake)
    catalog: Any = world.lake.warehouse.catalog
    with catalog.engine.connect() as db:
        names = ("lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")
        assert [db.exec_driver_sql(f"SHOW {name}").scalar() for name in names] == ["1min", "1min", "on"]
    world.close()


def test_a_catalog_that_was_killed_is_waited_for_by_nobody_and_missed_by_no_event(
    stores: Stores, versions: Any, tmp_path: Path
) -> None:
    """An error that helps while it is away, and the same batch afterwards."""
    world = make(tmp_path / "lake", settings(stores, "rest", "bucket", tmp_path))
    send(world, people(10))
    stores.catalog.process.stop(signal.SIGKILL)
    with pytest.raises(CatalogUnavailable) as caught:
        send(world, people(10, 10))
    assert caught.value.retry_helps
    stores.catalog.start()
    send(world, people(10, 10))
    assert sorted(map(int, head_frame(world)["event_id"])) == list(range(20))
    world.close()
    forget_tables(stores)


def test_a_store_that_is_away_is_an_error_that_a_retry_mends(
    stores: Stores, versions: Any, tmp_path: Path
) -> None:
    """Reading and writing both say so, and nothing is lost."""
    world = make(tmp_path / "lake", settings(stores, "postgres", "bucket", tmp_path))
    send(world, people(10))
    stores.s3.process.stop(signal.SIGKILL)
    try:
        for attempt in (lambda: send(world, people(10, 10)), lambda: head_frame(world)):
            with pytest.raises(StorageFailed) as caught:
                attempt()
            assert caught.value.retry_helps
    finally:
        stores.s3.start()
    send(world, people(10, 10))
    assert sorted(map(int, head_frame(world)["event_id"])) == list(range(20))
    world.close()


def test_wrong_log_ins_are_told_from_servers_that_are_away(
    stores: Stores, versions: Any, tmp_path: Path
) -> None:
    """Whose move it is: the operator's, not time's; and no secret is quoted."""
    lake = settings(stores, "sqlite", "bucket", tmp_path)
    lake["properties"]["s3.secret-access-key"] = "wrong-secret-of-somebody"
    with pytest.raises(StorageFailed) as caught:
        make(tmp_path / "lake", lake)
    assert "wrong-secret" not in str(caught.value)
    objects = S3Objects(lake["warehouse"], lake["properties"])
    assert any("SignatureDoesNotMatch" in text for text in objects.check())
    dsn = stores.postgres.address()["POSTGRES_DSN"]
    user, _, rest = dsn.partition("@")
    wrong = settings(stores, "postgres", "folder", tmp_path / "b") | {
        "uri": f"{user[: user.rindex(':')]}:nonsense@{rest}"
    }
    with pytest.raises((CatalogRefused, CatalogUnavailable)) as refused:
        make(tmp_path / "lake-2", wrong)
    assert "nonsense" not in str(refused.value)


@pytest.mark.parametrize("root", ["gs://bucket/x", "/bare/path", "hdfs://x/y"])
def test_a_place_that_we_do_not_speak_is_refused(root: str) -> None:
    """By name, before anything is made."""
    with pytest.raises(StorageUnsuitable, match="file:// or s3://"):
        open_objects(root, {})


def test_a_version_is_deleted_for_good(stores: Stores, versions: Any, tmp_path: Path) -> None:
    """A DELETE leaves the bytes in a bucket with versions; ours does not."""
    root = f"s3://{BUCKET}/versions-{uuid.uuid4().hex[:6]}"
    objects = S3Objects(root, s3_properties(stores))
    key = f"{root.removeprefix(f's3://{BUCKET}/')}/a.parquet"
    for body in (b"one", b"two"):
        versions.put_object(Bucket=BUCKET, Key=key, Body=body)
    versions.delete_object(Bucket=BUCKET, Key=key)
    found = list(objects.objects(root))
    assert sorted(one.is_marker for one in found) == [False, False, True]
    copy = tmp_path / "copy"
    objects.copy(next(one for one in found if not one.is_marker), copy)
    assert copy.read_bytes() in (b"one", b"two")
    objects.delete(found)
    assert list(objects.objects(root)) == []
    assert local_path("s3://a/b") == "s3://a/b"


def test_a_topic_is_followed_while_the_catalog_misbehaves_and_upkeep_runs(
    behind_faults: tuple[Runtime, Faults], kafka: Kafka
) -> None:
    """Commits refused, landed without an answer, and raced by merges: every event once, by itself."""
    world, faults = behind_faults
    topic = Topic(kafka.address()["KAFKA_BOOTSTRAP"])
    faults.planned = ["409", "500", "", "409 after landing", "lost", "503", "", "500 before", "409", "lost"]
    stop = threading.Event()
    failed: list[BaseException] = []

    def keeping() -> None:
        policy = UpkeepPolicy(merge_files=2, keep_snapshots=5, keep_seconds=0, grace_seconds=60)
        while not stop.is_set():
            try:
                Maintenance(world.lake, policy).run(datetime.now(UTC) + timedelta(days=1))
            except (CatalogUnavailable, CommitConflict):
                continue
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=keeping)
    thread.start()
    try:
        sent = 0
        while faults.planned:
            topic.send(range(sent, sent + 40))
            sent += 40
            topic.consumer(world).run(until_caught_up=True)
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert held(world) == exactly(range(sent))
    assert verify(world.lake, deep=True).problems == ()
