"""`shredlake lake read`: events out of the lake into a file."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from keys import DEFAULT_PURPOSE
from lake import (
    CLEAR_FIELDS,
    PERSONAL_HEAD,
    PRIMARY,
    EventRead,
    EventType,
    Facet,
    Found,
    Nearest,
    SnapshotGone,
)
from service.cli.common import emit, opened, parse_moment, progress_bar, read_subject, say
from service.cli.topic_commands import app as app
from service.errors import BadInput
from service.reading import STDOUT, Wanted, copy_events
from service.runtime import Runtime, shredded_text

_HEAD = ("subject", "source", "event_id", "occurred_at")


@app.command("read")
def read_events(
    context: typer.Context,
    event_type: Annotated[str, typer.Option("--type", help="event type")],
    to: Annotated[Path, typer.Option(help="file.parquet or file.jsonl; - writes JSON Lines to stdout")],
    fields: Annotated[
        str | None, typer.Option(help="fields, separated by commas; default: all that may be read")
    ] = None,
    personal: Annotated[
        bool, typer.Option("--personal", help="personal fields as well: a copy that no erasure reaches")
    ] = False,
    subject: Annotated[
        str | None, typer.Option(help="only this person's events; - reads the id from stdin")
    ] = None,
    facet: Annotated[
        str | None,
        typer.Option(help="role/purpose: whose part, for which purpose (default: subject/service)"),
    ] = None,
    day_from: Annotated[
        str | None, typer.Option(help="first day on which events happened, 2026-03-01")
    ] = None,
    day_to: Annotated[str | None, typer.Option(help="last day on which events happened")] = None,
    as_of: Annotated[str | None, typer.Option(help="as the lake was then, 2026-03-31T12:00+02:00")] = None,
    nearest: Annotated[
        Nearest | None,
        typer.Option(help="take the kept state before or after, where that of --as-of has expired"),
    ] = None,
    from_snapshot: Annotated[int | None, typer.Option(help="only what was ingested after this one")] = None,
    to_snapshot: Annotated[int | None, typer.Option(help="of lake.events; default: the head")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that read")] = 1,
) -> None:
    """Copy events of one type into a file, duplicates decided, in bounded memory."""
    with opened(context) as (here, runtime):
        runtime.views.restored.refuse_older_lake()
        known = runtime.lake.types.get(event_type)
        chosen = _facet(known, facet)
        names = _fields(known, chosen, fields, personal)
        read = EventRead(event_type, names, chosen, _days(day_from, day_to))
        until, found = _snapshot(runtime, as_of, nearest, to_snapshot)
        if found is not None and not found.is_exact:
            say(found.sentence())
        ref = _person(runtime, subject, chosen) if subject is not None else None
        if personal or ref is not None:
            say("what is written is a copy: no later erasure reaches it, and no receipt covers it")
        wanted = Wanted(read, until, from_snapshot, ref, read.is_personal(known))
        with progress_bar(here, "reading", None) as update:
            count = copy_events(runtime, wanted, to, workers, update)
    text = f"{count:,} events of snapshot {until}"
    if to == STDOUT:
        say(text)
    else:
        emit(here, {"events": count, "snapshot": str(until)} | (found.as_dict() if found else {}), text)


def _facet(known: EventType, text: str | None) -> Facet:
    if text is None:
        return PRIMARY
    found = {str(one): one for one in known.facets}
    if text not in found:
        raise BadInput(f"{known.name} has no such facet", next_step=f"It has {', '.join(found)}.")
    return found[text]


def _fields(known: EventType, facet: Facet, text: str | None, personal: bool) -> tuple[str, ...]:
    clear = [one.name for one in known.fields if one.anonymous]
    sealed = [one.name for one in known.fields if not one.anonymous and one.facet == facet]
    if text is None:
        return (*_HEAD, *clear, *sealed) if personal else ("occurred_on", *clear)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    strange = [name for name in names if name not in {*clear, *sealed, *PERSONAL_HEAD, *CLEAR_FIELDS}]
    if strange:
        raise BadInput(
            f"{known.name} has not every field that is asked for in facet {facet}",
            next_step=f"It has {', '.join((*clear, *sealed))}; of every event {', '.join(PERSONAL_HEAD)}.",
        )
    secret = [name for name in names if name in {*sealed, *PERSONAL_HEAD}]
    if secret and not personal:
        raise BadInput(f"`{secret[0]}` is personal", next_step="Leave it out, or add --personal.")
    return names


def _days(first: str | None, last: str | None) -> tuple[date, date] | None:
    if first is None and last is None:
        return None
    try:
        days = (
            date.fromisoformat(first) if first else date.min,
            date.fromisoformat(last) if last else date.max,
        )
    except ValueError:
        raise BadInput("a day is written like 2026-03-01") from None
    if days[0] > days[1]:
        raise BadInput("the last day lies before the first")
    return days


def _snapshot(
    runtime: Runtime, as_of: str | None, nearest: Nearest | None, named: int | None
) -> tuple[int, Found | None]:
    if as_of is not None and named is not None:
        raise BadInput("--as-of and --to-snapshot name the same thing", next_step="Give one of them.")
    moment = parse_moment(as_of)
    if moment is not None:
        found = runtime.lake.replay().as_of(moment, nearest)
        return found.commit.snapshot_id, found
    if nearest is not None:
        raise BadInput("--nearest belongs to --as-of", next_step="Leave it out, or give a moment.")
    head = runtime.lake.events.snapshot(named)
    if head is None:
        raise SnapshotGone("the lake holds no event yet", next_step="Ingest some first.")
    return head.snapshot_id, None


def _person(runtime: Runtime, text: str, facet: Facet) -> bytes:
    if facet.purpose != DEFAULT_PURPOSE:
        raise BadInput(
            f"a person is looked up for the purpose {DEFAULT_PURPOSE} alone",
            next_step="Leave --subject or --facet out.",
        )
    person = read_subject(text)
    ref = runtime.keyring.ref_of(person)
    if ref is None:
        gone = runtime.keyring.erased(person)
        if gone is not None:
            raise BadInput(
                shredded_text(runtime.purge.journal, gone.receipt_id), next_step="Nothing is left to read."
            )
        raise BadInput("the lake knows nobody of this id", next_step="Check the id.")
    return ref
