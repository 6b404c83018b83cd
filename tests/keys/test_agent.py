"""The key agent: what each role gets, and what nobody gets by asking otherwise."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keys import (
    AgentDenied,
    AgentUnavailable,
    Keyring,
    LeaseBook,
    LeaseExpired,
    Provisioned,
    Shredded,
    SubjectErased,
    SubjectId,
    envelope,
    open_embedded,
)
from keys.agentclient import AgentLink, BuildKeys, IngestKeys
from keys.agentserver import MAY, ROLES, AgentServer, KeyAgent, make_tokens
from keys.errors import InvalidName, KeysError, SealSessionLost
from keys.sealing import SealRule
from tests.keys.people import ANN, BLOCK, BOB, WORD, context, provision, seal, shred

ROOT = Path(__file__).parents[2]


class Host:
    """A host with an agent in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keyring: Keyring = open_embedded(folder / "keys")
        self.tokens = make_tokens(folder / "agent")
        self.agent = KeyAgent(self.keyring, self.tokens)
        self.path = folder / "agent" / "agent.sock"
        self.server = AgentServer(self.path, self.agent)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def link(self, role: str) -> AgentLink:
        """A connection with a role's token."""
        return AgentLink(self.path, {"token": self.tokens[role]})

    def leases(self) -> LeaseBook:
        """This host's book."""
        return LeaseBook(self.folder / "keys" / "leases.db")

    def ingest(self) -> IngestKeys:
        """An ingest worker."""
        return IngestKeys(self.link("ingest"), self.leases())

    def build(self, lease: bytes | None = None) -> BuildKeys:
        """A build worker: with the token, or with a lease only."""
        link = self.link("build") if lease is None else AgentLink(self.path, {"lease": lease})
        return BuildKeys(link, self.leases(), lease)

    def close(self) -> None:
        """Stops listening."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host."""
    found = Host(tmp_path)
    yield found
    found.close()


def sealed_by(keys: IngestKeys, ref: bytes, body: bytes = WORD) -> bytes:
    """Something sealed through the agent."""
    (one,) = keys.session().seal(context(), [ref], [BLOCK], [body])
    assert isinstance(one, bytes)
    return one


def test_one_worker_seals_and_another_opens(host: Host) -> None:
    """The keyring itself agrees with both."""
    ingest = host.ingest()
    made, again = ingest.provision([ANN, ANN])
    assert isinstance(made, Provisioned)
    assert made == again
    assert ingest.provision([ANN]) == [made._replace(created=False)]
    sealed = sealed_by(ingest, made.ref)
    assert host.build().opener().open(context(), [made.ref], [BLOCK], [sealed]) == [WORD]
    assert host.keyring.opener().open(context(), [made.ref], [BLOCK], [sealed]) == [WORD]
    assert ingest.session().tag_keys([made.ref]) == host.keyring.session().tag_keys([made.ref])


def test_a_worker_seals_with_the_cipher_of_its_settings(host: Host) -> None:
    """The agent gives subkeys of every suite that there is, and of no other."""
    rule = SealRule(envelope.SUITE_CHACHA20, padded=True)
    ingest = IngestKeys(host.link("ingest"), host.leases(), rule)
    (made,) = ingest.provision([ANN])
    assert isinstance(made, Provisioned)
    sealed = sealed_by(ingest, made.ref)
    assert envelope.parse(sealed).suite == envelope.SUITE_CHACHA20
    assert host.build().opener().open(context(), [made.ref], [BLOCK], [sealed]) == [WORD]
    link = host.link("ingest")
    salt, place = (
        link.call("begin_session")["salt"],
        (context().table_uuid, 16, "personal", "service", "T", 1),
    )
    with pytest.raises(InvalidName):
        link.call("sealing", salt=salt, refs=made.ref, context=place, suite=4)


def test_an_erased_person_is_shredded_to_every_worker(host: Host) -> None:
    """Refused to name, shredded to seal and to open; held where held."""
    ingest, build = host.ingest(), host.build()
    ann, bob = (one for one in ingest.provision([ANN, BOB]) if isinstance(one, Provisioned))
    sealed = [sealed_by(ingest, one.ref) for one in (ann, bob)]
    shred(host.keyring, ANN, ann.ref)
    host.keyring.hold(bob.ref, True)
    assert ingest.catch_up() == 1
    assert isinstance(ingest.provision([ANN])[0], SubjectErased)
    assert ingest.session().seal(context(), [ann.ref], [BLOCK], [WORD]) == [Shredded("r1", 1)]
    assert ingest.session().tag_keys([ann.ref]) == {}
    assert ingest.fenced_since(0, [ann.ref])
    assert not ingest.fenced_since(0, [bob.ref])
    opened = build.opener().open(context(), [ann.ref, bob.ref], [BLOCK] * 2, sealed)
    assert opened[0] == Shredded("r1", 1)
    assert type(opened[1]).__name__ == "Held"


# -- roles ------------------------------------------------------------------------------------------


def test_an_ingest_token_opens_nothing_sealed_before_by_any_call(host: Host) -> None:
    """Neither by asking for other operations nor with salts that are not its own."""
    ref = provision(host.keyring).ref
    yesterday = seal(host.keyring, ref)
    other_worker = sealed_by(host.ingest(), ref)
    link = host.link("ingest")
    header = tuple(envelope.parse(yesterday))
    place = (context().table_uuid, 16, "personal", "service", "T", 1)
    for name in set().union(*MAY.values()) - MAY["ingest"]:
        with pytest.raises(AgentDenied):
            link.call(name, lease=b"", refs=ref, context=place, headers=[header], name="ann")
    for sealed in (yesterday, other_worker):
        with pytest.raises(SealSessionLost):
            link.call("sealing", salt=envelope.parse(sealed).salt, refs=ref, context=place, suite=1)
    salt = link.call("begin_session")["salt"]
    own = link.call("sealing", salt=salt, refs=ref, context=place, suite=1)["subkeys"]
    for sealed in (yesterday, other_worker):
        assert envelope.parse(sealed).commitment not in own
    dek = host.keyring.resident.deks([ref], "service")[ref]
    assert not isinstance(dek, Shredded)
    everything = repr(
        [own, link.call("tag_keys", refs=ref), link.call("provision", names=["ann"], purpose="service")]
    )
    assert repr(dek.key)[2:-1] not in everything


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_refused_what_is_not_its_own(host: Host, role: str) -> None:
    """Whatever it sends along."""
    link = host.link(role)
    for name in set().union(*MAY.values()) - MAY[role]:
        with pytest.raises(AgentDenied):
            link.call(name)


def test_the_purge_role_erases(host: Host) -> None:
    """Fence, destroy, wait, close; all of it by the agent."""
    ref = provision(host.keyring).ref
    sealed = seal(host.keyring, ref)
    link = host.link("purge")
    assert link.call("ref_of", name="ann")["ref"] == ref
    epochs = link.call("fence", targets=[("ann", ref)], request_id="r")["epochs"]
    assert link.call("destroy", refs=ref, epochs=epochs) == {"destroyed": 1}
    assert link.call("wait_until_unreadable", epoch=epochs[0])["seconds"] < 10
    assert link.call("close_epoch")["old_wrap_refused"]
    assert host.keyring.opener().open(context(), [ref], [BLOCK], [sealed]) == [Shredded("r", 1)]


def test_a_stolen_lease_dies_with_the_next_epoch(host: Host) -> None:
    """It opens until then, without any token; afterwards nothing, and the thief cannot get a new one."""
    ann, bob = provision(host.keyring, ANN).ref, provision(host.keyring, BOB).ref
    sealed = seal(host.keyring, ann)
    coordinator = host.build()
    lease = coordinator.lease_for_workers()
    thief = host.build(lease)
    assert thief.opener().open(context(), [ann], [BLOCK], [sealed]) == [WORD]
    shred(host.keyring, BOB, bob)
    with pytest.raises(LeaseExpired):
        thief.opener().open(context(), [ann], [BLOCK], [sealed])
    with pytest.raises(AgentDenied):
        thief.lease_for_workers()
    assert coordinator.opener().open(context(), [ann], [BLOCK], [sealed]) == [WORD]
    coordinator.lease_for_workers()
    with pytest.raises(AgentDenied):  # the lease is forgotten, so nobody can say hello with it
        host.build(lease).opener().open(context(), [ann], [BLOCK], [sealed])


def test_a_wrong_token_is_refused(host: Host) -> None:
    """Empty, guessed, of another lake."""
    for hello in ({"token": ""}, {"token": "guess"}, {"lease": b"x" * 16}, {}):
        with pytest.raises(AgentDenied):
            AgentLink(host.path, hello).call("epoch")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_another_user_is_refused_even_with_a_token(host: Host) -> None:
    """Told by the socket's peer credentials, not by what it says."""
    folder = host.path.parent
    for path in (folder, *folder.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    host.path.chmod(0o666)
    code = (
        "import socket,sys,msgpack,struct\n"
        f"s=socket.socket(socket.AF_UNIX); s.connect({str(host.path)!r})\n"
        f"b=msgpack.packb({{'token': {host.tokens['build']!r}}})\n"
        "s.sendall(struct.pack('>I',len(b))+b)\n"
        "n=struct.unpack('>I',s.recv(4))[0]; print(msgpack.unpackb(s.recv(n)))\n"
    )
    site = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    done = subprocess.run(
        ["python3", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    if "PermissionError" in done.stderr or "No module" in done.stderr:
        pytest.skip("the other user cannot reach an interpreter")
    assert "does not serve this user" in done.stdout, done.stderr


def test_the_socket_and_the_tokens_are_for_their_owner_only(host: Host) -> None:
    """0600, in folders of 0700."""
    assert host.path.stat().st_mode & 0o777 == 0o600
    assert host.path.parent.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in host.path.parent.glob("*.token")} == {0o600}
    assert make_tokens(host.path.parent) == host.tokens


def test_what_was_handed_out_is_counted_and_never_named(host: Host) -> None:
    """Calls and items by role."""
    ingest = host.ingest()
    refs = [
        one.ref
        for one in ingest.provision([SubjectId(f"secret-{n}") for n in range(7)])
        if isinstance(one, Provisioned)
    ]
    ingest.session().seal(context(), refs, [BLOCK] * 7, [WORD] * 7)
    counts = host.link("build").call("counts")["counts"]
    assert counts["ingest: sealing items"] == 7
    assert counts["ingest: provision calls"] == 1
    assert "secret" not in repr(counts)
    assert all(ref.hex() not in repr(counts) for ref in refs)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\0\0\0\2\xc1\xc1", b"\0\0\0\x10abc"]
)
def test_garbage_ends_one_connection_and_nothing_else(host: Host, garbage: bytes) -> None:
    """The agent goes on."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(host.path))
        stranger.sendall(garbage)
    assert host.link("ingest").call("epoch")["epoch"] == 0


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"names": 7, "purpose": "service"},
        {"names": [""], "purpose": "service"},
        {"names": ["a"], "purpose": "Bad Name"},
    ],
)
def test_a_request_that_does_not_fit_is_an_error(host: Host, odd: dict[str, object]) -> None:
    """And the connection lives on."""
    link = host.link("ingest")
    with pytest.raises(KeysError):
        link.call("provision", **odd)
    assert link.call("epoch")["epoch"] == 0


# -- restarts ---------------------------------------------------------------------------------------


def start_agent(home: Path) -> subprocess.Popen[str]:
    """A real agent process; returns once it listens."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home), "keys", "agent"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "key agent on" in line, line
    return process


def test_a_killed_agent_comes_back_under_load_and_workers_go_on(tmp_path: Path) -> None:
    """Nothing sealed is lost, nobody has to be restarted; without an agent the error says what to do."""
    from service.runtime import initialise

    home = tmp_path / "lake"
    initialise(home)
    agent = start_agent(home)
    token = (home / "agent" / "ingest.token").read_text()
    book = LeaseBook(home / "keys" / "leases.db")
    keys = IngestKeys(AgentLink(home / "agent" / "agent.sock", {"token": token}), book)
    session = keys.session()
    sealed: list[tuple[bytes, bytes]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        n = 0
        try:
            while not stop.is_set():
                n += 1
                (made,) = keys.provision([SubjectId(f"p{n}")])
                assert isinstance(made, Provisioned)
                (one,) = session.seal(context(), [made.ref], [BLOCK], [b"%d" % n])
                assert isinstance(one, bytes)
                sealed.append((made.ref, one))
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(2):
            time.sleep(0.5)
            before = len(sealed)
            agent.kill()
            agent.wait()
            agent = start_agent(home)
            while len(sealed) <= before + 5 and not failures:
                time.sleep(0.02)
    finally:
        stop.set()
        worker.join()
        agent.send_signal(signal.SIGTERM)
        out, _ = agent.communicate(timeout=20)
    assert failures == []
    assert agent.returncode == 0
    assert "ingest: sealing items" in out
    assert not (home / "agent" / "agent.sock").exists()
    keyring = open_embedded(home / "keys", fence_path=home / "evidence" / "fences.db")
    opened = keyring.opener().open(
        context(), [r for r, _ in sealed], [BLOCK] * len(sealed), [s for _, s in sealed]
    )
    assert opened == [b"%d" % n for n in range(1, len(sealed) + 1)]
    with pytest.raises(AgentUnavailable) as raised:
        keys.provision([ANN])
    assert "keys agent" in raised.value.next_step


def test_an_agent_cannot_be_dumped(tmp_path: Path) -> None:
    """No core file, and no attaching by the same user."""
    from service.runtime import initialise

    initialise(tmp_path / "lake")
    agent = start_agent(tmp_path / "lake")
    try:
        limits = Path(f"/proc/{agent.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        if os.geteuid() == 0:  # what is not dumpable belongs to root in /proc, so root sees no difference
            return
        with pytest.raises(PermissionError):
            Path(f"/proc/{agent.pid}/mem").read_bytes()
    finally:
        agent.terminate()
        agent.wait()


def test_an_empty_token_file_lets_nobody_in(host: Host) -> None:
    """What a full disk leaves behind is no token; the agent says so instead of starting."""
    agent = KeyAgent(host.keyring, {"purge": "", "build": "short"})
    for hello in ({}, {"token": ""}, {"token": "short"}):
        with pytest.raises(AgentDenied):
            agent.role_of(hello)
    (host.folder / "agent" / "build.token").write_text("")
    with pytest.raises(AgentDenied, match="too short"):
        make_tokens(host.folder / "agent")


def test_a_second_agent_does_not_take_the_socket(host: Host) -> None:
    """The first goes on."""
    with pytest.raises(AgentDenied, match="another key agent"):
        AgentServer(host.path, host.agent)
    assert host.link("ingest").call("epoch")["epoch"] == 0


def test_nothing_is_given_for_a_person_fenced_by_now(host: Host) -> None:
    """Although the agent's own lease would allow its cache for another second."""
    ingest = host.ingest()
    (made,) = ingest.provision([ANN])
    assert isinstance(made, Provisioned)
    sealed_by(ingest, made.ref)
    eraser = open_embedded(host.folder / "keys")
    fences = eraser.fence([(ANN, made.ref)], "r")
    assert ingest.catch_up() == fences[0].epoch
    assert ingest.session().seal(context(), [made.ref], [BLOCK], [WORD]) == [Shredded("r", 1)]
    assert ingest.session().tag_keys([made.ref]) == {}


def test_a_foreign_error_is_logged_by_its_type_alone(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text may quote a person's id."""

    def fail(*_: object) -> object:
        raise RuntimeError("about secret-person")

    host.agent.answer = fail  # type: ignore[method-assign,assignment]
    monkeypatch.setattr("keys.agentclient.ATTEMPTS", 1)
    link = host.link("ingest")
    with pytest.raises(AgentUnavailable):
        link.call("provision", names=["secret-person"], purpose="service")
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
