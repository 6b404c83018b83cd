"""Errors of erasures and receipts."""

from __future__ import annotations

from keys import ShredlakeError


class PurgeError(ShredlakeError):
    """Base of this package's errors."""


class UnknownRequest(PurgeError):
    """No erasure request has this id."""

    whose_move = "caller"
    default_next_step = "List the requests with `shredlake erase list`."


class UnknownSubject(PurgeError):
    """Nothing is stored of this person, and nothing was erased."""

    whose_move = "caller"
    default_next_step = (
        "Check the id; ids are compared letter by letter. To refuse whatever comes of them later,"
        " ask with `suppress` (`--suppress`)."
    )


class UnknownPurpose(PurgeError):
    """The person has no key for the purpose that was named."""

    whose_move = "caller"
    default_next_step = "Check the purpose's spelling, or erase the whole person."


class UnderHold(PurgeError):
    """A legal hold forbids the erasure now; it goes on by itself on release."""

    default_next_step = "Release the hold with `shredlake erase release`, then run the request again."


class NotCancellable(PurgeError):
    """The request is past the fence; an erasure cannot be taken back."""

    whose_move = "caller"
    default_next_step = "Wait for its receipt."


class IdempotencyConflict(PurgeError):
    """The same idempotency key came with another request."""

    whose_move = "caller"
    default_next_step = "Use a new idempotency key for a new request."


class VerificationFailed(PurgeError):
    """A check after the erasure failed; the request stays incomplete."""

    default_next_step = "Look at the named check, mend it, then run `shredlake erase apply --resume`."


class ReceiptInvalid(PurgeError):
    """A receipt does not verify."""

    whose_move = "caller"
    default_next_step = "Ask the operator for the receipt again; this copy was changed."
