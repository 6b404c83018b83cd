"""What Vault's and OpenBao's answers mean. Pure.

Only our own fence says that somebody was erased; none of these texts ever does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keys.errors import (
    CustodianBusy,
    CustodianDenied,
    CustodianError,
    CustodianSealed,
    CustodianStandby,
    CustodianTokenExpired,
    CustodianUnavailable,
    RootKeyDeleted,
    RootKeyRetired,
    RootMismatch,
)

_NO_VERSION: Final = "no such key version"


def error_of(status: int, texts: Sequence[str]) -> CustodianError:
    """The error of an answer.

    Args:
        status: HTTP status.
        texts: Vault's `errors`, or an item's `error` of a batch.
    """
    text = "; ".join(texts)
    if _NO_VERSION in text:
        error = CustodianUnavailable(
            "the transit key does not give the version that is needed: its minimum version"
            " (`min_decryption_version`) was raised above it, or that version was trimmed",
            next_step="Lower `min_decryption_version` of the transit key to what it was, then repeat;"
            " nothing is erased by this. Rotate and retire through `shredlake keys close-epoch` alone.",
        )
        error.status = status
        return error
    meanings = [meaning for phrase, meaning in _BY_PHRASE.items() if phrase in text]
    if not meanings and status in _BY_STATUS:
        meanings = [_BY_STATUS[status]]
    if meanings:
        kind, message = meanings[0]
        return kind(message)
    # Its text is not shown: it may hold addresses, and names that we do not know of.
    unknown = CustodianUnavailable(f"the custodian answered {status}")
    unknown.status = status
    return unknown


_Meaning = tuple[type[CustodianError], str]
_DENIED: Final[_Meaning] = (CustodianDenied, "the custodian denies this to our role")
_DELETED: Final[_Meaning] = (RootKeyDeleted, "the custodian has no such root key")
_SEALED: Final[_Meaning] = (CustodianSealed, "the custodian is sealed")
_BY_PHRASE: Final[dict[str, _Meaning]] = {
    "disallowed by policy (too old)": (RootKeyRetired, "this root version was retired"),
    "encryption key not found": _DELETED,
    "message authentication failed": (RootMismatch, "another root made this wrap, or it was changed"),
    "invalid ciphertext": (RootMismatch, "the wrapped key was changed"),
    "Vault is sealed": _SEALED,
    "active cluster node not found": (CustodianStandby, "only a standby of the custodian answers"),
    "invalid token": (CustodianTokenExpired, "the custodian does not know this log-in any more"),
    "permission denied": _DENIED,
    "invalid role or secret ID": (CustodianTokenExpired, "the custodian refuses this role or secret id"),
}
_BY_STATUS: Final[dict[int, _Meaning]] = {
    403: _DENIED,
    404: _DELETED,
    429: (CustodianBusy, "the custodian limits the rate of our calls"),
    503: _SEALED,
}
