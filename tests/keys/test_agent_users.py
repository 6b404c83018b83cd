"""Roles of the key agent held by the system's users: real ones, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from attrs import frozen

from keys import AgentDenied, envelope
from keys.agentclient import AgentLink
from keys.agentfolder import ROLES, AgentFolder, RoleUser
from keys.agentserver import MAX_HELLO_BYTES, MAY
from service.agent import agent_folder
from service.errors import BadSettings
from service.runtime import initialise, open_runtime
from service.settings import Keys
from tests.keys.people import context, provision, seal
from tests.keys.test_agent import Host, host, start_agent
from tests.otherusers import (
    BUILD_USER,
    INGEST_USER,
    STRANGER,
    as_user,
    command_of,
    need_other_users,
    open_folder,
)
from tests.world import PAID, VIEWS, paid

__all__ = ["host"]
TRY = """
import json, sys
from pathlib import Path
from keys.agentclient import AgentLink
from keys.errors import ShredlakeError

def tried(act):
    try:
        return act()
    except ShredlakeError as error:
        return f"{type(error).__name__}: {error.message}"
    except OSError as error:
        return type(error).__name__
"""


@frozen
class Served:
    """A lake whose agent runs as root for an ingest and a build user.

    Attributes:
        folder: of its sockets and tokens.
        yesterday: what was sealed before, and its handle.
    """

    home: Path
    folder: Path
    ref: bytes
    yesterday: bytes


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A lake in a folder that others may enter; its tables belong to the ingest user."""
    need_other_users()
    for parent in open_folder():
        home, run = parent / "lake", parent / "run"
        home.mkdir(mode=0o711)
        users = {"ingest": f"{INGEST_USER}:{INGEST_USER}", "build": f"{BUILD_USER}:{BUILD_USER}"}
        keys = {"agent": True, "agent_folder": str(run), "agent_users": users}
        settings = {"keys": keys, "projections": {"files": [str(VIEWS)]}}
        (home / "shredlake.toml").write_text(tomli_w.dumps(settings))
        initialise(home)
        home.chmod(0o711)  # as docs/servers.md shows: `init` makes the folder private
        (home / "shredlake.toml").chmod(0o644)
        with open_runtime(home) as runtime:
            runtime.lake.types.register(PAID)
            ref = provision(runtime.keyring).ref
            yesterday = seal(runtime.keyring, ref)
        subprocess.run(["chown", "-R", f"{INGEST_USER}:{INGEST_USER}", home / "lake"], check=True)
        agent = start_agent(home)
        try:
            yield Served(home, run, ref, yesterday)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.communicate(timeout=20)


def test_a_role_s_user_reads_its_own_token_and_no_other(served: Served) -> None:
    """Nor the folder of another role, the root, the key pages, the leases; a stranger reads nothing."""
    code = f"""{TRY}
run, home = Path(sys.argv[1]), Path(sys.argv[2])
paths = [run / role / "token" for role in ("ingest", "build", "purge")]
paths += [home / "keys" / name for name in ("root.key", "pages.db", "leases.db")] + [home / "token"]
print(json.dumps([tried(lambda: len(one.read_text())) for one in paths]))
"""
    denied = "PermissionError"
    for user, expected in (
        (INGEST_USER, [43, denied, denied]),
        (BUILD_USER, [denied, 43, denied]),
        (STRANGER, [denied] * 3),
    ):
        found = as_user(user, code, str(served.folder), str(served.home))
        assert found == expected + [denied] * 4


def test_a_user_takes_its_own_role_and_is_refused_every_other(served: Served) -> None:
    """With every token in its hand, and with sockets that somebody has opened to everybody."""
    tokens = {role: (served.folder / role / "token").read_text() for role in ROLES}
    code = f"""{TRY}
run, tokens = Path(sys.argv[1]), json.loads(sys.argv[2])
print(json.dumps({{
    f"{{token}} at {{place}}": tried(
        lambda: AgentLink(run / place / "socket", {{"token": tokens[token]}}).call("epoch")["epoch"])
    for place in tokens for token in tokens
}}))
"""
    as_it_is = as_user(INGEST_USER, code, str(served.folder), json.dumps(tokens))
    lax = [served.folder / role for role in ROLES]
    modes = {path: path.stat().st_mode for one in lax for path in (one, one / "socket")}
    for path in modes:
        path.chmod(0o777)
    try:
        opened = as_user(INGEST_USER, code, str(served.folder), json.dumps(tokens))
        strange = as_user(STRANGER, code, str(served.folder), json.dumps(tokens))
    finally:
        for path, mode in modes.items():
            path.chmod(mode & 0o777)
    for found, refusal in ((as_it_is, "may not connect"), (opened, "does not serve this user")):
        assert found.pop("ingest at ingest") == 0
        assert "not the socket of the role" in found.pop("build at ingest")
        assert "not the socket of the role" in found.pop("purge at ingest")
        assert all(refusal in one for one in found.values()), found
    assert all("does not serve this user" in one for one in strange.values())


def test_the_ingest_user_opens_nothing_of_yesterday_by_any_call(served: Served) -> None:
    """Neither by another role's operation nor by a subkey of that writer session."""
    header = envelope.parse(served.yesterday)
    asked = {
        "operations": sorted(set().union(*MAY.values()) - MAY["ingest"]),
        "ref": served.ref.hex(),
        "salt": header.salt.hex(),
        "place": [context().table_uuid.hex(), 16, "personal", "service", "T", 1],
    }
    code = f"""{TRY}
asked = json.loads(sys.argv[2])
folder = Path(sys.argv[1]) / "ingest"
link = AgentLink(folder / "socket", {{"token": (folder / "token").read_text()}})
ref, salt = bytes.fromhex(asked["ref"]), bytes.fromhex(asked["salt"])
place = (bytes.fromhex(asked["place"][0]), *asked["place"][1:])
found = {{one: tried(lambda: link.call(one, lease=b"", refs=ref, context=place, headers=[], name="ann"))
         for one in asked["operations"]}}
found["yesterday's session"] = tried(lambda: link.call("sealing", salt=salt, refs=ref, context=place, suite=1))
own = link.call("sealing", salt=link.call("begin_session")["salt"], refs=ref, context=place, suite=1)
print(json.dumps([found, own["subkeys"].hex()]))
"""
    found, own = as_user(INGEST_USER, code, str(served.folder), json.dumps(asked))
    assert found.pop("yesterday's session").startswith("SealSessionLost")
    assert len(found) > 5
    assert all(one.startswith("AgentDenied: the role ingest may not ask for") for one in found.values())
    assert len(own) == 128
    assert header.commitment.hex() not in own


def test_the_ingest_user_ingests_a_file_with_the_tables_and_its_role_alone(served: Served) -> None:
    """The command as an operator runs it, by a user that cannot read one key file of the lake."""
    events = served.folder.parent / "events.jsonl"
    events.write_text("\n".join(json.dumps(paid(f"p{n}", n, event_id=f"e{n}")) for n in range(20)))
    events.chmod(0o644)
    code = "from service.cli import main\nmain()"
    command = ["--home", str(served.home), "--output", "json", "--quiet", "ingest", str(events)]
    assert as_user(INGEST_USER, code, *command)["events"] == 20
    assert as_user(INGEST_USER, code, *command)["already"] == 20


def test_nobody_of_the_agent_s_own_user_looks_into_it(tmp_path: Path) -> None:
    """Without root's rights: no memory, no environment, no core; its memory is locked, or it says so."""
    need_other_users()
    for parent in open_folder():
        os.chown(parent, STRANGER, STRANGER)
        code = f"""
from pathlib import Path
from service.runtime import initialise
from service.cli import main
initialise(Path({str(parent / "lake")!r}))
main()
"""
        agent = subprocess.Popen(
            command_of(STRANGER, code, "--home", str(parent / "lake"), "keys", "agent"),
            cwd="/", env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert agent.stderr is not None
            assert "key agent on" in (said := agent.stderr.readline()), said
            code = f"""{TRY}
paths = [Path("/proc") / sys.argv[1] / name for name in ("mem", "environ", "maps")]
print(json.dumps([tried(lambda: len(one.open("rb").read(1))) for one in paths]))
"""
            assert as_user(STRANGER, code, str(agent.pid)) == ["PermissionError"] * 3
            limits = Path(f"/proc/{agent.pid}/limits").read_text().splitlines()
            assert next(line for line in limits if "core file" in line).split()[4:6] == ["0", "0"]
            status = Path(f"/proc/{agent.pid}/status").read_text()
            locked = int(next(line for line in status.splitlines() if line.startswith("VmLck")).split()[1])
        finally:
            agent.terminate()
            agent.wait(timeout=30)
            complaints = agent.stderr.read()  # `communicate` would leave out what came with the first line
        refused = [line for line in complaints.splitlines() if "did not allow" in line]
        assert refused == ([] if locked else ["the system did not allow: memory locked"])


# -- the socket -------------------------------------------------------------------------------------


def test_a_first_frame_is_a_short_one(host: Host) -> None:
    """Nobody has the agent gather memory before it knows them; a longer one ends the connection."""
    for length, answered in ((MAX_HELLO_BYTES, True), (MAX_HELLO_BYTES + 1, False)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(host.places.socket("ingest")))
            stranger.settimeout(30)
            stranger.sendall(struct.pack(">I", length))
            if answered:
                stranger.sendall(b"\x81\xa5token\xda" + struct.pack(">H", length - 10) + b"x" * (length - 10))
            try:
                got = stranger.recv(1000)
            except ConnectionResetError:
                got = b""
            assert (b"AgentDenied" in got) == answered


@pytest.mark.parametrize("hello", [{"lease": ["odd"]}, {"token": {"odd": 1}}, {"lease": 7}])
def test_an_odd_hello_is_a_refused_one(host: Host, hello: dict[str, object]) -> None:
    """Not a failure of the agent."""
    with pytest.raises(AgentDenied):
        AgentLink(host.places.socket("build"), hello).call("epoch")


# -- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nobody-of-this-name", "54321", "54321:no-such-group", ":5", ""])
def test_a_user_that_the_system_does_not_know_is_a_wrong_setting(tmp_path: Path, text: str) -> None:
    """A bare number without a name has no group; the next step says how to write it."""
    settings = Keys.model_validate({"agent_users": {"ingest": text}})
    with pytest.raises(BadSettings, match=r"agent_users\.ingest") as raised:
        agent_folder(tmp_path, settings)
    assert "uid:gid" in raised.value.next_step


def test_a_role_for_the_agent_s_own_user_is_refused(tmp_path: Path) -> None:
    """It could read every token: the setting would promise what is not so."""
    own = RoleUser(os.geteuid(), os.getegid())
    with pytest.raises(AgentDenied, match="agent's own user"):
        AgentFolder(tmp_path / "agent", {"build": own}).make()


def test_a_role_that_loses_its_user_is_the_agent_s_again(tmp_path: Path) -> None:
    """The next start takes folder and token back."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    folder = AgentFolder(tmp_path / "agent", {"ingest": RoleUser(INGEST_USER, INGEST_USER)})
    tokens = folder.make()
    assert folder.token("ingest").stat().st_uid == INGEST_USER
    again = AgentFolder(tmp_path / "agent")
    assert again.make() == tokens
    found = [path.stat() for path in (again.path, again.token("ingest").parent, again.token("ingest"))]
    assert [one.st_mode & 0o777 for one in found] == [0o700, 0o700, 0o400]
    assert {one.st_uid for one in found} == {os.geteuid()}
