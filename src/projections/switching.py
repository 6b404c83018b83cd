"""What no publication may do when readers are switched to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from projections.errors import OlderBuild, PublicationDropped, StaleEpoch

if TYPE_CHECKING:
    from projections.ledger import Dropped, Publication


def is_behind(publication: Publication, since: int, epoch: int) -> bool:
    """Whether it could bring a person back who was erased after the epoch `since`.

    Rows of a subject-grain view die with their keys; only aggregates can.
    """
    return publication.personal and publication.grain == "aggregate" and since < epoch


def refuse_stale(publications: list[Publication], epoch: int) -> None:
    """Raises `StaleEpoch` where one of them could bring somebody back."""
    for one in publications:
        if is_behind(one, one.epoch, epoch):
            raise StaleEpoch(f"`{one.view}` was built at epoch {one.epoch}, erasures stand at {epoch}")


def refuse_older(one: Publication, seen: Publication | None) -> None:
    """Raises `OlderBuild` of a publication that reads an older input than what readers see of its view."""
    if seen is not None and one.input_sequence < seen.input_sequence:
        raise OlderBuild(
            f"this build of `{one.view}` reads events up to commit {one.input_sequence}, what is published"
            f" reads up to commit {seen.input_sequence}"
        )


def refuse_gone(one: Publication, recorded: int, dropped: Mapping[int, Dropped]) -> None:
    """Raises `StaleEpoch` where the record of this very build was dropped since it was built."""
    if recorded in dropped:
        raise StaleEpoch(f"`{one.view}`: {dropped[recorded].words()}, since it was built")


def refuse_dropped(publications: list[Publication], dropped: Mapping[int, Dropped]) -> None:
    """Raises `PublicationDropped` where one of them is not kept."""
    for one in publications:
        if one.publication_id in dropped:
            raise PublicationDropped(dropped[one.publication_id].words())
