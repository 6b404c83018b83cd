"""The root key file on disk: what was retired is overwritten, whenever the process was killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from keys import CustodianUnavailable, EmbeddedCustodian, RootKeyRetired


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file with one version."""
    EmbeddedCustodian.create(tmp_path / "root.key")
    return tmp_path / "root.key"


def versions(root: Path) -> dict[str, str]:
    """The keys in a root file, by version."""
    found: dict[str, str] = json.loads(root.read_text())["versions"]
    return found


def test_the_replaced_file_is_overwritten_and_not_only_unlinked(root: Path) -> None:
    """Seen through a second name of the same bytes on disk."""
    custodian = EmbeddedCustodian(root)
    watch = root.with_name("watch")
    os.link(root, watch)
    custodian.rotate()
    assert set(watch.read_bytes()) == {0}
    watch.unlink()
    os.link(root, watch)
    custodian.retire(2)
    assert set(watch.read_bytes()) == {0}
    assert list(versions(root)) == ["2"]


def test_a_leftover_is_overwritten_at_start_and_not_only_unlinked(root: Path) -> None:
    """What a process killed between rename and overwrite leaves behind."""
    leftover, watch = root.with_name("root.key.retired"), root.with_name("watch")
    leftover.write_bytes(b"an old root with its keys")
    os.link(leftover, watch)
    EmbeddedCustodian(root)
    assert not leftover.exists()
    assert set(watch.read_bytes()) == {0}


def test_a_leftover_is_overwritten_by_a_process_that_runs_on(root: Path) -> None:
    """The next change finishes what the killed one began."""
    custodian = EmbeddedCustodian(root)
    leftover, watch = root.with_name("root.key.retired"), root.with_name("watch")
    leftover.write_bytes(b"an old root with its keys")
    os.link(leftover, watch)
    custodian.rotate()
    assert not leftover.exists()
    assert set(watch.read_bytes()) == {0}


@pytest.mark.parametrize("leftover", ["half", "whole"])
def test_a_new_root_that_never_took_its_place_is_not_used(root: Path, leftover: str) -> None:
    """A process killed while it wrote: the old root goes on, the next change succeeds."""
    custodian = EmbeddedCustodian(root)
    (wrapped,) = custodian.wrap([(b"c", b"k" * 32)])
    content = root.read_bytes()
    root.with_name("root.key.new").write_bytes(content[: 50 if leftover == "half" else None])
    again = EmbeddedCustodian(root)
    assert again.unwrap([(b"c", wrapped)]) == [b"k" * 32]
    again.retire(again.rotate())
    assert sorted(path.name for path in root.parent.iterdir()) == ["root.key", "root.key.lock"]


def test_a_retired_version_leaves_the_memory_of_processes_that_run_on(root: Path) -> None:
    """They read the file again; the old key opens nothing there either."""
    one, other = EmbeddedCustodian(root), EmbeddedCustodian(root)
    (wrapped,) = other.wrap([(b"c", b"k" * 32)])
    one.retire(one.rotate())
    with pytest.raises(RootKeyRetired):
        other.unwrap([(b"c", wrapped)])
    assert list(other._root["versions"]) == ["2"]


def test_a_root_file_cut_short_under_a_running_process_is_unavailable(root: Path) -> None:
    """Nothing is known about any key; with the file back, everything opens."""
    custodian = EmbeddedCustodian(root)
    (wrapped,) = custodian.wrap([(b"c", b"k" * 32)])
    whole = root.read_bytes()
    root.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CustodianUnavailable) as raised:
        custodian.unwrap([(b"c", wrapped)])
    assert raised.value.retry_helps
    assert "backup" in raised.value.next_step
    root.write_bytes(whole)
    assert custodian.unwrap([(b"c", wrapped)]) == [b"k" * 32]


def test_an_absent_root_is_never_made_anew_by_a_process_that_runs(root: Path) -> None:
    """A fresh root would be another root, and an error would look like an erasure."""
    custodian = EmbeddedCustodian(root)
    root.unlink()
    for change in (custodian.rotate, lambda: custodian.retire(1), lambda: custodian.secret("new")):
        with pytest.raises(CustodianUnavailable):
            change()
    assert not root.exists()
