"""The key agent: the one process of a host that holds page keys and DEKs.

Workers get what their role needs and nothing else. `ingest` names subjects and gets the subkeys of its
own writer sessions, whose salts the agent chooses: with them it can seal, and open nothing that was
sealed before or by others; of what others sealed it learns whether it is authentic, and nothing of what is
inside. `build` gets opening keys, itself by its token, its workers by a lease that
dies with the next epoch, and with the connection that asked for it. `purge` fences and destroys. What
was handed out is counted, never named.

Every role has a socket of its own. Who connects is told by the kernel (SO_PEERCRED, unix(7)) before a
byte of theirs is read.
"""

from __future__ import annotations

import array
import contextlib
import hmac
import logging
import os
import secrets
import socket
import socketserver
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from keys import agentwire as wire
from keys import envelope as cse1
from keys.agentfolder import ROLES, TOKEN_CHARACTERS, AgentFolder
from keys.caches import Provisioned
from keys.envelope import FieldContext, Subkey
from keys.errors import AgentDenied, AgentUnavailable, InvalidName, KeysError, LeaseExpired, SealSessionLost
from keys.fencelog import ALL_PURPOSES
from keys.keyring import Keyring
from keys.leases import MAX_LEASE_SECONDS, Seen
from keys.quiet import no_collections
from keys.scrubbing import scrubbed_class
from keys.subjects import REF_BYTES, Held, Identity, SubjectId
from keys.tree import KEY_BYTES

_log = logging.getLogger("shredlake.agent")
MAX_HELLO_BYTES: Final = 1024
HELLO_SECONDS: Final = 10.0
MAX_SESSIONS: Final = 4096
"""Writer sessions of one connection; the oldest one goes, and begins anew by itself."""
MAX_LEASES: Final = 1024
"""Leases that one connection asked for; the oldest one ends."""
_POLL_SECONDS: Final = 0.1
_CREDENTIALS: Final = struct.Struct("3i")
_LEASE_ID_CHARACTERS: Final = 32
_LEASED: Final = frozenset({"epoch", "renew", "release"})
_COMMON: Final = _LEASED | {"counts"}
MAY: Final[Mapping[str, frozenset[str]]] = {
    "ingest": _COMMON
    | {"begin_session", "sealing", "tag_keys", "provision", "add_identities", "mint", "fenced_since"}
    | {"authentic"},
    "build": _COMMON | {"lease", "opening"},
    "lease": _LEASED | {"opening"},
    "purge": _COMMON | {"ref_of", "fence", "destroy", "wait_until_unreadable", "close_epoch"},
}


@scrubbed_class
class KeyAgent:
    """Answers one connection's requests by its role. Pure of sockets; one per process.

    Args:
        keyring: with every right.
        tokens: role → token.
    """

    def __init__(self, keyring: Keyring, tokens: Mapping[str, str]) -> None:
        self._keyring = keyring
        self._tokens = tokens
        self._leases: dict[bytes, tuple[int, Connection]] = {}
        self._mutex = threading.Lock()
        self.handed_out: Counter[str] = Counter()

    def role_of(self, hello: dict[str, Any]) -> str:
        """Who says hello: by a role's token, or by a build's lease.

        Raises:
            AgentDenied: neither.
        """
        token = str(hello.get("token", ""))
        for role, expected in self._tokens.items():
            if len(expected) >= TOKEN_CHARACTERS and hmac.compare_digest(token.encode(), expected.encode()):
                return role
        lease = hello.get("lease")
        if isinstance(lease, bytes) and lease in self._leases:
            return "lease"
        raise AgentDenied("the key agent does not know this token")

    def answer(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """What a request gets.

        Raises:
            AgentDenied: this role may not ask for that.
            KeysError: as the keyring does.
        """
        name = str(request.get("op"))
        if name not in MAY[connection.role]:
            raise AgentDenied(f"the role {connection.role} may not ask for {name}")
        operation: Callable[[Connection, dict[str, Any]], dict[str, Any]] = getattr(self, f"_{name}")
        with no_collections():
            answer = operation(connection, request)
        with self._mutex:
            self.handed_out[f"{connection.role}: {name} calls"] += 1
            self.handed_out[f"{connection.role}: {name} items"] += int(answer.pop("items", 1))
        return answer

    def hung_up(self, connection: Connection) -> None:
        """Ends the leases that it asked for: a build's last as long as its coordinator is there."""
        with self._mutex:
            self._leases = {one: at for one, at in self._leases.items() if at[1] is not connection}

    def leases(self) -> int:
        """How many leases of builds there are."""
        with self._mutex:
            return len(self._leases)

    def counts(self) -> dict[str, int]:
        """What was handed out: `role: operation calls` and `role: operation items`."""
        with self._mutex:
            return dict(self.handed_out)

    # -- everybody ---------------------------------------------------------------------------------

    def _epoch(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        return {"epoch": self._keyring.epoch(), "evictions": self._keyring.changes.evictions()}

    def _counts(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        return {"counts": self.counts()}

    def _renew(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        lease_id, seconds = str(request["lease_id"]), float(request["seconds"])
        if len(lease_id) > _LEASE_ID_CHARACTERS or not 0 < seconds <= MAX_LEASE_SECONDS:
            raise ValueError("not a lease of ours")
        epoch, evictions = request["seen"]
        self._keyring.leases.renew(lease_id, Seen(int(epoch), int(evictions)), seconds)
        return {}

    def _release(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        self._keyring.leases.release(str(request["lease_id"]))
        return {}

    # -- ingest ------------------------------------------------------------------------------------

    def _begin_session(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        salt = self._keyring.resident.begin_session()
        connection.begin(salt)
        return {"salt": salt}

    def _sealing(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        if request["salt"] not in connection.salts:
            raise SealSessionLost("this writer session is not one of this connection")
        epoch = self._keyring.catch_up()  # nobody fenced by now is sealed for
        refs = wire.split(request["refs"], REF_BYTES)
        context, suite = FieldContext(*request["context"]), request["suite"]
        if suite not in cse1.CIPHERS.values():
            raise InvalidName("the key agent does not know this cipher suite")
        keys, generations, gone = self._keyring.resident.packed_subkeys(request["salt"], context, refs, suite)
        return {
            "subkeys": keys,
            "generations": _numbers(generations),
            "shredded": {str(at): [one.receipt_id, one.epoch] for at, one in gone.items()},
            "epoch": epoch,
            "items": len(refs),
        }

    def _tag_keys(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        epoch = self._keyring.catch_up()
        refs = wire.split(request["refs"], REF_BYTES)
        keys = self._keyring.resident.tag_keys(refs)
        return {
            "refs": b"".join(keys),
            "keys": b"".join(keys.values()),
            "epoch": epoch,
            "items": len(keys),
        }

    def _provision(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        subjects = [SubjectId(name) for name in request["names"]]
        found = self._keyring.provision(subjects, request["purpose"])
        nobody = Provisioned(bytes(REF_BYTES), 0, False)
        made = [one if isinstance(one, Provisioned) else nobody for one in found]
        return {
            "refs": b"".join(one.ref for one in made),
            "generations": _numbers(one.generation for one in made),
            "created": bytes(one.created for one in made),
            "items": len(made),
        }

    def _add_identities(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        pairs = [(ref, Identity(kind, value)) for ref, kind, value in request["pairs"]]
        self._keyring.add_identities(pairs)
        return {"items": len(pairs)}

    def _mint(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        made = self._keyring.mint(request["count"], request["purpose"])
        return {"refs": b"".join(one.ref for one in made), "items": len(made)}

    def _authentic(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Whether each was sealed under these keys: one bit each, and nothing of what is inside."""
        refs = wire.split(request["refs"], REF_BYTES)
        context = FieldContext(*request["context"])
        found = self._keyring.authentic(context, refs, request["block_ids"], request["envelopes"])
        return {"authentic": bytes(found), "items": len(found)}

    def _fenced_since(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        refs = wire.split(request["refs"], REF_BYTES)
        return {"fenced": self._keyring.fenced_since(request["epoch"], refs)}

    # -- build -------------------------------------------------------------------------------------

    def _lease(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        lease, epoch = secrets.token_bytes(16), self._keyring.catch_up()
        with self._mutex:
            self._leases = {one: at for one, at in self._leases.items() if at[0] == epoch}
            mine = [one for one, at in self._leases.items() if at[1] is connection]
            for one in mine[: max(0, len(mine) + 1 - MAX_LEASES)]:
                del self._leases[one]
            self._leases[lease] = epoch, connection
        return {"lease": lease, "epoch": epoch}

    def _opening(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        epoch = self._keyring.catch_up()
        if self._leases.get(request["lease"], (None,))[0] != epoch:
            raise LeaseExpired("this lease was of an epoch or a build that is over")
        refs = wire.split(request["refs"], REF_BYTES)
        headers = [cse1.Header(*header) for header in request["headers"]]
        found = self._keyring.resident.opening(FieldContext(*request["context"]), refs, headers)
        blank = bytes(2 * KEY_BYTES)
        return {
            "subkeys": b"".join(k.key + k.commitment if isinstance(k, Subkey) else blank for k in found),
            "shredded": wire.shredded_message(found),
            "held": [n for n, one in enumerate(found) if isinstance(one, Held)],
            "items": len(refs),
        }

    # -- purge -------------------------------------------------------------------------------------

    def _ref_of(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        return {"ref": self._keyring.ref_of(SubjectId(request["name"]))}

    def _fence(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        targets = [(SubjectId(name), ref) for name, ref in request["targets"]]
        purpose = request.get("purpose", ALL_PURPOSES)
        fences = self._keyring.fence(targets, request["request_id"], purpose)
        return {"epochs": [fence.epoch for fence in fences], "items": len(fences)}

    def _destroy(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        fences = self._keyring.fences.numbered(request["epochs"])
        return {"destroyed": self._keyring.destroy(wire.split(request["refs"], REF_BYTES), fences)}

    def _wait_until_unreadable(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        return {"seconds": self._keyring.wait_until_unreadable(request["epoch"])}

    def _close_epoch(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        closed = self._keyring.close_epoch()
        return {"root_version": closed.root_version, "old_wrap_refused": closed.old_wrap_refused}


class Connection:
    """One worker's connection: its role and the writer sessions it began."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.salts: dict[bytes, None] = {}
        """In the order in which their sessions began."""

    def begin(self, salt: bytes) -> None:
        """One more writer session."""
        self.salts[salt] = None
        if len(self.salts) > MAX_SESSIONS:
            del self.salts[next(iter(self.salts))]


class _Handler(socketserver.BaseRequestHandler):
    server: AgentServer

    def handle(self) -> None:
        """Hello, then requests until the worker hangs up."""
        with contextlib.suppress(OSError, AgentUnavailable):  # it hung up, or sent no frames of ours
            self._serve()

    def _serve(self) -> None:
        connection = self._greeted()
        if connection is None:
            return
        try:
            self._converse(connection)
        finally:
            self.server.agent.hung_up(connection)

    def _converse(self, connection: Connection) -> None:
        while (request := wire.receive(self.request)) is not None:
            try:
                wire.send(self.request, {"ok": self.server.agent.answer(connection, request)})
            except KeysError as error:
                wire.send(self.request, wire.error_message(error))
            except (KeyError, TypeError, ValueError, AttributeError):
                odd = InvalidName("the request does not fit its operation")
                wire.send(self.request, wire.error_message(odd))

    def _greeted(self) -> Connection | None:
        """The connection of somebody who may have this socket's role."""
        self.request.settimeout(HELLO_SECONDS)
        try:
            self._check_peer()
            hello = wire.receive(self.request, MAX_HELLO_BYTES)
            if hello is None:
                return None
            role = self.server.agent.role_of(hello)
            if role not in self.server.roles:
                raise AgentDenied(f"this is not the socket of the role {role}")
        except AgentDenied as denied:
            wire.send(self.request, wire.error_message(denied))
            with contextlib.suppress(OSError):  # a hello that nobody read would make closing an error there
                self.request.recv(MAX_HELLO_BYTES)
            return None
        wire.send(self.request, {"ok": {"role": role}})
        self.request.settimeout(None)
        return Connection(role)

    def _check_peer(self) -> None:
        raw = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(raw)
        if user not in self.server.users:
            raise AgentDenied("the key agent does not serve this user")


class AgentServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on one role's socket; one thread per worker.

    Args:
        folder: where the sockets are, and whose.
        role: nobody gets another one here; builds' workers come to `build` with their lease.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: AgentFolder, role: str, agent: KeyAgent) -> None:
        self.agent = agent
        self.users = folder.may_connect(role)
        self.roles = frozenset({role, "lease"} if role == "build" else {role})
        path = folder.socket(role)
        _refuse_second(path)
        draft = path.with_name("new")
        draft.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            super().__init__(str(draft), _Handler)
        finally:
            os.umask(before)
        folder.give_socket(draft, role)
        draft.replace(path)  # its user finds the old one, which nobody serves, or one that is its own

    def handle_error(self, request: object, client_address: object) -> None:
        """The type alone: the text of a foreign error may quote what a worker sent."""
        kind = sys.exc_info()[0]
        _log.error("a worker's connection ended by %s", kind.__name__ if kind is not None else "an error")


@contextlib.contextmanager
def serving(folder: AgentFolder, agent: KeyAgent) -> Iterator[None]:
    """Every role's socket, served by threads until the end of the block.

    Raises:
        AgentDenied: another agent serves this folder, or a socket cannot be given to its user.
    """
    with contextlib.ExitStack() as stack:
        for role in ROLES:
            server = stack.enter_context(AgentServer(folder, role, agent))
            stack.callback(folder.socket(role).unlink, missing_ok=True)
            threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), daemon=True).start()
            stack.callback(server.shutdown)
        yield


def _refuse_second(path: Path) -> None:
    """Raises `AgentDenied` where another agent answers on the socket."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        raise AgentDenied("another key agent serves this lake", next_step="Stop it first.")


def _numbers(values: Any) -> bytes:
    return array.array("H", values).tobytes()
