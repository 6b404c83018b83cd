"""Publications and releases: append-only, one SQLite file, one transaction per switch.

A release maps every view to a publication; readers resolve one release per question, so they never
see two views of different releases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from keys import Database, Effects, Keyring
from projections.alarms import ALARM_SCHEMA, Alarm, AlarmBook
from projections.differencing import Withheld
from projections.errors import NotPublished
from projections.headbook import HEADS_SCHEMA, HeadBook, table_of, want
from projections.keptsource import SOURCES_SCHEMA, KeptSources
from projections.switching import refuse_dropped, refuse_gone, refuse_older, refuse_stale
from projections.withheldrows import SCHEMA as WITHHELD_SCHEMA
from projections.withheldrows import WithheldRows

_SCHEMA = """
CREATE TABLE IF NOT EXISTS publications (publication_id INTEGER PRIMARY KEY, build_id TEXT NOT NULL UNIQUE,
    view TEXT NOT NULL, record TEXT NOT NULL, logged_as INTEGER);
CREATE TABLE IF NOT EXISTS releases (release_id INTEGER PRIMARY KEY, released_at TEXT NOT NULL,
    entries TEXT NOT NULL, kind TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS set_aside (view TEXT PRIMARY KEY, set_aside_at TEXT NOT NULL, reason TEXT NOT NULL,
    is_served INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped (publication_id INTEGER PRIMARY KEY, view TEXT NOT NULL,
    dropped_at TEXT NOT NULL, reason TEXT NOT NULL, is_gone INTEGER NOT NULL);
"""
_OTHERS = (ALARM_SCHEMA, HEADS_SCHEMA, WITHHELD_SCHEMA, SOURCES_SCHEMA)


@frozen
class Publication:
    """One built and released version of a view, with all that an auditor asks for.

    Attributes:
        table, snapshot_id: where the rows are.
        version: fingerprint of the code.
        input_snapshot, input_sequence: of `lake.events`.
        offsets: next line per source, of every stream and the newest files.
        watermark: newest event day less the view's lateness.
        epoch: erasures that are reflected.
        columns: name → type of the result.
        events_*: conservation: stored = superseded + shredded + counted. All but the first are None of a view
            with a floor and of rows of single people: before and after an erasure they tell what one had.
        digest: SHA-256 of the result's rows in key order.
        people_mark: which erasures and holds a personal view reflects; empty for others.
        withheld_rows: rows that the differencing guard keeps back.
        exposes: columns that can show a personal value in clear: `column`, `kind`, `fields` and the author's
            reason, `because`; None in records of before that was judged.
        floor: the view's `min_subjects`; None in records of before it was recorded.
        purposes: whose sealed fields the view reads, which are also what the rows of single people are sealed
            under; None in records of before.
        source: SHA-256 of the kept source in hex; empty in records of before, and of views of no file.
        holds_ids: why the author says that literals of it which look like ids of people may be kept.
        git_sha, git_dirty: of the folder that holds the view's code; empty outside git.
    """

    build_id: str
    view: str
    grain: str
    personal: bool
    table: str
    snapshot_id: int
    version: str
    input_snapshot: int
    input_sequence: int
    offsets: Mapping[str, int]
    watermark: str | None
    schemas: tuple[str, ...]
    epoch: int
    columns: Mapping[str, str]
    rows: int
    events_stored: int
    events_superseded: int | None
    events_shredded: int | None
    events_counted: int | None
    digest: str
    git_sha: str
    git_dirty: bool
    libraries: Mapping[str, str]
    built_at: str
    who: str
    why: str
    publication_id: int = 0
    people_mark: str = ""
    withheld_rows: int = 0
    exposes: tuple[Mapping[str, Any], ...] | None = None
    floor: int | None = None
    purposes: tuple[str, ...] | None = None
    source: str = ""
    holds_ids: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@frozen
class Release:
    """What readers see from `released_at` on: publication id per view."""

    release_id: int
    released_at: datetime
    entries: Mapping[str, int]
    kind: str
    who: str
    why: str


@frozen
class Aside:
    """A view that could not be derived anew.

    Attributes:
        is_served: readers still see the version of before, marked stale; else it is withdrawn.
    """

    view: str
    since: datetime
    reason: str
    is_served: bool


@frozen
class Dropped:
    """A publication that is not kept any more.

    Attributes:
        is_gone: its rows are deleted; until then readers may still see it, or the next publication is
            compared with it.
    """

    publication_id: int
    view: str
    at: datetime
    reason: str
    is_gone: bool

    def words(self) -> str:
        """When and why, in a sentence."""
        return (
            f"publication {self.publication_id} of `{self.view}` was dropped at"
            f" {self.at.isoformat(timespec='seconds')}: {self.reason}"
        )


class Ledger:
    """Publications and releases of one lake.

    Attributes:
        heads: what the heads of tables, which other engines read, should be.
    """

    def __init__(
        self, path: Path, clock: Callable[[], datetime], effects: Effects, keyring: Keyring | None = None
    ) -> None:
        self._db = Database(path, _SCHEMA + ";".join(_OTHERS))
        self.heads = HeadBook(self._db)
        self.kept_back = WithheldRows(self._db, keyring, effects)
        self.sources = KeptSources(self._db, keyring, effects)
        self._clock = clock
        self._effects = effects
        self.alarms = AlarmBook(self._db, clock, effects)

    def open_alarms(self) -> list[Alarm]:
        """Views that gave another result for the same input, until it is accepted or their code changes."""
        release = self.current()
        entries = release.entries if release is not None else {}
        seen = {name: self.publication(at).version for name, at in entries.items()}
        return [one for one in self.alarms.unaccepted() if seen.get(one.view, one.version) == one.version]

    def release(
        self,
        publications: list[Publication],
        *,
        epoch: Callable[[], int],
        who: str,
        why: str,
        older: bool = False,
    ) -> Release:
        """Records publications and switches readers to them, in one transaction.

        A publication whose build was released before is not recorded twice.

        Args:
            epoch: reads the fence log inside the transaction: an erasure that comes later publishes
                later, so a version that misses it can never be the newest.
            older: an older input may take the place of a newer one.

        Raises:
            StaleEpoch: a personal version is behind the fence log, or was dropped since it was built.
            OlderBuild: one reads an older input than what readers see of its view.
        """
        with self._effects("release"), self._db.write() as db:
            refuse_stale(publications, fence := epoch())
            entries, dropped = self._newest_entries(db), self._dropped(db)
            for one in publications:
                if not older:
                    refuse_older(one, self._at(db, entries.get(one.view)))
                sql = "SELECT publication_id FROM publications WHERE build_id = ?"
                found = db.execute(sql, (one.build_id,)).fetchone()
                if found is None:
                    body = json.dumps(one.as_dict())  # the order of `columns` is that of the rows
                    found = db.execute(
                        "INSERT INTO publications (build_id, view, record) VALUES (?, ?, ?) "
                        "RETURNING publication_id",
                        (one.build_id, one.view, body),
                    ).fetchone()
                refuse_gone(one, found[0], dropped)
                entries[one.view] = int(found[0])
                db.execute("DELETE FROM set_aside WHERE view = ?", (one.view,))
            release = self._insert(db, entries, "publish", who, why)
            for one in publications:
                want(db, table_of(one.view), entries[one.view], release.release_id, fence)
            return release

    def revert(
        self, publications: list[Publication], *, epoch: Callable[[], int], who: str, why: str
    ) -> Release:
        """Switches views back to earlier publications, in one transaction; errors as `release`."""
        with self._effects("release"), self._db.write() as db:
            refuse_stale(publications, fence := epoch())
            refuse_dropped(publications, self._dropped(db))
            entries = {one.view: one.publication_id for one in publications}
            release = self._insert(db, self._newest_entries(db) | dict(entries), "rollback", who, why)
            for view, publication_id in entries.items():
                want(db, table_of(view), publication_id, release.release_id, fence)
            return release

    def set_aside(
        self,
        withdrawn: Mapping[str, str],
        stale: Mapping[str, str],
        *,
        epoch: Callable[[], int],
        who: str,
        why: str,
    ) -> None:
        """Takes views out of what readers see, and marks others as stale, each with its reason.

        Neither is shown to readers of the table's head, who see no mark. Their publications stay on record;
        a later release of a view ends both.
        """
        at = _stamp(self._clock())
        with self._effects("release"), self._db.write() as db:
            entries = self._newest_entries(db)
            kept = {name: one for name, one in entries.items() if name not in withdrawn}
            if kept != entries:
                self._insert(db, kept, "withdraw", who, why)
            (newest,) = db.execute("SELECT MAX(release_id) FROM releases").fetchone()
            for name in (*withdrawn, *stale):
                want(db, table_of(name), None, newest or 0, epoch())
            db.executemany(
                "INSERT INTO set_aside VALUES (?, ?, ?, ?) ON CONFLICT (view) DO UPDATE"
                " SET reason = excluded.reason, is_served = excluded.is_served",
                [
                    *((name, at, reason, 0) for name, reason in withdrawn.items()),
                    *((name, at, reason, 1) for name, reason in stale.items()),
                ],
            )

    def aside(self) -> dict[str, Aside]:
        """Views that could not be derived anew when somebody was erased, and have not been built since."""
        rows = self._db.read("SELECT * FROM set_aside ORDER BY view")
        return {row[0]: Aside(row[0], datetime.fromisoformat(row[1]), row[2], bool(row[3])) for row in rows}

    def withdrawn(self) -> list[str]:
        """Those of them that readers do not see."""
        return [name for name, one in self.aside().items() if not one.is_served]

    def stale(self) -> list[str]:
        """Those of them that readers see as they were before the erasure."""
        return [name for name, one in self.aside().items() if one.is_served]

    def current(self, at: datetime | None = None) -> Release | None:
        """The release readers saw at a moment; the newest for None."""
        until = _stamp(at) if at is not None else "9"
        rows = self._db.read(
            "SELECT * FROM releases WHERE released_at <= ? ORDER BY release_id DESC LIMIT 1", (until,)
        )
        return _release(rows[0]) if rows else None

    def publication(self, publication_id: int) -> Publication:
        """One publication. Raises `NotPublished`."""
        rows = self._db.read("SELECT record FROM publications WHERE publication_id = ?", (publication_id,))
        if not rows:
            raise NotPublished(f"there is no publication {publication_id}")
        return _publication(publication_id, rows[0][0])

    def by_build(self, build_id: str) -> Publication | None:
        """The publication of a build, if it was released."""
        sql = "SELECT publication_id, record FROM publications WHERE build_id = ?"
        rows = self._db.read(sql, (build_id,))
        return _publication(*rows[0]) if rows else None

    def newest(self) -> list[Publication]:
        """The newest publication of each view that was not dropped, by view."""
        rows = self._db.read(
            "SELECT publication_id, record FROM publications WHERE publication_id IN (SELECT"
            " MAX(publication_id) FROM publications WHERE publication_id NOT IN (SELECT publication_id"
            " FROM dropped) GROUP BY view) ORDER BY view"
        )
        return [_publication(*row) for row in rows]

    def history(self, view: str) -> list[Publication]:
        """Publications of a view, newest first."""
        sql = "SELECT publication_id, record FROM publications WHERE view = ? ORDER BY 1 DESC"
        return [_publication(*row) for row in self._db.read(sql, (view,))]

    def publications(self) -> list[Publication]:
        """Those of every view, by view and then oldest first."""
        rows = self._db.read("SELECT publication_id, record FROM publications ORDER BY view, publication_id")
        return [_publication(*row) for row in rows]

    def releases(self) -> list[Release]:
        """Every release, newest first."""
        return [_release(row) for row in self._db.read("SELECT * FROM releases ORDER BY 1 DESC")]

    def withhold(self, build_id: str, rows: Mapping[bytes, Withheld]) -> None:
        """Remembers which rows a build keeps back, before it can be published."""
        self.kept_back.put(build_id, rows)

    def withheld(self, build_id: str) -> dict[bytes, Withheld]:
        """Rows that a build keeps back, by digest of their keys; errors as `WithheldRows.get`."""
        return self.kept_back.get(build_id)

    def drop(self, publications: Collection[Publication], *, why: str) -> None:
        """Writes down that publications go, before their rows are touched; the first reason stays."""
        at = _stamp(self._clock())
        with self._effects("drop-publications"), self._db.write() as db:
            db.executemany(
                "INSERT INTO dropped VALUES (?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
                [(one.publication_id, one.view, at, why) for one in publications],
            )

    def dropped(self) -> dict[int, Dropped]:
        """Every publication that is not kept, by id."""
        return self._dropped(self._db)

    def fresh_id(self, build_id: str) -> str:
        """The id of a build, another one where a publication of it was dropped."""
        dropped = self.dropped()
        while dropped and (was := self.by_build(build_id)) and was.publication_id in dropped:
            build_id = hashlib.sha256(f"{build_id}|again".encode()).hexdigest()[:32]
        return build_id

    def set_gone(self, publications: Collection[Publication]) -> None:
        """Notes that the rows of dropped publications are deleted, and forgets all else of them."""
        self.kept_back.forget([one.build_id for one in publications])
        gone = {i for i, one in self.dropped().items() if one.is_gone}
        gone.update(one.publication_id for one in publications)
        kept = [one for one in self.publications() if one.publication_id not in gone]
        self.sources.forget_all_but((one.view, one.version, one.source) for one in kept)
        ids = [(one.publication_id,) for one in publications]
        with self._effects("publications-gone"), self._db.write() as db:
            db.executemany("UPDATE dropped SET is_gone = 1 WHERE publication_id = ?", ids)

    def unlogged(self) -> list[Publication]:
        """Publications that are not yet a leaf of the transparency log."""
        sql = "SELECT publication_id, record FROM publications WHERE logged_as IS NULL ORDER BY 1"
        return [_publication(*row) for row in self._db.read(sql)]

    def mark_logged(self, publication_id: int, leaf: int) -> None:
        """Notes the leaf number of a publication."""
        with self._db.write() as db:
            db.execute(
                "UPDATE publications SET logged_as = ? WHERE publication_id = ?", (leaf, publication_id)
            )

    def leaf_of(self, publication_id: int) -> int | None:
        """The leaf number of a publication in the transparency log."""
        rows = self._db.read("SELECT logged_as FROM publications WHERE publication_id = ?", (publication_id,))
        return rows[0][0] if rows else None

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    def _dropped(self, db: Any) -> dict[int, Dropped]:
        sql = "SELECT publication_id, view, dropped_at, reason, is_gone FROM dropped ORDER BY 1"
        rows = db.read(sql) if isinstance(db, Database) else db.execute(sql).fetchall()
        return {
            row[0]: Dropped(row[0], row[1], datetime.fromisoformat(row[2]), row[3], bool(row[4]))
            for row in rows
        }

    def _at(self, db: Any, publication_id: int | None) -> Publication | None:
        sql = "SELECT publication_id, record FROM publications WHERE publication_id = ?"
        row = db.execute(sql, (publication_id,)).fetchone()
        return _publication(*row) if row else None

    def _newest_entries(self, db: Any) -> dict[str, int]:
        row = db.execute("SELECT entries FROM releases ORDER BY release_id DESC LIMIT 1").fetchone()
        found: dict[str, int] = json.loads(row[0]) if row else {}
        return found

    def _insert(self, db: Any, entries: Mapping[str, int], kind: str, who: str, why: str) -> Release:
        at = self._clock().astimezone(UTC)
        row = db.execute(
            "INSERT INTO releases (released_at, entries, kind, who, why) VALUES (?, ?, ?, ?, ?) RETURNING *",
            (_stamp(at), json.dumps(dict(entries), sort_keys=True), kind, who, why),
        ).fetchone()
        return _release(row)


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _release(row: tuple[Any, ...]) -> Release:
    return Release(row[0], datetime.fromisoformat(row[1]), json.loads(row[2]), row[3], row[4], row[5])


def _publication(publication_id: int, body: str) -> Publication:
    fields = json.loads(body)
    fields["schemas"] = tuple(fields["schemas"])
    for name in ("exposes", "purposes"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    return Publication(**{**fields, "publication_id": publication_id})
