"""Reads and parses the next batch of a file while this one is sealed: in a thread or a process of its own."""

from __future__ import annotations

import abc
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Final

from keys import masked_end, unexpected
from lake.errors import LakeError, UnreadableInput
from lake.parsed import Parsed
from lake.salvage import NOTHING, Aside
from lake.sources import DEFAULT_BATCH_EVENTS, JsonLinesFile, Source

WORTH_IT_BYTES: Final = 32 * 1024 * 1024


def with_read_ahead(source: Source) -> Source:
    """The source, read ahead where it is large and a second core is there."""
    if source.total_bytes < WORTH_IT_BYTES or len(os.sched_getaffinity(0)) < 2:
        return source
    # JSON becomes columns inside a library that leaves the interpreter to us; other formats are cut in it.
    return ReadAhead(source) if isinstance(source, JsonLinesFile) else ReadAheadProcess(source)


class _Ahead(abc.ABC):
    """Another source, at most one batch ahead.

    Args:
        source: is read in one thread, or process, at a time.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name = source.name
        self.feed = source.feed
        self.total_bytes = source.total_bytes

    @abc.abstractmethod
    def read(
        self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS, aside: Aside = NOTHING
    ) -> Iterator[Parsed]:
        """Batches from line `start` on.

        Raises:
            UnreadableInput: the input could not be read. Of a foreign error the type alone is told: its text
                may quote a value.
        """


class ReadAhead(_Ahead):
    """In a thread of this process."""

    def read(
        self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS, aside: Aside = NOTHING
    ) -> Iterator[Parsed]:
        batches = self._source.read(start, batch_events, aside)
        with ThreadPoolExecutor(1, "read-ahead") as thread:
            coming = thread.submit(next, batches, None)
            while (parsed := _result(coming)) is not None:
                coming = thread.submit(next, batches, None)
                yield parsed


class ReadAheadProcess(_Ahead):
    """In a process of its own; the source is picklable. Events cross a pipe; nothing touches the disk."""

    def read(
        self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS, aside: Aside = NOTHING
    ) -> Iterator[Parsed]:
        # Spawned, not forked: Polars keeps threads that do not survive a fork.
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        arguments = (self._source, start, batch_events, aside, sender)
        process = context.Process(target=_send_batches, args=arguments, daemon=True)
        process.start()
        sender.close()  # so that the end of the process is the end of the pipe
        try:
            while (parsed := _received(receiver)) is not None:
                yield parsed
        finally:
            process.terminate()  # it has nothing to lose
            process.join()
            receiver.close()


def _result(coming: Future[Parsed | None]) -> Parsed | None:
    try:
        return coming.result()
    except LakeError:
        raise
    except Exception as error:
        raise _foreign(error) from None


def _foreign(error: Exception) -> UnreadableInput:
    return UnreadableInput(f"the input could not be read: {unexpected(error).message}")


def _received(receiver: Connection) -> Parsed | None:
    try:
        message = receiver.recv()
    except (EOFError, OSError):  # between two messages, or inside one
        raise UnreadableInput(
            "the process that reads the input ended early",
            next_step="Run the same command again; what is ingested stays, and nothing is ingested twice.",
        ) from None
    if isinstance(message, LakeError):
        raise message
    assert message is None or isinstance(message, Parsed)
    return message


def _send_batches(source: Source, start: int, batch_events: int, aside: Aside, sender: Connection) -> None:
    with masked_end():
        _read_and_send(source, start, batch_events, aside, sender)


def _read_and_send(source: Source, start: int, batch_events: int, aside: Aside, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sealing process decides
    try:
        for parsed in source.read(start, batch_events, aside):
            sender.send(parsed)
        sender.send(None)
    except BrokenPipeError:
        pass  # the sealing process stopped first
    except LakeError as error:
        sender.send(error)
    except Exception as error:
        sender.send(_foreign(error))
