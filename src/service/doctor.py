"""`shredlake doctor`: what a careful colleague would look at, each with what to do."""

from __future__ import annotations

import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Final

from keys import ShredlakeError
from keys.errors import CustodianDenied
from lake import (
    WARNED_DAYS,
    ClearField,
    FeedingTopic,
    Lake,
    LetterRetention,
    Queue,
    StorageFailed,
    Trouble,
    clear_fields,
    first_kept,
    privacy_lint,
    summary_of,
    verify,
)
from lake.errors import TopicGap, TopicGone
from lake.objects import ObjectStore
from lake.offsets import offsets_of
from projections import Alarm, LakeBehind, ResultChanged, TableHead, Views, older_records, revealing
from purge import Standing, Stuck, standing_of, unregistered
from service.consumers import troubles
from service.findings import Finding as Finding
from service.findings import consumer_findings, folder_finding, future_finding, log_finding, modes_finding
from service.firstlook import look_first
from service.kafka import standing
from service.keyplaces import vault_session
from service.privatefiles import is_shared
from service.runtime import Runtime, open_runtime
from service.settings import Kafka, Settings, load_settings

OUR_PACKAGES: Final = ("keys", "lake", "projections", "purge", "service")
_PAST_A_BATCH: Final = "where a batch is the cause, `shredlake ingest skip --batch ID` makes letters of it"
_LONG_WAIT_SECONDS: Final = 60.0
_STUCK_SHOWN: Final = 5
_LOW_DISK_BYTES: Final = 2 * 1024**3


def examine_installation() -> list[Finding]:
    """What can be said without a lake."""
    shadows = shadowing_distributions()
    return [
        Finding("python", "ok" if sys.version_info >= (3, 11) else "error", sys.version.split()[0]),
        Finding(
            "packages",
            "error" if shadows else "ok",
            f"{', '.join(shadows)} installs packages of our names; uninstall it"
            if shadows
            else "no other distribution uses our package names",
        ),
    ]


def shadowing_distributions() -> list[str]:
    """Foreign distributions that install a package of ours."""
    owners = packages_distributions()
    found = {owner for package in OUR_PACKAGES for owner in owners.get(package, ())}
    return sorted(name for name in found if name.lower() != "shredlake")


def examine(runtime: Runtime) -> list[Finding]:
    """All checks of an open lake."""
    return [*examine_installation(), *_custodian_checks(runtime.settings), *_lake_checks(runtime)]


def examine_home(home: Path) -> list[Finding]:
    """All checks of a lake. The custodian is looked at before anything is opened with more rights.

    Raises:
        NotAnswering, BadSettings, DefinitionError, KeysError: see `open_runtime`.
    """
    settings = load_settings(home)
    look_first(settings)
    found = [*examine_installation(), *_custodian_checks(settings)]
    try:
        with open_runtime(home) as runtime:
            return [*found, *_lake_checks(runtime)]
    except CustodianDenied:
        text = "not opened, so not examined: the log-in in keys.vault may not open keys"
        return [*found, Finding("lake", "warning", text)]


def _lake_checks(runtime: Runtime) -> Iterator[Finding]:
    home = runtime.home
    vault = runtime.settings.keys.vault
    shared = is_shared(runtime.settings.keys.agent_users)
    yield folder_finding(home, shared)
    if not shared:
        yield modes_finding(home)
    for name in ("token",) if vault else ("keys/root.key", "token"):
        mode = stat.S_IMODE((home / name).stat().st_mode)
        yield Finding(
            f"mode of {name}",
            "ok" if mode == 0o600 else "error",
            "0600" if mode == 0o600 else f"{mode:04o}: run `chmod 600` on it",
        )
    yield _gate_finding(runtime)
    yield _tried("fence log", lambda: f"{runtime.keyring.fences.verify()} fences, hash chain holds")
    for copy in runtime.fence_copies.look():
        yield Finding(f"fence copy {copy.place}", copy.level, copy.text)
    yield states_finding(runtime.views.states.retired(), len(runtime.supplements.all()))
    requests = runtime.purge.journal.all()
    attested = [one.request_id for one in requests if one.receipt is not None]
    yield log_finding(runtime.purge.log.verify, attested, runtime.purge.log.attested())
    checked = verify(runtime.lake)
    yield Finding(
        "exactly once",
        "error" if checked.problems else "ok",
        "; ".join(checked.problems) or f"{checked.events} events of {checked.sources} sources, no gap",
    )
    if checked.future:
        yield future_finding(checked)
    yield _letters_finding(runtime.lake, runtime.settings.upkeep.letter_days)
    trouble = runtime.lake.intake.asides.trouble()
    oldest = runtime.lake.intake.oldest_batch()
    yield intake_finding(runtime.lake.intake.queue(), time.time(), trouble, oldest)
    yield from consumer_findings(troubles(runtime.lake.consumers.all(), time.time()))
    yield stuck_finding(runtime.purge.journal.stuck(), runtime.lake.clock())
    yield _open_finding(standing_of(requests, runtime.lake.clock()))
    yield from _aside_findings(runtime.views)
    yield from alarm_findings(runtime.views.ledger.open_alarms())
    yield from tables_findings(runtime.views)
    yield _privacy_finding(runtime.lake)
    objects = runtime.lake.warehouse.objects
    yield from (Finding("warehouse", "warning", text) for text in objects.check())
    yield _stores_finding(home, objects)
    for pair in revealing(runtime.views.registry.all(), runtime.lake.types):
        check, said = (
            f"subtraction of {' and '.join(pair.views)}",
            f" ({pair.because})" if pair.because else "",
        )
        yield Finding(check, "note" if said else "warning", f"{pair.text}{said}")
    for older in older_records(runtime.views.ledger, runtime.lake.types):
        yield Finding(f"publications of {older.view}", "warning", f"{older.words()}: {older.next_step()}")
    yield from shown_findings(runtime.views.shown())
    for name in runtime.lake.types.names():
        yield _clear_finding(name, clear_fields(runtime.lake.types.chain(name)))
    if runtime.settings.kafka is not None:
        head = runtime.lake.events.snapshot()
        yield _following_finding(runtime.settings.kafka, offsets_of(summary_of(head)) if head else {})
    for topic in runtime.lake.topics.all():
        yield _topic_finding(topic)
    same_disk = (home / "keys").stat().st_dev == (home / "evidence").stat().st_dev
    if same_disk and runtime.settings.keys.fence_log is None:
        yield Finding(
            "fence log's place", "warning", "on the same disk as the keys: set keys.fence_log to another"
        )
    free = shutil.disk_usage(home).free
    yield Finding("disk", "ok" if free > _LOW_DISK_BYTES else "warning", f"{free / 1024**3:.1f} GiB free")


def tables_findings(views: Views) -> Iterator[Finding]:
    """Whether the lake's tables are of one time with the record of publications, and their heads with it."""
    try:
        views.restored.refuse_older_lake()
    except LakeBehind as error:
        yield Finding("lake's tables", "error", f"{error.message}. {error.next_step}")
        return
    yield Finding("lake's tables", "ok", "hold what the record of publications names")
    yield from heads_findings(views.heads.look())


def _letters_finding(lake: Lake, letter_days: int) -> Finding:
    """Letters that name nobody, and go for good before somebody has looked at them."""
    retention, before = LetterRetention(lake), first_kept(lake.clock().date(), letter_days)
    try:
        if due := sum(retention.count(day) for day in retention.due(before)):
            overdue = f"{due:,} are older than {letter_days} days: `shredlake lake upkeep` lets them go"
            return Finding("letters of nobody", "warning", overdue)
        coming = retention.coming(before)
    except ShredlakeError as error:
        return Finding("letters of nobody", "warning", f"not looked at: {error.message}. {error.next_step}")
    if not coming:
        return Finding("letters of nobody", "ok", f"none goes within {WARNED_DAYS} days")
    first = min(coming) + timedelta(days=letter_days + 1)
    text = (
        f"{sum(coming.values()):,} go for good within {WARNED_DAYS} days, the first on {first}: look at them"
        " with `shredlake events letters`, mend what is wanted and send it with `shredlake events redrive`"
    )
    return Finding("letters of nobody", "warning", text)


def states_finding(retired: int | None, supplements: int) -> Finding:
    """Whether states of an older layout, which held values of other people, are behind this lake.

    Args:
        retired: states that were deleted while what follows from it is owed; None where nothing is.
        supplements: to receipts, in the transparency log.
    """
    if retired is not None:
        return Finding(
            "view states",
            "error",
            f"{retired} of an older layout were deleted, which could hold values of erased people; their keys"
            " and the epoch wait: open the restore gate, then run `shredlake doctor` as the purge role",
        )
    if supplements:
        text = "receipts did not cover view states of an older layout, which are gone now: hand on their"
        return Finding("view states", "note", f"{supplements} {text} supplements (`shredlake receipt show`)")
    return Finding("view states", "ok", "each holds its own bucket alone")


def _privacy_finding(lake: Lake) -> Finding:
    try:
        lint = privacy_lint(lake)
    except StorageFailed as error:
        return Finding("metadata privacy", "warning", f"not looked at: {error}")
    return Finding("metadata privacy", "error" if lint else "ok", "; ".join(lint) or "only allowed columns")


def _stores_finding(home: Path, objects: ObjectStore) -> Finding:
    try:
        strange = unregistered(home, objects)
    except StorageFailed as error:
        return Finding(
            "stores", "error", f"the warehouse cannot be listed: {error.message}. {error.next_step}"
        )
    if not strange:
        return Finding("stores", "ok", "every file belongs to a registered store")
    text = f"{len(strange)} file(s) belong to no registered store; move them out of the lake's folder"
    return Finding("stores", "error", text)


def _gate_finding(runtime: Runtime) -> Finding:
    shut: ShredlakeError | None
    try:
        shut = runtime.keyring.gate().reason
    except ShredlakeError as error:
        shut = error
    if shut is None:
        return Finding("restore gate", "ok", "fence log, key pages and what else remembers fences agree")
    return Finding("restore gate", "error", f"{shut.message}. {shut.next_step}")


def shown_findings(shown: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Columns of published views that can show a personal value; older ones may lack a reason."""
    for one in shown:
        check = f"column {one['view']}.{one['column']}"
        fields = ", ".join(one["fields"])
        if one["kind"] == "few":
            text = f"an amount of {fields}; in a row of one person it is that person's: see min_subjects"
            yield Finding(check, "note", text)
        elif one["because"]:
            yield Finding(check, "note", f"shows {fields} in clear: {one['because']}")
        else:
            text = (
                f"shows {fields} in clear, and nobody says why: truncate or count it, or say `shows_personal`"
            )
            yield Finding(check, "warning", text)


def intake_finding(
    queue: Queue, now: float, trouble: Trouble | None = None, oldest: str | None = None
) -> Finding:
    """What waits, and whether it has waited for too long at a moment, in seconds since the epoch."""
    if queue.oldest_at is None:
        return Finding("intake", "ok", "nothing waits to be committed")
    waited = now - queue.oldest_at
    text = f"{queue.events:,} events of {queue.batches:,} batch(es) wait, the oldest for {waited:,.0f} s"
    if trouble is not None:
        of_batch = f" (the oldest is {oldest})" if oldest else ""
        text += f"; {trouble.attempts:,} commit(s) failed since, the last by {trouble.error}"
        return Finding("intake", "error", f"{text}; {_PAST_A_BATCH}{of_batch}")
    if waited < _LONG_WAIT_SECONDS:
        return Finding("intake", "ok", text)
    return Finding(
        "intake", "warning", f"{text}: run `shredlake serve`, or `shredlake ingest intake`, and read the log"
    )


def stuck_finding(stuck: Sequence[Stuck], now: datetime) -> Finding:
    """Erasures whose last run failed, with their deadlines; an error once one is overdue."""
    if not stuck:
        return Finding("erasures", "ok", "none is stuck")
    shown = ", ".join(f"{one.request_id} (due {one.due_at.date()})" for one in stuck[:_STUCK_SHOWN])
    more = f" and {len(stuck) - _STUCK_SHOWN} more" if len(stuck) > _STUCK_SHOWN else ""
    text = f"{len(stuck)} stuck: {shown}{more}; the log says why, `shredlake erase apply --resume` goes on"
    return Finding("erasures", "error" if any(one.due_at < now for one in stuck) else "warning", text)


def _aside_findings(views: Views) -> Iterator[Finding]:
    """Files of views that do not load, and views that an erasure could not derive anew."""
    for path, error in views.registry.broken().items():
        yield Finding(f"views in {path.name}", "error", f"{error.message}. {error.next_step}")
    for one in views.ledger.aside().values():
        what = "stale, and still counts people erased since" if one.is_served else "withdrawn"
        text = f"{what}: {one.reason}; mend it, then run `shredlake views publish {one.view}`"
        yield Finding(f"view {one.view}", "error", text)


def alarm_findings(alarms: Sequence[Alarm]) -> Iterator[Finding]:
    """Views that gave another result over the same input by the same code."""
    for one in alarms:
        at = one.raised_at.isoformat(timespec="seconds")
        text = (
            f"another result over the same input, erasures and holds, {one.times} time(s), last at {at}: "
            f"{one.rows_differing:,} row(s) differ. {ResultChanged.default_next_step}"
        )
        yield Finding(f"result of {one.view}", "error", text)


def heads_findings(heads: Sequence[TableHead]) -> Iterator[Finding]:
    """Whether tables of views show other engines what is published."""
    bad = [one for one in heads if one.state in ("waits", "foreign")]
    if not bad:
        text = f"{len(heads)} table(s) of views show other engines what is published, and nothing else"
        yield Finding("heads of views", "ok", text)
    for one in bad:
        if one.state == "foreign":
            text = "somebody else has moved its head; other engines do not see what is published"
            text += ": find out who writes there, then run `shredlake views heads --repair`"
            yield Finding(f"head of {one.table}", "error", text)
        else:
            text = "other engines do not see the newest publication yet"
            text += ": an erasure is under way, or run `shredlake views heads --repair`"
            yield Finding(f"head of {one.table}", "warning", text)


def _open_finding(standing: Standing) -> Finding:
    """Requests that nobody has carried to their receipts yet."""
    if not standing.open:
        return Finding("erasure requests", "ok", standing.words())
    text = f"{standing.words()}; `shredlake serve` carries them out, or `shredlake erase apply --resume`"
    return Finding("erasure requests", "error" if standing.overdue else "note", text)


def _clear_finding(name: str, fields: Sequence[ClearField]) -> Finding:
    """Of all versions: what an older one kept in clear is still stored."""
    check = f"fields of {name} in clear"
    listed = ", ".join(one.name for one in fields) or "none"
    doubtful = [one.name for one in fields if one.doubts]
    if not doubtful:
        return Finding(check, "note", listed)
    return Finding(check, "warning", f"{listed}; `shredlake schema doctor` doubts {', '.join(doubtful)}")


def _following_finding(settings: Kafka, offsets: Mapping[str, int]) -> Finding:
    """How far the topics of the settings are followed."""
    try:
        found = standing(settings, offsets)
    except TopicGone as error:
        return Finding("Kafka", "error", f"{error.message}. {error.next_step}")
    except ShredlakeError as error:
        return Finding("Kafka", "warning", f"not looked at: {error.message}. {error.next_step}")
    if found.dropped:
        text = f"{found.dropped:,} messages were dropped before they were read. {TopicGap.default_next_step}"
        return Finding("Kafka", "error", text)
    return Finding("Kafka", "ok", f"{found.behind:,} messages of the topics are not in the table yet")


def _topic_finding(topic: FeedingTopic) -> Finding:
    check = f"Kafka topic {topic.name}"
    if topic.retention_ms is None and not topic.deletes:
        return Finding(
            check,
            "warning",
            "keeps plaintext for ever: nobody is erased there; set retention.ms, or kafka.delete_committed",
        )
    if topic.retention_ms is None:
        return Finding(check, "note", "keeps everything; what is committed is deleted from it")
    days = (topic.retention_ms + topic.segment_ms) / 86_400_000
    return Finding(check, "note", f"a person stays readable there for up to {days:.1f} days after an erasure")


def _custodian_checks(settings: Settings) -> Iterator[Finding]:
    vault = settings.keys.vault
    if vault is None:
        return
    from keys.transitcheck import inspect_server, inspect_transit

    try:
        session = vault_session(vault, "auditor")
        server, old = inspect_server(session)
        yield Finding("transit server", "warning" if old else "ok", old.text if old else server)
        flaws = inspect_transit(session, vault.mount, vault.prefix)
    except ShredlakeError as error:
        yield Finding("transit engine", "error", f"{error.message}. {error.next_step}")
        return
    for flaw in flaws:
        yield Finding("transit engine", "error" if flaw.fatal else "warning", flaw.text)
    if not flaws:
        yield Finding("transit engine", "ok", "the root cannot be exported, backed up in clear or swapped")


def _tried(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, "ok", look())
    except (ValueError, ShredlakeError) as error:
        return Finding(check, "error", str(error))
