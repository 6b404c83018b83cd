"""Derives published views anew for an erasure, so that no view can hold an erasure up.

A view's code is the analyst's: it may raise, leave the process, fail its own check, or be gone. What cannot
be derived anew is withdrawn, or served on and marked stale where the settings say so; its name and the
reason are kept until it builds again. An outage of keys or lake is no fault of a view and is raised.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Final

import polars as pl
from attrs import field, frozen

from keys import KeysError
from lake import LakeError, UnknownEventType
from projections.built import Built
from projections.errors import (
    BuildUnderWay,
    DefinitionError,
    GateClosed,
    LakeBehind,
    OlderBuild,
    ProjectionError,
    ResultChanged,
    StaleEpoch,
    StateDamaged,
    ViewHangs,
)

if TYPE_CHECKING:
    from projections.views import Views

EVERY_VIEW: Final = "*"
_TRIES: Final = 20
_WAIT_SECONDS: Final = 300.0
"""For a build under way of the same view; one that hangs is no reason to wait for ever."""
_OF_VIEWS: Final = (Exception, SystemExit, pl.exceptions.PanicException)
_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (GateClosed, "a check of it failed"),
    (BuildUnderWay, "another build of it does not end"),
    (DefinitionError, "its definition does not fit"),
    (UnknownEventType, "it reads an event type that is not registered"),
    (StateDamaged, "its kept state does not open"),
    (ResultChanged, "it gives another result for the same input"),
    (ViewHangs, "its code does not end"),
    (LakeBehind, "an older copy of the lake's tables was brought back, which lacks its publication"),
    (ProjectionError, "its code failed"),
    (BrokenProcessPool, "the process that computed it died"),
    (SystemExit, "its code left the process"),
    (RecursionError, "its code calls itself without end"),
    (MemoryError, "there was not enough memory for it"),
)
_OUTAGES: Final = (KeysError, LakeError, OSError, sqlite3.Error, StaleEpoch)
NO_CODE: Final = "there is no code for it"


@frozen
class Rederived:
    """What became of the views that an erasure touches.

    Attributes:
        published: derived anew, and switched to.
        withdrawn: view → why readers see it no more.
        stale: view → why readers still see the version of before the erasure.
    """

    published: tuple[str, ...] = ()
    withdrawn: Mapping[str, str] = field(factory=dict)
    stale: Mapping[str, str] = field(factory=dict)


def fault_of(error: BaseException) -> str | None:
    """Why a view could not be built, without a value of anybody; None where keys or lake failed it."""
    if isinstance(error, _OUTAGES) and not isinstance(error, UnknownEventType):
        return None
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return "its code failed"


def rederive(views: Views, *, who: str, why: str, serve_stale: Collection[str] = ()) -> Rederived:
    """Brings every published personal view to the newest fence; repeating it is success.

    Args:
        serve_stale: views that are served on where they cannot be derived anew; `*` stands for all.

    Raises:
        KeysError, LakeError, OSError: keys or lake do not answer; the views stay as they are.
        StaleEpoch: erasures came faster than the views could be built.
    """
    with contextlib.suppress(DefinitionError):  # a view may have been published since this process began
        views.registry.refresh()
    release = views.ledger.current()
    published = dict(release.entries) if release is not None else {}
    touched = [name for name, at in published.items() if _is_personal(views, name, at)]
    wanted = [*touched, *(name for name in views.ledger.withdrawn() if name not in touched)]
    failed = {name: NO_CODE for name in wanted if name not in views.registry.names()}
    failed |= given_up(views, [name for name in wanted if name not in failed])
    todo = [name for name in wanted if name not in failed]
    done: tuple[str, ...] = ()
    for last in [False] * (_TRIES - 1) + [True]:
        built, unbuilt = build_each(views, todo, who, why)
        failed |= unbuilt
        todo = [name for name in todo if name not in unbuilt]
        try:
            if built:
                # An erasure does not wait for newer events: an older table may have been brought back.
                views.publish(built, older=last, who=who, why=why)
        except (OlderBuild, StaleEpoch):  # somebody else's build or fence came meanwhile
            if last:
                raise
            continue
        done = tuple(todo)
        break
    stale = {
        name: reason
        for name, reason in failed.items()
        if name in published and not {name, EVERY_VIEW}.isdisjoint(serve_stale)
    }
    gone = {name: reason for name, reason in failed.items() if name in published and name not in stale}
    views.ledger.set_aside(gone, stale, epoch=views.epoch, who=who, why=why)
    views.heads.enforce()
    return Rederived(done, gone, stale)


def bring_back(views: Views, *, who: str, why: str) -> list[str]:
    """Builds and publishes what was withdrawn or went stale and builds again; returns those views.

    Raises:
        KeysError, LakeError, OSError: keys or lake do not answer.
    """
    aside = [name for name in views.ledger.aside() if name in views.registry.names()]
    hopeless = given_up(views, aside)
    built, _ = build_each(views, [name for name in aside if name not in hopeless], who, why)
    try:
        if built:
            views.publish(built, who=who, why=why)
    except (OlderBuild, StaleEpoch):  # built or erased meanwhile: the next look tries again
        return []
    return [one.publication.view for one in built]


def given_up(views: Views, names: Sequence[str]) -> dict[str, str]:
    """Which of these views hung or killed the process that built them, as their code is now, and how."""
    found = {}
    for name in names:
        try:
            reason = views.builder.watch.given_up(name, views.builder.version_of(views.registry.get(name)))
        except _OF_VIEWS as error:
            if fault_of(error) is None:
                raise
            continue  # its build says why
        if reason is not None:
            found[name] = reason
    return found


def build_each(views: Views, names: Sequence[str], who: str, why: str) -> tuple[list[Built], dict[str, str]]:
    """Builds views in one scan, and in several where that fails: (built, view → reason).

    Raises:
        KeysError, LakeError, OSError: keys or lake do not answer.
    """
    if not names:
        return [], {}
    try:
        return views.build(names, who=who, why=why, wait_seconds=_WAIT_SECONDS), {}
    except _OF_VIEWS as error:
        reason = fault_of(error)
        if reason is None:
            raise
        if len(names) == 1:
            return [], {names[0]: reason}
        apart, failed = [[name] for name in names], dict[str, str]()
        if isinstance(error, ViewHangs):  # it is not waited for a second time
            apart, failed = [[name for name in names if name != error.view]], {error.view: reason}
    built: list[Built] = []
    for some in apart:
        one, unbuilt = build_each(views, some, who, why)
        built += one
        failed |= unbuilt
    return built, failed


def _is_personal(views: Views, name: str, publication_id: int) -> bool:
    """By what was published or by the code of today: either may be the only one that can say."""
    if views.ledger.publication(publication_id).personal:
        return True
    return name in views.registry.names() and views.is_personal(name)
