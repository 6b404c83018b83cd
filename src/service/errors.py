"""Errors of the service."""

from __future__ import annotations

from keys import ShredlakeError


class ServiceError(ShredlakeError):
    """Base of this package's errors."""


class BadSettings(ServiceError):
    """A setting is unknown or has a value that does not fit."""

    default_next_step = "Correct shredlake.toml or the environment; `shredlake config show` lists all."


class NotInitialised(ServiceError):
    """The folder holds no lake."""

    whose_move = "caller"
    default_next_step = "Run `shredlake init` first, or name the folder with --home."


class UnsafeBind(ServiceError):
    """The server would listen beyond this machine without TLS."""

    default_next_step = "Set server.tls_cert and server.tls_key, or pass --allow-insecure-bind."


class FenceCopyNotWritten(ServiceError):
    """A copy of the fence log could not be written, or knows what the log here does not."""

    retry_helps = True
    default_next_step = "Reach the place again, or see what `shredlake doctor` says of its copy."


class WorkerFailed(ServiceError):
    """A worker process died or failed in a way that has no name."""

    retry_helps = True
    default_next_step = "See logs/shredlake.log in the lake's folder, then run the command again."


class DrillRunning(ServiceError):
    """Another backup drill of this lake is under way."""

    whose_move = "nobody"
    retry_helps = True
    default_next_step = "Wait until it is over, then repeat."


class DrillInvalid(ServiceError):
    """What a backup drill wrote is not in its own backup, so that its result would mean nothing."""

    default_next_step = "Repeat the drill; if it happens again, look for what changes temporary folders."


class ScanIncomplete(ServiceError):
    """A scan could not look into everything, so it has not said where a person is not."""

    default_next_step = "Mend or remove what is named (`shredlake doctor`), then scan again."


class BadInput(ServiceError):
    """An argument does not fit."""

    whose_move = "caller"
    default_next_step = "See `--help`."


class NearestRefused(BadInput):
    """A view's answer was asked for by the nearest kept moment."""

    default_next_step = (
        "Leave `nearest` out: the answer is what readers saw at that very moment. `shredlake views history"
        " VIEW` lists the publications; events alone are read with `lake read --nearest`."
    )

    def __init__(self) -> None:
        super().__init__("what a view reported or recomputes for a moment is never taken from another one")
