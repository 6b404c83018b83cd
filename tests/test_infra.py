"""The repository's own servers: what `python -m infra up` does where something is not as it should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.__main__ import main
from infra.cache import cache_folder, cached
from infra.errors import InfraError, NotAvailable
from infra.postgres import make_reachable
from infra.process import ServerProcess, _start_time
from infra.servers import SERVERS
from infra.vault import VERSION, Vault, find_binary


class NeverReady:
    """A server that starts and never answers."""

    def __init__(self, data: Path) -> None:
        self.folder = data / "never"
        self.process = ServerProcess(self.folder, "Never")

    def start(self) -> dict[str, str]:
        """Gives up after a moment."""
        self.process.start(["sleep", "600"])
        self.process.wait_until(lambda: False, seconds=0.2)
        return self.address()

    def stop(self) -> None:
        """Stops the process."""
        self.process.stop()

    def address(self) -> dict[str, str]:
        """Nowhere."""
        return {}


def not_made_again(draft: Path) -> None:
    """What the second start must not need: it may have no network."""
    raise AssertionError(f"{draft.name} was made twice")


def test_a_failed_start_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next `up` would take it for a running server."""
    monkeypatch.setitem(SERVERS, "never", NeverReady)
    assert main(["up", "never", "--data", str(tmp_path)]) == 1
    assert not (tmp_path / "never" / "pid").exists()


def test_a_folder_for_another_user_is_reached_under_the_strictest_umask(tmp_path: Path) -> None:
    """The user of PostgreSQL goes through every folder that is made for it."""
    os.umask(0o077)
    folder = tmp_path / "new" / "below" / "postgres"
    make_reachable(folder)
    for one in (folder, folder.parent, folder.parent.parent):
        assert one.stat().st_mode & 0o777 == 0o711
    assert tmp_path.stat().st_mode & 0o777 == 0o700, "what stands there already is its owner's to open"


def test_a_program_that_is_no_vault_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by asking for its version; one that is cannot be anything else."""
    for chosen in ("/bin/true", str(tmp_path / "none")):
        monkeypatch.setenv("VAULT_BIN", chosen)
        with pytest.raises(NotAvailable, match=r"neither Vault nor OpenBao|cannot be run"):
            find_binary()


def test_a_cached_program_that_was_changed_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file or a folder of them: made once, then held against the checksum of what was made."""
    monkeypatch.setenv("SERVERS_CACHE", str(tmp_path / "cache"))

    def make(draft: Path) -> None:
        draft.mkdir()
        (draft / "program").write_text("as it was made")

    made = cached("server", "1.0", make)
    assert cached("server", "1.0", not_made_again) == made
    (made / "program").write_text("something else")
    with pytest.raises(InfraError, match="not what was put there"):
        cached("server", "1.0", not_made_again)
    (made / "program").write_text("as it was made")
    (made / "another").touch()
    with pytest.raises(InfraError, match="not what was put there"):
        cached("server", "1.0", not_made_again)


def test_a_second_server_does_not_start_on_a_living_one_s_folder(tmp_path: Path) -> None:
    """Nor is a process stopped that only has the number of one that ended."""
    first, second = (ServerProcess(tmp_path, "Sleeper") for _ in range(2))
    first.start(["sleep", "600"])
    try:
        with pytest.raises(InfraError, match="running on"):
            second.start(["sleep", "600"])
        pid = first.pid
        assert pid is not None
        (tmp_path / "pid").write_text(f"{pid} 1")  # as after a reboot: the same number, begun at another time
        assert second.pid is None
        second.stop()
        (tmp_path / "pid").write_text(f"{pid} {_start_time(pid)}")
        assert first.pid == pid
    finally:
        first.stop()
    assert first.pid is None
    second.start(["sleep", "600"])
    second.stop()


def test_the_cached_program_goes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose version is the one that the tests were made with; the PATH's counts where nothing is cached."""
    monkeypatch.delenv("VAULT_BIN", raising=False)
    own = cache_folder() / f"vault-{VERSION}"
    if not own.exists():
        pytest.skip("no Vault is in the cache: python -m infra get vault")
    other = tmp_path / "vault"
    other.write_text("#!/bin/sh\necho 'Vault v1.0.0'\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_binary() == own
    monkeypatch.setenv("SERVERS_CACHE", str(tmp_path / "empty"))
    assert find_binary() == other


def test_up_unseals_a_running_vault(vault: Vault, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody sealed it: it runs, and would refuse everything."""
    vault.seal()
    try:
        assert main(["up", "vault", "--data", str(vault.folder.parent)]) == 0
        assert not vault.client().sys.is_sealed()
        assert vault.address()["VAULT_ADDR"] in capsys.readouterr().out
    finally:
        vault.unseal()
