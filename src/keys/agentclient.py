"""A worker's side of the key agent: the same sessions and openers, with keys that the agent gives out."""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

from keys import agentwire as wire
from keys import envelope as cse1
from keys.aead import SUITE_AES_GCM
from keys.caches import Caches, MaskedKey, Provisioned
from keys.envelope import FieldContext, Subkey
from keys.errors import AgentDenied, AgentUnavailable, KeysError, LeaseExpired, SubjectErased
from keys.leases import Lease, Seen, boot_seconds
from keys.quiet import no_collections
from keys.scrubbing import scrubbed_class
from keys.sealing import Opener, SealRule, SealSession
from keys.subjects import DEFAULT_PURPOSE, REF_BYTES, Held, Identity, Shredded, SubjectId
from keys.tree import KEY_BYTES

ATTEMPTS: Final = 9
_FIRST_PAUSE_SECONDS: Final = 0.05


class AgentLink:
    """One connection, made again when the agent was restarted. Safe for threads, one call at a time.

    Args:
        path: the agent's socket.
        hello: `token` of a role, or `lease` of a build.
        attempts: tries of one call, with pauses that double; by default they take about 13 s, or twice that.
    """

    def __init__(self, path: Path, hello: dict[str, Any], attempts: int = ATTEMPTS) -> None:
        self._path = path
        self._attempts = attempts
        self._hello = hello
        self._mutex = threading.Lock()
        self._socket: socket.socket | None = None

    def call(self, operation: str, /, **arguments: Any) -> dict[str, Any]:
        """One operation. Every one of them may be repeated, so a lost connection is made again.

        Raises:
            AgentUnavailable: it did not come back in time.
            AgentDenied: this user may not connect.
            KeysError: what the agent answered.
        """
        with self._mutex:
            for attempt in range(1, self._attempts + 1):
                try:
                    return self._ask({"op": operation, **arguments})
                except PermissionError:
                    raise AgentDenied("this user may not connect to the key agent in this role") from None
                except (OSError, AgentUnavailable):
                    self.close()
                    if attempt == self._attempts:
                        raise AgentUnavailable("the key agent cannot be reached") from None
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt * random.random())
        raise AssertionError("unreachable")

    def last_word(self, operation: str, /, **arguments: Any) -> None:
        """One try over the connection that there is; an agent that has gone need not hear it."""
        with self._mutex, contextlib.suppress(OSError, KeysError):
            if self._socket is not None:
                self._ask({"op": operation, **arguments})

    def close(self) -> None:
        """Hangs up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self._path))
                _exchange(connection, self._hello)
            except BaseException:
                connection.close()
                raise
            self._socket = connection
        return _exchange(self._socket, message)


class AgentLeases:
    """The host's lease book as its agent keeps it: a worker needs no file of the lake's keys."""

    def __init__(self, link: AgentLink) -> None:
        self._link = link
        self.clock_seconds: Callable[[], float] = boot_seconds

    def renew(self, lease_id: str, seen: Seen, lease_seconds: float) -> float:
        """See `LeaseBook.renew`; for us it ends no later than in the agent's book."""
        expires_at = self.clock_seconds() + lease_seconds
        self._link.call("renew", lease_id=lease_id, seen=list(seen), seconds=lease_seconds)
        return expires_at

    def release(self, lease_id: str) -> None:
        """See `LeaseBook.release`; it runs out by itself where the agent has gone."""
        self._link.last_word("release", lease_id=lease_id)


@scrubbed_class
class IngestKeys:
    """What an ingest worker can do: name subjects, seal.

    Args:
        link: with the ingest role's token.
        rule: how its sessions seal.
    """

    def __init__(self, link: AgentLink, rule: SealRule = SealRule()) -> None:
        self._rule = rule
        self._link = link
        self._caches = Caches()
        self._lease = Lease(AgentLeases(link), lambda: _seen(link), self._evict)

    def session(self) -> SealSession:
        """A writer session; the agent chooses its salt."""
        return SealSession(self, os.urandom, time.monotonic, self._rule)

    def provision(
        self, subjects: Sequence[SubjectId], purpose: str = DEFAULT_PURPOSE
    ) -> list[Provisioned | SubjectErased]:
        """See `Keyring.provision`."""
        names = [subject.reveal() for subject in subjects]
        got = self._link.call("provision", names=names, purpose=purpose)
        refs = wire.split(got["refs"], REF_BYTES)
        return [
            Provisioned(ref, generation, bool(created))
            if generation
            else SubjectErased("this data subject was erased")
            for ref, generation, created in zip(
                refs, _numbers(got["generations"]), got["created"], strict=True
            )
        ]

    def add_identities(self, pairs: Sequence[tuple[bytes, Identity]]) -> None:
        """See `Keyring.add_identities`."""
        self._link.call("add_identities", pairs=[(ref, one.kind, one.normalised()) for ref, one in pairs])

    def mint(self, count: int, purpose: str = "system") -> list[Provisioned]:
        """See `Keyring.mint`."""
        got = self._link.call("mint", count=count, purpose=purpose)
        return [Provisioned(ref, 1, True) for ref in wire.split(got["refs"], REF_BYTES)]

    def authentic(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        envelopes: Sequence[bytes],
    ) -> list[bool]:
        """See `keys.authenticity.authentic`; the agent opens them, and gives nothing out."""
        asked = {"refs": b"".join(refs), "block_ids": list(block_ids), "envelopes": list(envelopes)}
        found = self._link.call("authentic", context=_context(context), **asked)["authentic"]
        return [bool(one) for one in found]

    def epoch(self) -> int:
        """The newest fence's number."""
        return int(self._link.call("epoch")["epoch"])

    def catch_up(self) -> int:
        """See `Keyring.catch_up`."""
        if self.epoch() != self._lease.epoch:
            self._lease.acknowledge_now()
        return self._lease.ensure()

    def fenced_since(self, epoch: int, refs: Collection[bytes]) -> bool:
        """See `Keyring.fenced_since`."""
        return bool(self._link.call("fenced_since", epoch=epoch, refs=b"".join(refs))["fenced"])

    def close(self) -> None:
        """Drops every key, gives the lease up and hangs up."""
        self._lease.release()
        self._link.close()

    # -- what sessions ask for ---------------------------------------------------------------------

    def begin_session(self) -> bytes:
        """See `keys.sealing.SealKeys`."""
        return bytes(self._link.call("begin_session")["salt"])

    def sealing(
        self, salt: bytes, context: FieldContext, refs: Sequence[bytes], suite: int = SUITE_AES_GCM
    ) -> dict[bytes, Subkey | Shredded]:
        """See `keys.sealing.SealKeys`. Raises `SealSessionLost` after the agent was restarted."""
        with no_collections():
            return self._sealing(salt, context, refs, suite)

    def _sealing(
        self, salt: bytes, context: FieldContext, refs: Sequence[bytes], suite: int
    ) -> dict[bytes, Subkey | Shredded]:
        self._lease.ensure()
        known = self._caches.sealing(context.derivation_info(suite) + salt, len(refs))
        unknown = [ref for ref in dict.fromkeys(refs) if ref not in known]
        found: dict[bytes, Subkey | Shredded] = {}
        if unknown:
            asked = _context(context)
            got = self._current("sealing", salt=salt, context=asked, refs=b"".join(unknown), suite=suite)
            known |= zip(
                unknown,
                cse1.subkeys_of(got["subkeys"], _numbers(got["generations"]), suite),
                strict=True,
            )
            for at, (receipt_id, epoch) in got["shredded"].items():
                ref = unknown[int(at)]
                del known[ref]
                found[ref] = Shredded(receipt_id, epoch)
        return found | {ref: known[ref] for ref in refs if ref not in found}

    def tag_keys(self, refs: Sequence[bytes]) -> dict[bytes, bytes]:
        """See `keys.sealing.SealKeys`."""
        self._lease.ensure()
        known = self._caches.tag_keys(len(refs))
        unknown = [ref for ref in dict.fromkeys(refs) if ref not in known]
        if unknown:
            got = self._current("tag_keys", refs=b"".join(unknown))
            keys = map(MaskedKey, wire.split(got["keys"], KEY_BYTES))
            known |= zip(wire.split(got["refs"], REF_BYTES), keys, strict=True)
        return {ref: known[ref] for ref in dict.fromkeys(refs) if ref in known}

    def _evict(self, epoch: int) -> None:
        self._caches = Caches()

    def _current(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """An answer that is not from before an erasure which this worker has acknowledged."""
        while True:
            got = self._link.call(operation, **arguments)
            if got["epoch"] >= self._lease.epoch:
                return got


@scrubbed_class
class BuildKeys:
    """What a build worker can do: open, under a lease that dies with the next epoch.

    Args:
        link: with the build role's token, or with a lease that its coordinator gave it.
        lease: given by the coordinator; None asks for one, which needs the token.
    """

    def __init__(self, link: AgentLink, lease: bytes | None = None) -> None:
        self._link = link
        self._given = lease
        self._agent_lease = lease
        self._lease = Lease(AgentLeases(link), lambda: _seen(link), self._evict)

    def opener(self) -> Opener:
        """Opens in bulk."""
        return Opener(self)

    def lease_for_workers(self) -> bytes:
        """A lease that worker processes can say hello with."""
        return bytes(self._link.call("lease")["lease"])

    def opening(
        self, context: FieldContext, refs: Sequence[bytes], headers: Sequence[cse1.Header]
    ) -> list[Subkey | Shredded | Held]:
        """See `keys.sealing.OpenKeys`.

        Raises:
            LeaseExpired: the lease that was given is of an epoch that is over.
        """
        arguments = {"context": _context(context), "refs": b"".join(refs), "headers": list(headers)}
        try:
            got = self._link.call("opening", lease=self._agent_lease or self._renewed(), **arguments)
        except LeaseExpired:
            if self._given is not None:
                raise
            got = self._link.call("opening", lease=self._renewed(), **arguments)
        found: list[Subkey | Shredded | Held] = []
        last = None
        for okm, header in zip(wire.split(got["subkeys"], 2 * KEY_BYTES), headers, strict=True):
            if (okm, header.suite) != last:
                subkey = Subkey(okm[:KEY_BYTES], okm[KEY_BYTES:], header.suite)
                last = okm, header.suite
            found.append(subkey)
        for at, (receipt_id, epoch) in got["shredded"].items():
            found[int(at)] = Shredded(receipt_id, epoch)
        for at in got["held"]:
            found[at] = Held()
        return found

    def catch_up(self) -> int:
        """See `keys.sealing.OpenKeys`; the agent itself catches up before it gives keys out."""
        return self._lease.ensure()

    def renew_lease(self) -> int:
        """See `keys.sealing.OpenKeys`."""
        return self._lease.ensure()

    def lease_epoch(self) -> int:
        """See `keys.sealing.OpenKeys`."""
        return self._lease.epoch

    def check_lease(self) -> None:
        """See `keys.sealing.OpenKeys`."""
        self._lease.check()

    def close(self) -> None:
        """Gives the lease up and hangs up."""
        self._lease.release()
        self._link.close()

    def _renewed(self) -> bytes:
        if self._given is not None:
            return self._given
        self._agent_lease = self.lease_for_workers()
        return self._agent_lease

    def _evict(self, epoch: int) -> None:
        """Nothing is kept here beyond a batch."""


def _exchange(connection: socket.socket, message: dict[str, Any]) -> dict[str, Any]:
    wire.send(connection, message)
    answer = wire.receive(connection)
    if answer is None:
        raise AgentUnavailable("the key agent hung up")
    if "error" in answer:
        raise wire.error_of(answer["error"])
    ok = answer.get("ok")
    if not isinstance(ok, dict):
        raise AgentUnavailable("a frame is not one of ours")
    return ok


def _seen(link: AgentLink) -> Seen:
    got = link.call("epoch")
    return Seen(int(got["epoch"]), int(got["evictions"]))


def _context(context: FieldContext) -> tuple[Any, ...]:
    return (
        context.table_uuid,
        context.field_id,
        context.field_class,
        context.purpose,
        context.event_type,
        context.schema_version,
    )


def _numbers(raw: bytes) -> array.array[int]:
    found = array.array("H")
    found.frombytes(raw)
    return found
