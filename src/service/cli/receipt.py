"""`shredlake receipt`: show, export, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from purge import ReceiptInvalid, payload_of, verifier_keys
from purge.verifier import Refused, described, verify
from service.cli.common import GROUP, emit, opened_past_gate, say, session
from service.errors import BadInput
from service.privatefiles import hand_out

app = typer.Typer(help="Signed receipts of erasures.", **GROUP)
RequestId = Annotated[str, typer.Argument(help="an erasure request")]


@app.command()
def show(context: typer.Context, request_id: RequestId) -> None:
    """Print what a receipt states, and its supplements: what it had not covered, found out later."""
    with opened_past_gate(context) as (here, runtime):
        stated = payload_of(_receipt(runtime.purge.journal.get(request_id).receipt))
        more = [supplement.statement() for supplement in runtime.supplements.of(request_id)]
        emit(here, stated | {"supplements": more} if more else stated)


@app.command()
def export(
    context: typer.Context,
    request_id: RequestId,
    to: Annotated[Path | None, typer.Option(help="file to write (default: stdout)")] = None,
    supplement: Annotated[int | None, typer.Option(help="write the supplement of this number alone")] = None,
) -> None:
    """Write a receipt byte for byte as it verifies, and its supplements beside it."""
    with opened_past_gate(context) as (_, runtime):
        body = _receipt(runtime.purge.journal.get(request_id).receipt)
        found = runtime.supplements.of(request_id)
        if supplement is not None:
            if not 1 <= supplement <= len(found):
                raise BadInput(f"the receipt has {len(found)} supplements")
            body = runtime.supplements.document(found[supplement - 1])
        if to is None:
            sys.stdout.buffer.write(body)
        else:
            to.write_bytes(body)
            hand_out(to)
            say(f"wrote {to}")
        if supplement is not None:
            return
        for number, one in enumerate(found, start=1):
            if to is None:
                say(f"it has a supplement: run this with --supplement {number} too")
            else:
                beside = to.with_name(f"{to.stem}.supplement-{number}{to.suffix}")
                beside.write_bytes(runtime.supplements.document(one))
                hand_out(beside)
                say(f"wrote {beside}")


@app.command()
def key(context: typer.Context) -> None:
    """Print the keys that receipts verify with, one a line; give them to auditors, anew after a rotation."""
    with opened_past_gate(context) as (here, runtime):
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
    """Verify a receipt, or a supplement to one, offline; needs no lake."""
    try:
        found = verify(file.read_bytes(), key_file.read_text(), subject, salt)
    except (Refused, OSError, ValueError) as refused:
        raise ReceiptInvalid(f"refused: {refused}") from None
    emit(session(context), found, f"verified: {described(found)}")


def _receipt(body: bytes | None) -> bytes:
    if body is None:
        raise ReceiptInvalid(
            "the erasure is not attested yet", next_step="See `shredlake erase status REQUEST`."
        )
    return body
