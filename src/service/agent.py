"""The key agent of a host as a service, and the keys of those that work through it."""

from __future__ import annotations

import grp
import logging
import pwd
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keys import AgentDenied, Keyring, ShredlakeError
from keys.agentclient import ATTEMPTS, AgentLink, BuildKeys, IngestKeys
from keys.agentcounts import COUNTS_NAME, CountBook
from keys.agentfolder import AgentFolder, RoleUser
from keys.agentserver import KeyAgent, serving
from service.errors import BadSettings, NotInitialised
from service.keyplaces import seal_rule
from service.settings import AgentUsers, Keys, load_settings

_COUNT_SECONDS: Final = 60.0
_PAUSES_SECONDS: Final = (0.5, 1.0, 2.0, 5.0)
_log = logging.getLogger("shredlake.agent")


def agent_folder(home: Path, settings: Keys) -> AgentFolder:
    """Where a lake's agent listens, and whose each role is.

    Raises:
        BadSettings: the system knows no such user or group.
    """
    return AgentFolder(settings.agent_folder or home / "agent", _role_users(settings.agent_users))


def serve_agent(home: Path, settings: Keys, keyring: Keyring, ready: Callable[[], None]) -> dict[str, int]:
    """Serves until SIGTERM or SIGINT; returns what was handed out, in counts, which go to a file as well.

    Args:
        keyring: opened in a process that is hardened.
        ready: called once the sockets listen.
    """
    folder = agent_folder(home, settings)
    agent = KeyAgent(keyring, folder.make())
    book = CountBook(folder.path / COUNTS_NAME, lambda: datetime.now(UTC))
    ended = threading.Event()
    with serving(folder, agent):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        ready()
        while not ended.wait(_COUNT_SECONDS):
            _note(book, agent)
    _note(book, agent)
    return agent.counts()


def _note(book: CountBook, agent: KeyAgent) -> None:
    try:
        book.note(agent.counts())
    except OSError as error:  # keys are given out without it; what was not written is written next time
        _log.error("the key agent's counts could not be written: %s", error.strerror)


@contextmanager
def waiting_for_keys(
    open_keys: Callable[[], AbstractContextManager[Keyring]],
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Keyring]:
    """The keys, as soon as they can be had: an agent that starts during an outage waits, and says for what.

    Raises:
        ShredlakeError: what no waiting helps against.
    """
    told, pauses = "", iter([*_PAUSES_SECONDS])
    with ExitStack() as stack:
        while True:
            try:
                keyring = stack.enter_context(open_keys())
            except ShredlakeError as error:
                if not error.retry_helps:
                    raise
                if error.message != told:
                    told = error.message
                    _log.warning("the key agent waits: %s", told)
                    tell(f"the key agent waits: {told}. {error.next_step}")
            else:
                break
            sleep(next(pauses, _PAUSES_SECONDS[-1]))
        if told:
            tell("the key agent goes on")
        yield keyring


def ingest_keys(home: Path, attempts: int = ATTEMPTS) -> IngestKeys:
    """Keys that stay with the agent: with them this process can seal and open nothing.

    Args:
        attempts: see `AgentLink`.

    Raises:
        NotInitialised: the lake's agent never ran.
        AgentDenied: this user may not take the ingest role.
    """
    return IngestKeys(_link(home, "ingest", attempts), seal_rule(load_settings(home).keys))


@contextmanager
def build_lease(home: Path) -> Iterator[bytes]:
    """What a build gives its workers instead of the token; dead with the next erasure, and after the block.

    Raises:
        NotInitialised, AgentDenied, AgentUnavailable: see `ingest_keys`.
    """
    coordinator = BuildKeys(_link(home, "build"))
    try:
        yield coordinator.lease_for_workers()
    finally:
        coordinator.close()


def build_keys(home: Path, lease: bytes) -> BuildKeys:
    """A build worker's keys, by a lease alone."""
    folder = agent_folder(home, load_settings(home).keys)
    return BuildKeys(AgentLink(folder.socket("build"), {"lease": lease}), lease)


def _link(home: Path, role: str, attempts: int = ATTEMPTS) -> AgentLink:
    folder = agent_folder(home, load_settings(home).keys)
    try:
        token = folder.token(role).read_text().strip()
    except FileNotFoundError:
        raise NotInitialised(
            f"no key agent ever ran for the lake in {home}", next_step="Start it: `shredlake keys agent`."
        ) from None
    except PermissionError:
        raise AgentDenied(
            f"this user may not read the token of the role {role}",
            next_step=f"Run this as the user that keys.agent_users.{role} names, or as the agent's own.",
        ) from None
    return AgentLink(folder.socket(role), {"token": token}, attempts)


def _role_users(settings: AgentUsers) -> dict[str, RoleUser]:
    named = {"ingest": settings.ingest, "build": settings.build, "purge": settings.purge}
    return {role: _role_user(role, text) for role, text in named.items() if text is not None}


def _role_user(role: str, text: str) -> RoleUser:
    """`user` or `user:group`, names or ids, as chown(1) takes them."""
    user, _, group = text.partition(":")
    try:
        known = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        known = None
    try:
        number = int(user) if known is None else known.pw_uid
        if group:
            return RoleUser(number, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid)
        if known is not None:
            return RoleUser(number, known.pw_gid)
    except (KeyError, ValueError):
        pass
    raise BadSettings(
        f"keys.agent_users.{role} names no user and group of this system",
        next_step="Write a user's name, or `uid:gid` where the system has no name for it.",
    )
