"""Files and folders of a lake are for its user alone, whatever the umask and whoever made the folder.

Most of them are written by other people's libraries, which ask for open modes and leave the rest to the
umask: so that is what is set, for the whole process, before anything of a lake is made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.settings import AgentUsers

PRIVATE_MASK: Final = 0o077
_OPEN_BITS: Final = 0o077
_given_mask: list[int] = []


def keep_private(users: AgentUsers | None = None) -> None:
    """What this process and its children make from now on is readable for this user alone.

    Args:
        users: whose processes work on the lake beside this one's; where there are any, the umask that the
            operator gave stands: they have to read what is made here.
    """
    before = os.umask(PRIVATE_MASK)
    if not _given_mask:
        _given_mask.append(before)
    if users is not None and is_shared(users):
        os.umask(_given_mask[0])


def is_shared(users: AgentUsers) -> bool:
    """Whether other users work on the lake."""
    return bool(users.model_dump(exclude_none=True))


def hand_out(path: Path) -> None:
    """A file that is made for others, outside of the lake: as readable as the operator's umask says."""
    if _given_mask:
        path.chmod(0o666 & ~_given_mask[0])


def open_to_others(home: Path) -> Iterator[Path]:
    """Everything inside the lake's folder that somebody else could read or write, were the folder open.

    Links are not followed, and sockets are not looked at: the key agent gives each to its user itself.
    """
    for folder, folders, files in os.walk(home):
        for name in (*folders, *files):
            path = Path(folder) / name
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # a table's file that was cleaned up meanwhile
            if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and mode & _OPEN_BITS:
                yield path
