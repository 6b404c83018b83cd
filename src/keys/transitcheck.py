"""Whether a transit engine is set up so that a destroyed key stays destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from keys.errors import CustodianDenied, CustodianError
from keys.vaultsession import VaultSession


@frozen
class Flaw:
    """What is wrong with a server's set-up, why it matters and what to do.

    Attributes:
        fatal: an erasure by this root would not be one.
    """

    text: str
    fatal: bool


def inspect_transit(session: VaultSession, mount: str = "transit", prefix: str = "shredlake") -> list[Flaw]:
    """Looks at the real keys, the engine and the audit devices, as the auditor role may.

    Raises:
        CustodianError: out of reach, or the root key is not there.
    """
    root = session.call("get", f"{mount}/keys/{prefix}-root")
    flaws = list(root_flaws(root))
    for look, judge in (
        (f"{mount}/config/keys", engine_flaws),
        ("sys/audit", audit_flaws),
    ):
        try:
            flaws.extend(judge(session.call("get", look)))
        except CustodianDenied:
            flaws.append(Flaw(f"this role may not read {look}: use the auditor's policy", False))
        except CustodianError as error:
            flaws.append(Flaw(f"{look}: {error.message}", False))
    return flaws


def root_flaws(key: dict[str, Any]) -> Iterator[Flaw]:
    """Of a transit key's own description (`GET transit/keys/<name>`)."""
    for name, why in _MUST_BE_FALSE.items():
        if key.get(name):
            yield Flaw(f"the root key has {name}: {why}", True)
    if not key.get("derived"):
        yield Flaw(
            "the root key is not derived: a wrap is not bound to its place in the tree and can be swapped. "
            "Make a new root key with derived=true",
            True,
        )
    if key.get("deletion_allowed"):
        yield Flaw(
            "the root key has deletion_allowed: one call would make every person unreadable. Set it to false",
            False,
        )


def engine_flaws(config: dict[str, Any]) -> Iterator[Flaw]:
    """Of the engine's configuration (`GET transit/config/keys`)."""
    if not config.get("disable_upsert"):
        yield Flaw(
            "upsert is on: a misspelt key name makes a new key instead of an error. "
            "POST transit/config/keys disable_upsert=true",
            True,
        )


def audit_flaws(devices: dict[str, Any]) -> Iterator[Flaw]:
    """Of the audit devices (`GET sys/audit`)."""
    if not devices:
        yield Flaw("no audit device is on: nobody can tell who used the root. Enable one", True)


_MUST_BE_FALSE = {
    "exportable": "whoever exported it can open every backup for ever, and it cannot be unset. "
    "Make a new root key and re-key the tree",
    "allow_plaintext_backup": "a plaintext backup survives every retirement, and it cannot be unset. "
    "Make a new root key and re-key the tree",
}
