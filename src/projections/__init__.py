"""projections: one definition, four uses.

Views are pure functions of (input snapshot, code, erasure epoch): built beside the published version,
checked, switched atomically, rolled back in one step, and asked as of any moment.
"""

from pathlib import Path

from keys import Effects
from lake import DEFAULT_MEMORY_BYTES, Lake
from projections.aggregates import Count, Distinct, First, Last, Max, Min, Sum
from projections.alarms import Alarm
from projections.build import Builder, Progress
from projections.buildlocks import BuildLocks
from projections.built import Built
from projections.codewatch import DEFAULT_CODE_SECONDS, CodeWatch
from projections.compute import derive, result
from projections.definition import Check, Fold, Projection, View, grain, non_negative, unique, within
from projections.derive import Deriver, DeriveTask, view_is_personal
from projections.dropping import Chosen, Contribution, Dropping
from projections.errors import (
    BuildUnderWay,
    DefinitionError,
    GateClosed,
    HeadAhead,
    LakeBehind,
    LedgerBehind,
    NotPublished,
    OlderBuild,
    ProjectionError,
    PublicationDropped,
    PublicationExpired,
    ResultChanged,
    SourceUnknown,
    StaleEpoch,
    StateDamaged,
    UnknownView,
    ViewFailed,
)
from projections.executors import Executor, InProcess, ProcessPool
from projections.fingerprint import fingerprint
from projections.guarding import Revealing, revealing
from projections.heads import Heads, TableHead
from projections.ledger import Aside, Dropped, Ledger, Publication, Release
from projections.olderrecords import OlderRecord, older_records
from projections.reconciling import Reconciled
from projections.rederive import Rederived, bring_back, rederive
from projections.registry import ViewRegistry
from projections.remains import RowSeals
from projections.source import SourceFile
from projections.state import StateStore
from projections.tables import ViewTables
from projections.views import Answer, PersonAnswer, Views


def open_views(
    lake: Lake,
    home: Path,
    registry: ViewRegistry,
    *,
    executor: Executor | None = None,
    code_folder: Path | None = None,
    bits: int = 8,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    code_seconds: float = DEFAULT_CODE_SECONDS,
) -> Views:
    """The views of a lake with state and ledger under `home`.

    Args:
        executor: where buckets are derived; in this process where none is given.
        code_folder: whose git state publications record.
        bits: 2^bits buckets per view.
        memory_bytes: that the events read at once may take.
        code_seconds: that one call of a view's code may take.
    """
    effects: Effects = lake.effects
    ledger = Ledger(home / "ledger.db", lake.clock, effects, lake.keyring)
    tables = ViewTables(lake.warehouse, lake.keyring)
    states = StateStore(home / "states.db", lake.keyring, effects)
    builder = Builder(
        lake,
        registry,
        states,
        tables,
        ledger,
        executor or InProcess(Deriver(lake.replay(), lake.types, registry, memory_bytes)),
        CodeWatch(home / "code", code_seconds),
        bits=bits,
        memory_bytes=memory_bytes,
        code_folder=code_folder,
        clock=lake.clock,
    )
    heads = Heads(ledger, tables, lake.keyring.epoch)
    return Views(lake, registry, builder, tables, ledger, states, BuildLocks(home / "locks"), heads)


__all__ = [
    "DEFAULT_CODE_SECONDS",
    "Alarm",
    "Answer",
    "Aside",
    "BuildUnderWay",
    "Builder",
    "Built",
    "Check",
    "Chosen",
    "Contribution",
    "Count",
    "DefinitionError",
    "DeriveTask",
    "Deriver",
    "Distinct",
    "Dropped",
    "Dropping",
    "Executor",
    "First",
    "Fold",
    "GateClosed",
    "HeadAhead",
    "Heads",
    "InProcess",
    "LakeBehind",
    "Last",
    "Ledger",
    "LedgerBehind",
    "Max",
    "Min",
    "NotPublished",
    "OlderBuild",
    "OlderRecord",
    "PersonAnswer",
    "ProcessPool",
    "Progress",
    "Projection",
    "ProjectionError",
    "Publication",
    "PublicationDropped",
    "PublicationExpired",
    "Reconciled",
    "Rederived",
    "Release",
    "ResultChanged",
    "Revealing",
    "RowSeals",
    "SourceFile",
    "SourceUnknown",
    "StaleEpoch",
    "StateDamaged",
    "StateStore",
    "Sum",
    "TableHead",
    "UnknownView",
    "View",
    "ViewFailed",
    "ViewRegistry",
    "ViewTables",
    "Views",
    "bring_back",
    "derive",
    "fingerprint",
    "grain",
    "non_negative",
    "older_records",
    "open_views",
    "rederive",
    "result",
    "revealing",
    "unique",
    "view_is_personal",
    "within",
]
