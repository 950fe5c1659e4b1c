"""Checkpoints in memory: nothing outlives the daemon, nothing waits for a disk."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IProducer
from zope.interface import implementer

from ftd.interfaces import IInPlaceSink, IStoringSink
from ftd.sinks.blocks import Arena, BlockRun, Share
from ftd.sinks.sink import SinkError
from ftd.status import Checkpoint
from ftd.wire.errors import ErrorCode


class _Account:
    """
    What the limit is about.

    :ivar bytes: of the blocks of what is held, or is pruned and still being read.
    :ivar lingering: how many of the latter there are.
    """

    __slots__ = ("bytes", "lingering")

    def __init__(self) -> None:
        self.bytes = 0
        self.lingering = 0


class _Held:
    """A committed checkpoint; its blocks are given back when it is pruned and nobody reads it any more."""

    __slots__ = ("_account", "checkpoint", "is_pruned", "readers", "run")

    def __init__(self, account: _Account, checkpoint: Checkpoint, run: BlockRun) -> None:
        self.checkpoint = checkpoint
        self.run = run
        self.readers = 0
        self.is_pruned = False
        self._account = account
        account.bytes += run.capacity

    def prune(self) -> None:
        self.is_pruned = True
        if self.readers:
            self._account.lingering += 1
        else:
            self._release()

    def closed(self) -> None:
        self.readers -= 1
        if self.is_pruned and not self.readers:
            self._account.lingering -= 1
            self._release()

    def _release(self) -> None:
        self._account.bytes -= self.run.capacity
        self.run.release()


@implementer(IStoringSink, IInPlaceSink)
class MemorySink:
    """
    :param keep: how many checkpoints are kept; older ones go after a newer one is committed.
    :param limit: bytes of memory that all of them, those that are pruned and still being read, and the open transaction
        may take, in whole blocks.
    :param arena: where the memory comes from; one of its own unless it is shared with other sinks.
    """

    def __init__(self, keep: int, limit: int, now: Callable[[], float] = time.time, arena: Arena | None = None) -> None:
        self._keep = keep
        self._limit = limit
        self._now = now
        self._arena = arena if arena is not None else Arena()
        self._share = Share(self._arena)
        self._held: list[_Held] = []
        self._account = _Account()
        self._open: BlockRun | None = None
        self._failure: SinkError | None = None
        self._number = 0

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Memory is never slow: the producer is not paused."""

    def unregisterProducer(self) -> None:
        """See `registerProducer`."""

    def begin(self) -> None:
        """See `ISink`."""
        if self._open is not None:
            self._open.release()
        self._open = BlockRun(self._arena)
        self._failure = None

    def write(self, data: bytes | memoryview) -> None:
        """See `ISink`."""
        run = self._open
        if run is None or self._failure is not None or run.write(data, self._limit - self._account.bytes):
            return
        run.release()
        lingering = self._account.lingering
        others = f" ({lingering} older ones are still being read)" if lingering else ""
        self._failure = SinkError(
            ErrorCode.REALLOC_BUF,
            f"{len(self._held)} checkpoints and this one need more than memory-limit, {self._limit} bytes{others};"
            " raise it or lower keep",
        )

    def room(self, size: int) -> Sequence[memoryview]:
        """See `IInPlaceSink`.  Over the limit there is none, and it is `write` that fails."""
        if self._open is None or self._failure is not None:
            return ()
        return self._open.room(size, self._limit - self._account.bytes)

    def filled(self, size: int) -> None:
        """See `IInPlaceSink`."""
        if self._open is not None and self._failure is None:
            self._open.filled(size)

    def commit(self, id: int, xxh3: str, generation: str) -> Deferred[Checkpoint]:
        """See `ISink`."""
        run, self._open = self._open, None
        assert run is not None, "nothing was begun"
        if self._failure is not None:
            return fail(self._failure)
        run.settle()
        self._number += 1
        checkpoint = Checkpoint(
            number=self._number,
            id=id,
            bytes=run.size,
            xxh3=xxh3,
            generation=generation,
            committed_at=self._now(),
        )
        self._held.append(_Held(self._account, checkpoint, run))
        # As much as the next transaction is likely to need is kept warm.
        self._share.expect(run)
        while len(self._held) > self._keep:
            self._held.pop(0).prune()
        return succeed(checkpoint)

    def abort(self) -> None:
        """See `ISink`."""
        if self._open is not None:
            self._open.release()
            self._open = None

    def failure(self) -> SinkError | None:
        """See `ISink`."""
        return self._failure

    def checkpoints(self) -> Sequence[Checkpoint]:
        """See `ICheckpointStore`."""
        return [held.checkpoint for held in self._held]

    def open(self, number: int) -> BinaryIO:
        """See `ICheckpointStore`."""
        for held in self._held:
            if held.checkpoint.number == number:
                return cast(BinaryIO, MemoryReader(held))
        raise KeyError(number)


class MemoryReader(io.RawIOBase):
    """A checkpoint as a file, whose bytes can also be had as they lie in memory."""

    def __init__(self, held: _Held) -> None:
        super().__init__()
        held.readers += 1
        self._held = held
        self._at = 0

    def views(self, first: int, end: int) -> Iterator[memoryview]:
        """
        The bytes from ``first`` to before ``end``, or to the last one, in order, without a copy.  They are good until
        this is closed: whoever sends them closes it when they have been sent.

        :raises ValueError: if it is closed.
        """
        self._check_open()
        return self._held.run.views(first, end)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._held.run.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        self._check_open()
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        done = 0
        for view in self._held.run.views(self._at, self._at + len(target)):
            target[done : done + len(view)] = view
            done += len(view)
        self._at += done
        return done

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._held.closed()

    def _check_open(self) -> None:
        if self.closed:
            # Its blocks may be somebody else's by now.
            raise ValueError("I/O operation on closed file")
