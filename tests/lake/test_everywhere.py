"""What a lake does day by day, on every catalog and store: upkeep, time travel, intake, topics, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.kafka import Kafka
from lake import (
    EventRead,
    Fenced,
    Housekeeping,
    JsonLinesFile,
    Maintenance,
    StorageRefused,
    Upkeep,
    UpkeepPolicy,
    verify,
)
from lake.ingest import Prepared
from lake.objects import S3Objects
from service.doctor import examine
from service.runtime import Runtime, open_runtime
from tests.lake.far import client_of, guest, make, settings
from tests.lake.topics import Topic, exactly, held
from tests.servers import Stores
from tests.world import paid, send

EAGER = UpkeepPolicy(merge_files=4, keep_snapshots=1, keep_seconds=0, grace_seconds=0)
WRITES = ("s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject")


def commits(runtime: Runtime, numbers: range) -> None:
    """A commit of one event for each number."""
    for number in numbers:
        send(runtime, [paid(f"person-{number % 3}", number, event_id=str(number), note="n")])


def numbers(runtime: Runtime, snapshot_id: int | None = None, since: int | None = None) -> list[int]:
    """Ids of all events of a snapshot (the head by default), or of what came after another one."""
    replay, head = runtime.lake.replay(), runtime.lake.events.snapshot(snapshot_id)
    assert head is not None
    at = head.snapshot_id
    files = replay.files(at) if since is None else replay.files_between(since, at)
    frame = replay.events(files, EventRead("Paid", ("event_id", "note"))).frame
    assert set(frame["note"]) <= {"n"}
    return sorted(map(int, frame["event_id"]))


def head_id(runtime: Runtime) -> int:
    """Of the newest snapshot."""
    head = runtime.lake.events.snapshot()
    assert head is not None
    return head.snapshot_id


def test_rounds_of_upkeep_tag_merge_sort_expire_and_sweep_and_lose_nothing(far: Runtime) -> None:
    """Today's small files are put together, yesterday's become L1; every event is there once after each."""
    commits(far, range(6))
    now = datetime.now(UTC)
    told = Maintenance(far.lake, EAGER).plan(now)
    first = Maintenance(far.lake, EAGER).run(now)
    assert [one.what for one in first] == [one.what for one in told] == ["tag", "merge", "expire", "sweep"]
    assert [one.before for one in first[:3]] == [one.before for one in told[:3]]
    assert numbers(far) == list(range(6))
    commits(far, range(6, 8))
    second = Maintenance(far.lake, EAGER).run(now + timedelta(days=1))
    assert [one.what for one in second] == ["tag", "compact", "expire", "sweep"]
    assert len(far.lake.events.files()) == 1
    assert numbers(far) == list(range(8))
    third = Maintenance(far.lake, EAGER).plan(now + timedelta(days=1))
    assert not {"merge", "compact"}.intersection(one.what for one in third)


def test_a_tag_keeps_a_moment_and_what_came_after_it_is_read_alone(far: Runtime) -> None:
    """Though files were merged and snapshots forgotten since."""
    commits(far, range(3))
    far.lake.events.set_tags({"report": head_id(far)})
    commits(far, range(3, 7))
    before = head_id(far)
    upkeep, rewriting = Housekeeping(far.lake), Upkeep(far.lake)
    assert [rewriting.merge(day, at_least=4).files_before for day in rewriting.days()] == [4]
    upkeep.expire(keep=1)
    upkeep.sweep(grace_seconds=0)
    assert before not in {one.snapshot_id for one in far.lake.events.history()}
    tagged = far.lake.events.metadata().refs["report"].snapshot_id
    assert numbers(far, tagged) == [0, 1, 2]
    assert numbers(far, since=tagged) == [3, 4, 5, 6]
    far.lake.events.set_tags({}, ["report"])
    assert upkeep.expire(keep=1) == [tagged]


@pytest.mark.parametrize(
    ("ours", "theirs"), [((0, 100), (50, 150)), ((50, 150), (50, 110)), ((50, 150), (100, 150))]
)
def test_of_ranges_that_overlap_one_lands_and_the_other_is_fenced_and_reads_on(
    far: Runtime, tmp_path: Path, ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    """Both are sealed before either is committed; the same lines cut differently are no other batch."""
    path = tmp_path / "events.jsonl"
    lines = [paid(f"person-{n % 3}", n, event_id=str(n), note="n") for n in range(300)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    source = JsonLinesFile(path, far.lake.types)
    if ours[0]:
        far.lake.ingestor().land([(source.name, next(source.read(0, ours[0])))])
    both_sealed = threading.Barrier(2, timeout=60)
    fenced: list[tuple[int, int]] = []

    def write(runtime: Runtime, span: tuple[int, int]) -> None:
        part = (source.name, next(source.read(span[0], span[1] - span[0])))
        waited: list[bool] = []

        def about_to(prepared: Prepared) -> None:
            if not waited:
                waited.append(both_sealed.wait() >= 0)

        ingestor = runtime.lake.ingestor()
        try:
            ingestor.land([part], about_to)
        except Fenced:
            fenced.append(span)
        ingestor.run(source, batch_events=37)

    with open_runtime(far.home) as other, ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(write, far, ours), pool.submit(write, other, theirs)]:
            one.result()
    assert fenced  # both, where the one that reads on is quicker than the other's commit
    assert numbers(far) == list(range(300))
    found = verify(far.lake, deep=True)
    assert (found.problems, found.events, found.stored) == ((), 300, 300)


def test_batches_over_http_are_one_commit_and_land_once(far: Runtime) -> None:
    """What waits in the spool goes in together; a batch that is sent again is known."""
    bodies = [
        json.dumps([paid("ann", number, event_id=str(number), note="n")]).encode() for number in range(5)
    ]
    for _ in range(2):
        for number, body in enumerate(bodies):
            far.lake.intake.put(body, 1, f"key-{number}")
    drained = far.lake.intake.drain()
    assert (drained.batches, drained.events) == (5, 5)
    assert len(far.lake.events.history()) == 1
    for number, body in enumerate(bodies):
        assert not far.lake.intake.put(body, 1, f"key-{number}")[1]
    assert far.lake.intake.drain().batches == 0
    assert numbers(far) == list(range(5))


def test_a_topic_is_followed_into_it_and_read_again_without_a_trace(far: Runtime, kafka: Kafka) -> None:
    """Another group, which knows nothing of the first, adds nothing."""
    topic = Topic(kafka.address()["KAFKA_BOOTSTRAP"])
    topic.send(range(60))
    assert topic.consumer(far).run(until_caught_up=True).events == 60
    assert topic.consumer(far, group="another").run(until_caught_up=True).events == 0
    assert held(far) == exactly(range(60))
    assert verify(far.lake, deep=True).problems == ()


def test_the_command_line_verifies_it_by_its_settings_alone(far: Runtime) -> None:
    """A process of its own opens the catalog and reads the data."""
    commits(far, range(3))
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(far.home)]
    done = subprocess.run(
        [*command, "--output", "json", "lake", "verify", "--deep"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["events"], found["stored"], found["problems"]) == (3, 3, [])


# -- stores that lack something --------------------------------------------------------------------


def as_guest(stores: Stores, tmp_path: Path, *actions: str) -> Runtime:
    """A lake whose log-in may do so much."""
    bucket, known = guest(stores, *actions)
    lake = settings(stores, "sqlite", "bucket", tmp_path)
    return make(tmp_path / "lake", lake | {"warehouse": f"s3://{bucket}/lake", "properties": known})


def findings(runtime: Runtime, check: str) -> list[tuple[str, str]]:
    """What the doctor says of it."""
    return [(one.level, one.text) for one in examine(runtime) if one.check == check]


def test_a_log_in_that_may_not_list_versions_writes_and_is_told_what_it_lacks(
    stores: Stores, tmp_path: Path
) -> None:
    """The doctor ends with its findings, and a sweep says which right to give; no retry helps."""
    runtime = as_guest(stores, tmp_path, *WRITES, "s3:GetBucketObjectLockConfiguration")
    commits(runtime, range(2))
    assert numbers(runtime) == [0, 1]
    with pytest.raises(StorageRefused) as refused:
        Housekeeping(runtime.lake).sweep(grace_seconds=0)
    assert "s3:ListBucketVersions" in refused.value.next_step
    assert not refused.value.retry_helps
    ((level, text),) = findings(runtime, "stores")
    assert (level, "s3:ListBucketVersions" in text) == ("error", True)
    ((level, text),) = findings(runtime, "warehouse")
    assert "s3:ListBucketVersions" in text
    runtime.close()


def test_a_log_in_that_may_not_delete_versions_is_told_so(stores: Stores, tmp_path: Path) -> None:
    """Everything else it may."""
    runtime = as_guest(stores, tmp_path, *WRITES, "s3:ListBucketVersions")
    commits(runtime, range(4))
    Housekeeping(runtime.lake).expire(keep=1)
    bucket = runtime.lake.warehouse.objects.root.split("/")[2]
    client = client_of(stores)
    policy = json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])
    policy["Statement"].append(policy["Statement"][0] | {"Effect": "Deny", "Action": ["s3:DeleteObject*"]})
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    with pytest.raises(StorageRefused, match="the store kept") as refused:
        Housekeeping(runtime.lake).sweep(grace_seconds=0)
    assert "s3:DeleteObjectVersion" in refused.value.next_step
    assert numbers(runtime) == list(range(4))
    runtime.close()


def test_an_object_lock_that_is_not_told_is_no_absence_of_one(stores: Stores, tmp_path: Path) -> None:
    """None, one, and no answer are three answers."""
    bucket, known = guest(stores, *WRITES, "s3:ListBucketVersions")
    (said,) = S3Objects(f"s3://{bucket}/lake", known).check()
    assert "is not known (AccessDenied)" in said
    assert "s3:GetBucketObjectLockConfiguration" in said
    root: dict[str, Any] = settings(stores, "sqlite", "bucket", tmp_path)["properties"]
    assert S3Objects(f"s3://{bucket}/lake", root).check() == []
    client_of(stores).create_bucket(Bucket=f"{bucket}-locked", ObjectLockEnabledForBucket=True)
    (said,) = S3Objects(f"s3://{bucket}-locked/lake", root).check()
    assert said.startswith("the bucket has an object lock")
