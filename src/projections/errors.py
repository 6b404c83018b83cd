"""Errors of projections."""

from __future__ import annotations

from keys import ShredlakeError


class ProjectionError(ShredlakeError):
    """Base of this package's errors."""


class DefinitionError(ProjectionError):
    """A view's definition is incomplete, not pure, or does not fit the event types."""

    whose_move = "caller"
    default_next_step = "Correct the view's class; docs/views.md has an example line by line."


class UnknownView(ProjectionError):
    """No view of this name is defined, or it was never published."""

    whose_move = "caller"
    default_next_step = "List the views with `shredlake views list`."


class NotPublished(ProjectionError):
    """Nothing was published at the time asked for."""

    whose_move = "caller"
    default_next_step = "List the publications with `shredlake views history VIEW`."


class GateClosed(ProjectionError):
    """A check before publication failed; the published version stays."""

    default_next_step = "Look at the numbers in the message; mend the view or its check, then build again."


class StaleEpoch(ProjectionError):
    """The version was built before an erasure and would bring a person back."""

    retry_helps = True
    default_next_step = "Build the view again: `shredlake views build VIEW`; then publish."


class StateDamaged(ProjectionError):
    """A view's partial state does not open; a rebuild makes it anew."""

    default_next_step = "Run `shredlake views build VIEW --rebuild`."
