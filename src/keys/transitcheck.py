"""Whether a transit engine is set up so that a destroyed key stays destroyed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from keys.errors import CustodianDenied, RootKeyDeleted
from keys.vaultsession import VaultSession

OLDEST_TESTED: Final[Mapping[str, tuple[int, ...] | None]] = {"Vault": (1, 21, 2), "OpenBao": None}
"""The oldest version of each product that the tests of this release run on; None where there is none."""
_NEVER: Final = ("0", "0s")


@frozen
class Flaw:
    """What is wrong with a server's set-up, why it matters and what to do.

    Attributes:
        fatal: what a receipt says would not be so.
    """

    text: str
    fatal: bool


def inspect_transit(session: VaultSession, mount: str = "transit", prefix: str = "shredlake") -> list[Flaw]:
    """Looks at the three real keys, the engine and the audit devices, as the auditor role may.

    What the role may not look at is a flaw that names the capability it lacks.

    Raises:
        CustodianError: out of reach.
    """
    flaws: list[Flaw] = []
    for path, capabilities, judge in (
        (f"{mount}/keys/{prefix}-root", "read", root_flaws),
        (f"{mount}/keys/{prefix}-secret", "read", secret_flaws),
        (f"{mount}/keys/{prefix}-sign", "read", sign_flaws),
        (f"{mount}/config/keys", "read", engine_flaws),
        ("sys/audit", "read and sudo", audit_flaws),
    ):
        try:
            flaws.extend(judge(session.call("get", path)))
        except CustodianDenied:
            text = f"this role may not read {path}, so it was not inspected: it lacks the capability"
            todo = "Name the auditor's log-in in keys.vault.auditor"
            flaws.append(Flaw(f"{text} {capabilities} there. {todo}", False))
        except RootKeyDeleted:
            flaws.append(Flaw(f"the server has nothing at {path}. See docs/servers.md, Roles", True))
    return flaws


def inspect_server(session: VaultSession) -> tuple[str, Flaw | None]:
    """(product and version, what is to be said against them). Every role may ask.

    Raises:
        CustodianError: out of reach.
    """
    health = session.call("get", "sys/health?standbyok=true&perfstandbyok=true")
    product, version = product_of(health)
    return f"{product} {version}", version_flaw(product, version)


def product_of(health: Mapping[str, Any]) -> tuple[str, str]:
    """(`Vault` or `OpenBao`, version) out of `GET sys/health`.

    OpenBao has no version below 2, and says nothing of editions; Vault does since 1.16.
    """
    version = str(health.get("version") or "of no version that it tells")
    is_openbao = _numbers(version) >= (2,) and "enterprise" not in health
    return ("OpenBao" if is_openbao else "Vault"), version


def version_flaw(product: str, version: str) -> Flaw | None:
    """What is to be said against a version, such as `1.21.2`, `1.21.2+ent` or `2.0.0-rc1`."""
    oldest, own, found = OLDEST_TESTED[product], f"{product} {version}", _numbers(version)
    check = "run the tests of this release against yours (`VAULT_BIN=/path make test`)"
    if oldest is None:
        return Flaw(f"{own}: this release was not tested with {product}; {check}", False)
    tested = ".".join(map(str, oldest))
    if not found:
        why = "cannot be compared with the oldest tested"
        return Flaw(f"{own}: {why}, {tested}. Compare by hand; redact_version may be on", False)
    if found >= oldest:
        return None
    return Flaw(f"{own} is older than {tested}, the oldest tested: upgrade it, or {check}", False)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def root_flaws(key: dict[str, Any]) -> Iterator[Flaw]:
    """Of the root's own description (`GET transit/keys/<name>`)."""
    why = "whoever has that copy can open every backup for ever, and it cannot be unset. "
    yield from _key_flaws("root key", key, why + "Make a new root key and re-key the tree")
    if not key.get("derived"):
        yield Flaw(
            "the root key is not derived: a wrap is not bound to its place in the tree and can be swapped. "
            "Make a new root key with derived=true",
            True,
        )
    if key.get("convergent_encryption"):
        yield Flaw(
            "the root key has convergent_encryption: equal keys at one place give equal wraps, and it cannot "
            "be unset. Make a new root key without it",
            False,
        )


def secret_flaws(key: dict[str, Any]) -> Iterator[Flaw]:
    """Of the secret's description: keyed hashes of the fence log come out of it."""
    why = "whoever has that copy can test whose tag in the fence log is whose, and it cannot be unset"
    yield from _key_flaws("secret key", key, why)


def sign_flaws(key: dict[str, Any]) -> Iterator[Flaw]:
    """Of the signing key's description."""
    yield from _key_flaws(
        "signing key", key, "whoever has that copy can sign receipts, and it cannot be unset"
    )


def _key_flaws(name: str, key: dict[str, Any], why: str) -> Iterator[Flaw]:
    for option in ("exportable", "allow_plaintext_backup"):
        if key.get(option):
            yield Flaw(f"the {name} has {option}: {why}", True)
    if key.get("deletion_allowed"):
        yield Flaw(
            f"the {name} has deletion_allowed: one call, and nobody is readable or nothing provable. "
            "Set it to false",
            False,
        )
    if str(key.get("auto_rotate_period") or 0) not in _NEVER:
        yield Flaw(
            f"the {name} has auto_rotate_period: the server makes versions that nobody here asked for. "
            "Epochs rotate the root; the other two stay as they are. Set it to 0",
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
