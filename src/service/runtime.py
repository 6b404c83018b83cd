"""The composition root: opens every part of a lake from its folder."""

from __future__ import annotations

import copy
import functools
import logging
import os
import secrets
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from keys import Effects, Keyring, LeasesElsewhere, ShredlakeError, open_keys
from keys.hardening import harden
from lake import Lake, Replay, open_events, open_lake
from projections import Deriver, Executor, ProcessPool, SourceFile, ViewRegistry, Views, open_views
from purge import (
    Journal,
    Purge,
    Supplements,
    UnknownRequest,
    open_evidence,
    open_purge,
    settle_retired_states,
)
from service.agent import build_keys, build_lease
from service.errors import BadInput, BadSettings, NotInitialised
from service.fencecopies import FenceCopies
from service.firstlook import look_first
from service.keyplaces import VaultRole, assurance, key_places, seal_rule
from service.lakeplace import intake_rule, lake_place
from service.privatefiles import keep_private
from service.scanplaces import look_for
from service.settings import CONFIG_NAME, Settings, load_settings

_log = logging.getLogger("shredlake.runtime")
PRIVATE_FOLDER: Final = 0o700
_FIRST_CONFIG: Final = """\
# Settings of this lake; `shredlake config show` lists all with their defaults.
# Each can be set in the environment too: SHREDLAKE_SERVER__PORT=9000.

[projections]
# Python files that define views (docs/views.md).
files = [{files}]

# [[jobs]]
# name = "nightly"
# cron = "15 2 * * *"
"""


@frozen
class Runtime:
    """An open lake.

    Attributes:
        token: bearer token of the HTTP API.
    """

    home: Path
    settings: Settings
    keyring: Keyring
    lake: Lake
    views: Views
    purge: Purge
    fence_copies: FenceCopies
    token: str = field(repr=False)

    @property
    def supplements(self) -> Supplements:
        """What receipts had not covered."""
        return Supplements(self.keyring, self.purge.log)

    def close(self) -> None:
        """Gives the lease up and closes every database."""
        self.views.close()
        self.purge.journal.close()
        self.lake.close()
        self.purge.log.close()
        self.keyring.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def initialise(home: Path, view_files: Iterable[Path] = ()) -> bool:
    """Makes a lake's folder; returns False where there is one already."""
    keep_private()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    config, token = home / CONFIG_NAME, home / "token"
    if token.exists():
        return False
    home.chmod(PRIVATE_FOLDER)  # also one that was there: what is put into it is for this user alone
    files = ", ".join(f'"{path.resolve()}"' for path in view_files)
    if not config.exists():  # who brings settings along, for servers say, keeps them
        config.touch(mode=0o600)  # passwords come to stand in it
        config.write_text(_FIRST_CONFIG.format(files=files))
    settings = load_settings(home)
    try:
        keyring = open_keyring(home, settings, create=True)
    except LeasesElsewhere:
        raise _taken() from None
    taken = settings.keys.page_store is not None and bool(keyring.stats()["records"])
    keyring.close()
    if taken:
        raise _taken()
    descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return True


def _taken() -> BadSettings:
    return BadSettings(
        "the schema keys.page_schema holds the keys of another lake",
        next_step="Give every lake a schema and a keys.vault.prefix of its own.",
    )


def open_keyring(
    home: Path,
    settings: Settings,
    effects: Effects | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    role: VaultRole = "purge",
    *,
    create: bool = False,
) -> Keyring:
    """The keys of a lake; with a custodian on a server, as one of its roles.

    Args:
        create: makes root and pages where there are none. Later openings must not: settings that lack a
            line, or a shell without their environment, would seal under keys that no erasure reaches.

    Raises:
        KeysElsewhere, KeysError: see `open_keys`.
    """
    fences = settings.keys.fence_log or home / "evidence" / "fences.db"
    places, rule = key_places(home, settings.keys, role, create=create), seal_rule(settings.keys)
    return open_keys(
        places, home / "keys", fence_path=fences, clock=clock, effects=effects, rule=rule, create=create
    )


def open_fence_copies(home: Path, settings: Settings, keyring: Keyring) -> FenceCopies:
    """The copies that the settings name. They become witnesses of the restore gate."""
    properties, lock = lake_place(settings.lake).properties, home / "purge" / "locks" / "fence-copies"
    copies = FenceCopies(keyring, settings.keys.fence_copies, properties, lock)
    keyring.gatekeeping.witnesses += copies.witnesses()
    return copies


@contextmanager
def gated_keyring(home: Path, settings: Settings, role: VaultRole) -> Iterator[Keyring]:
    """The keys alone, for a process that needs no table, after every witness of the gate was asked.

    Raises:
        RestoreGateClosed, KeysError: see `Keyring.gate`.
    """
    keep_private(settings.keys.agent_users)
    look_first(settings)
    keyring = open_keyring(home, settings, role=role)
    with closing(keyring):
        open_fence_copies(home, settings, keyring)
        journal, log = open_evidence(home, keyring, lambda: datetime.now(UTC), Effects())
        with closing(journal), closing(log):
            keyring.gate().trusted()
            yield keyring


def open_runtime(
    home: Path,
    *,
    effects: Effects | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    executor: Executor | None = None,
    role: VaultRole = "purge",
) -> Runtime:
    """Opens a lake that `initialise` made.

    Args:
        role: of a custodian on a server; `agent` can seal and open, and neither erase nor attest.

    Raises:
        NotInitialised: the folder holds no lake.
        NotAnswering: a server takes connections and says nothing.
        BadSettings, DefinitionError, KeysError: see their texts.
    """
    if not (home / "token").exists():
        raise NotInitialised(f"there is no lake in {home}")
    settings = load_settings(home)
    keep_private(settings.keys.agent_users)
    look_first(settings)
    keyring = open_keyring(home, settings, effects, clock, role)
    place, rule = lake_place(settings.lake), intake_rule(settings.ingest)
    lake = open_lake(home / "lake", keyring, effects, clock, place, rule)
    registry = ViewRegistry.following(lambda: view_files(home, settings))
    for path, error in registry.broken().items():
        _log.warning("views of %s: %s", path.name, error.message)
    workers, code_seconds = settings.projections.workers, settings.projections.code_seconds
    if executor is None and settings.keys.agent:
        executor = ProcessPool(lambda: agent_deriver(home, registry.sources()), max(2, workers), code_seconds)
    elif executor is None and workers > 1:
        opener = functools.partial(open_deriver, home)
        executor = ProcessPool(
            lambda: nullcontext(functools.partial(opener, registry.sources())), workers, code_seconds
        )
    files = view_files(home, settings)
    views = open_views(
        lake,
        home / "views",
        registry,
        executor=executor,
        code_folder=files[0].parent if files else None,
        bits=settings.projections.bucket_bits,
        memory_bytes=settings.replay.memory_bytes,
        code_seconds=code_seconds,
    )
    copies = open_fence_copies(home, settings, keyring)
    stale, drop = settings.erasure.serve_stale, settings.erasure.drop_affected
    look = None
    if settings.erasure.scan:
        look = functools.partial(look_for, home, settings, lake.warehouse.objects)
    purge = open_purge(home, lake, views, assurance(settings.keys), copies.write, stale, drop, look)
    token = (home / "token").read_text().strip()
    runtime = Runtime(home, settings, keyring, lake, views, purge, copies, token)
    if role == "purge":
        _settle(runtime)
        _settle_heads(runtime)
    return runtime


def _settle(runtime: Runtime) -> None:
    """Does what an older lake left to be done; what cannot be now, the next opening does."""
    try:
        runtime.views.ledger.kept_back.seal_older()
        told = settle_retired_states(
            runtime.views.states,
            runtime.keyring,
            runtime.purge.journal,
            runtime.supplements,
            runtime.lake.clock,
        )
    except ShredlakeError as error:
        _log.warning("what follows from an older layout of states waits: %s: %s", type(error).__name__, error)
        return
    if told is not None:
        _log.warning("states of an older layout are gone for good; receipts with a supplement: %d", told)


def _settle_heads(runtime: Runtime) -> None:
    """Moves the heads of views' tables that a publication which was cut off had still to move."""
    try:
        if runtime.views.heads.is_due():
            runtime.keyring.gate().trusted()
            runtime.views.heads.settle()
    except ShredlakeError as error:
        _log.warning("heads of views' tables are still to be moved: %s: %s", type(error).__name__, error)


def view_files(home: Path, settings: Settings) -> list[Path]:
    """Where views are defined, by the settings of now; a relative path begins at the settings' folder.

    Settings that cannot be read now were good when this process began.
    """
    with suppress(BadSettings):
        settings = load_settings(home)
    return [_placed(home, path) for path in settings.projections.files]


def _placed(home: Path, path: Path) -> Path:
    """Where there is nothing beside the settings, the working directory counts, as it did before."""
    beside = home / path
    return path.absolute() if not beside.exists() and path.exists() else beside.absolute()


@contextmanager
def open_journal(home: Path) -> Iterator[Journal]:
    """The request journal alone: it lies here, so it is read while custodian, page store or catalog are away.

    Raises:
        NotInitialised: the folder holds no lake.
        PageStoreError: the file cannot be read.
    """
    if not (home / "token").exists():
        raise NotInitialised(f"there is no lake in {home}")

    def no_keys(_: str) -> bytes:
        raise BadInput("the journal is of an earlier release", next_step="Run `shredlake doctor` once first.")

    with closing(
        Journal(home / "purge" / "journal.db", lambda: datetime.now(UTC), Effects(), no_keys)
    ) as found:
        yield found


def shredded_text(journal: Journal, receipt_id: str) -> str:
    """What is said of an erased person: the receipt's id, and that it is not there yet where it is not."""
    try:
        is_issued = journal.get(receipt_id).receipt is not None
    except UnknownRequest:
        is_issued = True  # of another journal: nothing here says that it is still to come
    if is_issued:
        return f"shredded, receipt {receipt_id}"
    return f"shredded; receipt {receipt_id} is not issued yet, the erasure is still under way"


def open_replay(home: Path) -> Replay:
    """A reader with keys under a lease of its own, as a worker process opens it."""
    harden(lock_memory=False)
    settings = load_settings(home)
    keep_private(settings.keys.agent_users)
    events, types = open_events(home / "lake", place=lake_place(settings.lake))
    return Replay(events, open_keyring(home, settings), types)


def open_agent_replay(home: Path, lease: bytes) -> Replay:
    """A reader that can open until the next erasure; its keys stay with the host's agent."""
    harden(lock_memory=False)
    settings = load_settings(home)
    keep_private(settings.keys.agent_users)
    events, types = open_events(home / "lake", place=lake_place(settings.lake))
    return Replay(events, build_keys(home, lease), types)


def open_deriver(home: Path, sources: Sequence[SourceFile] | None = None) -> Deriver:
    """What a worker process of a build opens: a reader and the views.

    Args:
        sources: of the views, as the builder read them; the files as they are now where none are given.
    """
    return _deriver(home, open_replay(home), sources)


@contextmanager
def agent_deriver(home: Path, sources: Sequence[SourceFile] | None = None) -> Iterator[Callable[[], Deriver]]:
    """What opens a worker whose keys stay with the host's agent, under a lease that ends with the block."""
    with build_lease(home) as lease:
        yield functools.partial(open_agent_deriver, home, lease, sources)


def open_agent_deriver(home: Path, lease: bytes, sources: Sequence[SourceFile] | None = None) -> Deriver:
    """A worker that can open until the next erasure, and do nothing else with keys."""
    return _deriver(home, open_agent_replay(home, lease), sources)


def _deriver(home: Path, replay: Replay, sources: Sequence[SourceFile] | None) -> Deriver:
    settings = load_settings(home)
    if sources is None:
        registry = ViewRegistry.following(lambda: view_files(home, settings))
    else:
        registry = ViewRegistry.of(sources)
    return Deriver(replay, replay.types, registry, settings.replay.memory_bytes)


class SafeFormatter(logging.Formatter):
    """Writes of an exception its type and its frames: a foreign library's message may quote a value."""

    def format(self, record: logging.LogRecord) -> str:
        """A line; the text that another handler cached for the exception is not used."""
        own = copy.copy(record)
        if own.exc_info:
            own.exc_text = None
        return super().format(own)

    def formatException(self, ei: Any) -> str:
        """Type and frames, without the message."""
        kind, _, trace = ei
        frames = "".join(traceback.format_tb(trace))
        return f"{frames}{kind.__name__ if kind is not None else ''}"


def log_to_file(home: Path) -> None:
    """Sends log lines to logs/shredlake.log; they never hold an identifier."""
    folder = home / "logs"
    folder.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    (folder / "shredlake.log").touch(mode=0o600)
    handler = logging.FileHandler(folder / "shredlake.log")
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
