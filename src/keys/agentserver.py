"""The key agent: the one process of a host that holds page keys and DEKs.

Workers get what their role needs and nothing else. `ingest` names subjects and gets the subkeys of its
own writer sessions, whose salts the agent chooses: with them it can seal, and open nothing that was
sealed before or by others. `build` gets opening keys, itself by its token, its workers by a lease that
dies with the next epoch. `purge` fences and destroys. What was handed out is counted, never named.
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
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from keys import agentwire as wire
from keys import envelope as cse1
from keys.caches import Provisioned
from keys.envelope import FieldContext, Subkey
from keys.errors import AgentDenied, AgentUnavailable, InvalidName, KeysError, LeaseExpired, SealSessionLost
from keys.fencelog import ALL_PURPOSES
from keys.keyring import Keyring
from keys.quiet import no_collections
from keys.subjects import REF_BYTES, Held, Identity, SubjectId
from keys.tree import KEY_BYTES

_log = logging.getLogger("shredlake.agent")
ROLES: Final = ("ingest", "build", "purge")
TOKEN_CHARACTERS: Final = 32
_CREDENTIALS: Final = struct.Struct("3i")
_COMMON: Final = frozenset({"epoch", "counts"})
MAY: Final[Mapping[str, frozenset[str]]] = {
    "ingest": _COMMON
    | {"begin_session", "sealing", "tag_keys", "provision", "add_identities", "mint", "fenced_since"},
    "build": _COMMON | {"lease", "opening"},
    "lease": frozenset({"epoch", "opening"}),
    "purge": _COMMON | {"ref_of", "fence", "destroy", "wait_until_unreadable", "close_epoch"},
}


class KeyAgent:
    """Answers one connection's requests by its role. Pure of sockets; one per process.

    Args:
        keyring: with every right.
        tokens: role → token.
    """

    def __init__(self, keyring: Keyring, tokens: Mapping[str, str]) -> None:
        self._keyring = keyring
        self._tokens = tokens
        self._leases: dict[bytes, int] = {}
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
        if hello.get("lease") in self._leases:
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

    # -- everybody ---------------------------------------------------------------------------------

    def _epoch(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        return {"epoch": self._keyring.epoch(), "evictions": self._keyring.changes.evictions()}

    def _counts(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        return {"counts": dict(self.handed_out)}

    # -- ingest ------------------------------------------------------------------------------------

    def _begin_session(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        salt = self._keyring.resident.begin_session()
        connection.salts.add(salt)
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

    def _fenced_since(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        refs = wire.split(request["refs"], REF_BYTES)
        return {"fenced": self._keyring.fenced_since(request["epoch"], refs)}

    # -- build -------------------------------------------------------------------------------------

    def _lease(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        lease, epoch = secrets.token_bytes(16), self._keyring.catch_up()
        with self._mutex:
            self._leases = {one: at for one, at in self._leases.items() if at == epoch} | {lease: epoch}
        return {"lease": lease, "epoch": epoch}

    def _opening(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        epoch = self._keyring.catch_up()
        if self._leases.get(request["lease"]) != epoch:
            raise LeaseExpired("this lease was of an epoch that is over")
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
        epochs = set(request["epochs"])
        fences = [fence for fence in self._keyring.fences.all() if fence.epoch in epochs]
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
        self.salts: set[bytes] = set()


class _Handler(socketserver.BaseRequestHandler):
    server: AgentServer

    def handle(self) -> None:
        """Hello, then requests until the worker hangs up."""
        with contextlib.suppress(OSError, AgentUnavailable):  # it hung up, or sent no frames of ours
            self._serve()

    def _serve(self) -> None:
        connection: Connection | None = None
        while (request := wire.receive(self.request)) is not None:
            try:
                if connection is None:
                    self._check_peer()
                    connection = Connection(self.server.agent.role_of(request))
                    answer: dict[str, Any] = {"role": connection.role}
                else:
                    answer = self.server.agent.answer(connection, request)
                wire.send(self.request, {"ok": answer})
            except KeysError as error:
                wire.send(self.request, wire.error_message(error))
            except (KeyError, TypeError, ValueError, AttributeError):
                odd = InvalidName("the request does not fit its operation")
                wire.send(self.request, wire.error_message(odd))
            if connection is None:
                return

    def _check_peer(self) -> None:
        raw = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(raw)
        if user not in self.server.users:
            raise AgentDenied("the key agent does not serve this user")


class AgentServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a Unix socket; one thread per worker.

    Args:
        path: the socket; its folder gets mode 0700, it 0600.
        users: user ids that may connect, besides the agent's own.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, path: Path, agent: KeyAgent, users: Collection[int] = ()) -> None:
        self.agent = agent
        self.users = {os.geteuid(), *users}
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_second(path)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            super().__init__(str(path), _Handler)
        finally:
            os.umask(before)

    def handle_error(self, request: object, client_address: object) -> None:
        """The type alone: the text of a foreign error may quote what a worker sent."""
        kind = sys.exc_info()[0]
        _log.error("a worker's connection ended by %s", kind.__name__ if kind is not None else "an error")


def _refuse_second(path: Path) -> None:
    """Raises `AgentDenied` where another agent answers on the socket."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        raise AgentDenied("another key agent serves this lake", next_step="Stop it first.")


def make_tokens(folder: Path) -> dict[str, str]:
    """Role → token; made once, each in a file of mode 0600 that its workers are given."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    tokens: dict[str, str] = {}
    for role in ROLES:
        path = folder / f"{role}.token"
        draft = folder / f".{role}.{os.getpid()}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # whole or not at all, and never over another agent's
        draft.unlink()
        tokens[role] = path.read_text().strip()
        if len(tokens[role]) < TOKEN_CHARACTERS:
            raise AgentDenied(
                f"the token of {role} is too short",
                next_step=f"Remove {path.name} and start the agent again.",
            )
    return tokens


def _numbers(values: Any) -> bytes:
    return array.array("H", values).tobytes()
