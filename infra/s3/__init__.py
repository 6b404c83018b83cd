"""An S3-compatible store on loopback: versitygw over a folder, with conditional writes and versions."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

import httpx

from infra.gomodules import program
from infra.process import ServerProcess, free_port

NAME: Final = "s3"
VERSION: Final = "1.8.0"
REGION: Final = "us-east-1"
BUCKET: Final = "shredlake"
_MODULE = Path(__file__).parent / "module"
_PACKAGE: Final = "github.com/versity/versitygw/cmd/versitygw"


class S3:
    """The store under `<data>/s3`, with one bucket.

    Args:
        data: the folder of all servers.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / NAME
        self.process = ServerProcess(self.folder, "versitygw")
        self._facts = self.folder / "facts.json"

    def start(self) -> dict[str, str]:
        """Starts it; returns how to reach it.

        Raises:
            NotAvailable: no program, and it cannot be built here.
            InfraError: it does not come up.
        """
        gateway = find_program()
        objects, versions, users = (self.folder / name for name in ("objects", "versions", "users"))
        for folder in (self.folder, objects / BUCKET, versions, users):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._facts.exists():
            self._facts.touch(mode=0o600)
            made = {"port": free_port(), "key": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)}
            self._facts.write_text(json.dumps(made))
        facts = json.loads(self._facts.read_text())
        listens = ["--port", f"127.0.0.1:{facts['port']}", "--health", "/health", "--quiet"]
        self.process.start(
            [gateway, *listens, "--iam-dir", users, "posix", "--versioning-dir", versions, objects],
            {"ROOT_ACCESS_KEY": facts["key"], "ROOT_SECRET_KEY": facts["secret"]},
        )
        self.process.wait_until(self._answers)
        return self.address()

    def address(self) -> dict[str, str]:
        """`S3_ENDPOINT`, `S3_BUCKET`, and the log-in under the names that every client knows."""
        facts = json.loads(self._facts.read_text())
        return {
            "S3_ENDPOINT": f"http://127.0.0.1:{facts['port']}",
            "S3_BUCKET": BUCKET,
            "AWS_ACCESS_KEY_ID": facts["key"],
            "AWS_SECRET_ACCESS_KEY": facts["secret"],
            "AWS_REGION": REGION,
        }

    def stop(self) -> None:
        """Stops it."""
        self.process.stop()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address()['S3_ENDPOINT']}/health", timeout=2).is_success
        except httpx.HTTPError:
            return False


def find_program() -> Path:
    """The gateway's program; built where there is none on the PATH.

    Raises:
        NotAvailable: says what to install.
    """
    found = shutil.which("versitygw", path=os.environ.get("PATH"))
    return Path(found) if found else program("versitygw", VERSION, _MODULE, _PACKAGE)
