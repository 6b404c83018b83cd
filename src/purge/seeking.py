"""Who is meant by a request, also where no key tells: dead letters and waiting batches are looked through."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from keys import DEFAULT_PURPOSE, Keyring, Provisioned, SubjectId
from lake import Lake, LetterRedaction, Needles
from purge.errors import UnknownSubject
from purge.journal import Request
from purge.stages import Status


@frozen
class Traces:
    """What names a person outside of everything that is sealed under their own key.

    Attributes:
        letters: dead letters that are nobody's.
        waiting: batches that came over HTTP and are not committed yet.
    """

    letters: int = 0
    waiting: int = 0

    @property
    def any(self) -> bool:
        """Whether there is something."""
        return bool(self.letters or self.waiting)


def nothing_stored() -> UnknownSubject:
    """The error that says so, once everything was looked through."""
    return UnknownSubject(
        "nothing is stored of this person: neither events, nor dead letters, nor batches that wait"
    )


class Seeking:
    """Looks for people whom the index of handles does not know.

    Args:
        redaction: knows the letters that are nobody's.
    """

    def __init__(self, lake: Lake, redaction: LetterRedaction) -> None:
        self._keyring: Keyring = lake.keyring
        self._lake = lake
        self._redaction = redaction

    def traces(self, subject: SubjectId) -> Traces:
        """Looks through what waits, then through the letters: what is committed meanwhile is in the latter.

        Raises:
            IntakeUnreadable, KeysError, StorageFailed: not everything could be looked at, so nothing is said.
        """
        holds: Callable[[bytes], bool] = Needles(subject).names
        waiting = self._lake.intake.count_naming(holds)
        return Traces(letters=self._redaction.count(holds), waiting=waiting)

    def handle_or_request(
        self, subject: SubjectId, earlier: Request | None, suppress: bool
    ) -> bytes | Request:
        """For whom the index does not know: a handle to erase, or the earlier request that answers this one.

        Args:
            earlier: the newest request of this person.
            suppress: also of whom nothing is found.

        Raises:
            UnknownSubject: nothing is found, and nothing was erased.
        """
        if earlier is not None and earlier.status not in (Status.COMPLETED, Status.CANCELLED):
            return earlier
        is_erased = earlier is not None and earlier.status is Status.COMPLETED
        if self.traces(subject).any or (suppress and not is_erased):
            return self.handle_for(subject)
        if earlier is not None and is_erased:
            return earlier
        ref = self._keyring.ref_of(subject)  # what waited may have been committed meanwhile
        if ref is None:
            raise nothing_stored()
        return ref

    def handle_for(self, subject: SubjectId) -> bytes:
        """A handle to fence where there is none: from then on whatever comes of this person is refused.

        Whoever is not erased is named by it, so that an event which comes before the fence goes with it.
        """
        (given,) = self._keyring.provision([subject], DEFAULT_PURPOSE)
        if isinstance(given, Provisioned):
            return given.ref
        return self._keyring.mint(1, DEFAULT_PURPOSE)[0].ref
