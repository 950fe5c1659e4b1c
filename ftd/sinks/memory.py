"""Checkpoints in memory: nothing outlives the daemon, nothing waits for a disk."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, cast

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProducer
from zope.interface import implementer

from ftd.interfaces import IStoringSink
from ftd.sinks.blocks import BLOCK_SIZE, BlockPool, BlockRun
from ftd.sinks.sink import SinkError
from ftd.status import Checkpoint
from ftd.wire.errors import ErrorCode


@attrs.define(eq=False)
class _Held:
    """A committed checkpoint; its blocks are given back when it is pruned and nobody reads it any more."""

    checkpoint: Checkpoint
    run: BlockRun
    readers: int = 0
    is_pruned: bool = False

    def release_if_unused(self) -> None:
        if self.is_pruned and not self.readers:
            self.run.release()


@implementer(IStoringSink)
class MemorySink:
    """
    :param keep: how many checkpoints are kept; older ones go after a newer one is committed.
    :param limit: bytes of memory that all of them and the open transaction may take, in whole blocks.
    """

    def __init__(self, keep: int, limit: int, now: Callable[[], float] = time.time) -> None:
        self._keep = keep
        self._limit = limit
        self._now = now
        self._pool = BlockPool(spare=0)
        self._held: list[_Held] = []
        self._open: BlockRun | None = None
        self._failure: SinkError | None = None
        self._number = 0

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Memory is never slow: the producer is not paused."""

    def unregisterProducer(self) -> None:
        """See `registerProducer`."""

    def begin(self) -> None:
        """See `ISink`."""
        self._open = BlockRun(self._pool)
        self._failure = None

    def write(self, data: bytes | memoryview) -> None:
        """See `ISink`."""
        if self._open is None or self._failure is not None:
            return
        held = sum(len(held.run.blocks) for held in self._held)
        if (held + self._open.blocks_for(len(data))) * BLOCK_SIZE > self._limit:
            self._open.release()
            self._failure = SinkError(
                ErrorCode.REALLOC_BUF,
                f"{len(self._held)} checkpoints and this one need more than memory-limit, {self._limit} bytes;"
                " raise it or lower keep",
            )
            return
        self._open.write(data)

    def commit(self, id: int, xxh3: str, generation: str) -> Deferred[Checkpoint]:
        """See `ISink`."""
        run, self._open = self._open, None
        assert run is not None, "nothing was begun"
        if self._failure is not None:
            failed: Deferred[Checkpoint] = Deferred()
            failed.errback(self._failure)
            return failed
        self._number += 1
        checkpoint = Checkpoint(
            number=self._number,
            id=id,
            bytes=run.size,
            xxh3=xxh3,
            generation=generation,
            committed_at=self._now(),
        )
        self._held.append(_Held(checkpoint, run))
        # As much as the next transaction is likely to need is kept warm.
        self._pool.spare = len(run.blocks)
        while len(self._held) > self._keep:
            oldest = self._held.pop(0)
            oldest.is_pruned = True
            oldest.release_if_unused()
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
                return cast(BinaryIO, _Reader(held))
        raise KeyError(number)


class _Reader(io.RawIOBase):
    """A checkpoint as a file."""

    def __init__(self, held: _Held) -> None:
        super().__init__()
        held.readers += 1
        self._held = held
        self._at = 0

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
        if self.closed:
            # Its blocks may be somebody else's by now.
            raise ValueError("I/O operation on closed file")
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        run = self._held.run
        size = max(0, min(len(target), run.size - self._at))
        done = 0
        while done < size:
            block, offset = divmod(self._at, BLOCK_SIZE)
            step = min(size - done, BLOCK_SIZE - offset)
            target[done : done + step] = memoryview(run.blocks[block])[offset : offset + step]
            self._at += step
            done += step
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._held.readers -= 1
            self._held.release_if_unused()
