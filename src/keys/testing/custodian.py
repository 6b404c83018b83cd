"""What every `keys.Custodian` must do."""

from __future__ import annotations

from pathlib import Path

import pytest

from keys.custodian import Custodian
from keys.errors import RootKeyRetired, RootMismatch
from keys.signing import signature_is_valid

KEY = bytes(range(32))


class CustodianContract:
    """Subclass it and implement `make`."""

    def make(self, folder: Path) -> Custodian:
        """A custodian whose root lies in `folder`; the same folder gives the same root."""
        raise NotImplementedError

    def test_a_wrap_opens_only_in_its_context(self, tmp_path: Path) -> None:
        """The context is bound, not stored."""
        custodian = self.make(tmp_path)
        (wrapped,) = custodian.wrap([(b"node|1", KEY)])
        assert custodian.unwrap([(b"node|1", wrapped)]) == [KEY]
        with pytest.raises(RootMismatch):
            custodian.unwrap([(b"node|2", wrapped)])

    def test_a_batch_keeps_its_order(self, tmp_path: Path) -> None:
        """Item i of the answer is item i of the question."""
        custodian = self.make(tmp_path)
        items = [(f"node|{n}".encode(), bytes([n]) * 32) for n in range(20)]
        wrapped = custodian.wrap(items)
        pairs = [(context, one) for (context, _), one in zip(items, wrapped, strict=True)]
        assert custodian.unwrap(pairs) == [key for _, key in items]

    def test_a_wrap_survives_rotation_until_its_version_is_retired(self, tmp_path: Path) -> None:
        """Rewrapped it lives on; the old wrap is refused for good, also by a fresh process."""
        custodian = self.make(tmp_path)
        (old,) = custodian.wrap([(b"c", KEY)])
        version = custodian.rotate()
        assert custodian.unwrap([(b"c", old)]) == [KEY]
        (fresh,) = custodian.rewrap([(b"c", old)])
        assert (custodian.wrap_version(old), custodian.wrap_version(fresh)) == (version - 1, version)
        custodian.retire(version)
        assert custodian.unwrap([(b"c", fresh)]) == [KEY]
        for one in (custodian, self.make(tmp_path)):
            with pytest.raises(RootKeyRetired):
                one.unwrap([(b"c", old)])
        status = custodian.status()
        assert (status.latest_version, status.minimum_version) == (version, version)

    def test_the_newest_version_cannot_be_retired(self, tmp_path: Path) -> None:
        """A root without a version would lose everything."""
        custodian = self.make(tmp_path)
        (wrapped,) = custodian.wrap([(b"c", KEY)])
        custodian.retire(99)
        assert custodian.unwrap([(b"c", wrapped)]) == [KEY]

    def test_another_root_refuses(self, tmp_path: Path) -> None:
        """Two roots never open each other's wraps."""
        (wrapped,) = self.make(tmp_path / "a").wrap([(b"c", KEY)])
        with pytest.raises(RootMismatch):
            self.make(tmp_path / "b").unwrap([(b"c", wrapped)])

    def test_a_changed_wrap_is_refused(self, tmp_path: Path) -> None:
        """Every byte counts."""
        custodian = self.make(tmp_path)
        (wrapped,) = custodian.wrap([(b"c", KEY)])
        for at in (0, len(wrapped) // 2, len(wrapped) - 1):
            changed = bytearray(wrapped)
            changed[at] ^= 1
            with pytest.raises((RootMismatch, RootKeyRetired)):
                custodian.unwrap([(b"c", bytes(changed))])

    def test_signatures_verify_with_a_published_key(self, tmp_path: Path) -> None:
        """And only for what was signed."""
        custodian = self.make(tmp_path)
        signature = custodian.sign(b"payload")
        public = custodian.public_keys()[signature.key_id]
        assert signature_is_valid(public, b"payload", signature.value)
        assert not signature_is_valid(public, b"other", signature.value)

    def test_a_secret_is_the_same_for_ever(self, tmp_path: Path) -> None:
        """By name, through rotation, in every process."""
        custodian = self.make(tmp_path)
        secret = custodian.secret("fence")
        custodian.retire(custodian.rotate())
        assert self.make(tmp_path).secret("fence") == secret
        assert custodian.secret("other") != secret
