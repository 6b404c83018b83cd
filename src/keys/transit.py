"""The custodian `transit`: HashiCorp Vault or OpenBao holds the root, which never leaves it.

Three keys of the transit engine: `<prefix>-root` (AES-256-GCM, derived: every wrap is bound to its
context), `<prefix>-secret` (HMAC) and `<prefix>-sign` (Ed25519).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from keys.custodian import CustodianStatus, Signature
from keys.errors import CustodianError, RootMismatch
from keys.scrubbing import scrubbed_class
from keys.vaulterrors import error_of
from keys.vaultsession import VaultSession

BATCH_ITEMS: Final = 1000
_MAGIC: Final = b"TW1"
_HEAD: Final = len(_MAGIC) + 4  # magic, version


@scrubbed_class
class TransitCustodian:
    """A `Custodian` over a transit engine.

    Args:
        session: logged in as the role that is needed: `agent` wraps and unwraps, `purge` also rotates,
            rewraps, retires and signs; the server refuses the rest.
        mount, prefix: where the engine is mounted and what the three keys' names begin with.
    """

    def __init__(self, session: VaultSession, mount: str = "transit", prefix: str = "shredlake") -> None:
        self._session = session
        self._mount = mount
        self._prefix = prefix
        self._secrets: dict[str, bytes] = {}
        self._public: dict[int, bytes] = {}

    @property
    def calls(self) -> int:
        return self._session.calls

    def wrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        batch = [{"context": _text(context), "plaintext": _text(key)} for context, key in items]
        return [_packed(item["ciphertext"]) for item in self._batch("encrypt", batch)]

    def unwrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        batch = [{"context": _text(context), "ciphertext": _unpacked(one)} for context, one in items]
        return [base64.b64decode(item["plaintext"]) for item in self._batch("decrypt", batch)]

    def rewrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        batch = [{"context": _text(context), "ciphertext": _unpacked(one)} for context, one in items]
        return [_packed(item["ciphertext"]) for item in self._batch("rewrap", batch)]

    def wrap_version(self, wrapped: bytes) -> int:
        return int.from_bytes(wrapped[len(_MAGIC) : _HEAD], "big")

    def rotate(self) -> int:
        # Not repeated: a lost answer would leave a version that nobody uses.
        self._session.call("post", f"{self._key('root')}/rotate", {}, repeatable=False)
        return self.status().latest_version

    def retire(self, below: int) -> None:
        """Raises both minimums, trims, and looks whether the versions are gone.

        Raises:
            CustodianError: the server still has an older version.
        """
        status = self.status()
        below = min(below, status.latest_version)
        if status.minimum_version >= below:
            return  # somebody else's close went further; a minimum cannot be lowered again
        minimums = {"min_decryption_version": below, "min_encryption_version": below}
        self._session.call("post", f"{self._key('root')}/config", minimums)
        self._session.call("post", f"{self._key('root')}/trim", {"min_available_version": below})
        if self.status().minimum_version < below:
            raise CustodianError(f"the custodian still has root versions under {below}")

    def root_id(self) -> str:
        return self.secret("root id")[:8].hex()

    def status(self) -> CustodianStatus:
        data = self._session.call("get", self._key("root"))
        oldest = max(1, int(data["min_available_version"]))
        return CustodianStatus(self.root_id(), int(data["latest_version"]), oldest)

    def secret(self, name: str) -> bytes:
        if name not in self._secrets:
            # Version 1 by number: a rotation by hand must not change what everybody computed.
            body = {"input": _text(f"shredlake|{name}".encode()), "key_version": 1}
            path = f"{self._mount}/hmac/{self._prefix}-secret/sha2-256"
            self._secrets[name] = _value(self._session.call("post", path, body)["hmac"])
        return self._secrets[name]

    def sign(self, payload: bytes) -> Signature:
        path = f"{self._mount}/sign/{self._prefix}-sign"
        signature = str(self._session.call("post", path, {"input": _text(payload)})["signature"])
        version = int(signature.split(":")[1].removeprefix("v"))
        if version not in self._public:
            self._public = self._signing_keys()
        return Signature(_key_id(self._public[version]), _value(signature))

    def public_keys(self) -> dict[str, bytes]:
        return {_key_id(public): public for public in self._signing_keys().values()}

    def _signing_keys(self) -> dict[int, bytes]:
        versions = self._session.call("get", self._key("sign"))["keys"]
        return {int(number): base64.b64decode(one["public_key"]) for number, one in versions.items()}

    def _key(self, name: str) -> str:
        return f"{self._mount}/keys/{self._prefix}-{name}"

    def _batch(self, verb: str, items: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        """Answers in order, by calls of at most `BATCH_ITEMS`; the first item that failed is raised."""
        answers: list[dict[str, Any]] = []
        for at in range(0, len(items), BATCH_ITEMS):
            body: dict[str, Any] = {"batch_input": list(items[at : at + BATCH_ITEMS])}
            if verb != "rewrap":  # which answers 200 anyway
                body["partial_failure_response_code"] = 200
            path = f"{self._mount}/{verb}/{self._prefix}-root"
            answers.extend(self._session.call("post", path, body)["batch_results"])
        for answer in answers:
            if answer.get("error"):
                raise error_of(400, [str(answer["error"])])
        return answers


def _packed(ciphertext: str) -> bytes:
    """`vault:v<n>:<base64>` in binary, so that every byte of it counts."""
    version = int(ciphertext.split(":")[1].removeprefix("v"))
    return _MAGIC + version.to_bytes(4, "big") + _value(ciphertext)


def _unpacked(wrapped: bytes) -> str:
    if not wrapped.startswith(_MAGIC) or len(wrapped) <= _HEAD:
        raise RootMismatch("this key was wrapped by another custodian")
    version = int.from_bytes(wrapped[len(_MAGIC) : _HEAD], "big")
    return f"vault:v{version}:{_text(wrapped[_HEAD:])}"


def _value(text: str) -> bytes:
    return base64.b64decode(text.split(":")[2])


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]
