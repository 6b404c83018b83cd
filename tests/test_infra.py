"""The repository's own servers: what `python -m infra up` does where something is not as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.__main__ import main
from infra.cache import cache_folder
from infra.errors import NotAvailable
from infra.process import ServerProcess
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


def test_a_failed_start_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next `up` would take it for a running server."""
    monkeypatch.setitem(SERVERS, "never", NeverReady)
    assert main(["up", "never", "--data", str(tmp_path)]) == 1
    assert not (tmp_path / "never" / "pid").exists()


def test_a_program_that_is_no_vault_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by asking for its version; one that is cannot be anything else."""
    for chosen in ("/bin/true", str(tmp_path / "none")):
        monkeypatch.setenv("VAULT_BIN", chosen)
        with pytest.raises(NotAvailable, match=r"neither Vault nor OpenBao|cannot be run"):
            find_binary()


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
