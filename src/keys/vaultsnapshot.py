"""A snapshot of a raft server, and its restoration into another one that holds nothing.

A restored snapshot brings destroyed keys back: no role of ours may take one, so this works under an
administrator's token. It is never forced onto the server that it came from: that would put every lake's
root back. (Vault's and OpenBao's HTTP interface, `sys/storage/raft`.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import hvac
import requests
from attrs import field, frozen

from keys.custodian import Custodian
from keys.errors import CustodianError, CustodianSealed, CustodianUnavailable, SandboxNotEmpty
from keys.vaultsession import VaultServer, asked

UNSEAL_SECONDS: Final = 300.0
_TRANSFER_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 0.2
_CHUNK_BYTES: Final = 1024 * 1024
_BUILT_IN: Final = frozenset({"cubbyhole", "identity", "system", "agent_registry"})
"""Engines that a server has from its first moment."""


@frozen
class Administered:
    """A server, and a token that may do everything on it."""

    server: VaultServer
    token: str = field(repr=False)

    def client(self) -> hvac.Client:
        """A client that waits for a whole snapshot."""
        where = self.server
        verify = str(where.ca_file) if where.ca_file is not None else True
        return hvac.Client(where.address, token=self.token, verify=verify, timeout=_TRANSFER_SECONDS)


@frozen
class SnapshotRestore:
    """What it takes to restore a server's snapshot elsewhere.

    Attributes:
        source: the server whose snapshot is taken.
        target: another one, initialised and empty; it is overwritten.
        unseal_keys: of the source; without them somebody has to unseal the target by hand.
        wait_seconds: for the target to be unsealed.
    """

    source: Administered
    target: Administered
    unseal_keys: Sequence[str] = field(default=(), repr=False)
    wait_seconds: float = UNSEAL_SECONDS


def raft_backup(
    plan: SnapshotRestore,
    custodian: Callable[[VaultServer], Custodian],
    file: Path,
    say: Callable[[str], None],
) -> Callable[[], Custodian]:
    """Takes a snapshot; the answer restores it in the target and gives the custodian of then.

    Args:
        custodian: the root of a server, by our own log-in: the snapshot holds that as well.
        file: for the snapshot.
        say: tells somebody what has to be done by hand.

    Raises:
        SandboxNotEmpty: the target is the source, or in use; nothing was changed.
        CustodianError: out of reach, or the token may not.
    """
    refuse_used(*(_seen(one) for one in (plan.source, plan.target)))
    _take(plan.source, file)

    def restore() -> Custodian:
        target = plan.target.client()
        refuse_used(*(_seen(one) for one in (plan.source, plan.target)))  # it is some time later
        with file.open("rb") as snapshot:
            asked(lambda: target.adapter.post("/v1/sys/storage/raft/snapshot-force", data=snapshot))
        if not plan.unseal_keys:
            say(
                f"unseal the server at {plan.target.server.address} with the unseal keys of the lake's server"
            )
        restored = custodian(plan.target.server)
        _wait_for(restored, target, plan)
        return restored

    return restore


def refuse_used(source: tuple[str, frozenset[str]], target: tuple[str, frozenset[str]]) -> None:
    """Both as (cluster id, types of engines).

    Raises:
        SandboxNotEmpty: the target is the source, or somebody uses it.
    """
    if not (source[0] and target[0]):
        raise SandboxNotEmpty("a server does not say which cluster it is (redact_cluster_name)")
    if target[0] == source[0]:
        raise SandboxNotEmpty("the server to restore into is the lake's own, or holds a restored copy of it")
    used = sorted(target[1] - _BUILT_IN)
    if used:
        raise SandboxNotEmpty(f"the server to restore into is in use: it has engines ({', '.join(used)})")


def _seen(one: Administered) -> tuple[str, frozenset[str]]:
    client = one.client()
    health = asked(lambda: client.adapter.get("/v1/sys/health"))
    mounts = asked(lambda: client.adapter.get("/v1/sys/mounts"))["data"]
    return str(health.get("cluster_id") or ""), frozenset(str(mount["type"]) for mount in mounts.values())


def _take(source: Administered, file: Path) -> None:
    client = source.client()
    answer: Any = asked(lambda: client.sys.take_raft_snapshot())
    file.touch(mode=0o600)
    try:
        with answer, file.open("wb") as out:
            for chunk in answer.iter_content(_CHUNK_BYTES):
                out.write(chunk)
    except requests.RequestException as error:
        raise CustodianUnavailable(f"the snapshot broke off: {type(error).__name__}") from None


def _wait_for(restored: Custodian, target: hvac.Client, plan: SnapshotRestore) -> None:
    """Until our own log-in works there: before the snapshot is in force the server does not know it."""
    end = time.monotonic() + plan.wait_seconds
    while True:
        try:
            _unseal(target, plan.unseal_keys)
            restored.root_id()
        except CustodianError as error:
            if time.monotonic() > end:
                raise CustodianSealed(
                    f"the restored server did not become usable: {error.message}",
                    next_step="Give the unseal keys of the lake's server (--unseal-keys-file), or unseal it"
                    " by hand in time, then repeat the drill.",
                ) from None
        else:
            return
        time.sleep(_PAUSE_SECONDS)


def _unseal(target: hvac.Client, unseal_keys: Sequence[str]) -> None:
    if asked(lambda: target.sys.read_seal_status())["sealed"]:
        for key in unseal_keys:
            asked(lambda: target.sys.submit_unseal_key(key))  # noqa: B023 - called at once
