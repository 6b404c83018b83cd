"""`shredlake keys drill`: what an erasure is worth when yesterday's backups are brought back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from attrs import asdict

from keys import DrillReport, run_drill
from purge import Assurance, backups_gone_at
from service.cli.boundary import WrongUse
from service.cli.common import INCOMPLETE, Session, emit, emit_rows, progress_bar, say, session
from service.drill import DrilledLake, SnapshotFiles, drill_site
from service.errors import BadInput, NotInitialised
from service.keyplaces import assurance
from service.settings import load_settings


def drill(
    context: typer.Context,
    people: Annotated[int, typer.Option(min=2, max=1_000_000, help="people in the sandbox")] = 10_000,
    erase: Annotated[int, typer.Option(min=1, help="how many of them are erased")] = 1000,
    snapshot_token_file: Annotated[
        Path | None,
        typer.Option(help="token of the lake's Vault that may take its snapshot; then it is tried as well"),
    ] = None,
    restore_address: Annotated[
        str | None,
        typer.Option(help="https://host:port of an empty Vault that the snapshot may overwrite"),
    ] = None,
    restore_token_file: Annotated[
        Path | None, typer.Option(help="token of that one that may restore a snapshot")
    ] = None,
    restore_ca_file: Annotated[
        Path | None, typer.Option(help="its certificate authority (PEM); default: the system's")
    ] = None,
    unseal_keys_file: Annotated[
        Path | None,
        typer.Option(help="unseal keys of the lake's Vault, one a line; default: unseal it by hand"),
    ] = None,
) -> None:
    """Restore yesterday's backups in a sandbox and count who opens; exit code 3 if the promise fails."""
    if erase >= people:
        raise WrongUse("--erase: fewer people have to be erased than there are")
    snapshot = _snapshot(
        snapshot_token_file, restore_address, restore_token_file, restore_ca_file, unseal_keys_file
    )
    here = session(context)
    if not (here.home / "token").exists():
        raise NotInitialised(f"there is no lake in {here.home}")
    settings = load_settings(here.home).keys
    with (
        drill_site(here.home, settings, snapshot, say) as (site, sandbox),
        progress_bar(here, "people", people) as update,
    ):
        found = run_drill(
            site,
            DrilledLake(sandbox / "lake"),
            sandbox,
            people=people,
            erase=erase,
            on_step=lambda what, seconds: say(f"{seconds:6.2f} s  {what}"),
            on_people=update,
        )
    gone_at = backups_gone_at(datetime.now(UTC), assurance(settings))
    if here.as_json:
        emit(here, asdict(found) | {"passed": found.passed, "backups_gone_at": gone_at})
    else:
        _show(here, found)
        say(_horizon(assurance(settings), gone_at))
        say("the promise holds" if found.passed else "THE PROMISE DOES NOT HOLD: do not issue receipts")
    if not found.passed:
        raise typer.Exit(INCOMPLETE)


def _snapshot(
    token: Path | None, address: str | None, restore_token: Path | None, ca: Path | None, unseal: Path | None
) -> SnapshotFiles | None:
    if token is None and address is None and restore_token is None:
        return None
    if token is None or address is None or restore_token is None:
        raise BadInput(
            "a snapshot takes --snapshot-token-file, --restore-address and --restore-token-file together"
        )
    return SnapshotFiles(token, address, restore_token, ca, unseal)


def _show(here: Session, found: DrillReport) -> None:
    rows = [
        {
            "what is brought back": one.what,
            "erased who can be read": f"{one.erased_opened:,} of {found.erased:,}",
            "others": f"{one.others_opened:,} of {found.sampled:,}",
            "as promised": "yes" if one.as_promised else "NO",
        }
        for one in found.attempts
    ]
    emit_rows(here, rows, "who can be read in the lake's backup")
    say("pages from before an epoch close open nobody: back them up after each close")
    if not found.old_wrap_refused:
        say("a key wrapped before the epoch close still opens")


def _horizon(declared: Assurance, gone_at: datetime | None) -> str:
    if gone_at is None:
        return (
            f"backups of the {declared.custodian} bring everybody back for as long as they exist; nobody has "
            "declared when they are destroyed, so receipts stop at level E1"
        )
    return (
        f"backups of the {declared.custodian} bring everybody back until they are destroyed: level E2 of "
        f"today's receipts says {gone_at.date()}, by the operator's declaration"
    )
