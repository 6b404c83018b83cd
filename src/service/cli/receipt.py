"""`shredlake receipt`: show, export, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from purge import ReceiptInvalid, payload_of, verifier_keys
from purge.verifier import Refused, verify
from service.cli.common import GROUP, emit, opened, say, session

app = typer.Typer(help="Signed receipts of erasures.", **GROUP)
RequestId = Annotated[str, typer.Argument(help="an erasure request")]


@app.command()
def show(context: typer.Context, request_id: RequestId) -> None:
    """Print what a receipt states."""
    with opened(context) as (here, runtime):
        emit(here, payload_of(_receipt(runtime.purge.journal.get(request_id).receipt)))


@app.command()
def export(
    context: typer.Context,
    request_id: RequestId,
    to: Annotated[Path | None, typer.Option(help="file to write (default: stdout)")] = None,
) -> None:
    """Write a receipt byte for byte as it verifies."""
    with opened(context) as (_, runtime):
        body = _receipt(runtime.purge.journal.get(request_id).receipt)
        if to is None:
            sys.stdout.buffer.write(body)
        else:
            to.write_bytes(body)
            say(f"wrote {to}")


@app.command()
def key(context: typer.Context) -> None:
    """Print the keys that receipts verify with, one a line; give them to auditors, anew after a rotation."""
    with opened(context) as (here, runtime):
        keys = verifier_keys(runtime.keyring.custodian.public_keys().values())
        emit(here, {"vkeys": keys.split()}, keys.rstrip())


@app.command("verify")
def verify_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="a receipt")],
    key_file: Annotated[Path, typer.Option("--key", help="file with the operator's vkeys")],
    subject: Annotated[str | None, typer.Option(help="check that it is about this person")] = None,
    salt: Annotated[str | None, typer.Option(help="the requester's salt, in hex")] = None,
) -> None:
    """Verify a receipt offline; needs no lake."""
    try:
        found = verify(file.read_bytes(), key_file.read_text(), subject, salt)
    except (Refused, OSError, ValueError) as refused:
        raise ReceiptInvalid(f"refused: {refused}") from None
    level = found["predicate"]["level"]["name"]
    emit(session(context), found, f"verified: receipt {found['subject'][0]['name']}, level {level}")


def _receipt(body: bytes | None) -> bytes:
    if body is None:
        raise ReceiptInvalid(
            "the erasure is not attested yet", next_step="See `shredlake erase status REQUEST`."
        )
    return body
