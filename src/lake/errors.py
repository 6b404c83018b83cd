"""Errors of the lake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from keys import ShredlakeError

if TYPE_CHECKING:
    from lake.validate import Flaw


class LakeError(ShredlakeError):
    """Base of this package's errors."""


class SchemaError(LakeError):
    """An event type's schema is not one we can store, or breaks its own older versions."""

    whose_move = "caller"
    default_next_step = "Correct the schema file and register it again."


class MappingError(LakeError):
    """A field mapping does not fit the file or the event type."""

    whose_move = "caller"
    default_next_step = "Correct the mapping; docs/mapping.md shows one line by line."


class UnknownEventType(LakeError):
    """No event type of this name and version is registered."""

    whose_move = "caller"
    default_next_step = "Register it: `shredlake events register SCHEMA.json`."


class UnreadableInput(LakeError):
    """The input as a whole cannot be read (absent, no permission, not the promised format)."""

    whose_move = "caller"
    default_next_step = "Check the path and the mapping's format."


class Fenced(LakeError):
    """Another writer moved the source on; what this writer prepared must not land."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = "Read the offsets again and continue from there; nothing was written."


class TopicUnavailable(LakeError):
    """The topic or its cluster cannot be reached or does not exist."""

    retry_helps = True
    default_next_step = "Check the topics, the bootstrap servers and the log-in; nothing was written."


class TopicGone(TopicUnavailable):
    """The cluster answers, and has no such topic."""

    default_next_step = (
        "Make the topic, or correct its name (`kafka.topics`). Of one that was deleted stays what is in the"
        " table; what was not committed is lost with it."
    )


class PartitionStalled(LakeError):
    """Nothing comes of a partition although the brokers have more of it."""

    retry_helps = True
    default_next_step = (
        "Within a minute it is begun anew by itself; if that does not help, look at the brokers and restart"
        " `shredlake ingest kafka`. Nothing is lost."
    )


class ClientSettingRefused(LakeError):
    """The Kafka client does not take one of its settings."""

    default_next_step = "Correct `kafka.client` in the settings; nothing was read."


class GroupRefused(LakeError):
    """The brokers do not let this consumer into its group, or not any more. What it had committed stays."""

    default_next_step = "Correct the setting, then start again; it goes on where the table stands."


class MemberFenced(GroupRefused):
    """Another consumer joined the group by our name. Its successor reads on; we would read nothing."""

    default_next_step = (
        "Give each host a name of its own (`kafka.member`), and run one `shredlake ingest kafka` a host."
    )


class MemberNotReleased(GroupRefused):
    """The group still knows a consumer of our name: another process, or one that died a moment ago."""

    retry_helps = True
    default_next_step = (
        "Wait until the session of one that died has run out (45 s), or give this host a name of its own"
        " (`kafka.member`)."
    )


class TopicGap(LakeError):
    """The broker no longer has messages that the lake has not read."""

    default_next_step = (
        "They are lost to this lake unless another copy exists. Run again with --accept-gaps to go on behind"
        " them; the offsets are then counted as blank."
    )


class EpochMoved(LakeError):
    """A person was erased while the batch was prepared; it has to be sealed again without them."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = "Prepare the batch again."


class CommitConflict(LakeError):
    """Other writers won every attempt."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = "Repeat the command; nothing was written."


class StorageFailed(LakeError):
    """The disk or object store refused a write. The table is as it was."""

    retry_helps = True
    default_next_step = "Free space or mend the store, then repeat the command; it continues where it was."


class DataDamaged(StorageFailed):
    """A data file that a snapshot refers to cannot be read any more. Nothing was changed."""

    retry_helps = False
    default_next_step = (
        "Bring that file back from a backup of the warehouse, under the same name: it never changes once it"
        " is written. `shredlake lake verify --deep` names every file that is damaged."
    )


class DataFileGone(DataDamaged):
    """A data file that a snapshot refers to is not there."""

    retry_helps = True
    default_next_step = (
        "Repeat it once: upkeep may have replaced the file while it was read. If it stays so, bring the file"
        " back from a backup of the warehouse; `shredlake lake verify --deep` names every file that is gone."
    )


class StorageUnavailable(StorageFailed):
    """The object store does not answer. The table is as it was."""

    default_next_step = (
        "Check the object store's address (`s3.endpoint`) and health, then repeat the command; it continues"
        " where it was."
    )


class StorageRefused(StorageFailed):
    """The store knows us and says no, or does not know us. The table is as it was."""

    retry_helps = False
    default_next_step = "Check the store's log-in and what it may do."


class StorageUnsuitable(LakeError):
    """The store or catalog that the settings name is not one we can use."""

    default_next_step = "Correct `[lake]` in the settings; docs/stores.md names what works."


class CatalogUnavailable(LakeError):
    """The catalog does not answer, or not as one that works. Whether a commit landed is looked up."""

    retry_helps = True
    default_next_step = "Check the catalog's address and health, then repeat the command."


class CatalogRefused(LakeError):
    """The catalog knows us and says no, or does not know us."""

    default_next_step = "Check the log-in in `lake.properties` and what it may do."


class RegistryUnavailable(LakeError):
    """The schema registry does not answer, or answers with an error of its own."""

    retry_helps = True
    default_next_step = "Check the registry's address and health; what was read waits and is tried again."


class RegistryRefused(LakeError):
    """The schema registry does not let us in, or does not give what we can read."""

    default_next_step = "Check the log-in in `kafka.registry.client` and what it may read."


class SnapshotGone(LakeError):
    """The snapshot was expired, or never was."""

    whose_move = "caller"
    default_next_step = "List what exists with `shredlake lake snapshots`."


class SnapshotExpired(SnapshotGone):
    """The state of a moment is not kept any more, or nobody knows whether it is.

    Attributes:
        before, after: ids of the nearest kept snapshots; None where there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        before: int | None = None,
        after: int | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.before = before
        self.after = after


class MomentRefused(LakeError):
    """A moment has no time zone, or has not come yet."""

    whose_move = "caller"
    default_next_step = "Ask for a moment of the past, like 2026-01-31T10:00+01:00; leave it out for now."


class GraceTooShort(LakeError):
    """A sweep would delete files of commits under way."""

    whose_move = "caller"
    default_next_step = (
        "Give a longer grace; or stop everything that writes (ingest, the server, consumers, builds, upkeep,"
        " erasures) and say --nobody-writes."
    )


class TagLost(LakeError):
    """Somebody named a snapshot in the very moment in which it was forgotten, and both went through."""

    default_next_step = (
        "Set the tag again on a snapshot that `shredlake lake snapshots` lists. Who tags in a REST catalog by"
        " other means moves the tag `tagged` to the same snapshot in the same commit; see docs/stores.md."
    )


class CorruptBlock(LakeError):
    """A block's bodies do not hold the records that its columns promise."""

    default_next_step = "Restore the data file from a backup; run `shredlake lake verify --deep`."


class Unsealable(LakeError):
    """Lines of a batch cannot be sealed or written; nothing was. Whoever reads them makes them letters.

    Attributes:
        places: of each source the lines, and what their letters say; holds no value of them.
    """

    default_next_step = "Set the line aside: `shredlake ingest skip --help`."

    def __init__(self, places: Mapping[str, Mapping[int, Flaw]]) -> None:
        super().__init__(f"{sum(map(len, places.values()))} line(s) of a batch cannot be sealed")
        self.places = places


class AccountDamaged(LakeError):
    """What the table knows of its sources cannot be read; nothing is ingested, so nothing comes twice."""

    default_next_step = "Restore the file from a backup, then run `shredlake lake verify`."


class ConservationBroken(LakeError):
    """A rewrite would have changed the number of events; it was not committed."""

    default_next_step = "Report this with the output of `shredlake lake verify --deep`."


class IntakeFull(LakeError):
    """As much waits to be committed as the settings allow."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = (
        "Send the same again later. Operators: see `shredlake doctor`; `ingest.queue_events` and"
        " `ingest.queue_bytes` set the limit."
    )


class IntakeUnreadable(LakeError):
    """The key of a batch that waits is gone: the key pages were restored from before it was made."""

    default_next_step = (
        "Restore key pages that have it, or drop what none opens: `shredlake ingest intake --give-up`."
    )


class KeyReused(LakeError):
    """The same idempotency key came with another body."""

    whose_move = "caller"
    default_next_step = "Use a new idempotency key for new events."


class UnknownBatch(LakeError):
    """No batch of events has this id, or it is not remembered any more."""

    whose_move = "caller"
    default_next_step = "Batches are remembered for `ingest.idempotency_hours` after their commit."
