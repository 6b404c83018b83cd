"""keys: one person, one key, one way to destroy it.

Seals values per data subject (CSE1), keeps the keys in a tree whose root a custodian holds, and
destroys one key so that every copy of what it sealed becomes unreadable.
"""

from keys.caches import Provisioned
from keys.custodian import Custodian, CustodianStatus, Signature
from keys.drill import DrillReport, DrillSite, run_drill
from keys.effects import Effects
from keys.embedded import EmbeddedCustodian
from keys.envelope import FieldContext
from keys.epochclose import EpochClose
from keys.errors import (
    AgentDenied,
    AgentUnavailable,
    CustodianError,
    CustodianUnavailable,
    DatabaseDamaged,
    DatabaseFull,
    DatabaseUnavailable,
    EnvelopeError,
    EnvelopeFault,
    FenceCopyInvalid,
    InvalidName,
    InvalidTransition,
    KeyRecordMissing,
    KeysElsewhere,
    KeysError,
    LeaseExpired,
    LeasesElsewhere,
    MalformedEnvelope,
    Move,
    PageDamaged,
    PageMissing,
    PageStoreError,
    PageStoreFull,
    PageStoreUnavailable,
    RestoreGateClosed,
    RootKeyDeleted,
    RootKeyRetired,
    RootMismatch,
    ShredlakeError,
    StaleWrite,
    SubjectErased,
    TamperedEnvelope,
    WrongKey,
)
from keys.fencecopy import Merged, export_fences, import_fences
from keys.fencelog import ALL_PURPOSES, MAX_BUCKET_BITS, Fence, FenceLog
from keys.foreign import Unexpected, kinds_of, mask_process, masked_end, place_of, unexpected
from keys.frames import Body
from keys.keyring import Keyring
from keys.keytree import KeyTree
from keys.leases import Lease, LeaseBook
from keys.opening import KeyPlaces, adopt_host, embedded_places, open_embedded, open_forensic, open_keys
from keys.pagestore import PageStore, SqlitePageStore
from keys.ports import OpeningKeys, WritingKeys
from keys.restoregate import GateStatus, Remembered, Witness
from keys.sealing import Opener, SealRule, SealSession
from keys.signing import signature_is_valid
from keys.sqlite import Database
from keys.storecopy import copy_store
from keys.subjects import (
    DEFAULT_PURPOSE,
    Held,
    Identity,
    Shredded,
    SubjectId,
    SubjectRef,
    check_purpose,
    is_subject_id,
)
from keys.treecheck import TreeCheck
from keys.treeinventory import Inventory

__all__ = [
    "ALL_PURPOSES",
    "DEFAULT_PURPOSE",
    "MAX_BUCKET_BITS",
    "AgentDenied",
    "AgentUnavailable",
    "Body",
    "Custodian",
    "CustodianError",
    "CustodianStatus",
    "CustodianUnavailable",
    "Database",
    "DatabaseDamaged",
    "DatabaseFull",
    "DatabaseUnavailable",
    "DrillReport",
    "DrillSite",
    "Effects",
    "EmbeddedCustodian",
    "EnvelopeError",
    "EnvelopeFault",
    "EpochClose",
    "Fence",
    "FenceCopyInvalid",
    "FenceLog",
    "FieldContext",
    "GateStatus",
    "Held",
    "Identity",
    "InvalidName",
    "InvalidTransition",
    "Inventory",
    "KeyPlaces",
    "KeyRecordMissing",
    "KeyTree",
    "Keyring",
    "KeysElsewhere",
    "KeysError",
    "Lease",
    "LeaseBook",
    "LeaseExpired",
    "LeasesElsewhere",
    "MalformedEnvelope",
    "Merged",
    "Move",
    "Opener",
    "OpeningKeys",
    "PageDamaged",
    "PageMissing",
    "PageStore",
    "PageStoreError",
    "PageStoreFull",
    "PageStoreUnavailable",
    "Provisioned",
    "Remembered",
    "RestoreGateClosed",
    "RootKeyDeleted",
    "RootKeyRetired",
    "RootMismatch",
    "SealRule",
    "SealSession",
    "Shredded",
    "ShredlakeError",
    "Signature",
    "SqlitePageStore",
    "StaleWrite",
    "SubjectErased",
    "SubjectId",
    "SubjectRef",
    "TamperedEnvelope",
    "TreeCheck",
    "Unexpected",
    "Witness",
    "WritingKeys",
    "WrongKey",
    "adopt_host",
    "check_purpose",
    "copy_store",
    "embedded_places",
    "export_fences",
    "import_fences",
    "is_subject_id",
    "kinds_of",
    "mask_process",
    "masked_end",
    "open_embedded",
    "open_forensic",
    "open_keys",
    "place_of",
    "run_drill",
    "signature_is_valid",
    "unexpected",
]
