"""Errors of projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from keys import ShredlakeError


class ProjectionError(ShredlakeError):
    """Base of this package's errors."""


class DefinitionError(ProjectionError):
    """A view's definition is incomplete, not pure, or does not fit the event types."""

    whose_move = "caller"
    default_next_step = "Correct the view's class; docs/views.md has an example line by line."


class ViewFailed(ProjectionError):
    """The code of a view raised: its author has to act, the lake and the other views are in order.

    Its text names the view, the part, the kind of error and the place, and never a value. Out of memory and
    a lake, key or store out of reach are other errors.

    Attributes:
        view: the view's name.
        part: what failed: `fold`, `final`, a key, a measure or a check.
        kind: the name of the exception's class.
        detail: what else can be said without a value; may be empty.
        place: file and line in it where known; may be empty.
    """

    whose_move = "caller"
    default_next_step = (
        "Nothing was published. Mend the view so that it takes every value of the field "
        "(for a conversion: `strict=False`, which gives null), then build again."
    )

    def __init__(
        self,
        view: str,
        part: str,
        kind: str,
        *,
        detail: str = "",
        place: str = "",
        next_step: str | None = None,
    ) -> None:
        where = f" at {place}" if place else ""
        said = f": {detail}" if detail else ""
        super().__init__(f"view `{view}`: {part} failed with {kind}{where}{said}", next_step=next_step)
        self.view = view
        self.part = part
        self.kind = kind
        self.detail = detail
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., ViewFailed], tuple[Any, ...]]:
        # A worker of a build raises it in another process than the one that reports it.
        again = partial(type(self), detail=self.detail, place=self.place, next_step=self.next_step)
        return again, (self.view, self.part, self.kind)


class ViewHangs(ProjectionError):
    """A call of a view's code took longer than the settings allow; it was ended."""

    default_next_step = (
        "Look for a loop without an end in the view; code that needs so long gets it by"
        " `[projections] code_seconds` in the settings. Nothing was published."
    )

    def __init__(self, view: str, limit_seconds: float) -> None:
        super().__init__(f"the code of `{view}` did not end within {limit_seconds:g} s")
        self.view = view
        self.limit_seconds = limit_seconds

    def __reduce__(self) -> tuple[type[ViewHangs], tuple[str, float]]:
        return type(self), (self.view, self.limit_seconds)


class UnknownView(ProjectionError):
    """No view of this name is defined, or it was never published."""

    whose_move = "caller"
    default_next_step = "List the views with `shredlake views list`."


class NotPublished(ProjectionError):
    """Nothing was published at the time asked for."""

    whose_move = "caller"
    default_next_step = "List the publications with `shredlake views history VIEW`."


class PublicationDropped(NotPublished):
    """The publication asked for was dropped: its rows are gone, on purpose and for good."""

    default_next_step = "Ask for a moment of a publication that is kept: `shredlake views history VIEW`."


class PublicationExpired(NotPublished):
    """The publication asked for is on record, and another engine has expired the snapshot with its rows."""

    default_next_step = (
        "Ask for a moment of a publication that is kept (`shredlake views history VIEW`), or have it computed"
        " again from its inputs: `shredlake views show VIEW --as-of TIME --mode as_recomputed`. Keep other"
        " engines from expiring snapshots of the tables of views."
    )


class GateClosed(ProjectionError):
    """A check before publication failed; the published version stays."""

    default_next_step = "Look at the numbers in the message; mend the view or its check, then build again."


class ResultChanged(ProjectionError):
    """A view gave another result for the same input, erasures and holds, by the same code: it is no function.

    Attributes:
        view: the view's name; several are joined by commas.
    """

    whose_move = "caller"
    default_next_step = (
        "Nothing was published. Find what the view reads besides its events (chance, a clock, a file, the "
        "order of a set) and take it out, which makes a new version; or publish this result with "
        "`shredlake views build VIEW --rebuild --publish --accept-changed`."
    )

    def __init__(self, message: str, *, view: str, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.view = view

    @classmethod
    def of_all(cls, errors: Sequence[ResultChanged]) -> ResultChanged:
        """One error that names every view; at least one is given."""
        if len(errors) == 1:
            return errors[0]
        return cls("; ".join(one.message for one in errors), view=", ".join(one.view for one in errors))


class LedgerBehind(ProjectionError):
    """The record of publications went back: a later publication of the view is in the transparency log."""

    default_next_step = (
        "Restore views/ledger.db as it was last, or publish the view anew: `shredlake views publish VIEW`."
    )


class LakeBehind(ProjectionError):
    """The lake's tables went back: they lack what the record of publications names."""

    default_next_step = (
        "An older copy of the lake's folder was brought back, or of its warehouse or catalog: restore the"
        " newest one, and run this again. Where that is lost for good, restore views/ of the same time as"
        " well, and publish every view anew with `shredlake views publish`."
    )


class HeadAhead(ProjectionError):
    """The head of a view's table was published behind an erasure that the fence log at hand does not know."""

    default_next_step = (
        "An older fence log was brought back: restore the newest one (`shredlake doctor` says which), then"
        " publish."
    )


class StaleEpoch(ProjectionError):
    """The version was built before an erasure and would bring a person back, or its rows are dropped."""

    retry_helps = True
    default_next_step = "Build the view again: `shredlake views build VIEW`; then publish."


class SourceUnknown(ProjectionError):
    """The source of a publication is not to be had: never kept, dropped, or not what its digest says."""

    whose_move = "operator"
    default_next_step = (
        "Source is kept of what this release publishes, until the publications of its version are dropped:"
        " `shredlake views history VIEW` names the commit of each."
    )


class OlderBuild(ProjectionError):
    """The build reads an older input than what readers see of the view: they would lose events."""

    whose_move = "caller"
    default_next_step = (
        "Build from the newest events: `shredlake views publish VIEW`. Where readers are to see the older"
        " input: `shredlake views build VIEW --as-of MOMENT --publish --older`."
    )


class BuildUnderWay(ProjectionError):
    """Another process builds the view, and does not end."""

    retry_helps = True
    default_next_step = "Look whether a build hangs; run it again when it has ended."


class StateMoved(ProjectionError):
    """The states of a view were changed by somebody else while it was built."""

    retry_helps = True
    default_next_step = "Build the view again."


class StateDamaged(ProjectionError):
    """A view's partial state does not open; a rebuild makes it anew."""

    default_next_step = "Run `shredlake views build VIEW --rebuild`."
