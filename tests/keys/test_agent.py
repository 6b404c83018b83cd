"""The key agent: what each role gets, and what nobody gets by asking otherwise."""

from __future__ import annotations

import json
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
    LeaseExpired,
    Provisioned,
    Shredded,
    SubjectErased,
    SubjectId,
    aead,
    envelope,
    open_embedded,
)
from keys.agentclient import AgentLink, BuildKeys, IngestKeys
from keys.agentcounts import CountBook, read_counts
from keys.agentfolder import ROLES, AgentFolder
from keys.agentserver import MAY, AgentServer, KeyAgent, serving
from keys.errors import InvalidName, KeysError, SealSessionLost
from keys.sealing import SealRule
from tests.keys.people import ANN, BLOCK, BOB, WORD, context, now, provision, seal, shred

ROOT = Path(__file__).parents[2]
MAIN = "from service.cli import main; main()"


class Host:
    """A host with an agent in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keyring: Keyring = open_embedded(folder / "keys")
        self.places = AgentFolder(folder / "agent")
        self.tokens = self.places.make()
        self.agent = KeyAgent(self.keyring, self.tokens)
        self._serving = serving(self.places, self.agent)
        self._serving.__enter__()

    def link(self, role: str) -> AgentLink:
        """A connection with a role's token."""
        return AgentLink(self.places.socket(role), {"token": self.tokens[role]})

    def ingest(self) -> IngestKeys:
        """An ingest worker."""
        return IngestKeys(self.link("ingest"))

    def build(self, lease: bytes | None = None) -> BuildKeys:
        """A build worker: with the token, or with a lease only."""
        link = AgentLink(self.places.socket("build"), {"lease": lease})
        return BuildKeys(self.link("build") if lease is None else link, lease)

    def close(self) -> None:
        """Stops listening."""
        self._serving.__exit__(None, None, None)


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
    rule = SealRule(aead.SUITE_CHACHA20, padded=True)
    ingest = IngestKeys(host.link("ingest"), rule)
    (made,) = ingest.provision([ANN])
    assert isinstance(made, Provisioned)
    sealed = sealed_by(ingest, made.ref)
    assert envelope.parse(sealed).suite == aead.SUITE_CHACHA20
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


def test_a_lease_ends_with_the_build_that_asked_for_it(host: Host) -> None:
    """Without any erasure: the coordinator hangs up, or dies, and what its workers hold is worth nothing."""
    ann = provision(host.keyring, ANN).ref
    sealed = seal(host.keyring, ann)
    coordinator = host.build()
    lease = coordinator.lease_for_workers()
    thief = host.build(lease)
    assert thief.opener().open(context(), [ann], [BLOCK], [sealed]) == [WORD]
    coordinator.close()
    end = time.monotonic() + 60
    while host.agent.leases():  # until the agent has noticed
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(LeaseExpired):
        thief.opener().open(context(), [ann], [BLOCK], [sealed])
    with pytest.raises(AgentDenied):
        host.build(lease).opener().open(context(), [ann], [BLOCK], [sealed])
    assert host.build().opener().open(context(), [ann], [BLOCK], [sealed]) == [WORD]


def test_a_wrong_token_is_refused(host: Host) -> None:
    """Empty, guessed, of another lake."""
    for hello in ({"token": ""}, {"token": "guess"}, {"lease": b"x" * 16}, {}):
        with pytest.raises(AgentDenied):
            AgentLink(host.places.socket("build"), hello).call("epoch")


@pytest.mark.parametrize("role", ROLES)
def test_a_token_is_good_at_its_own_role_s_socket_only(host: Host, role: str) -> None:
    """Whoever may enter one folder and learns another role's token gains nothing by it."""
    for other in set(ROLES) - {role}:
        with pytest.raises(AgentDenied, match=f"not the socket of the role {role}"):
            AgentLink(host.places.socket(other), {"token": host.tokens[role]}).call("epoch")


def test_whoever_the_system_says_is_somebody_else_is_refused_with_every_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is asked who connects, so a token that was copied is worth nothing to another user."""
    monkeypatch.setattr(AgentFolder, "may_connect", lambda self, role: frozenset({os.geteuid() + 1}))
    host = Host(tmp_path)
    for role in ROLES:
        with pytest.raises(AgentDenied, match="does not serve this user"):
            host.link(role).call("epoch")
    host.close()


def test_the_sockets_and_the_tokens_are_for_their_owner_only(host: Host) -> None:
    """0600 and 0400, in folders of 0700; a second start changes nothing."""
    for role in ROLES:
        assert host.places.socket(role).stat().st_mode & 0o777 == 0o600
        assert host.places.token(role).stat().st_mode & 0o777 == 0o400
        assert host.places.token(role).parent.stat().st_mode & 0o777 == 0o700
    assert host.places.path.stat().st_mode & 0o777 == 0o700
    assert host.places.make() == host.tokens


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


def test_counts_outlive_a_kill_and_a_torn_line(tmp_path: Path) -> None:
    """They are written while the agent works, and summed over all its lives; no name is among them."""
    from service.runtime import initialise

    home = tmp_path / "lake"
    initialise(home)
    path = home / "agent" / "counts.jsonl"
    for life in range(2):
        agent = start_agent(home, "import service.agent; service.agent._COUNT_SECONDS = 0.05")
        folder = home / "agent" / "ingest"
        keys = IngestKeys(AgentLink(folder / "socket", {"token": (folder / "token").read_text()}))
        keys.provision([SubjectId(f"secret-{life}-{n}") for n in range(3)])
        end = time.monotonic() + 60
        while read_counts(path).counts.get("ingest: provision items") != 3 * life + 3:
            assert time.monotonic() < end
            time.sleep(0.02)
        agent.kill()
        agent.communicate()
        with path.open("a") as file:
            file.write('{"at": "2026-03-01T12:00:00+00:00", "cou')  # what a kill in mid-write leaves
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret" not in path.read_text()
    shown = subprocess.run(
        [sys.executable, "-c", MAIN, "--home", home, "--output", "json", "keys", "agent-counts"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["counts"]["ingest: provision items"] == 6


def test_what_could_not_be_written_is_written_next_time(tmp_path: Path) -> None:
    """An agent whose disk is full goes on; nothing is counted twice or left out."""
    book = CountBook(tmp_path / "gone" / "counts.jsonl", now)
    with pytest.raises(FileNotFoundError):
        book.note({"a": 1})
    (tmp_path / "gone").mkdir()
    for counts in ({"a": 2}, {"a": 2}, {"a": 2, "b": 5}):
        book.note(counts)
    assert read_counts(tmp_path / "gone" / "counts.jsonl").counts == {"a": 2, "b": 5}
    assert len((tmp_path / "gone" / "counts.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\0\0\0\2\xc1\xc1", b"\0\0\0\x10abc"]
)
def test_garbage_ends_one_connection_and_nothing_else(host: Host, garbage: bytes) -> None:
    """The agent goes on."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(host.places.socket("ingest")))
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


def start_agent(home: Path, before: str = "") -> subprocess.Popen[str]:
    """A real agent process, which runs a line of code before; returns once it listens."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{MAIN}", "--home", str(home), "keys", "agent"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "key agent on" in line, line
    return process


def test_what_is_reserved_and_never_touched_is_not_filled_to_be_locked() -> None:
    """Libraries reserve a gigabyte; what is touched afterwards is locked all the same."""
    code = f"""
import mmap, re, runpy
from pathlib import Path
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
reserved = mmap.mmap(-1, 1 << 30)
print(runpy.run_path({str(ROOT / "src" / "keys" / "hardening.py")!r})["harden"]()["memory locked"])
print(kilobytes("VmLck") > 1 << 20, kilobytes("VmRSS") < 1 << 19)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    is_allowed = done.stdout.startswith("True")  # by the system's limits
    assert done.stdout.split() == [str(is_allowed), str(is_allowed), "True"], done.stderr


def test_a_killed_agent_comes_back_under_load_and_workers_go_on(tmp_path: Path) -> None:
    """Nothing sealed is lost, nobody has to be restarted; without an agent the error says what to do."""
    from service.runtime import initialise

    home = tmp_path / "lake"
    initialise(home)
    agent = start_agent(home)
    folder = home / "agent" / "ingest"
    keys = IngestKeys(AgentLink(folder / "socket", {"token": (folder / "token").read_text()}))
    session = keys.session()
    sealed: list[tuple[bytes, bytes]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        n = 1
        try:
            while not stop.is_set():
                try:
                    (made,) = keys.provision([SubjectId(f"p{n}")])
                    assert isinstance(made, Provisioned)
                    (one,) = session.seal(context(), [made.ref], [BLOCK], [b"%d" % n])
                except AgentUnavailable:  # on a busy machine it comes back later than one call waits
                    continue
                assert isinstance(one, bytes)
                sealed.append((made.ref, one))
                n += 1
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
    assert not (folder / "socket").exists()
    keyring = open_embedded(home / "keys", fence_path=home / "evidence" / "fences.db")
    opened = keyring.opener().open(
        context(), [r for r, _ in sealed], [BLOCK] * len(sealed), [s for _, s in sealed]
    )
    assert opened == [b"%d" % n for n in range(1, len(sealed) + 1)]
    with pytest.raises(AgentUnavailable) as raised:
        keys.provision([ANN])
    assert "keys agent" in raised.value.next_step


def test_an_empty_token_file_lets_nobody_in(host: Host) -> None:
    """What a full disk leaves behind is no token; the agent says so instead of starting."""
    agent = KeyAgent(host.keyring, {"purge": "", "build": "short"})
    for hello in ({}, {"token": ""}, {"token": "short"}):
        with pytest.raises(AgentDenied):
            agent.role_of(hello)
    host.places.token("build").chmod(0o600)
    host.places.token("build").write_text("")
    with pytest.raises(AgentDenied, match="too short"):
        host.places.make()


def test_a_second_agent_does_not_take_the_socket(host: Host) -> None:
    """The first goes on."""
    with pytest.raises(AgentDenied, match="another key agent"):
        AgentServer(host.places, "ingest", host.agent)
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
