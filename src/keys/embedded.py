"""The embedded custodian: a root key file with mode 0600. No server, no configuration.

Retired versions leave the disk: the file is replaced, and the replaced one is overwritten with zeros
and synced before its name is removed. What a copy-on-write file system or an SSD keeps underneath is
beyond reach from here (docs/threat-model.md).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from keys.custodian import CustodianStatus, Signature
from keys.errors import CustodianUnavailable, RootKeyRetired, RootMismatch
from keys.scrubbing import scrubbed_class

_WRAP_MAGIC: Final = b"EW1"
_HEAD: Final = len(_WRAP_MAGIC) + 8 + 4  # magic, root id prefix, version
_NONCE: Final = 12


@scrubbed_class
class EmbeddedCustodian:
    """A `Custodian` over one file.

    Args:
        path: the root key file.
        random_bytes: source of keys and nonces.

    Raises:
        CustodianUnavailable: the file is absent or unreadable.
    """

    def __init__(self, path: Path, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._path = path
        self._random = random_bytes
        self._mutex = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._root: dict[str, Any] = {}
        self.calls = 0
        self._wipe_leftover()
        self._load()

    @classmethod
    def create(cls, path: Path, random_bytes: Callable[[int], bytes] = os.urandom) -> EmbeddedCustodian:
        """Makes a root file where there is none; opens the one that is there otherwise."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.exists():
                signing = Ed25519PrivateKey.generate().private_bytes(
                    Encoding.Raw, PrivateFormat.Raw, NoEncryption()
                )
                _replace(
                    path,
                    {
                        "format": 1,
                        "root_id": random_bytes(8).hex(),
                        "latest": 1,
                        "minimum": 1,
                        "versions": {"1": _text(random_bytes(32))},
                        "secrets": {},
                        "signing": _text(signing),
                    },
                )
        return cls(path, random_bytes)

    def wrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        root = self._load()
        version = int(root["latest"])
        aead = AESGCM(_raw(root["versions"][str(version)]))
        head = _WRAP_MAGIC + bytes.fromhex(root["root_id"]) + version.to_bytes(4, "big")
        wrapped = []
        for context, key in items:
            nonce = self._random(_NONCE)
            wrapped.append(head + nonce + aead.encrypt(nonce, key, head + context))
        return wrapped

    def wrap_version(self, wrapped: bytes) -> int:
        return int.from_bytes(wrapped[_HEAD - 4 : _HEAD], "big")

    def unwrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        root = self._load()
        opened = []
        for context, wrapped in items:
            head = wrapped[:_HEAD]
            if not head.startswith(_WRAP_MAGIC + bytes.fromhex(root["root_id"])):
                raise RootMismatch("this key was wrapped by another root")
            version = int.from_bytes(head[-4:], "big")
            if version < int(root["minimum"]):
                raise RootKeyRetired(f"root version {version} was retired")
            key = root["versions"].get(str(version))
            if key is None:
                raise RootMismatch(f"the root file lacks version {version}")
            nonce, body = wrapped[_HEAD : _HEAD + _NONCE], wrapped[_HEAD + _NONCE :]
            try:
                opened.append(AESGCM(_raw(key)).decrypt(nonce, body, head + context))
            except InvalidTag:
                raise RootMismatch("the wrapped key or its context was changed") from None
        return opened

    def rewrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        contexts = [context for context, _ in items]
        return self.wrap(list(zip(contexts, self.unwrap(items), strict=True)))

    def rotate(self) -> int:
        with self._change() as root:
            root["latest"] = int(root["latest"]) + 1
            root["versions"][str(root["latest"])] = _text(self._random(32))
            return int(root["latest"])

    def retire(self, below: int) -> None:
        with self._change() as root:
            below = min(below, int(root["latest"]))
            root["minimum"] = max(int(root["minimum"]), below)
            root["versions"] = {v: k for v, k in root["versions"].items() if int(v) >= root["minimum"]}

    def root_id(self) -> str:
        return str(self._load()["root_id"])

    def status(self) -> CustodianStatus:
        root = self._load()
        return CustodianStatus(root["root_id"], int(root["latest"]), int(root["minimum"]))

    def secret(self, name: str) -> bytes:
        found = self._load()["secrets"].get(name)
        if found is None:
            with self._change() as root:
                found = root["secrets"].setdefault(name, _text(self._random(32)))
        return _raw(found)

    def sign(self, payload: bytes) -> Signature:
        key = Ed25519PrivateKey.from_private_bytes(_raw(self._load()["signing"]))
        return Signature(_key_id(_public(key)), key.sign(payload))

    def public_keys(self) -> dict[str, bytes]:
        public = _public(Ed25519PrivateKey.from_private_bytes(_raw(self._load()["signing"])))
        return {_key_id(public): public}

    def _load(self) -> dict[str, Any]:
        """The root, read again when the file changed under us (another process rotated it)."""
        with self._mutex:
            self.calls += 1
            try:
                info = self._path.stat()
                stamp = (info.st_ino, info.st_mtime_ns, info.st_size)
                if stamp != self._stamp:
                    self._root = _parse(self._path.read_bytes())
                    self._stamp = stamp
            except FileNotFoundError:
                raise CustodianUnavailable("the root key file is not there") from None
            except PermissionError:
                raise CustodianUnavailable(
                    "the root key file may not be read by this user",
                    next_step="Run as the user who owns the root key file.",
                ) from None
            return self._root

    @contextlib.contextmanager
    def _change(self) -> Iterator[dict[str, Any]]:
        with _locked(self._path):
            root = json.loads(json.dumps(self._load()))
            yield root
            _replace(self._path, root)

    def _wipe_leftover(self) -> None:
        """Finishes the overwrite that a killed process left half done."""
        if _retired_name(self._path).exists():
            with _locked(self._path):
                _wipe_retired(self._path)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        root: dict[str, Any] = json.loads(raw)
        present = {"root_id", "latest", "minimum", "versions", "secrets", "signing"} <= root.keys()
    except (ValueError, AttributeError):
        present = False
    if not present:
        raise CustodianUnavailable(
            "the root key file is damaged or truncated",
            next_step="Restore the root key file from its backup; nothing can be opened without it.",
        )
    return root


def _replace(path: Path, root: dict[str, Any]) -> None:
    """Writes a new file, makes it durable, then overwrites the old one in place and removes it."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(root, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        _wipe_retired(path)
        os.link(path, _retired_name(path))
    fresh.replace(path)
    _sync_folder(path.parent)
    _wipe_retired(path)


def _wipe_retired(root: Path) -> None:
    """Overwrites what was replaced; but a second name of the living root is only taken away.

    The latter is what a process leaves that is killed between giving the old file its second name and
    putting the new one in its place.
    """
    path = _retired_name(root)
    if not path.exists():
        return
    if root.exists() and path.samefile(root):
        path.unlink()
        return
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _retired_name(path: Path) -> Path:
    return path.with_name(path.name + ".retired")


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text)
