"""The backup drill of a lake: its own kinds of page store and root, and nothing that is its own.

The people of a drill have a root (`<prefix>-drill-root` on a server), page stores (schemas `drill_…` in
PostgreSQL) and a lake of their own. All of it is removed afterwards; what a killed drill left is removed by
the next: its schemas, and its folder, which may hold a snapshot of the server that nobody knows of.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from keys import Custodian, DrillSite, EmbeddedCustodian, Keyring, PageStore, Provisioned, SubjectId
from keys.drill import CustodianBackup, OnPeople, opened_one_by_one
from keys.pagestore import SqlitePageStore
from lake import PRIMARY, HttpBatch, block_rows, open_events, open_lake
from lake.events import sealing_context
from service.errors import BadInput, DrillInvalid, DrillRunning
from service.keyplaces import vault_session
from service.settings import Keys, Vault

STORES: Final = ("live", "restored_before", "restored_after")
_BATCH: Final = 5000
_PREFIX: Final = "shredlake-drill-"
_TYPE: Final = {
    "name": "Drilled",
    "version": 1,
    "dedup_window_days": 1,
    "type": "object",
    "properties": {"note": {"type": "string"}},
    "required": ["note"],
}


@frozen
class SnapshotFiles:
    """Where the administrator of a Vault or OpenBao put what its snapshot takes; see `SnapshotRestore`.

    Attributes:
        token, restore_token: files with a token of the lake's server, and of the one to restore into.
        restore_address, restore_ca: of that one.
        unseal_keys: a file with the unseal keys of the lake's server, one a line.
    """

    token: Path
    restore_address: str
    restore_token: Path
    restore_ca: Path | None = None
    unseal_keys: Path | None = None


@contextlib.contextmanager
def drill_site(
    home: Path, settings: Keys, snapshot: SnapshotFiles | None, say: Callable[[str], None]
) -> Iterator[tuple[DrillSite, Path]]:
    """(where a drill takes place, an empty folder), both removed afterwards.

    Args:
        home: the lake's folder; a lock in it keeps two drills of one lake apart.
        snapshot: what a server's own snapshot takes; None tries none.

    Raises:
        DrillRunning: another drill of this lake is under way.
        BadInput, KeysError: see their texts.
    """
    with _alone(home / "service" / "locks" / "drill") as lock, contextlib.ExitStack() as after:
        left = Path(lock.read_text())
        if left.name.startswith(_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
        sandbox = Path(tempfile.mkdtemp(prefix=_PREFIX))
        after.callback(shutil.rmtree, sandbox, ignore_errors=True)
        lock.write_text(str(sandbox))  # before anything is in it
        if settings.page_store is not None:
            _drop_schemas(settings)  # of a drill that was killed
            after.callback(_drop_schemas, settings)
        root, backup = _root(settings, sandbox, snapshot, say)
        yield DrillSite(root, lambda name: _pages(settings, sandbox, name), backup), sandbox


class DrilledLake:
    """Events of the people of a drill, in a lake of Iceberg tables that is backed up as folders are.

    Args:
        folder: for the lake; the backup lies beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, keyring: Keyring, subjects: Sequence[SubjectId], progress: OnPeople) -> list[bytes]:
        """See `DrillData`; one event a person."""
        lake, refs = open_lake(self._folder, keyring), list[bytes]()
        lake.types.register(_TYPE)
        ingestor, now = lake.ingestor(), datetime.now(UTC)
        for at in range(0, len(subjects), _BATCH):
            some = subjects[at : at + _BATCH]
            refs += [made.ref for made in keyring.provision(some) if isinstance(made, Provisioned)]
            ingestor.run(HttpBatch([_event(one, now) for one in some], f"drill {at}", lake.types))
            progress(at + len(some), len(subjects))
        lake.close()
        return refs

    def back_up(self) -> None:
        """Copies the folder, and puts the copy in its place, since tables know where they lie."""
        original = self._folder.with_name(f"{self._folder.name}-original")
        self._folder.rename(original)
        shutil.copytree(original, self._folder)

    def readable(self, keyring: Keyring, refs: Sequence[bytes]) -> set[bytes]:
        """See `DrillData`.

        Raises:
            DrillInvalid: the copy lacks the events of some of them; nothing would be proven.
        """
        table, types = open_events(self._folder)
        head = table.metadata().current_snapshot()
        files = table.files(head.snapshot_id) if head is not None else []
        columns = ("subject_ref", "block_id", "sealed")
        rows = block_rows(table, files, None, refs=refs, columns=columns).select(columns)
        if rows.height != len(refs):
            raise DrillInvalid(f"the lake's backup holds events of {rows.height} of {len(refs)} people")
        context = sealing_context(table.metadata().table_uuid.bytes, types.get(str(_TYPE["name"])), PRIMARY)
        return opened_one_by_one(keyring.opener(), context, rows.iter_rows())


def _event(subject: SubjectId, now: datetime) -> bytes:
    head = {"specversion": "1.0", "source": "drill", "type": _TYPE["name"], "time": now.isoformat()}
    event: dict[str, Any] = head | {"id": subject.reveal(), "subject": subject.reveal()}
    return json.dumps(event | {"data": {"note": "what this person did"}}).encode()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[Path]:
    """Every drill of a lake uses the same root: one that closes an epoch would spoil another."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DrillRunning("another drill of this lake is under way") from None
        yield lock
    finally:
        os.close(descriptor)


def _root(
    settings: Keys, sandbox: Path, snapshot: SnapshotFiles | None, say: Callable[[str], None]
) -> tuple[Callable[[], Custodian], CustodianBackup | None]:
    if settings.vault is None:
        if snapshot is not None:
            raise BadInput("this lake's root is a file, not on a server: there is no snapshot to take")
        return _root_file(sandbox / "keys" / "root.key", sandbox / "copied.key")
    from keys.transit import TransitCustodian

    vault = settings.vault

    def custodian(where: Vault = vault) -> TransitCustodian:
        return TransitCustodian(vault_session(where), where.mount, f"{where.prefix}-drill")

    backup = _snapshot_backup(vault, snapshot, custodian, sandbox, say) if snapshot is not None else None
    return custodian, backup


def _root_file(root: Path, copy: Path) -> tuple[Callable[[], Custodian], CustodianBackup]:
    def backup() -> Callable[[], Custodian]:
        shutil.copy(root, copy)
        return lambda: EmbeddedCustodian(copy)

    return (lambda: EmbeddedCustodian.create(root)), backup


def _snapshot_backup(
    vault: Vault,
    files: SnapshotFiles,
    custodian: Callable[[Vault], Custodian],
    sandbox: Path,
    say: Callable[[str], None],
) -> CustodianBackup:
    from keys.vaultsession import VaultServer
    from keys.vaultsnapshot import Administered, SnapshotRestore, raft_backup

    own = VaultServer(vault.address, vault.ca_file)
    other = VaultServer(files.restore_address, files.restore_ca)
    plan = SnapshotRestore(
        Administered(own, _secret(files.token)),
        Administered(other, _secret(files.restore_token)),
        _secret(files.unseal_keys).split() if files.unseal_keys is not None else (),
    )

    def there(server: VaultServer) -> Custodian:
        return custodian(vault.model_copy(update={"address": server.address, "ca_file": server.ca_file}))

    return lambda: raft_backup(plan, there, sandbox / "root.snapshot", say)


def _secret(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def _pages(settings: Keys, sandbox: Path, name: str) -> PageStore:
    if settings.page_store is None:
        return SqlitePageStore(sandbox / f"{name}.db")
    from keys.postgresstore import PostgresPageStore

    return PostgresPageStore(settings.page_store.get_secret_value(), _schema(settings, name))


def _schema(settings: Keys, name: str) -> str:
    """Always the same of a lake, so that the next drill finds what a killed one left."""
    return f"drill_{hashlib.sha256(settings.page_schema.encode()).hexdigest()[:16]}_{name}"


def _drop_schemas(settings: Keys) -> None:
    from keys.postgresstore import drop_schema

    assert settings.page_store is not None
    for name in STORES:
        drop_schema(settings.page_store.get_secret_value(), _schema(settings, name))
