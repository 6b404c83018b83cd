"""Which Kafka topics feed this lake, and for how long each keeps what was sent in clear.

An erasure in the lake does not reach a broker. So that a receipt can say until when a person may still
be read there, every consumer writes down what it reads, before it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from attrs import astuple, field, frozen

from keys.sqlite import Database

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS topics (cluster_id TEXT NOT NULL, topic_id TEXT NOT NULL, name TEXT NOT NULL,
    retention_ms INTEGER, segment_ms INTEGER NOT NULL, deletes INTEGER NOT NULL, read_at TEXT NOT NULL,
    PRIMARY KEY (cluster_id, topic_id)) WITHOUT ROWID
"""


@frozen
class FeedingTopic:
    """A topic that feeds the lake, as it was when it was looked at last.

    Attributes:
        retention_ms: None where the broker keeps messages for ever, compacted topics among them.
        segment_ms: a segment that is written to is dropped only so long after it was begun.
        deletes: whether the lake lets the broker delete what it has committed.
        read_at: when it was looked at, RFC 3339.
    """

    cluster_id: str
    topic_id: str
    name: str
    retention_ms: int | None
    segment_ms: int
    deletes: bool = field(converter=bool)
    read_at: str

    def clear_until(self, sent_until: datetime) -> datetime | None:
        """When the last of what was sent until a moment is gone from the broker; None says never.

        What is deleted goes with its segment, at the latest when that is full of age.
        """
        if self.deletes:
            return sent_until + timedelta(milliseconds=self.segment_ms)
        if self.retention_ms is None:
            return None
        return sent_until + timedelta(milliseconds=self.retention_ms + self.segment_ms)

    def as_store(self, sent_until: datetime) -> dict[str, Any]:
        """For plans and receipts: what is open, and until when."""
        until = self.clear_until(sent_until)
        text = "plaintext messages until the broker's retention has passed"
        if self.deletes:
            text = "messages are deleted once they are committed, while ingest runs; bytes go with segments"
        return {
            "store": f"Kafka topic {self.name}",
            "means": text,
            "open_until": None if until is None else until.isoformat(timespec="seconds"),
        }


class TopicBook:
    """The topics of one lake.

    Args:
        path: SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _SCHEMA)

    def note(self, topics: Iterable[FeedingTopic]) -> None:
        """Writes down what a consumer reads. Raises `DatabaseUnavailable`."""
        with self._db.write() as db:
            db.executemany("INSERT OR REPLACE INTO topics VALUES (?, ?, ?, ?, ?, ?, ?)", map(astuple, topics))

    def all(self) -> list[FeedingTopic]:
        """Every topic that ever fed the lake."""
        rows = self._db.read("SELECT * FROM topics ORDER BY name, topic_id")
        return [FeedingTopic(*row) for row in rows]

    def open_stores(self, sent_until: datetime) -> list[dict[str, Any]]:
        """See `FeedingTopic.as_store`."""
        return [one.as_store(sent_until) for one in self.all()]

    def close(self) -> None:
        """Closes the database."""
        self._db.close()
