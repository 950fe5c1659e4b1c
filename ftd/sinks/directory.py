"""
Checkpoints in a directory: received as they arrive, durable before they count.

What arrives is read, or copied, into blocks; a thread writes full blocks as they lie while the next ones fill.  When
more than a bounded number of bytes wait for the disk, the receiver is paused.  All system calls happen in the thread,
one batch after the other, so their order is the order of the calls here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.interfaces import IInPlaceSink, IStoringSink
from ftd.sinks import checkpoint_files
from ftd.sinks.blocks import BLOCK_SIZE, Arena, BlockRun, Share
from ftd.sinks.sink import SinkError, cannot_store
from ftd.status import Checkpoint

_T = TypeVar("_T")

#: Bytes that may wait for the disk before the receiver is paused.
BUFFER: Final = 16 * 1024 * 1024

#: So much at a time goes to the thread.
_BATCH: Final = BLOCK_SIZE

#: What a run may take: it is the pauses that bound it.
_NO_LIMIT: Final = 1 << 62


class RunInThread(Protocol):
    """Runs a function that blocks, and fires with its result."""

    def __call__(self, act: Callable[[], _T], /) -> Deferred[_T]: ...


@implementer(IStoringSink, IInPlaceSink)
class DirectorySink:
    """
    :param keep: how many checkpoints are kept; older ones go after a newer one is durable.
    :param buffer: bytes that may wait for the disk before the receiver is paused, which goes on at half of them.
    :param arena: where the memory comes from; one of its own unless it is shared with other sinks.
    """

    log = Logger()

    def __init__(
        self,
        directory: Path,
        keep: int,
        run_in_thread: RunInThread,
        now: Callable[[], float] = time.time,
        *,
        buffer: int = BUFFER,
        arena: Arena | None = None,
    ) -> None:
        self._directory = directory
        self._keep = keep
        self._run_in_thread = run_in_thread
        self._now = now
        self._one_at_a_time = DeferredLock()
        self._buffer = buffer
        self._arena = arena if arena is not None else Arena()
        self._share = Share(self._arena)
        self._checkpoints: list[Checkpoint] = []
        self._producer: IPushProducer | None = None
        self._is_paused = False
        # Of the open transaction: what has not been given to the thread yet.
        self._run = BlockRun(self._arena, BLOCK_SIZE)
        # Bytes that have been, of whichever transaction, and are not written.
        self._waiting = 0
        # The most blocks of the open transaction that were, and how many are kept warm for the next one.
        self._most_blocks = 0
        self._kept_blocks = 0
        # Files that could not be removed when they had to be; the thread's.
        self._leftovers: list[checkpoint_files.PartialFile] = []
        self._incoming = _Incoming(directory, self._leftovers)

    def recover(self) -> None:
        """
        Find out what the directory holds and clean up after a crash; once, before anything else.

        :raises OSError: if it cannot be used.
        """
        self._checkpoints = checkpoint_files.recover(self._directory)

    # The sink

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The receiver, which is paused while the disk is behind."""
        assert streaming and IPushProducer.providedBy(producer), "a receiver is a push producer"
        self._producer = producer
        self._is_paused = False
        self._regulate()

    def unregisterProducer(self) -> None:
        """The receiver is gone."""
        self._producer = None

    def begin(self) -> None:
        """See `ISink`."""
        self._run.release()
        self._run = BlockRun(self._arena, BLOCK_SIZE)
        self._most_blocks = 0
        self._incoming = _Incoming(self._directory, self._leftovers)

    def write(self, data: bytes | memoryview) -> None:
        """See `ISink`."""
        if self._incoming.failure is not None:
            self._run.release()
            return
        self._run.write(data, _NO_LIMIT)
        self._write_out_full()

    def room(self, size: int) -> Sequence[memoryview]:
        """See `IInPlaceSink`."""
        return self._run.room(size, _NO_LIMIT) if self._incoming.failure is None else ()

    def filled(self, size: int) -> None:
        """See `IInPlaceSink`."""
        # The disk may have failed while the room was being filled.
        if self._incoming.failure is not None:
            self._run.release()
            return
        self._run.filled(size)
        self._write_out_full()

    def commit(self, id: int, xxh3: str, generation: str) -> Deferred[Checkpoint]:
        """See `ISink`."""
        self._write_out_rest()
        incoming = self._incoming
        number = self._checkpoints[-1].number + 1 if self._checkpoints else 1

        def publish() -> Checkpoint:
            return incoming.publish(number, id, xxh3, generation, self._now())

        published = self._in_thread(publish)
        published.addCallback(self._published)
        return published

    def abort(self) -> None:
        """See `ISink`."""
        self._run.release()
        self._in_thread(self._incoming.discard).addErrback(self._log_failure, "discarding an unfinished checkpoint")

    def failure(self) -> SinkError | None:
        """See `ISink`."""
        return self._incoming.failure

    # The store

    def checkpoints(self) -> Sequence[Checkpoint]:
        """See `ICheckpointStore`."""
        return list(self._checkpoints)

    def open(self, number: int) -> BinaryIO:
        """See `ICheckpointStore`."""
        for checkpoint in self._checkpoints:
            if checkpoint.number == number:
                try:
                    return (self._directory / checkpoint_files.file_name(checkpoint)).open("rb")
                except FileNotFoundError:
                    self.log.error("checkpoint {number} has vanished from {path}", number=number, path=self._directory)
        raise KeyError(number)

    # Threads

    def _in_thread(self, act: Callable[[], _T]) -> Deferred[_T]:
        """Run ``act`` in a thread, after all that was given before it."""
        return self._one_at_a_time.run(lambda: self._run_in_thread(act))

    def _write_out_full(self) -> None:
        """Give the thread the blocks that are full, once there is a batch of them."""
        if self._run.size >= _BATCH:
            blocks = self._run.take_full()
            self._write_out(blocks, list(blocks))
            # What the thread has, and one that fills meanwhile.
            self._most_blocks = max(self._most_blocks, self._waiting // BLOCK_SIZE + 1)
            if self._most_blocks > self._kept_blocks:
                self._keep_blocks(self._most_blocks)

    def _write_out_rest(self) -> None:
        """Give the thread all that there is."""
        run = self._run
        run.settle()
        self._expect_another(run)
        views = list(run.views(0, run.size))
        blocks, self._run = run.blocks, BlockRun(self._arena, BLOCK_SIZE)
        self._write_out(blocks, views)

    def _expect_another(self, run: BlockRun) -> None:
        """The next transaction is likely to need as many blocks as this one, of which ``run`` is the rest."""
        if not run.before:
            self._kept_blocks = 0
            self._share.expect(run)
        elif self._most_blocks != self._kept_blocks:
            self._keep_blocks(self._most_blocks)

    def _keep_blocks(self, count: int) -> None:
        self._kept_blocks = count
        self._share.expect_blocks([BLOCK_SIZE] * count)

    def _write_out(self, blocks: list[memoryview], views: list[memoryview]) -> None:
        if not blocks:
            return
        size = sum(map(len, blocks))
        self._waiting += size
        incoming = self._incoming

        def written(result: object) -> None:
            self._waiting -= size
            self._arena.give(blocks)
            self._regulate()
            if isinstance(result, Failure):
                self._log_failure(result, "writing a checkpoint")

        self._in_thread(lambda: incoming.write(views)).addBoth(written)
        self._regulate()

    def _regulate(self) -> None:
        must_pause = self._waiting >= (self._buffer // 2 if self._is_paused else self._buffer)
        if self._producer is not None and must_pause != self._is_paused:
            self._is_paused = must_pause
            if must_pause:
                self._producer.pauseProducing()
            else:
                self._producer.resumeProducing()

    def _published(self, checkpoint: Checkpoint) -> Checkpoint:
        self._checkpoints.append(checkpoint)
        pruned = self._checkpoints[: -self._keep]
        del self._checkpoints[: -self._keep]
        if pruned:
            self._in_thread(lambda: self._remove(pruned)).addErrback(self._log_failure, "pruning old checkpoints")
        return checkpoint

    def _remove(self, checkpoints: list[Checkpoint]) -> None:
        for checkpoint in checkpoints:
            (self._directory / checkpoint_files.file_name(checkpoint)).unlink(missing_ok=True)

    def _log_failure(self, failure: Failure, doing: str) -> None:
        self.log.failure("{doing} in {path}", failure, doing=doing, path=self._directory)


class _Incoming:
    """
    One transaction on its way to the disk.  Its methods run in the thread; its failure is read outside of it.

    :param leftovers: what earlier ones could not remove, and what this one cannot.
    """

    def __init__(self, directory: Path, leftovers: list[checkpoint_files.PartialFile]) -> None:
        self.failure: SinkError | None = None
        self._directory = directory
        self._leftovers = leftovers
        self._file: checkpoint_files.PartialFile | None = None
        self._size = 0

    def write(self, views: list[memoryview]) -> None:
        """Append them all; after a failure nothing is written any more."""
        if self.failure is not None:
            return
        self._size += sum(map(len, views))
        try:
            self._opened().write(views)
        except OSError as error:
            self._fail(error)

    def publish(self, number: int, id: int, xxh3: str, generation: str, now: float) -> Checkpoint:
        """Make it a checkpoint.  :raises SinkError: if that, or an earlier write, failed."""
        checkpoint = Checkpoint(
            number=number, id=id, bytes=self._size, xxh3=xxh3, generation=generation, committed_at=now
        )
        if self.failure is None:
            try:
                self._opened().publish(checkpoint)
                self._file = None
            except OSError as error:
                self._fail(error)
        if self.failure is not None:
            raise self.failure
        return checkpoint

    def discard(self) -> None:
        """Leave nothing behind; what cannot be removed now has to be before the next file is opened."""
        if self._file is not None:
            self._leftovers.append(self._file)
            self._file = None
        self._clean_up()

    def _clean_up(self) -> None:
        while self._leftovers:
            self._leftovers[-1].discard()
            self._leftovers.pop()

    def _opened(self) -> checkpoint_files.PartialFile:
        if self._file is None:
            self._clean_up()
            self._file = checkpoint_files.PartialFile(self._directory)
        return self._file

    def _fail(self, error: OSError) -> None:
        self.failure = cannot_store(f"cannot store a checkpoint in {self._directory}", error)
        with suppress(OSError):
            self.discard()
