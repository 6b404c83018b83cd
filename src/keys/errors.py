"""Errors of the key tree. Every error says whose move it is and whether a retry helps.

`ShredlakeError` is the root of all packages' bases; each package derives exactly one base from it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar, Literal

Move = Literal["caller", "operator", "nobody"]


class ShredlakeError(Exception):
    """Root of every error Shredlake raises.

    Attributes:
        whose_move: who has to act: the `caller`, the `operator`, or `nobody` (it passes by itself).
        retry_helps: whether the same call may succeed later without anyone acting.
        next_step: one sentence that says what to do now.
    """

    whose_move: ClassVar[Move] = "operator"
    retry_helps: ClassVar[bool] = False
    default_next_step: ClassVar[str] = "Run `shredlake doctor` and follow what it says."

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step or self.default_next_step


class KeysError(ShredlakeError):
    """Base of this package's errors."""


class InvalidName(KeysError):
    """A subject id, identity or purpose is empty, too long, or holds control characters."""

    whose_move = "caller"
    default_next_step = "Send an id of 1 to 65,536 bytes of UTF-8."


class EnvelopeFault(StrEnum):
    """What exactly is wrong with an envelope, for machines; docs/formats/cse1.md says what each means."""

    LENGTH = "length"
    MAGIC = "magic"
    SUITE = "suite"
    FLAGS = "flags"
    COMMITMENT = "commitment"
    GENERATION_UNKNOWN = "generation_unknown"
    GENERATION_CHANGED = "generation_changed"
    TAG = "tag"
    PADDING = "padding"
    ZSTD_FRAME = "zstd_frame"
    ZSTD_SIZE_ABSENT = "zstd_size_absent"
    ZSTD_SIZE_ZERO = "zstd_size_zero"
    ZSTD_SIZE_OVER = "zstd_size_over"
    ZSTD_TRAILING = "zstd_trailing"


class EnvelopeError(KeysError):
    """A sealed value could not be opened for a reason that is never an erasure.

    Attributes:
        fault: the one thing that was found wrong.
    """

    default_next_step = "Restore the damaged file from a backup; the key itself is unharmed."

    def __init__(self, message: str, *, fault: EnvelopeFault, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.fault = fault

    def __reduce__(self) -> tuple[Callable[..., EnvelopeError], tuple[Any, ...]]:
        # A worker of a build raises it in another process than the one that reports it.
        return partial(type(self), fault=self.fault, next_step=self.next_step), (self.message,)


class MalformedEnvelope(EnvelopeError):
    """The bytes are not a CSE1 envelope, or the opened body is not what its flags promise."""


def malformed(fault: EnvelopeFault, message: str) -> MalformedEnvelope:
    """The error of a fault, the fault first: one line where it is raised."""
    return MalformedEnvelope(message, fault=fault)


class WrongKey(EnvelopeError):
    """The commitment does not match: the envelope was sealed under another key or context."""


class TamperedEnvelope(EnvelopeError):
    """The authentication tag does not match: bytes or bound context were changed."""


class CustodianError(KeysError):
    """Base of what the holder of the root can answer."""


class CustodianUnavailable(CustodianError):
    """The root cannot be reached now. Nothing is known about any key; never an erasure.

    Attributes:
        status: HTTP status of an answer that has no meaning of its own; None where there was no answer.
    """

    status: int | None = None

    retry_helps = True
    default_next_step = (
        "Bring the custodian back (embedded: put the root file back; where the root is on a server, name it"
        " in keys.vault), then repeat the call."
    )


class CustodianSealed(CustodianUnavailable):
    """The server is up and sealed: it knows its keys only after an unseal."""

    default_next_step = "Unseal the server; nothing is lost, calls succeed from then on."


class CustodianStandby(CustodianUnavailable):
    """A standby answered and no active node can be reached."""

    whose_move = "nobody"
    default_next_step = "Wait for the election, or check the cluster's nodes."


class CustodianDenied(CustodianUnavailable):
    """This role may not do that, as its policy says."""

    retry_helps = False
    default_next_step = "Use the role that may (infra/vault/policies), or correct the policy."


class CustodianTokenExpired(CustodianUnavailable):
    """The log-in ran out or was revoked, and logging in again failed."""

    retry_helps = False
    default_next_step = "Renew the role's secret id, JWT or token file; then repeat the call."


class CustodianBusy(CustodianUnavailable):
    """A rate limit or quota refused the call."""

    whose_move = "nobody"
    default_next_step = "Wait, or raise the quota for this role."


class RootKeyDeleted(CustodianError):
    """The custodian has no root key of this name: deleted, or never made."""

    default_next_step = "Restore the custodian's newest snapshot; no key can be opened without its root."


class RootKeyRetired(CustodianError):
    """The wrap belongs to a root version that was retired at an epoch close."""

    default_next_step = "Use today's page store; wraps of a closed epoch can never be opened again."


class SandboxNotEmpty(CustodianError):
    """The server that a drill would overwrite is the lake's own, or somebody uses it; it was not touched."""

    default_next_step = "Name a server that was initialised for this drill alone and holds nothing."


class RootShared(CustodianError):
    """Somebody else rotated this root: another lake may be wrapped with it. Nothing was retired."""

    default_next_step = (
        "Make sure that no other lake uses this root and that nothing rotates it by itself; "
        "then run `shredlake keys adopt-root`."
    )


class RootMismatch(CustodianError):
    """The root does not belong to this page store."""

    default_next_step = "Put the root file that was made with this page store back in place."


class DatabaseUnavailable(KeysError):
    """A SQLite file of the lake's folder can be neither read nor written now; says nothing of its content."""

    retry_helps = True
    default_next_step = "Mend the disk of the lake's folder, then repeat the call; nothing was written."


class DatabaseFull(DatabaseUnavailable):
    """The disk of a SQLite file is full; the transaction left nothing behind."""

    default_next_step = "Make room on the disk of the lake's folder, then repeat the call."


class PageStoreError(KeysError):
    """Base of page store errors."""


class PageMissing(PageStoreError):
    """The index names a page that is not there. An error, never an erasure."""

    default_next_step = "Restore the page store from its backup, then run `shredlake keys converge`."


class PageDamaged(PageStoreError):
    """A page or node record does not authenticate. Other pages are not affected."""

    default_next_step = "Restore the page store from its backup, then run `shredlake keys converge`."


class PageStoreUnavailable(PageStoreError):
    """The page store cannot be reached now, or gave up a transaction. Says nothing about any key."""

    retry_helps = True
    default_next_step = "Bring the page store's server or file back, then repeat the call; repeating is safe."


class PageStoreFull(PageStoreError):
    """The disk or the database of the page store is full; the transaction left nothing behind."""

    retry_helps = True
    default_next_step = "Make room for the page store, then repeat the call."


class DatabaseDamaged(KeysError):
    """A database file is no database, or malformed. Says nothing about any key."""

    default_next_step = (
        "Restore that file from its newest backup (the fence log: also by `shredlake keys import-fences COPY`"
        " into an empty one), then run `shredlake keys gate`."
    )


class StaleWrite(PageStoreError):
    """Another process changed the page first; the compare-and-set refused."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = "Repeat the call."


class KeyRecordMissing(KeysError):
    """No key and no fence for this handle: its page store is incomplete. Never an erasure."""

    default_next_step = "Restore the newest page store; this handle was never erased."


class SubjectErased(KeysError):
    """The data subject is fenced; provisioning again needs `authorize_return`."""

    whose_move = "caller"
    default_next_step = "If the person came back lawfully, call authorize_return first."


class InvalidTransition(KeysError):
    """The lifecycle does not allow this step."""

    whose_move = "caller"


class LeaseExpired(KeysError):
    """The process held its keys past its lease; what it opened meanwhile was thrown away."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = "Repeat the read; the lease is renewed by it."


class KeysElsewhere(KeysError):
    """There are no key pages where the settings say; those of this lake are somewhere else, or lost."""

    default_next_step = (
        "Give the settings that `shredlake init` had (keys.page_store, keys.page_schema, keys.vault), those"
        " of the environment too, or put the backup of the key pages back."
    )


class LeasesElsewhere(KeysError):
    """Another host's processes use these key pages, and an erasure here would not wait for them."""

    default_next_step = (
        "Run every process of a lake on one host. If the other one is gone for good, or the file is lost,"
        " run `shredlake keys adopt-host` here."
    )


class AgentUnavailable(KeysError):
    """The key agent of this host does not answer. Says nothing about any key."""

    retry_helps = True
    default_next_step = "Start it again (`shredlake keys agent`), then repeat the call; nothing is lost."


class AgentDenied(KeysError):
    """The key agent does not give this to the role that asked."""

    default_next_step = "Use the token of the role that may; see docs/servers.md."


class SealSessionLost(KeysError):
    """The agent does not know this writer session (any more); a new one has to begin."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = "Begin a new writer session and seal again."


class FenceCopyInvalid(KeysError):
    """A copy of the fence log was cut, edited, signed by another custodian, or is of another history."""

    default_next_step = "Use another copy; the log here was not changed."


class RestoreGateClosed(KeysError):
    """Fence log and page store disagree: a fenced subject may still have a key."""

    default_next_step = "Run `shredlake keys converge`, which destroys every fenced subject again."
