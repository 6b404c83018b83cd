"""The key agent's folder: for every role a folder with its socket and its token, for that role's user alone.

    <folder>/<role>/socket
    <folder>/<role>/token

A role without a user of its own is the agent's: nobody else enters its folder. A role with one is given
its token and its socket, and the folder stays the agent's, so that nobody can put a link there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from keys.errors import AgentDenied

ROLES: Final = ("ingest", "build", "purge")
TOKEN_CHARACTERS: Final = 32
_READ: Final = 0o4
_USE: Final = 0o6  # connecting to a socket is writing to it


@frozen
class RoleUser:
    """Whose processes take a role: a user id and a group id of the system."""

    user: int
    group: int


@frozen
class AgentFolder:
    """Where the agent of a lake listens.

    Attributes:
        path: made with mode 0700, or 0711 where a role has a user of its own.
        users: role → its user; a role that is missing is taken by the agent's own user.
    """

    path: Path
    users: Mapping[str, RoleUser] = field(factory=dict)

    def socket(self, role: str) -> Path:
        """A role's socket."""
        return self.path / role / "socket"

    def token(self, role: str) -> Path:
        """The file with a role's token."""
        return self.path / role / "token"

    def may_connect(self, role: str) -> frozenset[int]:
        """User ids that may connect to a role's socket: its own, and the agent's."""
        return frozenset({os.geteuid(), *(one.user for name, one in self.users.items() if name == role)})

    def make(self) -> dict[str, str]:
        """Makes what is missing and gives it to its users; returns role → token.

        Raises:
            AgentDenied: a token is too short, a role's user is the agent's own, or the system does not
                let us give a file to a role's user.
        """
        for role, one in self.users.items():
            if one.user == os.geteuid():
                raise AgentDenied(
                    f"keys.agent_users.{role} is the agent's own user, which can read every token",
                    next_step="Give the role a user of its own, or run the agent as another one.",
                )
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o711 if self.users else 0o700)
        tokens = {}
        for role in ROLES:
            folder = self.path / role
            folder.mkdir(exist_ok=True, mode=0o700)
            mine = self.users.get(role)
            _chown(folder, os.geteuid(), os.getegid() if mine is None else mine.group, role)
            folder.chmod(0o700 if mine is None else 0o710)
            tokens[role] = _token(self.token(role), role)
            self._give(self.token(role), role, _READ)
        return tokens

    def give_socket(self, path: Path, role: str) -> None:
        """Lets a role's user connect to what the agent alone could until now. Raises as `make`."""
        self._give(path, role, _USE)

    def _give(self, path: Path, role: str, rights: int) -> None:
        mine = self.users.get(role)
        if mine is None:
            _chown(path, os.geteuid(), os.getegid(), role)
            path.chmod(rights << 6)
        elif os.geteuid() == 0:
            _chown(path, mine.user, mine.group, role)
            path.chmod(rights << 6)
        else:  # only root can give a file away; a group that we are in can be let in
            _chown(path, os.geteuid(), mine.group, role)
            path.chmod(rights << 6 | rights << 3)


def _chown(path: Path, user: int, group: int, role: str) -> None:
    try:
        os.chown(path, user, group)
    except PermissionError:
        raise AgentDenied(
            f"the system does not let the agent share files with keys.agent_users.{role}",
            next_step=f"Make the agent's user a member of group {group}, or start the agent as root.",
        ) from None


def _token(path: Path, role: str) -> str:
    """A role's token; made once."""
    draft = path.with_name(f".token.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32))
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)  # whole or not at all, and never over another agent's
    draft.unlink()
    token = path.read_text().strip()
    if len(token) < TOKEN_CHARACTERS:
        raise AgentDenied(
            f"the token of {role} is too short",
            next_step=f"Remove the file `token` of {role} and start the agent again.",
        )
    return token
