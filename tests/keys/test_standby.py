"""A cluster of two Vault nodes: what a standby says while nobody leads, and afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hvac
import pytest

from infra.process import free_port
from infra.vault import _CONFIG, Vault, find_binary
from infra.vault.setup import make_keys
from keys.errors import CustodianStandby
from keys.transit import TransitCustodian
from keys.vaultsession import TokenFile, VaultServer, VaultSession
from tests.servers import running


class Follower(Vault):
    """A second node of a leader's cluster.

    Args:
        leader: runs, and is unsealed.
    """

    def __init__(self, data: Path, leader: Vault) -> None:
        super().__init__(data)
        self._leader = leader

    def start(self) -> dict[str, str]:
        """Joins, and is unsealed by the leader's key."""
        self.folder.mkdir(parents=True)
        (self.folder / "raft").mkdir()
        for name in ("ca.pem", "server.pem", "server.key"):
            shutil.copy(self._leader.folder / name, self.folder / name)
        port = free_port()
        self._port.write_text(str(port))
        text = _CONFIG.format(folder=self.folder.resolve(), port=port, cluster_port=free_port())
        self._config.write_text(text.replace('"one"', '"two"'))
        self.process.start([find_binary(), "server", f"-config={self._config.resolve()}"])
        self.process.wait_until(self._answers)
        where = self._leader.address()
        join = {
            "leader_api_addr": where["VAULT_ADDR"],
            "leader_ca_cert": Path(where["VAULT_CACERT"]).read_text(),
        }
        client = self.client("")
        client.adapter.post("/v1/sys/storage/raft/join", json=join)
        client.sys.submit_unseal_key(self._leader._secrets()["keys"][0])
        self.process.wait_until(self._knows_who_leads)
        return self.address()

    def _knows_who_leads(self) -> bool:
        try:
            return bool(self.client("").adapter.get("/v1/sys/leader").get("leader_address"))
        except hvac.exceptions.VaultError:
            return False


@pytest.fixture
def cluster() -> Iterator[tuple[Vault, Follower]]:
    """(the leader, its follower)."""
    with running(Vault, "vault") as leader, tempfile.TemporaryDirectory() as folder:
        follower = Follower(Path(folder), leader)
        try:
            follower.start()
            yield leader, follower
        finally:
            follower.stop()


def test_a_standby_without_a_leader_is_waited_for(cluster: tuple[Vault, Follower], tmp_path: Path) -> None:
    """It passes questions on while somebody leads; without, the error says whose move it is: nobody's."""
    leader, follower = cluster
    make_keys(leader.client(), "standby")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(leader.client().token)
    where = follower.address()
    server = VaultServer(where["VAULT_ADDR"], Path(where["VAULT_CACERT"]), timeout_seconds=5)
    custodian = TransitCustodian(VaultSession(server, TokenFile(token)), prefix="standby")
    items = [(b"context", bytes(32))]
    (wrapped,) = custodian.wrap(items)
    leader.process.kill()
    with pytest.raises(CustodianStandby) as raised:
        custodian.unwrap([(b"context", wrapped)])  # it still names who led, and nobody is there
    assert raised.value.retry_helps
    assert raised.value.whose_move == "nobody"
    restarted(leader, leader._secrets()["keys"][0])

    def opens() -> bool:
        try:
            return custodian.unwrap([(b"context", wrapped)]) == [bytes(32)]
        except CustodianStandby:
            return False  # the election takes a moment

    follower.process.wait_until(opens)


def restarted(node: Vault, key: str) -> None:
    """Runs again and is unsealed; whoever leads."""
    node.process.start([find_binary(), "server", f"-config={node._config.resolve()}"])
    node.process.wait_until(node._answers)
    node.client("").sys.submit_unseal_key(key)
